package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// bmap returns the inode number of a file, and where a block of it is.
func bmap(t *testing.T, image, path string, n int) (ino addr.Ino, at addr.Block) {
	t.Helper()
	for _, ask := range []struct{ command, form string }{{"stat " + path, "Inode: %d"}, {fmt.Sprintf("bmap %s %d", path, n), "%d"}} {
		out, err := exec.Command("debugfs", "-R", ask.command, image).Output()
		into := any(&ino)
		if ask.form == "%d" {
			into = &at
		}
		if _, scan := fmt.Sscanf(string(out), ask.form, into); err != nil || scan != nil {
			t.Fatalf("%s: %q, %v, %v", ask.command, out, err, scan)
		}
	}
	return ino, at
}

// TestContentAlone: with data=journal the content of a file may be in a transaction that its inode is
// not in. Memory says whose it is, and is believed only if the file has the block.
func TestContentAlone(t *testing.T) {
	for name, mkfs := range features {
		t.Run(name, func(t *testing.T) {
			image := tree(t, name)
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			size := blockSize(mkfs)
			ino, at := bmap(t, image, "/a/f", 2)
			another, _ := bmap(t, image, "/a/g", 2)
			changed := map[addr.Block][]byte{at: bytes.Repeat([]byte{'x'}, size)}
			for owner, want := range map[addr.Ino]bool{ino: true, another: false, 0: false} {
				memory := audit.Memory{
					Inodes: func() ([]audit.Known, error) { return nil, nil },
					File:   func(addr.Block) addr.Ino { return owner },
				}
				if v, err := memory.Check(bytes.NewReader(before), changed); err != nil || v.Clean != want {
					t.Errorf("content of inode %d, by memory of %d: clean %v, want %v: %q, %v", ino, owner, v.Clean, want, v.Reasons, err)
				}
			}
		})
	}
}

// TestFastLink: a symbolic link whose target is in its inode may have a block of attributes.
func TestFastLink(t *testing.T) {
	for name, mkfs := range features {
		t.Run(name, func(t *testing.T) {
			image := tree(t, name)
			debugfs(t, image, "symlink /a/short f\nea_set /a/short trusted.large "+strings.Repeat("v", 300))
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			debugfs(t, image, "sif /a/short mtime 20200101")
			if found := fsck(t, image); len(found) > 0 {
				t.Fatalf("%q", found)
			}
			size := blockSize(mkfs)
			out, err := exec.Command("debugfs", "-R", "imap /a/short", image).Output()
			var table addr.Block
			if _, at, found := strings.Cut(string(out), "located at block "); err != nil || !found {
				t.Fatalf("imap: %q, %v", out, err)
			} else if _, err := fmt.Sscan(strings.TrimRight(strings.Fields(at)[0], ","), &table); err != nil {
				t.Fatal(err)
			}
			all := difference(t, before, image, size) // debugfs changes the superblock, too
			if all[table] == nil {
				t.Fatalf("the inode did not change")
			}
			v, err := audit.Check(bytes.NewReader(before), map[addr.Block][]byte{table: all[table]})
			if err != nil || !v.Clean {
				t.Errorf("clean %v: %q, %v", v.Clean, v.Reasons, err)
			}
		})
	}
}
