package fence

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTake(t *testing.T) {
	img := image(t)
	c, err := Take(img)
	if err != nil {
		t.Fatal(err)
	}
	if c.Size != 1<<20 || c.Device {
		t.Errorf("claimed %+v", c)
	}
	if err := Free(img); !errors.Is(err, ErrLocked) {
		t.Errorf("claimed, and %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Free(img); err != nil {
		t.Errorf("dropped, and %v", err)
	}
	for _, bad := range []string{filepath.Dir(img), os.DevNull, img + "x"} {
		if _, err := Take(bad); err == nil || !strings.Contains(err.Error(), "Name an image file") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestTakeUsed checks that a disk cannot be claimed which a guest, a mount or a loop
// device has.
func TestTakeUsed(t *testing.T) {
	img := image(t)
	g := guest(t, img)
	if _, err := Take(img); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "qemu") {
		t.Errorf("a guest's: %v", err)
	}
	g.Kill()
	<-g.ended

	if os.Getuid() != 0 {
		t.Skip("not root: no loop devices and mounts")
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Skipf("%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.ext4", "-q", "-F", img)
	loop := run("losetup", "--find", "--show", img)
	defer exec.Command("losetup", "-d", loop).Run()
	for want, path := range map[string]string{"attached to " + loop: img, "": loop} {
		c, err := Take(path)
		if want == "" && err == nil {
			c.Close() // nobody uses the loop device itself
			continue
		}
		if !errors.Is(err, errInUse) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	dir := t.TempDir()
	run("mount", loop, dir)
	defer run("umount", dir)
	for _, path := range []string{img, loop} {
		if _, err := Take(path); !errors.Is(err, errInUse) || !strings.Contains(err.Error(), "mounted on "+dir) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
