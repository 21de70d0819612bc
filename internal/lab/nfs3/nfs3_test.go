package nfs3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// must sends a call that must succeed, and returns its result.
func must[T any](t *testing.T, ctx context.Context, c *Client, r Request[T]) T {
	t.Helper()
	v, err := Do(ctx, c, r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestProcedures goes through all procedures with a server that is not ours, over TCP and
// over UDP.
func TestProcedures(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			r := &relay{server: serve(t, dir)}
			to := r.server
			if network == "udp" {
				to = r.udp(t)
			}
			c := client(t, Options{Network: network, Server: to, Retransmit: 5 * time.Second})
			procedures(t, c, dir)
		})
	}
}

func procedures(t *testing.T, c *Client, dir string) {
	ctx := testContext(t)
	must(t, ctx, c, Null())
	root := must(t, ctx, c, Mount("/mount"))
	if a := must(t, ctx, c, Getattr(root)); a.Type != Directory {
		t.Errorf("the root is of type %d", a.Type)
	}
	if i := must(t, ctx, c, Fsinfo(root)); i.WriteMax == 0 || i.ReadMax == 0 {
		t.Errorf("FSINFO: %+v", i)
	}
	mode := uint32(0o640)
	must(t, ctx, c, Create(root, "a", Set{Mode: &mode}))
	a := must(t, ctx, c, Lookup(root, "a"))
	data := bytes.Repeat([]byte("0123456"), 700)
	for _, how := range []Stable{Unstable, DataSync, FileSync} {
		if w := must(t, ctx, c, Write(a.Handle, uint64(how)*uint64(len(data)), how, data)); int(w.Count) != len(data) {
			t.Errorf("%d of %d bytes written", w.Count, len(data))
		}
	}
	must(t, ctx, c, Commit(a.Handle, 0, 0))
	got := must(t, ctx, c, Read(a.Handle, 7, 8000))
	if want := bytes.Repeat(data, 3)[7:8007]; !bytes.Equal(got.Data, want) || got.EOF {
		t.Errorf("read %d bytes, end %v, not what was written", len(got.Data), got.EOF)
	}
	on, err := os.ReadFile(filepath.Join(dir, "a"))
	if err != nil || !bytes.Equal(on, bytes.Repeat(data, 3)) {
		t.Errorf("the server's file has %d bytes, %v", len(on), err)
	}
	size := uint64(10)
	must(t, ctx, c, Setattr(a.Handle, Set{Size: &size}))
	if at := must(t, ctx, c, Getattr(a.Handle)); at.Size != 10 || at.Mode&0o777 != mode {
		t.Errorf("size %d, mode %o", at.Size, at.Mode)
	}
	must(t, ctx, c, Mkdir(root, "d", Set{}))
	d := must(t, ctx, c, Lookup(root, "d"))
	must(t, ctx, c, Rename(root, "a", d.Handle, "b"))
	for _, list := range []func(Handle, uint64, Verifier, uint32) Request[List]{Readdir, ReaddirPlus} {
		l := must(t, ctx, c, list(d.Handle, 0, Verifier{}, 4096))
		if !slices.ContainsFunc(l.Entries, func(e Entry) bool { return e.Name == "b" }) || !l.EOF {
			t.Errorf("directory lists %+v", l)
		}
	}
	refused := []struct {
		name string
		call func() error
		want Status
	}{
		{"create guarded", discard(ctx, c, CreateGuarded(d.Handle, "b", Set{})), ErrExist},
		{"create exclusive", discard(ctx, c, CreateExclusive(d.Handle, "b", Verifier{1})), ErrNotSupp}, // go-nfs knows it not
		{"mkdir", discard(ctx, c, Mkdir(root, "d", Set{})), ErrExist},
		{"lookup", discard(ctx, c, Lookup(root, "a")), ErrNoEnt},
		{"remove", discard(ctx, c, Remove(root, "a")), ErrNoEnt},
		{"stale", discard(ctx, c, Getattr(Handle("0123456789abcdef"))), ErrStale},
	}
	for _, r := range refused {
		var s Status
		if err := r.call(); !errors.As(err, &s) || s != r.want {
			t.Errorf("%s: %v, want %v", r.name, err, r.want)
		}
	}
	must(t, ctx, c, Remove(d.Handle, "b"))
	must(t, ctx, c, Rmdir(root, "d"))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func discard[T any](ctx context.Context, c *Client, r Request[T]) func() error {
	return func() error {
		_, err := Do(ctx, c, r)
		return err
	}
}

// TestLostReplies checks that a call whose reply was lost is sent again with its number,
// from its port.
func TestLostReplies(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			r := &relay{server: serve(t, t.TempDir()), lose: func(n int) bool { return n == 1 || n == 2 }}
			to := r.tcp
			if network == "udp" {
				to = r.udp
			}
			connects := make(chan struct{}, 100)
			c := client(t, Options{Network: network, Server: to(t), OnConnect: func() { connects <- struct{}{} }})
			ctx := testContext(t)
			root := must(t, ctx, c, Mount("/"))
			// It is executed twice and both replies are lost: the result is that of the third.
			_, err := Do(ctx, c, Mkdir(root, "d", Set{}))
			if !errors.Is(err, ErrExist) {
				t.Errorf("mkdir: %v", err)
			}
			xids, from := r.seen()
			if len(xids) < 4 || xids[0] == xids[1] || xids[1] != xids[2] || xids[2] != xids[3] {
				t.Errorf("calls %#x", xids)
			}
			slices.Sort(from)
			if from = slices.Compact(from); len(from) != 1 {
				t.Errorf("calls from %s", from)
			}
			if n := len(connects); network == "tcp" && n != 3 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestSameCallAgain checks that a number of ours is used, and used again if we say so.
func TestSameCallAgain(t *testing.T) {
	r := &relay{server: serve(t, t.TempDir())}
	c := client(t, Options{Network: "tcp", Server: r.tcp(t)})
	ctx := testContext(t)
	call := Null()
	call.XID = 0xdecade
	must(t, ctx, c, call)
	must(t, ctx, c, call)
	if xids, _ := r.seen(); !slices.Equal(xids, []uint32{0xdecade, 0xdecade}) {
		t.Errorf("calls %#x", xids)
	}
}

// TestServerDown checks that a call waits while its server is down, and is given up with
// its context, and that all calls are given up with the client.
func TestServerDown(t *testing.T) {
	r := &relay{server: serve(t, t.TempDir())}
	to := r.tcp(t)
	c := client(t, Options{Network: "tcp", Server: to})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	down := client(t, Options{Network: "tcp", Server: nobody})
	ctx := testContext(t)
	must(t, ctx, c, Null())
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := Do(short, down, Null()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call without a server: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := Do(ctx, down, Null())
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	down.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("call at a close: %v", err)
	}
	if _, err := Do(ctx, down, Null()); !errors.Is(err, ErrClosed) {
		t.Errorf("call after a close: %v", err)
	}
}

// TestMany lets calls overtake each other.
func TestMany(t *testing.T) {
	c := client(t, Options{Network: "tcp", Server: serve(t, t.TempDir())})
	ctx := testContext(t)
	root := must(t, ctx, c, Mount("/"))
	errs := make(chan error, 50)
	for i := range 50 {
		go func() {
			name := fmt.Sprintf("f%02d-%s", i, strings.Repeat("x", i))
			_, err := Do(ctx, c, Create(root, name, Set{}))
			errs <- err
		}()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
