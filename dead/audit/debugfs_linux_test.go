package audit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// features are the file systems of TestDebugfs, as options of mke2fs.
var features = map[string][]string{
	"ext4":     {"-t", "ext4", "-b", "4096"},
	"1k":       {"-t", "ext4", "-b", "1024"},
	"ext3":     {"-t", "ext3", "-b", "1024"},
	"no-csum":  {"-t", "ext4", "-b", "4096", "-O", "^metadata_csum,uninit_bg"},
	"32 bytes": {"-t", "ext4", "-b", "2048", "-O", "^64bit"},
	"meta_bg":  {"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"},
	"bigalloc": {"-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"},
	"unsigned": {"-t", "ext4", "-b", "1024"}, // hashes of names
}

// blockSize returns the block size of one of features, in bytes.
func blockSize(mkfs []string) int {
	return map[string]int{"1024": 1024, "2048": 2048, "4096": 4096}[mkfs[3]]
}

// indexed is a name in a directory that has an index.
const indexed = "/large/é"

// tree makes a file system with a few files, and an index in a directory.
func tree(t *testing.T, name string) string {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v; run scripts/setup.sh", err)
		}
	}
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	for _, d := range []string{"a", "b", "b/c", "large"} {
		if err := os.MkdirAll(filepath.Join(from, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		name := filepath.Join(from, "large", "é"+strings.Repeat("n", i)[:i*3/4]+strings.Repeat("ü", i%10))
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a/f", "a/g", "b/h"} {
		if err := os.WriteFile(filepath.Join(from, name), bytes.Repeat([]byte(name), 5000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("long/", 30), filepath.Join(from, "a", "s")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	args := append(append([]string{"-qF", "-I", "256", "-d", from}, features[name]...), image, "32M")
	if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	if name == "unsigned" {
		debugfs(t, image, "ssv flags 2")
	}
	_ = exec.Command("e2fsck", "-fyD", image).Run() // it makes the index, and says that it changed something
	debugfs(t, image, "ea_set /a/f user.small value\nln /a/f /b/second\nsif /a/f links_count 2\nea_set /a/g user.large "+strings.Repeat("v", 300))
	if found := fsck(t, image); len(found) > 0 {
		t.Fatalf("%q", found)
	}
	return image
}

func debugfs(t *testing.T, image, commands string) {
	t.Helper()
	cmd := exec.Command("debugfs", "-w", "-f", "-", image)
	cmd.Stdin = strings.NewReader(commands + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
}

// difference returns the blocks of an image that are not what they were before.
func difference(t *testing.T, before []byte, image string, size int) map[addr.Block][]byte {
	t.Helper()
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[addr.Block][]byte)
	for at := 0; at < len(after); at += size {
		if !bytes.Equal(before[at:at+size], after[at:at+size]) {
			out[addr.Block(at/size)] = after[at : at+size]
		}
	}
	return out
}

// fsckOf writes an image with changed blocks to a path, and returns what fsck says of it.
func fsckOf(t *testing.T, before []byte, changed map[addr.Block][]byte, size int, path string) []string {
	t.Helper()
	image := bytes.Clone(before)
	for b, data := range changed {
		copy(image[int(b)*size:], data)
	}
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return fsck(t, path)
}

// TestDebugfs changes a file system with debugfs(8), completely or in part, and checks
// that the audit agrees with e2fsck(8).
func TestDebugfs(t *testing.T) {
	for name, mkfs := range features {
		t.Run(name, func(t *testing.T) {
			image := tree(t, name)
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			size := blockSize(mkfs)
			dir, err := os.MkdirTemp("/dev/shm", "understudy-audit-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			host, copied := filepath.Join(dir, "host"), filepath.Join(dir, "image")
			if err := os.WriteFile(host, bytes.Repeat([]byte("new"), 9000), 0o644); err != nil {
				t.Fatal(err)
			}
			// Commands that leave something half done which can be completed.
			mends := []string{
				"unlink " + indexed, "unlink /b/second", "unlink /b/h", "sif /b links_count 4", "sif /b/h size 1", "sif /b/h blocks 8", "seti <300>", "setb 8100", "sif /a/g file_acl 0", "unlink /b/c", "unlink /b/c\nln /b/c /a/c",
				"set_bg 0 free_blocks_count 7\nset_bg 0 checksum calc", "set_bg 0 free_inodes_count 7\nset_bg 0 checksum calc", "set_bg 0 used_dirs_count 7\nset_bg 0 checksum calc",
			}
			for _, tc := range []struct {
				commands string
				reason   string // a part of the first reason; empty if there must be none
			}{
				{"", ""},
				{"sif /a/f mtime @1000000000", ""},
				{"mkdir /b/new", ""},
				{"mkdir /x\nmkdir /x/y\nmkdir /x/y/z", ""},
				{"write " + host + " new", ""},
				{"cd /b\nwrite " + host + " new\nmkdir d", ""},
				{"rm /b/h", ""},
				{"rmdir /b/c", ""},
				{"rm " + indexed, ""},
				{"unlink " + indexed, "-1 names"},
				{"unlink /b/second\nsif /a/f links_count 1", ""},
				{"ln /b/h /a/third\nsif /b/h links_count 2", ""},
				{"symlink /b/short target", ""},
				{"symlink /b/long " + strings.Repeat("t", 200), ""},
				{"cd /b\nmknod fifo p", ""},
				{"ea_set /b/h user.some " + strings.Repeat("w", 400), ""},
				{"ea_rm /a/g user.large", ""},
				{"unlink /b/second", "-1 names"},
				{"unlink /b/h", "-1 names"},
				{"ln /b/h /a/third", "+1 names"},
				{"sif /b links_count 4", "links"},
				{"sif /b/h size 1", "and content in its block"},
				{"sif /b/h blocks 8", "sectors"},
				{"sif /b size 0", "not all of its"},
				{"sif /b/h mode 040644", "b"},
				{"sif /b/h flags 0x10000000", "i"},
				{"sif /b/h links_count 0", "links"},
				{"sif /b/h dtime 77", "deleted"},
				{"sif /a/g file_acl 0", "f"},
				{"sif /b/h file_acl 700", "7"},
				{"freei /b/h", "bitmap"},
				{"seti <300>", "bitmap"},
				{"setb 8100", "changes"},
				{"clri /b/h", "i"},
				{"set_bg 0 free_blocks_count 7\nset_bg 0 checksum calc", "group 0"},
				{"set_bg 0 free_inodes_count 7\nset_bg 0 checksum calc", "group 0"},
				{"set_bg 0 used_dirs_count 7\nset_bg 0 checksum calc", "group 0"},
				{"set_bg 0 inode_table 99\nset_bg 0 checksum calc", "group 0"},
				{"ssv free_blocks_count 7", ""},
				{"ssv blocks_per_group 4096", "superblock"},
				{"ssv inodes_count 99", "superblock"},
				{"ssv last_orphan 13", ""}, // it is truncated to what it is
				{"ssv last_orphan 12", "orphan"},
				{"ssv last_orphan 400", "orphan"},
				{"ssv state 2", "errors"},
				{"ssv error_count 1", "errors"},
				{"unlink /b/c\nln /b/c /a/c", "names"},
				{"unlink /b/c", "-1 names"},
				{"cd /b/c\nwrite " + host + " f\ncd /\nunlink /b/c", "-1 names"},
				{"ln /b/c /a/c", "+1 names"},
			} {
				if out, err := exec.Command("cp", "--sparse=always", image, copied).CombinedOutput(); err != nil {
					t.Fatalf("cp: %v: %s", err, out)
				}
				// debugfs does not write the inodes of directories again when it changes their blocks.
				debugfs(t, copied, tc.commands+"\nsif / mtime @1500000000\nsif /a mtime @1500000000\nsif /b mtime @1500000000\nsif /large mtime @1500000000")
				changed := difference(t, before, copied, size)
				if name == "meta_bg" {
					delete(changed, 8194) // a copy of descriptors, which kernels do not write
				}
				v, err := audit.Check(bytes.NewReader(before), changed)
				if err != nil {
					t.Fatalf("%q: %v", tc.commands, err)
				}
				found := fsck(t, copied)
				if v.Clean && len(found) > 0 {
					t.Errorf("%q: clean, but e2fsck found %q", tc.commands, found)
				}
				if tc.reason == "" && !v.Clean {
					t.Errorf("%q: %q; e2fsck: %q", tc.commands, v.Reasons, found)
				}
				if tc.reason != "" && (v.Clean || !strings.Contains(v.Reasons[0], tc.reason)) {
					t.Errorf("%q: clean %v, %q, not %s; e2fsck: %q", tc.commands, v.Clean, v.Reasons, tc.reason, found)
				}
				all, m, ok := mended(t, bytes.NewReader(before), changed, 1, audit.Memory{})
				mendable := slices.Contains(mends, tc.commands) && !strings.Contains(v.Reasons[0], "move") &&
					(name != "bigalloc" || !strings.Contains(v.Reasons[0], "content in its block")) // e2fsck does not truncate that well
				if want := v.Clean || mendable; ok != want || v.Clean && len(m.Blocks) > 0 {
					t.Errorf("%q: mended %v instead of %v: %q", tc.commands, ok, want, m.What)
				}
				if ok && !v.Clean {
					if found := fsckOf(t, before, all, size, copied); len(found) > 0 {
						t.Errorf("%q: mended %q, but e2fsck found %q", tc.commands, m.What, found)
					}
				}
			}
		})
	}
}
