package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTakeBeat: the process that an earlier agent started to beat is found if its settings are right,
// and killed if they are not.
func TestTakeBeat(t *testing.T) {
	beats := func(name string, uid uint32) (how string, ended chan error) {
		how = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(how, []byte("read line\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh")
		cmd.Args = []string{beatName, how}
		if uid != 0 {
			dir := filepath.Dir(how)
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
				t.Fatal(err)
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() }) // it may have ended
		ended = make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return how, ended
	}
	end := func(what string, ended chan error) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error(what + " goes on")
		}
	}
	same, running := beats("same", 0)
	_, other := beats("other", 0)
	fd := takeBeat(same)
	if fd < 0 {
		t.Fatal("it was not found")
	}
	defer unix.Close(fd)
	end("the one that beats otherwise", other)
	select {
	case err := <-running:
		t.Fatalf("the one that was found has ended: %v", err)
	default:
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	end("the one that was found", running) // so takeBeat's descriptor was that of the right process
	if fd := takeBeat(same); fd >= 0 {
		t.Error("one that has ended was found")
	}
	if os.Getuid() != 0 {
		return
	}
	const nobody = 65534
	foreign, goesOn := beats("foreign", nobody)
	if fd := takeBeat(foreign); fd >= 0 {
		t.Error("that of another user was taken")
	}
	select {
	case err := <-goesOn:
		t.Errorf("that of another user has ended: %v", err)
	default:
	}
}
