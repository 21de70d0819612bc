package dirs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// touch makes empty files below dir.
func touch(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKernel(t *testing.T) {
	cache, own := t.TempDir(), t.TempDir()
	t.Setenv("UNDERSTUDY_CACHE", cache)
	touch(t, cache, "kernels/default/boot/vmlinuz", "kernels/default/lib/modules/6.1/modules.dep")
	touch(t, own, "boot/vmlinuz", "lib/modules/6.2/modules.dep")
	for dir, want := range map[string]string{"": filepath.Join(cache, "kernels/default"), own: own} {
		kernel, modules, err := Kernel(dir)
		if err != nil || kernel != want+"/boot/vmlinuz" || !strings.HasPrefix(modules, want+"/lib/modules/6.") {
			t.Errorf("in %q: %s, %s, %v", dir, kernel, modules, err)
		}
	}
	touch(t, own, "lib/modules/6.3/modules.dep")
	if _, _, err := Kernel(own); err == nil || !strings.Contains(err.Error(), "2 directories") {
		t.Errorf("two sets of modules: %v", err)
	}
	if _, _, err := Kernel(t.TempDir()); err == nil {
		t.Error("a kernel in an empty directory")
	}
}

// running is the release of this machine's kernel.
func running(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

func TestRunningKernel(t *testing.T) {
	root := t.TempDir()
	if _, _, err := runningKernel(root); err == nil {
		t.Error("found without being there")
	}
	release := running(t)
	beside := filepath.Join("lib/modules", release, "vmlinuz")
	touch(t, root, beside, "lib/modules/"+release+"/modules.dep")
	if kernel, _, err := runningKernel(root); err != nil || kernel != filepath.Join(root, beside) {
		t.Errorf("beside its modules: %s, %v", kernel, err)
	}
	touch(t, root, "boot/vmlinuz-"+release)
	if kernel, modules, err := runningKernel(root); err != nil || filepath.Base(kernel) != "vmlinuz-"+release || filepath.Base(modules) != release {
		t.Errorf("%s, %s, %v", kernel, modules, err)
	}
}

// TestNoKernel: the hint is something that an operator without a source tree can do, and the error says
// which file of this machine's own kernel is missing.
func TestNoKernel(t *testing.T) {
	for cache, own := range map[string]string{"/nowhere": "/nowhere/kernels/default", "": "HOME"} {
		t.Setenv("UNDERSTUDY_CACHE", cache)
		t.Setenv("HOME", "")
		t.Setenv("XDG_CACHE_HOME", "")
		_, _, err := defaultKernel(t.TempDir())
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("with cache %q: %v", cache, err)
		}
		for _, want := range []string{"/boot/vmlinuz-", "--guest", own} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("with cache %q, nothing is said of %s: %v", cache, want, err)
			}
		}
		if strings.Contains(err.Error(), "scripts/") {
			t.Errorf("with cache %q: %v", cache, err)
		}
	}
}

// TestNoHome: this machine's own kernel is found even if there is no cache.
func TestNoHome(t *testing.T) {
	t.Setenv("UNDERSTUDY_CACHE", "")
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	root, release := t.TempDir(), running(t)
	touch(t, root, "boot/vmlinuz-"+release, "lib/modules/"+release+"/modules.dep")
	if kernel, _, err := defaultKernel(root); err != nil || kernel != filepath.Join(root, "boot/vmlinuz-"+release) {
		t.Errorf("%s, %v", kernel, err)
	}
}
