// Package dirs says where on this machine Understudy keeps the files of what runs, and
// the files that can be made again.
package dirs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
)

// Cache is the directory of what can be made again: kernels, guest images, the
// answers of probes. UNDERSTUDY_CACHE moves it.
func Cache() (string, error) {
	if dir := os.Getenv("UNDERSTUDY_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", hint.New("find cache directory", err, "Set UNDERSTUDY_CACHE.")
	}
	return filepath.Join(base, "understudy"), nil
}

// Run is the run directory of a pair, or of a guest of our own, of that name. It
// is on a tmpfs, since it holds the memory of guests. UNDERSTUDY_RUN moves it.
func Run(name string) string {
	base := os.Getenv("UNDERSTUDY_RUN")
	if base == "" {
		base = "/dev/shm"
	}
	return filepath.Join(base, "understudy-"+name)
}

// State is the directory of what is kept of a pair from one time that it is up to the next.
// UNDERSTUDY_STATE moves it.
func State(name string) string {
	base := os.Getenv("UNDERSTUDY_STATE")
	if base == "" {
		base = "/var/lib/understudy"
	}
	return filepath.Join(base, name)
}

// Kernel finds the kernel, a bzImage, and the modules, lib/modules/RELEASE, of
// small guests: in dir, or, if that is empty, in what scripts/setup.sh has fetched, or else
// those that this machine itself runs.
func Kernel(dir string) (kernel, modules string, err error) {
	if dir != "" {
		return kernelIn(dir)
	}
	return defaultKernel("/")
}

// defaultKernel is what Kernel returns for an empty dir, on a machine whose root directory is root.
func defaultKernel(root string) (kernel, modules string, err error) {
	own := "kernels/default"
	cache, unknown := Cache()
	if unknown == nil {
		own = filepath.Join(cache, own)
		if kernel, modules, err = kernelIn(own); err == nil {
			return kernel, modules, nil
		}
	}
	if kernel, modules, err = runningKernel(root); err == nil {
		return kernel, modules, nil
	}
	return "", "", hint.New("find a kernel for guests", errors.Join(err, unknown),
		"It is this machine's own: restart the machine if its kernel was upgraded. Or name another one's directory with --guest, or have it as "+own+": boot/vmlinuz and lib/modules/RELEASE.")
}

// wanted says what the directory of a kernel must have.
const wanted = "A directory of a kernel has boot/vmlinuz and lib/modules/RELEASE, as a package of a kernel does that is unpacked there (dpkg -x); scripts/setup.sh of the sources makes one."

func kernelIn(dir string) (kernel, modules string, err error) {
	kernel = filepath.Join(dir, "boot", "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		return "", "", hint.New("find kernel", err, wanted)
	}
	trees, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil {
		return "", "", err
	}
	if len(trees) != 1 {
		return "", "", hint.New("find modules", fmt.Errorf("%s has %d directories in lib/modules, not 1", dir, len(trees)), wanted)
	}
	return kernel, trees[0], nil
}

// runningKernel is the kernel that this machine runs, where distributions put it: /boot/vmlinuz-RELEASE, or
// beside its modules in /lib/modules/RELEASE, which is the only place where Arch has it.
func runningKernel(root string) (kernel, modules string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", err
	}
	release := unix.ByteSliceToString(u.Release[:])
	kernel, modules = filepath.Join(root, "boot", "vmlinuz-"+release), filepath.Join(root, "lib", "modules", release)
	if beside := filepath.Join(modules, "vmlinuz"); !readable(kernel) && readable(beside) {
		kernel = beside
	}
	for _, path := range []string{kernel, filepath.Join(modules, "modules.dep")} {
		f, err := os.Open(path)
		if err != nil {
			return "", "", err
		}
		f.Close()
	}
	return kernel, modules, nil
}

func readable(path string) bool { return unix.Access(path, unix.R_OK) == nil }
