package probe

import (
	"bufio"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve answers every connection to a local port with handle, after the request has been read.
func serve(t *testing.T, handle func(conn *net.TCPConn, req *http.Request)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					handle(conn.(*net.TCPConn), req)
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestFetch(t *testing.T) {
	tests := []struct {
		name, answer string
		class        Class
		status       int
		body         string
	}{
		{"HTTP/1.0 to the end of the connection", "HTTP/1.0 200 OK\r\n\r\nbody", OK, 200, "body"},
		{"HTTP/1.1 with a length", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody", OK, 200, "body"},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", OK, 200, "body"},
		{"not found", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", BadStatus, 404, "no"},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", OK, 200, ""},
		{"cut in the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody", Short, 200, ""},
		{"cut in the header", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", Short, 0, ""},
		{"nothing", "", Short, 0, ""},
		{"too long", "HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat("x", 101), TooLong, 200, ""},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", Other, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked *http.Request
			addr := serve(t, func(conn *net.TCPConn, req *http.Request) {
				asked = req
				io.WriteString(conn, tt.answer)
			})
			body, a := Fetch(t.Context(), Spec{Address: addr, Path: "/f.txt", Timeout: 10 * time.Second, MaxBody: 100})
			if a.Class != tt.class || a.Status != tt.status || string(body) != tt.body {
				t.Errorf("%q, %+v", body, a)
			}
			if (a.Err != nil) == (a.Class == OK || a.Class == BadStatus) {
				t.Errorf("class %s with error %v", a.Class, a.Err)
			}
			if a.Err == nil && (a.SHA256 != sha256.Sum256(body) || a.Size != int64(len(body))) {
				t.Errorf("hash or size wrong: %+v", a)
			}
			if asked.URL.Path != "/f.txt" || !asked.Close || asked.Host != addr {
				t.Errorf("asked %+v", asked)
			}
		})
	}
}

func TestFetchDeadServer(t *testing.T) {
	silent := serve(t, func(conn *net.TCPConn, _ *http.Request) { io.Copy(io.Discard, conn) })
	reset := serve(t, func(conn *net.TCPConn, _ *http.Request) { conn.SetLinger(0) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for class, addr := range map[Class]string{Timeout: silent, Reset: reset, Refused: l.Addr().String()} {
		body, a := Fetch(t.Context(), Spec{Address: addr, Path: "/", Timeout: 200 * time.Millisecond})
		if a.Class != class || body != nil {
			t.Errorf("want %s: %q, %+v", class, body, a)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, a := Fetch(ctx, Spec{Address: silent, Path: "/", Timeout: time.Minute}); a.Err == nil || a.End.Sub(a.Start) > 30*time.Second {
		t.Errorf("cancelled: %+v", a)
	}
}

// A SYN that the server drops, because its queue is full, must cost the try's own deadline and no more.
func TestLostSYNCostsOneTry(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}).String()
	queued, err := net.Dial("tcp", addr) // a backlog of 0 has room for one
	if err != nil {
		t.Fatal(err)
	}
	defer queued.Close()
	_, a := Fetch(t.Context(), Spec{Address: addr, Path: "/"})
	if took := a.End.Sub(a.Start); a.Class != Timeout || took < DefaultTimeout || took > 900*time.Millisecond {
		t.Fatalf("queue full: %+v after %v", a, took)
	}
	if !strings.Contains(a.Err.Error(), "connect") {
		t.Errorf("it did connect: %v", a.Err)
	}
	accepted, _, err := syscall.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(accepted)
	start := time.Now()
	again, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if took := time.Since(start); took > 900*time.Millisecond {
		t.Errorf("a fresh socket took %v to connect", took)
	}
}
