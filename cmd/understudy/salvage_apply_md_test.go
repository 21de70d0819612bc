package main

import (
	endian "encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// Sizes in bytes, of a disk of the mirror and of the array.
const (
	legSize   = 128 << 20
	arraySize = 120 << 20
)

// TestApplyMirror tests a file system on a mirror (md, level 1): one of its disks is refused,
// and not a byte of it changes, but the data of the array can be applied to.
func TestApplyMirror(t *testing.T) {
	together(t)
	tier.Full(t, "a mirror of two disks")
	legs := makeMirror(t)
	b := sceneBench(t, scene.Spec{
		Modules: []string{"ext4", "raid1"},
		Disks:   []scene.Disk{{Size: legSize, Mkfs: []string{"cp", legs[0]}}, {Size: legSize, Mkfs: []string{"cp", legs[1]}}},
		Script: `
echo md0 >/sys/module/md_mod/parameters/new_array
cd /sys/block/md0/md
echo 1.0 >metadata_version
cat /sys/block/vda/dev >new_dev
cat /sys/block/vdb/dev >new_dev
echo active >array_state
cat degraded
mount -t ext4 -o commit=1000 /dev/md0 /mnt
echo one >/mnt/one
sync
echo two >>/mnt/one
mkdir /mnt/dir
echo three >/mnt/dir/three
crash
`,
	})
	b.fails("member of an md array")
	b.untouched()
	// With this version, the superblock is behind the data, which begins at the start of
	// the disk: this much of one disk is what the array has.
	if err := os.Truncate(b.disk.Image, arraySize); err != nil {
		t.Fatal(err)
	}
	if r := b.apply(); !r.Complete {
		t.Errorf("%+v", r)
	}
	b.tidy()
	b.has(map[string]string{"/one": "one\ntwo\n", "/dir/three": "three\n"})
}

// makeMirror makes the two disks of a clean mirror, with ext4 in it.
func makeMirror(t *testing.T) (legs [2]string) {
	t.Helper()
	for n := range legs {
		legs[n] = filepath.Join(t.TempDir(), "leg")
	}
	if err := os.WriteFile(legs[0], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(legs[0], legSize); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-qF", legs[0], "120M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	copyDisk(t, legs[0], legs[1])
	for n, leg := range legs {
		at := (legSize/512 - 16) &^ 7
		f, err := os.OpenFile(leg, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(mirrorSuper(n, uint64(at)), int64(at)*512); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return legs
}

// mirrorSuper returns the superblock, of version 1.0, of one of two disks
// (include/uapi/linux/raid/md_p.h, struct mdp_superblock_1; drivers/md/md.c, calc_sb_1_csum).
func mirrorSuper(n int, at uint64) []byte {
	const devices = 2
	b := make([]byte, 256+2*devices)
	le := endian.LittleEndian
	le.PutUint32(b[0:], 0xa92b4efc)
	le.PutUint32(b[4:], 1) // major_version
	copy(b[16:], "understudy array")
	copy(b[32:], "mirror")
	le.PutUint32(b[72:], 1)             // level
	le.PutUint64(b[80:], arraySize/512) // size
	le.PutUint32(b[92:], devices)       // raid_disks
	le.PutUint64(b[136:], at)           // data_size
	le.PutUint64(b[144:], at)           // super_offset
	le.PutUint32(b[160:], uint32(n))    // dev_number
	copy(b[168:], strings.Repeat(string(rune('a'+n)), 16))
	le.PutUint64(b[200:], 1)          // events
	le.PutUint64(b[208:], ^uint64(0)) // resync_offset: clean
	le.PutUint32(b[220:], devices)    // max_dev
	for d := range devices {
		le.PutUint16(b[256+2*d:], uint16(d))
	}
	sum := uint64(0)
	for i := 0; i < len(b); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
	return b
}
