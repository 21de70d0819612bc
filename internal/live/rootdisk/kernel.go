package rootdisk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"understudy.dev/understudy/internal/live/hint"
)

// Kernel is what a system boots.
type Kernel struct {
	Release   string // as uname -r says it
	Image     string // path of the bzImage, here
	Initramfs string // likewise
}

// maxBoot bounds a kernel and its initramfs, bytes.
const maxBoot = 1 << 30

// TakeKernel copies a kernel of the system and its initramfs to out.vmlinuz and out.initrd: the
// kernel of that release, or, if release is empty, the newest one that has its modules there.
func (d *Disk) TakeKernel(release, out string) (k Kernel, err error) {
	k = Kernel{Release: release, Image: out + ".vmlinuz", Initramfs: out + ".initrd"}
	if k.Release == "" {
		err = d.on(d.root, look, func(root *os.Root) error {
			k.Release, err = newest(root)
			return err
		})
		if err != nil {
			return k, fmt.Errorf("find the kernel of %s: %w", d.Path, err)
		}
	}
	took := fs.ErrNotExist
	take := func(dir string) func(*os.Root) error {
		return func(root *os.Root) error {
			took = errors.Join(copyOut(root, dir+"vmlinuz-"+k.Release, k.Image), copyInitramfs(root, dir, k))
			return nil
		}
	}
	if err := d.on(d.root, look, take("boot/")); err != nil {
		return k, err
	}
	for _, fs := range d.rest { // one of them may be /boot
		if took == nil {
			break
		}
		if err := d.on(fs, look, take("")); err != nil {
			return k, err
		}
	}
	if took != nil {
		return k, hint.New("take kernel "+k.Release+" out of "+d.Path, took, "Install a kernel package in it, with its initramfs; --release names another one.")
	}
	return k, nil
}

// copyInitramfs copies the initramfs of a kernel, by the name that Debian and Ubuntu, Fedora, or SUSE give it.
func copyInitramfs(root *os.Root, dir string, k Kernel) error {
	var errs []error
	for _, name := range []string{"initrd.img-" + k.Release, "initramfs-" + k.Release + ".img", "initrd-" + k.Release} {
		err := copyOut(root, dir+name, k.Initramfs)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// newest returns the highest release that the system has modules for.
func newest(root *os.Root) (string, error) {
	for _, dir := range []string{"usr/lib/modules", "lib/modules"} {
		entries, err := fs.ReadDir(root.FS(), dir)
		if err != nil {
			continue
		}
		best := ""
		for _, e := range entries {
			if _, err := root.Stat(dir + "/" + e.Name() + "/modules.dep"); err == nil && (best == "" || older(best, e.Name())) {
				best = e.Name()
			}
		}
		if best != "" {
			return best, nil
		}
	}
	return "", hint.New("look into /lib/modules", fs.ErrNotExist, "Install a kernel package in it.")
}

// older reports whether release a comes before b: numbers in them are compared as numbers.
func older(a, b string) bool {
	for a != "" && b != "" {
		x, restA := run(a)
		y, restB := run(b)
		n, errX := strconv.ParseUint(x, 10, 32)
		m, errY := strconv.ParseUint(y, 10, 32)
		switch {
		case errX == nil && errY == nil && n != m:
			return n < m
		case (errX != nil || errY != nil) && x != y:
			return x < y
		}
		a, b = restA, restB
	}
	return len(a) < len(b)
}

// run splits off the digits, or the other characters, that a text begins with.
func run(s string) (first, rest string) {
	digit := unicode.IsDigit(rune(s[0]))
	n := strings.IndexFunc(s, func(r rune) bool { return unicode.IsDigit(r) != digit })
	if n < 0 {
		n = len(s)
	}
	return s[:n], s[n:]
}

// copyOut copies a file of the system to this machine, with its permissions, since an initramfs may have a key
// in it: complete, or not at all.
func copyOut(root *os.Root, from, to string) (err error) {
	in, err := root.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > maxBoot {
		return fmt.Errorf("/%s is not a regular file, or is empty or too large for a kernel or an initramfs", from)
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".understudy-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone if all went well
	_, err = io.CopyN(f, in, st.Size())
	if err = errors.Join(err, f.Chmod(st.Mode().Perm()), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}
