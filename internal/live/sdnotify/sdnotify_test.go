package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestNotifier(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), "@understudy-test-" + strconv.Itoa(os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		t.Setenv("WATCHDOG_USEC", "30000000")
		t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
		n, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		if n.Every() != 15*time.Second {
			t.Errorf("every %v", n.Every())
		}
		if os.Getenv("NOTIFY_SOCKET")+os.Getenv("WATCHDOG_USEC") != "" {
			t.Error("the variables are still there")
		}
		if err := n.Tell(Ready, Status("left serves\nright waits")); err != nil {
			t.Error(err)
		}
		b := make([]byte, 256)
		size, err := l.Read(b)
		if got := string(b[:size]); err != nil || got != "READY=1\nSTATUS=left serves; right waits" {
			t.Errorf("told %q, %v", got, err)
		}
		n.Close()
		l.Close()
	}
}

func TestNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := Open()
	if n != nil || err != nil || n.Tell(Ready) != nil || n.Every() != 0 || n.Close() != nil {
		t.Errorf("%v, %v", n, err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if _, err := Open(); err == nil {
		t.Error("no error without a socket")
	}
}

// TestOtherProcess: the watchdog of another process is not ours.
func TestOtherProcess(t *testing.T) {
	name := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", "1")
	n, err := Open()
	if err != nil || n.Every() != 0 {
		t.Errorf("every %v, %v", n.Every(), err)
	}
	n.Close()
}
