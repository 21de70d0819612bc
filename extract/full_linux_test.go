package extract

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDirFull wants a full disk to be said plainly, and nothing to be left.
func TestDirFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system to fill")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount a small file system to fill: ", err)
	}
	defer func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	}()
	big := string(bytes.Repeat([]byte("x"), 100<<10))
	d, err := NewDir(filepath.Join(small, "out"))
	if err != nil {
		t.Fatal(err)
	}
	err = d.Put("vda/big", file(int64(len(big))), content(0, big))
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrSkip) || !strings.Contains(err.Error(), "free space") {
		t.Errorf("%v", err)
	}
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if left := list(t, small); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	a, err := NewArchive(filepath.Join(small, "out.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 8<<20)
	for i := range noise { // that does not compress
		noise[i] = byte(uint64(i*i) * 0x9e3779b97f4a7c15 >> 40)
	}
	err = a.Put("vda/big", file(int64(len(noise))), content(0, string(noise)))
	if err == nil {
		err = a.Finish(nil)
	}
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free space") {
		t.Errorf("%v", err)
	}
	if err := a.Abort(); err != nil {
		t.Error(err)
	}
	if left := list(t, small); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}
