package journal_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestDamagedInLog finishes a commit over a log that no kernel replays: the checksum of a block of a file in it is wrong, as Linux 7.2 was
// seen to leave one (data=journal). It must be of no account if the file was written again since, or is gone, and nothing may
// be written if it counts.
func TestDamagedInLog(t *testing.T) {
	tier.Guest(t)
	tier.Programs(t, "mke2fs", "debugfs", "e2fsck")
	from := t.TempDir()
	for _, name := range []string{"kept", "changed", "gone"} {
		if err := os.WriteFile(filepath.Join(from, name), bytes.Repeat([]byte("first"), 4096), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-b", "4096", "-O", "metadata_csum", "-d", from}}},
		Script: `
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
mount -t ext4 -o noinit_itable,commit=600,data=journal /dev/vda /mnt
for f in kept changed gone; do yes old | dd of=/mnt/$f bs=4096 count=5 iflag=fullblock conv=notrunc; done
sync
yes new | dd of=/mnt/changed bs=4096 count=5 iflag=fullblock conv=notrunc
rm /mnt/gone
crash
`,
	})
	of := fixture.Disk{Type: "ext4", UUID: uuidOf(t, s.Disks[0])}
	c := openCache(t, &fixture.Image{RAM: s.RAM})
	for name, lost := range map[string]bool{"kept": true, "changed": false, "gone": false} {
		t.Run(name, func(t *testing.T) {
			disk := copyOf(t, s.Disks[0])
			spoilLogged(t, disk, firstBlock(t, s.Disks[0], name))
			r, err := journal.Plan(c, superOf(t, c, of), disk)
			if err != nil {
				t.Fatal(err)
			}
			on := jbd2.NewRecording(disk)
			report, err := r.Finish(on)
			if lost {
				var corrupt *jbd2.CorruptError
				if !errors.As(err, &corrupt) || len(on.Ops()) > 0 {
					t.Errorf("%v, %d writes", err, len(on.Ops()))
				}
				return
			}
			if err == nil {
				report, err = r.Finish(disk)
			}
			if err != nil || report.Check != "" || report.Blocks == 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			fsck(t, disk.Name())
			for name, want := range map[string]string{"kept": "old\n", "changed": "new\n", "gone": ""} {
				got, err := exec.Command("debugfs", "-R", "cat /"+name, disk.Name()).Output()
				if err != nil || string(got) != strings.Repeat(want, 5*1024) {
					t.Errorf("/%s has %d bytes, %.16q, %v", name, len(got), got, err)
				}
			}
		})
	}
}

// firstBlock returns the block of a disk that a file begins with.
func firstBlock(t *testing.T, image, name string) addr.Block {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", "bmap /"+name+" 0", image).Output()
	n, bad := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 32)
	if err = errors.Join(err, bad); err != nil || n == 0 {
		t.Fatalf("/%s begins with block %d, %v", name, n, err)
	}
	return addr.Block(n)
}

// spoilLogged changes a byte of what the log on a disk has of a block, which must be there once.
func spoilLogged(t *testing.T, disk *os.File, home addr.Block) {
	t.Helper()
	log, err := jbd2.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	scan, err := log.Scan()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, b := range scan.Newest() {
		if b.Home != home {
			continue
		}
		at, err := log.Where(b.At)
		if err == nil {
			_, err = disk.WriteAt([]byte{'?'}, int64(at)*4096+500)
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Fatalf("block %d is in the log %d times", home, n)
	}
}
