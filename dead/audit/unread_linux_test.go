package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/audit"
)

// TestUnreadTable: a kernel that creates an inode does not read its block of the table if all other inodes there are
// free. It then has zeros in their places, even if they were in use before (ext4_get_inode_loc). Nobody was writing
// them.
func TestUnreadTable(t *testing.T) {
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v; run scripts/setup.sh", err)
		}
	}
	const block, inode, first, perBlock = 1024, 256, 13, 4 // inodes 13 to 16 are a block of the table
	from, path := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for n := range 12 {
		if err := os.WriteFile(filepath.Join(from, fmt.Sprint(n)), bytes.Repeat([]byte{'a' + byte(n)}, 2000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-I", "256", "-N", "128", "-d", from, path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	for n := range 12 {
		out, err := exec.Command("debugfs", "-R", fmt.Sprintf("stat /%d", n), path).Output()
		if err != nil {
			t.Fatal(err)
		}
		for ino := first; ino < first+perBlock; ino++ {
			if strings.HasPrefix(string(out), fmt.Sprintf("Inode: %d ", ino)) {
				debugfs(t, path, fmt.Sprintf("rm /%d", n))
			}
		}
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	debugfs(t, path, "mknod new p\nsif / mtime @1500000000")
	changed := difference(t, old, path, block)
	_, parts, err := audit.Parts(bytes.NewReader(old), changed)
	if err != nil {
		t.Fatal(err)
	}
	zeroed := false
	for at, p := range parts {
		if p.Kind == audit.KindTable && p.Ino == first && !bytes.Equal(old[int(at)*block+inode:][:inode], make([]byte, inode)) {
			clear(changed[at][inode:])
			zeroed = true
		}
	}
	if !zeroed {
		t.Fatalf("the new file has no inode from %d on: %+v", first, parts)
	}
	if err := (audit.Memory{}).Plausible(bytes.NewReader(old), changed, 0); err != nil {
		t.Error(err)
	}
	if torn, err := audit.Torn(bytes.NewReader(old), changed); err != nil || len(torn) > 0 {
		t.Errorf("torn: %v, %v", torn, err)
	}
	if v, err := (audit.Memory{}).Check(bytes.NewReader(old), changed); err != nil || !v.Clean {
		t.Errorf("%+v, %v", v, err)
	}
}
