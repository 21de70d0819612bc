package fence

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// storage is a QEMU process that uses the image and holds its lock.
func storage(t *testing.T, img string) *child {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "nbd")
	c := start(t, "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=disk,filename="+img+",locking=on",
		"--nbd-server", "addr.type=unix,addr.path="+sock,
		"--export", "type=nbd,id=x,node-name=disk,writable=on")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(sock); err == nil {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal("qemu-storage-daemon did not open the image")
		}
	}
}

func TestRaiseTakesTheLock(t *testing.T) {
	img := image(t)
	p := storage(t, img)
	proof, err := Raise(p, []string{img}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer proof.Drop()
	select {
	case <-p.Ended():
	default:
		t.Error("fenced process was not reaped")
	}
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", img).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "lock") {
		t.Errorf("another QEMU could open the fenced image: %v: %s", err, out)
	}
	if err := proof.Release(img); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", img).CombinedOutput(); err != nil {
		t.Errorf("released image cannot be opened: %v: %s", err, out)
	}
}

func TestRaiseFailsWhileAnotherHoldsTheImage(t *testing.T) {
	img := image(t)
	storage(t, img)
	p := start(t, "sleep", "1000")
	_, err := Raise(p, []string{img}, 100*time.Millisecond)
	var fenceErr *Error
	if !errors.Is(err, ErrLocked) || !errors.As(err, &fenceErr) {
		t.Fatalf("fence of a locked image: %v", err)
	}
	if !strings.Contains(err.Error(), "qemu-storage") {
		t.Errorf("error does not name the holder: %v", err)
	}
}

// immortal is a process that SIGKILL does not end.
type immortal struct{ *child }

func (immortal) Kill() {}

func TestRaiseFailsWhileTheProcessLives(t *testing.T) {
	img := image(t)
	p := start(t, "sleep", "1000")
	if _, err := Raise(immortal{p}, []string{img}, 50*time.Millisecond); err == nil {
		t.Fatal("a living process was fenced")
	}
	if _, err := Raise(p, []string{img + ".missing"}, 50*time.Millisecond); err == nil {
		t.Fatal("a missing image was locked")
	}
}
