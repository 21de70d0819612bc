package nfs3

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// changeable lets go-nfs change attributes of what it serves.
type changeable struct{ billy.Filesystem }

func (c changeable) path(name string) string { return filepath.Join(c.Root(), name) }

func (c changeable) Chmod(name string, mode os.FileMode) error { return os.Chmod(c.path(name), mode) }
func (c changeable) Lchown(name string, uid, gid int) error    { return os.Lchown(c.path(name), uid, gid) }
func (c changeable) Chown(name string, uid, gid int) error     { return os.Chown(c.path(name), uid, gid) }
func (c changeable) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.path(name), atime, mtime)
}

// serve serves a directory with go-nfs, and returns the address of both NFS and MOUNT.
func serve(t *testing.T, dir string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	go gonfs.Serve(l, helpers.NewCachingHandler(helpers.NewNullAuthHandler(changeable{osfs.New(dir)}), 1024))
	return netip.MustParseAddrPort(l.Addr().String())
}

// client calls a server from a port of its own.
func client(t *testing.T, o Options) *Client {
	t.Helper()
	if o.LocalPort == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o.LocalPort = netip.MustParseAddrPort(l.Addr().String()).Port()
		l.Close()
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// relay stands between a client and a server, notes the numbers of calls, and loses some
// replies.
type relay struct {
	server netip.AddrPort
	mu     sync.Mutex
	xids   []uint32
	from   []string
	// lose reports whether the reply to call n, counted from zero, gets lost: over TCP
	// with a reset, over UDP with nothing.
	lose func(n int) bool
}

// next notes a call, and reports whether its reply gets lost.
func (r *relay) next(msg []byte, from net.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.xids = append(r.xids, (&decoder{b: msg}).uint32())
	r.from = append(r.from, from.String())
	return r.lose != nil && r.lose(len(r.xids)-1)
}

// seen returns the numbers of the calls so far, and the addresses they came from.
func (r *relay) seen() ([]uint32, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]uint32(nil), r.xids...), append([]string(nil), r.from...)
}

// ask lets the server answer one message, on a separate connection.
func (r *relay) ask(msg []byte) ([]byte, error) {
	conn, err := net.Dial("tcp", r.server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(appendRecord(nil, msg)); err != nil {
		return nil, err
	}
	return readRecord(conn)
}

func (r *relay) udp(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			lost := r.next(buf[:n], from)
			answer, err := r.ask(buf[:n])
			if err != nil || lost {
				continue
			}
			if _, err := conn.WriteTo(answer, from); err != nil {
				return
			}
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func (r *relay) tcp(t *testing.T) netip.AddrPort {
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
			go r.serve(conn.(*net.TCPConn))
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func (r *relay) serve(conn *net.TCPConn) {
	defer conn.Close()
	for {
		msg, err := readRecord(conn)
		if err != nil {
			return
		}
		lost := r.next(msg, conn.RemoteAddr())
		answer, err := r.ask(msg)
		if err != nil {
			return
		}
		if lost {
			_ = conn.SetLinger(0) // Close resets
			return
		}
		// In two fragments, as a server may.
		half := len(answer) / 2
		b := appendRecord(nil, answer[:half])
		b[0] &^= lastFragment >> 24
		if _, err := conn.Write(appendRecord(b, answer[half:])); err != nil {
			return
		}
	}
}
