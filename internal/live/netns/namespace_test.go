package netns_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/live/netns"
)

func TestIPv6IsOffInside(t *testing.T) {
	lab := newLab(t)
	const knob = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
	host, err := os.ReadFile(knob)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("a kernel without IPv6")
	}
	for _, n := range []*netns.Namespace{lab.Services, lab.Client} {
		var inside []byte
		if err := n.Do(func() (err error) { inside, err = os.ReadFile(knob); return err }); err != nil {
			t.Fatal(err)
		}
		if string(inside) != "1\n" {
			t.Errorf("inside: %q", inside)
		}
	}
	if after, err := os.ReadFile(knob); err != nil || !bytes.Equal(host, after) {
		t.Errorf("host: %q before, %q after, %v", host, after, err)
	}
}

func TestDo(t *testing.T) {
	needRoot(t)
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	own := errors.New("own")
	if err := n.Do(func() error { return own }); err != own {
		t.Errorf("error of the function: %v", err)
	}
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ends its goroutine: no error")
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := n.Do(func() error { time.Sleep(time.Millisecond); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"Do": n.Do(func() error { return nil }), "Close": n.Close(), "Bridge": n.Bridge("b"),
	} {
		if !errors.Is(err, netns.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if err := n.Veth("a", nil, "b"); err == nil {
		t.Error("a cable to the host")
	}
	if _, err := n.DialContext(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("a host name is dialled")
	}
}

func TestNilIsTheHost(t *testing.T) {
	var host *netns.Namespace
	links, err := host.Links()
	if err != nil {
		t.Fatal(err)
	}
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		if _, ok := links[i.Name]; !ok {
			t.Errorf("no %s in %v", i.Name, links)
		}
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
}

// threadNamespaces are the network namespaces of all threads of this process.
func threadNamespaces(t *testing.T) map[string]bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, path := range threads {
		if ns, err := os.Readlink(path); err == nil { // threads come and go
			found[ns] = true
		}
	}
	return found
}

// heldOpen counts this process's descriptors of network namespaces and taps.
func heldOpen(t *testing.T) int {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err == nil && (strings.HasPrefix(to, "net:[") || to == "/dev/net/tun") { // other descriptors come and go
			n++
		}
	}
	return n
}

// eventually waits for a condition that the kernel brings about on its own time.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	needTun(t)
	var host *netns.Namespace
	before, err := host.Links()
	if err != nil {
		t.Fatal(err)
	}
	held := heldOpen(t)
	lab, err := netlab.NewLab(clientAddr)
	if err != nil {
		t.Fatal(err)
	}
	tap, err := lab.Services.Tap("tap0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := heldOpen(t); n != held+3 {
		t.Errorf("%d descriptors held open, want %d: two namespaces and a tap", n, held+3)
	}
	tap.Close()
	if err := lab.Services.Close(); err != nil {
		t.Fatal(err)
	}
	// The client's end of the cable goes when the namespace with the other end does.
	eventually(t, "the services' namespace is gone", func() bool {
		links, err := lab.Client.Links()
		_, there := links["eth0"]
		return err == nil && !there
	})
	if err := lab.Client.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all threads are home", func() bool { return len(threadNamespaces(t)) == 1 })
	if n := heldOpen(t); n != held {
		t.Errorf("%d descriptors before, %d after", held, n)
	}
	after, err := host.Links()
	if err != nil || !maps.Equal(before, after) {
		t.Errorf("host's links %v before, %v after, %v", before, after, err)
	}
}

// TestIPv6WhereAsked: an IPv6 address can be used as soon as it is added, and the
// neighbour's link address is known.
func TestIPv6WhereAsked(t *testing.T) {
	needRoot(t)
	lab, err := netlab.NewLab(clientAddr, netip.MustParsePrefix("fd00::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	server, err := netns.New6()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	err = errors.Join(lab.Services.Veth("server", server, "eth0"), lab.Services.Enslave("server", netlab.BridgeName),
		server.AddAddr("eth0", netip.MustParsePrefix("fd00::2/64")))
	if err != nil {
		t.Fatal(err)
	}
	l, err := server.Listen("tcp", "[fd00::2]:7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := lab.Client.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if mac, err := lab.Client.Neighbor(netip.MustParseAddr("fd00::2")); err != nil || len(mac) != 6 {
		t.Errorf("neighbour at %v, %v", mac, err)
	}
}
