package journal_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

// copyOf copies an image, with its holes.
func copyOf(t testing.TB, image string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command("cp", "--sparse=always", image, path).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// harmless matches what e2fsck may say: it deletes files that were deleted while open, as
// a mount does, and the superblock's own counts are never kept up to date.
var harmless = regexp.MustCompile(`(?m)^.*(: Clearing orphaned inode .*|: Free (blocks|inodes) count wrong .*FIXED\.?|: \d+/\d+ files .*)$`)

// fsck checks that a file system is without any fault.
func fsck(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fp", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	if left := strings.TrimSpace(harmless.ReplaceAllString(string(out), "")); left != "" {
		t.Errorf("e2fsck found: %s", left)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// TestRescue finishes the last commit of every file system of a crash. Then all
// names are there that existed when the kernel died, and everything of each file that does not
// wait for an allocation.
func TestRescue(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			spec := fixture.Basic
			spec.Kernel = name
			image := fixture.Get(t, spec)
			c := openCache(t, image)
			for _, d := range image.Disks {
				disk := copyOf(t, d.Image)
				r, err := journal.Plan(c, superOf(t, c, d), disk)
				if err != nil {
					t.Fatal(err)
				}
				if r.Lost != nil {
					t.Fatal(r.Lost)
				}
				report, err := r.Finish(disk)
				if err != nil {
					t.Fatalf("%s: %v", d.Name, err)
				}
				t.Logf("%s: %v: %d blocks, %d revoked, %d bytes of files, %d files written; %d blocks replayed; %v", d.Name, report.Case,
					report.Blocks, report.Revoked, report.Data, len(report.Written), report.Replayed, report.Steps)
				for _, err := range r.Refused {
					t.Error(err)
				}
				fsck(t, disk.Name())
				compare(t, image, d, disk.Name(), report.Written)
			}
		})
	}
}

// compare looks each file up by its path. Those that are written must be whole.
func compare(t *testing.T, image *fixture.Image, d fixture.Disk, disk string, written map[addr.Ino]struct{}) {
	t.Helper()
	dir := t.TempDir()
	var script strings.Builder
	files := image.Files(d.Name)
	files = slices.DeleteFunc(files, func(f record.File) bool { return f.Mode&0o170000 != 0o100000 || f.NLink == 0 })
	for i, f := range files {
		fmt.Fprintf(&script, "dump \"%s\" %s/%d\n", f.Path, dir, i)
	}
	cmd := exec.Command("debugfs", "-f", "-", disk)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	same, missing := 0, 0
	for i, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if errors.Is(err, os.ErrNotExist) {
			missing++
			if !strings.ContainsAny(string(f.Path), "\n\\") {
				t.Errorf("%s: %q is missing", d.Name, f.Path)
			}
			continue
		}
		sum := sha256.Sum256(b)
		if hex.EncodeToString(sum[:]) == f.SHA256 {
			same++
		} else if _, ok := written[addr.Ino(f.Ino)]; ok {
			t.Errorf("%s: %q is not what it was", d.Name, f.Path)
		}
	}
	t.Logf("%s: %d files, %d whole, %d not found", d.Name, len(files), same, missing)
}
