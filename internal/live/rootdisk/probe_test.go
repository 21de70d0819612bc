package rootdisk

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/disk"
)

func with(b []byte, at int, v ...byte) []byte {
	copy(b[at:], v)
	return b
}

func TestProbe(t *testing.T) {
	all := disk.Area{Where: disk.Where{Part: 1}, At: []disk.Stretch{{Off: 4096, Len: 1<<20 - 4096}}}
	put := func(at int, v ...byte) []byte { return with(make([]byte, 1<<20), 4096+at, v...) }
	const id = "01020304-0506-0708-090a-0b0c0d0e0f10"
	bytesOfID := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	clean := with(put(extMagic, 0x53, 0xef, 1), 4096+extUUID, bytesOfID...)
	xfs := with(with(put(0, 'X', 'F', 'S', 'B'), 4096+xfsUUID, bytesOfID...), 4096+xfsLog, 0, 0, 0, 0, 0, 0, 0, 4)
	btrfs := with(with(put(btrfsSuper+btrfsMagic, []byte("_BHRfS_M")...), 4096+btrfsSuper+btrfsUUID, bytesOfID...), 4096+btrfsSuper+btrfsDevices, 1)
	for _, tt := range []struct {
		name string
		on   []byte
		want fileSystem
		err  error
	}{
		{"ext4", clean, fileSystem{Area: all, kind: "ext4", uuid: id}, nil},
		{"ext4 that was not unmounted", with(bytes.Clone(clean), 4096+extIncompatible, 4), fileSystem{Area: all, kind: "ext4", uuid: id}, errUnclean},
		{"ext2 that was not unmounted", with(bytes.Clone(clean), 4096+extState, 0), fileSystem{Area: all, kind: "ext4", uuid: id}, errUnclean},
		{"XFS", xfs, fileSystem{Area: all, kind: "xfs", uuid: id}, nil},
		{"XFS with a log elsewhere", with(bytes.Clone(xfs), 4096+xfsLog, make([]byte, 8)...), fileSystem{Area: all, kind: "XFS whose log is on another disk", uuid: id}, nil},
		{"btrfs", btrfs, fileSystem{Area: all, kind: "btrfs", uuid: id}, nil},
		{"btrfs with a log", with(bytes.Clone(btrfs), 4096+btrfsSuper+btrfsLog, 1), fileSystem{Area: all, kind: "btrfs", uuid: id}, errUnclean},
		{"btrfs on two disks", with(bytes.Clone(btrfs), 4096+btrfsSuper+btrfsDevices, 2), fileSystem{Area: all, kind: "btrfs that has several disks", uuid: id}, nil},
		{"nothing", put(0), fileSystem{Area: all}, nil},
	} {
		got, err := probe(io.NewSectionReader(bytes.NewReader(tt.on), 4096, all.Len()), all)
		if !errors.Is(err, tt.err) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

// FuzzProbe states that a superblock of any content is read within its part of the disk, and that what is mountable has a UUID.
func FuzzProbe(f *testing.F) {
	f.Add(extMagic, []byte{0x53, 0xef})
	f.Add(0, []byte("XFSB"))
	f.Add(btrfsSuper+btrfsMagic, []byte("_BHRfS_M"))
	f.Fuzz(func(t *testing.T, at int, b []byte) {
		on := make([]byte, 1<<17)
		if at >= 0 && at < len(on) {
			copy(on[at:], b)
		}
		for _, size := range []int64{0, 2047, 2048, btrfsSuper + 2047, 1 << 17} {
			part := disk.Area{At: []disk.Stretch{{Len: size}}}
			fs, err := probe(io.NewSectionReader(bytes.NewReader(on), 0, size), part)
			if err != nil && !errors.Is(err, errUnclean) || fs.mountable() != (fs.uuid != "" && !strings.Contains(fs.kind, " ")) {
				t.Fatalf("%d bytes: %+v, %v", size, fs, err)
			}
		}
	})
}

func TestOlder(t *testing.T) {
	order := []string{"5.10.0-46-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "6.12.1", "6.12.1+deb12"}
	for i, a := range order {
		for j, b := range order {
			if older(a, b) != (i < j) {
				t.Errorf("older(%s, %s) is %v", a, b, i >= j)
			}
		}
	}
}
