package guest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/live/initramfs"
)

// TestBusybox: a dynamically linked busybox, such as that of Debian's package busybox, comes with its libraries and
// their linker. Wherever this machine has busybox, the guest has it in /bin.
func TestBusybox(t *testing.T) {
	defer func(before []string) { busyboxes = before }(busyboxes)
	dir := t.TempDir()
	busyboxes = []string{filepath.Join(dir, "none"), filepath.Join(dir, "busybox")}
	if files, err := busyboxFiles(); err != nil || len(files) > 0 {
		t.Errorf("without it: %v, %v", files, err)
	}
	program, err := os.ReadFile("/bin/ls") // it stands for any dynamically linked program
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
