package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// mdSize is the size of the disks of these arrays, in bytes.
const mdSize = 8 << 20

// member makes a disk with a superblock of md, laid out as in md_p.h. version is 0 (0.90), 10, 11 or 12.
func member(version int, level, disks uint32, off, n uint64) []byte {
	disk, le := make([]byte, mdSize), binary.LittleEndian
	if version == 0 {
		b := disk[mdSize-64<<10:]
		le.PutUint32(b, mdMagic)
		le.PutUint32(b[8:], 90)
		le.PutUint32(b[28:], level)
		le.PutUint32(b[32:], uint32(n>>10))
		le.PutUint32(b[40:], disks)
		return disk
	}
	at := map[int]int{10: (mdSize/512 - 16) &^ 7 * 512, 11: 0, 12: 4096}[version]
	b := disk[at:]
	le.PutUint32(b, mdMagic)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[16:], 0x1122)
	le.PutUint32(b[72:], level)
	le.PutUint64(b[80:], n/512)
	le.PutUint32(b[92:], disks)
	le.PutUint64(b[128:], off/512)
	le.PutUint64(b[144:], uint64(at/512))
	return disk
}

func TestArray(t *testing.T) {
	for _, tt := range []struct {
		name string
		disk []byte
		want Member // except for Array
		err  string
	}{
		{"0.90", member(0, 1, 2, 0, 4<<20), Member{Level: 1, Disks: 2, Len: 4 << 20}, ""},
		{"1.0", member(10, 1, 2, 0, 4<<20), Member{Level: 1, Disks: 2, Len: 4 << 20}, ""},
		{"1.1", member(11, 1, 2, 1<<20, 4<<20), Member{Level: 1, Disks: 2, Off: 1 << 20, Len: 4 << 20}, ""},
		{"1.2", member(12, 5, 3, 1<<20, 4<<20), Member{Level: 5, Disks: 3, Off: 1 << 20, Len: 4 << 20}, ""},
		{"none", make([]byte, mdSize), Member{}, ErrNoMember.Error()},
		{"too large", member(12, 1, 2, 5<<20, 4<<20), Member{}, "of a disk of"},
		{"data over its superblock", member(12, 1, 2, 2048, 4<<20), Member{}, "in sector 8, and so are data"},
		{"data after its superblock", member(12, 1, 2, 8192, 4<<20), Member{Level: 1, Disks: 2, Off: 8192, Len: 4 << 20}, ""},
		{"no disks", member(12, 1, 0, 1<<20, 4<<20), Member{}, "0 disks"},
		{"a copy at another place", append(make([]byte, 4096), member(11, 1, 2, 1<<20, 4<<20)...), Member{}, ErrNoMember.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Array(bytes.NewReader(tt.disk), int64(len(tt.disk)))
			got.Array = ""
			if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%+v, %v; want %+v, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

// FuzzArray: whatever a superblock says, the member's data is within the disk.
func FuzzArray(f *testing.F) {
	for _, version := range []int{0, 11, 12} {
		d := member(version, 1, 2, 8192, 16384)
		f.Add(d[:8192], d[mdSize-64<<10:][:256])
	}
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		d := make([]byte, 256<<10)
		copy(d, head)
		copy(d[len(d)-64<<10:], tail)
		m, err := Array(bytes.NewReader(d), int64(len(d)))
		if err == nil && (m.Off < 0 || m.Len <= 0 || m.Off+m.Len > int64(len(d)) || m.Disks < 1) {
			t.Errorf("%+v", m)
		}
		if err != nil && m != (Member{}) {
			t.Errorf("%+v with %v", m, err)
		}
		if _, err := Array(bytes.NewReader(d[:512]), 512); err == nil || !errors.Is(err, ErrNoMember) && len(head) == 0 {
			t.Errorf("of a tiny disk: %v", err)
		}
	})
}
