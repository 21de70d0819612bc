package fence

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/hint"
)

// child is a real process to be fenced.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (c *child) PID() int               { return c.cmd.Process.Pid }
func (c *child) Kill()                  { c.cmd.Process.Kill() }
func (c *child) Ended() <-chan struct{} { return c.ended }

func start(t *testing.T, name string, args ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(func() {
		c.Kill()
		<-c.ended
	})
	return c
}

func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// guest is a QEMU process that has the image as a disk and holds its lock.
func guest(t *testing.T, img string) *child {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "qmp")
	c := start(t, qemu, append(guestArgs(img), "-qmp", "unix:"+sock+",server=on,wait=off")...)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := Free(img); errors.Is(err, ErrLocked) {
			return c
		}
	}
	t.Fatal("QEMU did not lock the image")
	return nil
}

const qemu = "qemu-system-x86_64"

// guestArgs make a guest that never runs.
func guestArgs(img string) []string {
	return []string{"-machine", "q35", "-nodefaults", "-display", "none", "-S",
		"-blockdev", "driver=file,node-name=disk,filename=" + img + ",locking=on", "-device", "virtio-blk-pci,drive=disk"}
}

// opens reports whether another QEMU can open the image: only then it continues in the
// background.
func opens(t *testing.T, img string) bool {
	t.Helper()
	pidFile := filepath.Join(t.TempDir(), "pid")
	out, err := exec.Command(qemu, append(guestArgs(img), "-daemonize", "-pidfile", pidFile)...).CombinedOutput()
	if err != nil {
		if !strings.Contains(string(out), "lock") {
			t.Errorf("QEMU ended with %v: %s", err, out)
		}
		return false
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// held is an image that a guest of ours may have.
func held(t *testing.T, img string) []*Hold {
	t.Helper()
	h, err := Rekeep(img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return []*Hold{h}
}

// TestReplaced: Raise fences the file that is held and that the guest has open, even if another file,
// or none, has its path.
func TestReplaced(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"renamed": func(path string) error { return os.Rename(path, path+".old") },
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, make([]byte, 1<<20), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := image(t)
			p := guest(t, img)
			holds := held(t, img)
			if err := holds[0].Named(); err != nil || !holds[0].OpenIn(p.PID()) {
				t.Fatalf("before: %v", err)
			}
			if err := replace(img); err != nil {
				t.Fatal(err)
			}
			if err := holds[0].Named(); !errors.Is(err, ErrReplaced) || !holds[0].OpenIn(p.PID()) {
				t.Errorf("after: %v", err)
			}
			proof, err := Raise(p, holds, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer proof.Drop()
			got, err := proof.Image(img).Stat()
			if err != nil || !holds[0].is(got) {
				t.Errorf("another file is fenced: %v", err)
			}
		})
	}
}

func TestRaiseTakesTheLock(t *testing.T) {
	img := image(t)
	p := guest(t, img)
	proof, err := Raise(p, held(t, img), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer proof.Drop()
	select {
	case <-p.Ended():
	default:
		t.Error("fenced process was not reaped")
	}
	if opens(t, img) {
		t.Error("another QEMU could use the fenced image")
	}
	if err := proof.Release(img); err != nil {
		t.Fatal(err)
	}
	if !opens(t, img) {
		t.Error("the released image cannot be used")
	}
}

func TestRaiseFailsWhileAnotherHoldsTheImage(t *testing.T) {
	img := image(t)
	guest(t, img)
	p := start(t, "sleep", "1000")
	_, err := Raise(p, held(t, img), 100*time.Millisecond)
	var hinted *hint.Error
	if !errors.Is(err, ErrLocked) || !errors.As(err, &hinted) {
		t.Fatalf("fence of a locked image: %v", err)
	}
	if !strings.Contains(err.Error(), "qemu-system") {
		t.Errorf("error does not name the holder: %v", err)
	}
}

// immortal is a process that SIGKILL does not end.
type immortal struct{ *child }

func (immortal) Kill() {}

func TestRaiseFailsWhileTheProcessLives(t *testing.T) {
	img := image(t)
	p := start(t, "sleep", "1000")
	if _, err := Raise(immortal{p}, held(t, img), 50*time.Millisecond); err == nil {
		t.Fatal("a living process was fenced")
	}
}
