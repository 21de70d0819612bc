package dirs

import (
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

func TestRunningKernel(t *testing.T) {
	root := t.TempDir()
	if _, _, err := runningKernel(root); err == nil {
		t.Error("found without being there")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	touch(t, root, "boot/vmlinuz-"+release, "lib/modules/"+release+"/modules.dep")
	if kernel, modules, err := runningKernel(root); err != nil || filepath.Base(kernel) != "vmlinuz-"+release || filepath.Base(modules) != release {
		t.Errorf("%s, %s, %v", kernel, modules, err)
	}
}
