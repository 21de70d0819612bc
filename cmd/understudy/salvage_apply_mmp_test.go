package main

import (
	le "encoding/binary" // the name binary is taken by the program
	"os"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/scene"
)

// TestApplyMMP checks that a disk says that nobody has its file system mounted once the last commit of
// the kernel that had it mounted is finished, unless another machine has signed since.
func TestApplyMMP(t *testing.T) {
	together(t)
	b := sceneBench(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-O", "mmp"}}},
		Script: `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
mount -t ext4 -o commit=1000 /dev/vda /mnt
echo one >/mnt/one
sync
echo two >>/mnt/one
echo three >/mnt/three
sleep 7 # it signs every 5 s
crash
`,
	})
	files := map[string]string{"/one": "one\ntwo\n", "/three": "three\n"}
	if m := b.mmp(0); m.Sequence == ext4.MMPClean {
		t.Errorf("the dead kernel left %+v", m)
	}
	if r := b.apply(); !r.Complete || r.Commit == nil || r.Commit.Shared != "" {
		t.Errorf("%+v, %+v", r, r.Commit)
	}
	if m := b.mmp(0); m.Sequence != ext4.MMPClean {
		t.Errorf("after apply: %+v", m)
	}
	b.tidy()
	b.has(files)

	copyDisk(t, b.crash.Image, b.disk.Image)
	foreign := b.mmp(3)
	if r := b.apply(); r.Commit == nil || !strings.Contains(r.Commit.Shared, "was last written by") {
		t.Errorf("%+v, %+v", r, r.Commit)
	}
	if m := b.mmp(0); m != foreign {
		t.Errorf("another machine's %+v became %+v", foreign, m)
	}
	b.tidy()
	b.has(files)
}

// mmp returns the MMP block of the bench's disk, after it has increased the sequence number by
// more, as another machine would.
func (b *bench) mmp(more uint32) ext4.MMP {
	b.t.Helper()
	f, err := os.OpenFile(b.disk.Image, os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	fs, err := ext4.Open(f)
	if err != nil {
		b.t.Fatal(err)
	}
	at, ok, err := fs.Super.MMPLocation()
	if err != nil || !ok {
		b.t.Fatalf("the file system has no mmp: %v", err)
	}
	block, err := fs.Block(at)
	if err != nil {
		b.t.Fatal(err)
	}
	if more > 0 {
		const sum = 1020 // where the checksum is
		le.LittleEndian.PutUint32(block[4:], le.LittleEndian.Uint32(block[4:])+more)
		le.LittleEndian.PutUint32(block[sum:], ext4.CRC32C(fs.Super.ChecksumSeed, block[:sum]))
		if _, err := f.WriteAt(block, int64(at)*int64(len(block))); err != nil {
			b.t.Fatal(err)
		}
	}
	m, err := fs.Super.ParseMMP(block, true)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}
