package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/wire"
)

// supervised makes a run directory like that of a supervisor that is asked to leave. The
// supervisor sends to asked when it has answered; free lets go of the directory.
func supervised(t *testing.T) (asked <-chan struct{}, free func()) {
	t.Helper()
	t.Setenv("UNDERSTUDY_RUN", t.TempDir())
	dir := dirs.Run("test")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	left := make(chan struct{}, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = wire.New(conn, wire.FromCommand, func(context.Context, string, json.RawMessage) (any, error) { return nil, nil }).Serve(t.Context()) // it ends with the connection
		l.Close()
		left <- struct{}{}
	}()
	return left, func() { lock.Close() }
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", socketOf("test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestLeave checks that leave returns when the supervisor has let go of its pair, or when another
// one has taken it, not when the supervisor has been asked.
func TestLeave(t *testing.T) {
	const while = 300 * time.Millisecond
	for name, then := range map[string]func(t *testing.T, free func()){
		"it lets go":           func(t *testing.T, free func()) { free() },
		"another has the pair": func(t *testing.T, free func()) { listen(t) },
	} {
		t.Run(name, func(t *testing.T) {
			asked, free := supervised(t)
			done := make(chan error, 1)
			go func() {
				cmd := leaveCommand()
				cmd.SetArgs([]string{"test"})
				done <- cmd.ExecuteContext(t.Context())
			}()
			<-asked
			select {
			case err := <-done:
				t.Fatalf("it returned while the supervisor was up: %v", err)
			case <-time.After(while):
			}
			then(t, free)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
