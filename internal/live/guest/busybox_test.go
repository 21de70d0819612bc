package guest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/live/initramfs"
)

// TestBusybox: one that is linked dynamically comes with its libraries and their linker, as Debian's package
// busybox has it; wherever this machine has it, the guest has it in /bin.
func TestBusybox(t *testing.T) {
	defer func(before []string) { busyboxes = before }(busyboxes)
	dir := t.TempDir()
	busyboxes = []string{filepath.Join(dir, "none"), filepath.Join(dir, "busybox")}
	if files, err := busyboxFiles(); err != nil || len(files) > 0 {
		t.Errorf("without it: %v, %v", files, err)
	}
	program, err := os.ReadFile("/bin/ls") // it stands for any that is linked so
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(busyboxes[1], program, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := busyboxFiles()
	if err != nil {
		t.Fatal(err)
	}
	has := func(path string) bool {
		return slices.ContainsFunc(files, func(f initramfs.File) bool { return f.Path == path })
	}
	for _, path := range []string{busyboxes[1], "/bin/busybox", "/bin/sh", "/lib64/ld-linux-x86-64.so.2"} {
		if !has(path) {
			t.Errorf("%s is missing", path)
		}
	}
}
