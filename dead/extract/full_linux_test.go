package extract

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDirFull checks that a full disk is named in the error, and that nothing is left.
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

// TestDirAttributes checks that files get the attributes they had, whatever new files in
// the output directory are like.
func TestDirAttributes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, umask := range []int{0, 0o022, 0o777} {
		for name, prepare := range map[string]func(dir string) error{
			"plain":            func(string) error { return nil },
			"setgid directory": func(dir string) error { return errors.Join(os.Chown(dir, 0, 77), os.Chmod(dir, 0o2755)) },
		} {
			dir := t.TempDir()
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			old := unix.Umask(umask)
			d, err := NewDir(dir)
			if err == nil {
				err = putAll(d)
			}
			unix.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			checkAll(t, dir, fmt.Sprintf("%s, umask %#o", name, umask))
		}
	}
}

var (
	someModes  = []uint16{0o600, 0o644, 0o777, 0o444, 0, 0o4755, 0o2640, 0o1666, 0o7777}
	someOwners = [][2]uint32{{0, 0}, {12, 34}, {0, 77}}
)

func putAll(d *Dir) error {
	for _, mode := range someModes {
		for _, owner := range someOwners {
			f := file(2000)
			f.Mode, f.UID, f.GID = 0o100000|mode, owner[0], owner[1]
			if err := d.Put(fmt.Sprintf("vda/%o-%d-%d", mode, owner[0], owner[1]), f, content(10, "abc")); err != nil {
				return err
			}
		}
	}
	return d.Finish([]byte("{}"))
}

func checkAll(t *testing.T, dir, how string) {
	t.Helper()
	names := list(t, filepath.Join(dir, "vda"))
	if len(names) != len(someModes)*len(someOwners) {
		t.Errorf("%s: there are %q", how, names)
	}
	for _, mode := range someModes {
		for _, owner := range someOwners {
			var st unix.Stat_t
			name := fmt.Sprintf("%o-%d-%d", mode, owner[0], owner[1])
			if err := unix.Stat(filepath.Join(dir, "vda", name), &st); err != nil {
				t.Fatal(err)
			}
			if st.Mode != unix.S_IFREG|uint32(mode) || st.Uid != owner[0] || st.Gid != owner[1] || st.Size != 2000 ||
				st.Mtim.Nano() != file(0).Mtime.UnixNano() {
				t.Errorf("%s: %s is %o %d %d of %d bytes at %v", how, name, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim)
			}
		}
	}
}
