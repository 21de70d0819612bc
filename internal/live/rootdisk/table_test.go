package rootdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// disk is one of 1 MiB with an old table of partitions: type, first sector, sectors.
func disk(entries ...[3]uint32) []byte {
	b := make([]byte, 1<<20)
	b[510], b[511] = 0x55, 0xaa
	for i, e := range entries {
		at := b[mbrEntries+i*mbrEntry:]
		at[4] = byte(e[0])
		binary.LittleEndian.PutUint32(at[8:], e[1])
		binary.LittleEndian.PutUint32(at[12:], e[2])
	}
	return b
}

// guid is one with a GUID table of 128 entries of 128 bytes: first and last sector.
func guid(entries ...[2]uint64) []byte {
	b := disk([3]uint32{mbrProtective, 1, 2047})
	copy(b[sector:], "EFI PART")
	binary.LittleEndian.PutUint64(b[sector+72:], 2)
	binary.LittleEndian.PutUint32(b[sector+80:], 128)
	binary.LittleEndian.PutUint32(b[sector+84:], 128)
	for i, e := range entries {
		at := b[2*sector+i*128:]
		at[0] = 1
		binary.LittleEndian.PutUint64(at[32:], e[0])
		binary.LittleEndian.PutUint64(at[40:], e[1])
	}
	return b
}

func with(b []byte, at int, v ...byte) []byte {
	copy(b[at:], v)
	return b
}

func TestPartitions(t *testing.T) {
	for _, tt := range []struct {
		name string
		disk []byte
		want []extent
		err  string
	}{
		{"old table", disk([3]uint32{0x83, 64, 100}, [3]uint32{}, [3]uint32{0x82, 1000, 1048}), []extent{{64 << 9, 100 << 9}, {1000 << 9, 1048 << 9}}, ""},
		{"GUID table", guid([2]uint64{34, 34}, [2]uint64{40, 2047}), []extent{{34 << 9, 1 << 9}, {40 << 9, 2008 << 9}}, ""},
		{"no table", make([]byte, 1<<20), nil, errNoTable.Error()},
		{"a table with nothing in it", disk(), nil, errNoTable.Error()},
		{"the boot sector of a file system", with(disk([3]uint32{0x83, 64, 100}), mbrEntries, 'x'), nil, errNoTable.Error()},
		{"beyond the disk", disk([3]uint32{0x83, 64, 1985}), nil, "the disk has 2048"},
		{"far beyond", disk([3]uint32{0x83, 1<<32 - 1, 1<<32 - 1}), nil, "the disk has 2048"},
		{"at its own table", disk([3]uint32{0x83, 0, 100}), nil, "from 0 on"},
		{"GUID table that is not there", disk([3]uint32{mbrProtective, 1, 2047}), nil, "there is none"},
		{"backwards", guid([2]uint64{40, 39}), nil, "ends before it begins"},
		{"GUID beyond", guid([2]uint64{40, 1<<64 - 1}), nil, "the disk has 2048"},
		{"as many entries as none has", with(guid(), sector+80, 255, 255, 255, 255), nil, "not plausible"},
		{"entries of no length", with(guid(), sector+84, 0, 0, 0, 0), nil, "not plausible"},
		{"entries elsewhere", with(guid(), sector+72, 0, 8), nil, "not plausible"},
		{"cut short", disk()[:100], nil, "EOF"},
	} {
		got, err := partitions(bytes.NewReader(tt.disk), int64(len(tt.disk)))
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestProbe(t *testing.T) {
	all := extent{4096, 1<<20 - 4096}
	put := func(at int, v ...byte) []byte { return with(make([]byte, 1<<20), 4096+at, v...) }
	clean := with(put(extMagic, 0x53, 0xef), 4096+extUUID, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
	for _, tt := range []struct {
		name string
		disk []byte
		want fileSystem
		err  error
	}{
		{"ext4", clean, fileSystem{all, "ext4", "01020304-0506-0708-090a-0b0c0d0e0f10"}, nil},
		{"ext4 that was not unmounted", with(bytes.Clone(clean), 4096+extIncompatible, 4), fileSystem{all, "ext4", "01020304-0506-0708-090a-0b0c0d0e0f10"}, errUnclean},
		{"XFS", put(0, 'X', 'F', 'S', 'B'), fileSystem{all, "xfs", ""}, nil},
		{"nothing", put(0), fileSystem{all, "", ""}, nil},
	} {
		got, err := probe(bytes.NewReader(tt.disk), all)
		if !errors.Is(err, tt.err) || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

// FuzzPartitions: whatever a disk says, a part of it lies on it, behind its first sector.
func FuzzPartitions(f *testing.F) {
	f.Add(disk([3]uint32{0x83, 64, 100}))
	f.Add(guid([2]uint64{34, 34}, [2]uint64{40, 2047}))
	f.Fuzz(func(t *testing.T, b []byte) {
		size := int64(len(b))
		parts, err := partitions(bytes.NewReader(b), size)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.start < sector || p.size <= 0 || p.start+p.size > size {
				t.Errorf("%+v of %d", p, size)
			}
			_, _ = probe(bytes.NewReader(b), p) // it must not panic
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
