package announce_test

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/announce"
	"understudy.dev/understudy/internal/live/netns"
)

// startCall says "words" on a connection of a kernel that is gone, beside a server that listens at the same port.
func startCall(t *testing.T, server *netns.Namespace, ends announce.Ends, nxt, rcv uint32) (c *announce.Call) {
	t.Helper()
	l, err := server.Listen("tcp", ends.Local.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	err = server.Do(func() (err error) {
		c, err = ends.StartCall(nxt, rcv, []byte("words"), 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// acknowledgeAtOnce lets a client's kernel acknowledge what it receives before the client reads it, once more than usual
// (TCP_QUICKACK, tcp(7)).
func acknowledgeAtOnce(t *testing.T, client net.Conn) {
	t.Helper()
	raw, err := client.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// ended waits until a client's connection is reset.
func ended(t *testing.T, client net.Conn) {
	t.Helper()
	client.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %d bytes, %v", n, err)
	}
}

// TestCall: a client that acknowledges a call long before it reads it can still answer, and is reset then.
func TestCall(t *testing.T) {
	lab, server := newServer(t)
	for _, address := range []string{server4, server6} {
		client, served := connect(t, lab, server, address)
		ends := announce.Ends{Local: at(served.LocalAddr()), Remote: at(served.RemoteAddr())}
		acknowledgeAtOnce(t, client)
		nxt, rcv := numbers(t, served)
		c := startCall(t, server, ends, nxt, rcv)
		answered := make(chan int)
		go func() { answered <- announce.EndCalls([]*announce.Call{c}, time.Minute) }()
		time.Sleep(300 * time.Millisecond) // long after the acknowledgement, and after callDoubts
		said := make([]byte, 5)
		if _, err := io.ReadFull(client, said); err != nil || string(said) != "words" {
			t.Errorf("%s: the client read %q, %v", address, said, err)
		}
		if _, err := client.Write([]byte("answer")); err != nil {
			t.Errorf("%s: the client cannot answer: %v", address, err)
		}
		if n := <-answered; n != 1 {
			t.Errorf("%s: %d calls answered", address, n)
		}
		ended(t, client)
	}
}

// TestCallUnanswered: a client that does not answer in time is reset.
func TestCallUnanswered(t *testing.T) {
	lab, server := newServer(t)
	client, served := connect(t, lab, server, server4)
	ends := announce.Ends{Local: at(served.LocalAddr()), Remote: at(served.RemoteAddr())}
	nxt, rcv := numbers(t, served)
	c := startCall(t, server, ends, nxt, rcv)
	if n := announce.EndCalls([]*announce.Call{c}, 200*time.Millisecond); n != 0 {
		t.Errorf("%d calls answered", n)
	}
	client.SetReadDeadline(time.Now().Add(time.Minute))
	if said, err := io.ReadAll(client); string(said) != "words" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %q, %v", said, err)
	}
}

// TestCallOutOfStep: a client that lacks what came before the call is reset as soon as it says so.
func TestCallOutOfStep(t *testing.T) {
	lab, server := newServer(t)
	client, served := connect(t, lab, server, server4)
	ends := announce.Ends{Local: at(served.LocalAddr()), Remote: at(served.RemoteAddr())}
	route := func(verb string) {
		t.Helper()
		if err := server.Do(func() error { return exec.Command("ip", "route", verb, "blackhole", client4).Run() }); err != nil {
			t.Fatal(err)
		}
	}
	route("add")
	if _, err := served.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	nxt, rcv := numbers(t, served)
	route("del")
	c := startCall(t, server, ends, nxt, rcv)
	began := time.Now()
	if n := announce.EndCalls([]*announce.Call{c}, time.Hour); n != 0 {
		t.Errorf("%d calls answered", n)
	}
	t.Logf("ended after %v", time.Since(began))
	ended(t, client)
}

// TestCallRefused: a connection that this host has, or whose address it has not, cannot be carried on.
func TestCallRefused(t *testing.T) {
	lab, server := newServer(t)
	client, served := connect(t, lab, server, server4)
	ends := announce.Ends{Local: at(served.LocalAddr()), Remote: at(served.RemoteAddr())}
	elsewhere := announce.Ends{Local: ends.Remote, Remote: ends.Local}
	for name, e := range map[string]announce.Ends{"a connection that is there": ends, "an address that is not": elsewhere} {
		err := server.Do(func() error {
			_, err := e.StartCall(1, 1, []byte("words"), 0)
			return err
		})
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := client.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(served, make([]byte, 4)); err != nil {
		t.Errorf("the connection that is there: %v", err)
	}
}
