package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// inlinedDir and inlinedFile are inodes of the file system that inlineImage makes, which are numbered
// in the order of their names.
const inlinedDir, inlinedFile addr.Ino = 12, 14

// inlineImage makes a file system with a directory and a file in their inodes, and
// runs commands of debugfs on it.
func inlineImage(t *testing.T, commands ...string) *ext4.FS {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v; run scripts/setup.sh", err)
		}
	}
	dir := t.TempDir()
	from, image := filepath.Join(dir, "from"), filepath.Join(dir, "image")
	err := errors.Join(os.MkdirAll(filepath.Join(from, "dir"), 0o755),
		os.WriteFile(filepath.Join(from, "dir/name"), nil, 0o644), os.WriteFile(filepath.Join(from, "file"), []byte("short"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "inline_data", "-d", from, image, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	cmd := exec.Command("debugfs", "-w", "-f", "-", image)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// grown returns commands that take an inode's data out of it, and give it a block, or none
// if block is 0.
func grown(ino addr.Ino, block int) []string {
	set := func(field string, value int) string { return fmt.Sprintf("sif <%d> %s %#x", ino, field, value) }
	out := []string{set("flags", int(ext4.InodeExtents)), set("block[1]", 4), set("block[2]", 0)}
	if block == 0 {
		return append(out, set("block[0]", 0xf30a))
	}
	return append(out, set("block[0]", 0x1f30a), set("block[3]", 0), set("block[4]", 1), set("block[5]", block))
}

// TestOutgrown checks that nothing is committed if what was in an inode is nowhere.
func TestOutgrown(t *testing.T) {
	plain := inlineImage(t)
	const fresh = 7000 // a block that nobody owns
	for _, ino := range []addr.Ino{inlinedDir, inlinedFile} {
		if i, err := plain.Inode(ino); err != nil || i.Flags&ext4.InodeInlineData == 0 {
			t.Fatalf("inode %d has its data elsewhere: %+v, %v", ino, i, err)
		}
	}
	for _, tc := range []struct {
		name     string
		commands []string
		ino      addr.Ino
		before   []string
		logged   addr.Block // besides the inode's block
		unsaved  bool
		held     bool
		idle     bool // nobody held one of its locks
		writing  bool
		fresh    bool // it is being created
		lost     bool
		anew     bool // it is written after the mount
		freed    bool
	}{
		{name: "directory in its inode", ino: inlinedDir},
		{name: "directory in neither place", commands: grown(inlinedDir, 0), ino: inlinedDir, lost: true},
		{name: "directory whose block is not written", commands: grown(inlinedDir, fresh), ino: inlinedDir, logged: fresh, lost: true},
		{name: "file in its inode", ino: inlinedFile},
		{name: "file in neither place", commands: grown(inlinedFile, 0), ino: inlinedFile, lost: true},
		{name: "file that is a hole, which nobody was changing", commands: grown(inlinedFile, 0), ino: inlinedFile, idle: true},
		{name: "file whose block is not written, which nobody was changing", commands: grown(inlinedFile, fresh), ino: inlinedFile, idle: true, lost: true},
		{name: "file whose page will be written", commands: grown(inlinedFile, 0), ino: inlinedFile, unsaved: true},
		{name: "file whose page is clean and has no block", commands: grown(inlinedFile, 0), ino: inlinedFile, held: true, anew: true},
		{name: "file whose block is not written", commands: grown(inlinedFile, fresh), ino: inlinedFile, lost: true},
		{name: "file whose block is in the transaction", commands: grown(inlinedFile, fresh), ino: inlinedFile, logged: fresh},
		{name: "file whose block can be mended", commands: grown(inlinedFile, fresh), ino: inlinedFile, held: true},
		{name: "file whose block was to be changed", commands: grown(inlinedFile, fresh), ino: inlinedFile, held: true, writing: true, anew: true},
		{name: "file whose block was to be changed, and has no page", commands: grown(inlinedFile, fresh), ino: inlinedFile, writing: true, lost: true},
		{name: "file whose block is in the transaction, and has a page", commands: grown(inlinedFile, fresh), ino: inlinedFile, logged: fresh, held: true, writing: true},
		{name: "file that was a hole before", commands: grown(inlinedFile, 0), ino: inlinedFile, before: grown(inlinedFile, 0)},
		{name: "file that had its block before", commands: grown(inlinedFile, fresh), ino: inlinedFile, before: grown(inlinedFile, fresh)},
		{name: "directory being made", commands: []string{fmt.Sprintf("sif <%d> size 0", inlinedDir)}, ino: inlinedDir, before: []string{fmt.Sprintf("clri <%d>", inlinedDir)}, fresh: true, freed: true},
		{name: "directory being made, of another generation before", commands: []string{fmt.Sprintf("sif <%d> size 0", inlinedDir)}, ino: inlinedDir, before: []string{fmt.Sprintf("sif <%d> generation 7", inlinedDir)}, fresh: true, freed: true},
		{name: "directory being made, which was there before", commands: []string{fmt.Sprintf("sif <%d> size 0", inlinedDir)}, ino: inlinedDir, fresh: true, lost: true},
		{name: "directory that is made", ino: inlinedDir, fresh: true},
		{name: "file being made", commands: grown(inlinedFile, 0), ino: inlinedFile, fresh: true},
		{name: "inode with another checksum", commands: []string{fmt.Sprintf("sif <%d> checksum 1", inlinedFile)}, ino: inlinedFile, lost: true},
		{name: "inode being written, with a page", commands: []string{fmt.Sprintf("sif <%d> checksum 1", inlinedFile)}, ino: inlinedFile, held: true, anew: true},
		{name: "inode being written, whose page will be written", commands: []string{fmt.Sprintf("sif <%d> checksum 1", inlinedFile)}, ino: inlinedFile, held: true, unsaved: true},
		{name: "directory being written", commands: []string{fmt.Sprintf("sif <%d> checksum 1", inlinedDir)}, ino: inlinedDir, held: true, lost: true},
		{name: "inode being written, which never had inline data", commands: append(grown(inlinedFile, fresh), fmt.Sprintf("sif <%d> checksum 1", inlinedFile)), ino: inlinedFile, before: grown(inlinedFile, fresh)},
		{name: "inode being written, whose block is not", commands: append(grown(inlinedFile, fresh), fmt.Sprintf("sif <%d> checksum 1", inlinedFile)), ino: inlinedFile, lost: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			anew, freed := 0, 0
			m := inlineCheck{
				before: inlineImage(t, tc.before...), after: inlineImage(t, tc.commands...), logged: map[addr.Block][]byte{tc.logged: nil},
				unsaved: func(*pagecache.Inode) bool { return tc.unsaved },
				held:    func(*pagecache.Inode) bool { return tc.held },
				busy:    func(*pagecache.Inode) bool { return !tc.idle },
				rewrite: func(*pagecache.Inode) { anew++ },
				free:    func(*pagecache.Inode) error { freed++; return nil },
			}
			i := &pagecache.Inode{Ino: tc.ino, Mode: 0o100644, Writing: tc.writing, New: tc.fresh}
			if tc.ino == inlinedDir {
				i.Mode = 0o40755
			}
			if now, err := m.after.Inode(tc.ino); err == nil {
				i.Generation = now.Generation
			}
			if err := m.check(i); err != nil {
				t.Errorf("the transaction does not touch it: %v", err)
			}
			g, err := m.after.Group(0)
			if err != nil {
				t.Fatal(err)
			}
			_, block, _, err := m.after.Super.InodeLocation(tc.ino)
			if err != nil {
				t.Fatal(err)
			}
			m.logged[g.InodeTable+addr.Block(block)] = nil
			if err := m.check(i); errors.Is(err, ErrInline) != tc.lost || err != nil && !tc.lost {
				t.Errorf("%v; lost: %v", err, tc.lost)
			}
			if (freed == 1) != tc.freed || freed > 1 {
				t.Errorf("it is freed %d times", freed)
			}
			if (anew == 1) != tc.anew || anew > 1 {
				t.Errorf("it is written %d times after the mount", anew)
			}
		})
	}
}

// TestFreeMade checks that e2fsck leaves the parent as it was once a directory that was being created is free.
func TestFreeMade(t *testing.T) {
	fs := inlineImage(t, "unlink dir", "sif <2> links_count 3",
		fmt.Sprintf("sif <%d> links_count 1", inlinedDir), fmt.Sprintf("sif <%d> size 0", inlinedDir), "rm file", "clri <13>", "freei <13>")
	g, err := fs.Group(0)
	if err != nil {
		t.Fatal(err)
	}
	_, block, _, err := fs.Super.InodeLocation(inlinedDir)
	if err != nil {
		t.Fatal(err)
	}
	home := g.InodeTable + addr.Block(block)
	b, err := fs.Block(home)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, fs.Super.Blocks*uint64(fs.Super.BlockSize))
	for n := range addr.Block(fs.Super.Blocks) {
		if err := fs.ReadBlocks(all[int(n)*int(fs.Super.BlockSize):][:fs.Super.BlockSize], n); err != nil {
			t.Fatal(err)
		}
	}
	c := &change{txn: &jbd2.Transaction{}, fs: fs, before: bytes.NewReader(all), blocks: map[addr.Block][]byte{home: b}}
	if err := c.free(13); err != nil {
		t.Error(err)
	}
	if err := c.free(inlinedDir); err != nil {
		t.Fatal(err)
	}
	copy(all[int(home)*int(fs.Super.BlockSize):], c.blocks[home])
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("e2fsck", "-fy", path).CombinedOutput()
	t.Logf("%s", out)
	if strings.Contains(string(out), "ref count") {
		t.Error("e2fsck found links that are not right")
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	if err := (&change{fs: fs, blocks: map[addr.Block][]byte{}}).free(inlinedDir); !errors.Is(err, ErrDamaged) {
		t.Errorf("an inode that is not there: %v", err)
	}
}
