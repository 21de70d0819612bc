package fault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

func TestDirectory(t *testing.T) {
	tier.Guest(t) // it mounts
	of, at := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(of, "f"), []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Mount(of, at)
	if err != nil {
		tier.Lacks(t, fmt.Sprint("nothing can be mounted: ", err))
	}
	say := func(format string, args ...any) int {
		t.Helper()
		n, err := d.Tell(format, args...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	f, err := os.OpenFile(filepath.Join(at, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func() error {
		_, err := f.WriteAt([]byte("x"), 1)
		return err
	}
	say("count %d", os.Getpid())
	if err := errors.Join(write(), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if n := say("fail 4 %d", int(syscall.ENOSPC)); n != 2 {
		t.Errorf("%d changes, want 2", n)
	}
	if err := write(); err != nil {
		t.Error(err)
	}
	if err := write(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the fourth: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("after it: %v", err)
	}
	if n := say("heal"); n != 5 {
		t.Errorf("%d changes, want 5", n)
	}
	if err := errors.Join(write(), f.Sync(), f.Close()); err != nil {
		t.Errorf("healed: %v", err)
	}
	if err := d.Unmount(); err != nil {
		t.Error(err)
	}
}
