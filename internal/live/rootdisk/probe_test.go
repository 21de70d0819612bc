package rootdisk

import (
	"bytes"
	"errors"
	"io"
	"reflect"
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
	clean := with(put(extMagic, 0x53, 0xef, 1), 4096+extUUID, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
	for _, tt := range []struct {
		name string
		on   []byte
		want fileSystem
		err  error
	}{
		{"ext4", clean, fileSystem{all, "ext4", "01020304-0506-0708-090a-0b0c0d0e0f10"}, nil},
		{"ext4 that was not unmounted", with(bytes.Clone(clean), 4096+extIncompatible, 4), fileSystem{all, "ext4", "01020304-0506-0708-090a-0b0c0d0e0f10"}, errUnclean},
		{"ext2 that was not unmounted", with(bytes.Clone(clean), 4096+extState, 0), fileSystem{all, "ext4", "01020304-0506-0708-090a-0b0c0d0e0f10"}, errUnclean},
		{"XFS", put(0, 'X', 'F', 'S', 'B'), fileSystem{all, "xfs", ""}, nil},
		{"btrfs", put(65600, []byte("_BHRfS_M")...), fileSystem{all, "btrfs", ""}, nil},
		{"nothing", put(0), fileSystem{all, "", ""}, nil},
	} {
		got, err := probe(io.NewSectionReader(bytes.NewReader(tt.on), 4096, all.Len()), all)
		if !errors.Is(err, tt.err) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
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
