package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/live/netns"
)

var (
	clientAddr = netip.MustParsePrefix("10.77.0.2/24")
	serverAddr = netip.MustParsePrefix("10.77.0.1/24")
)

// needRoot skips the test if, and only if, the kernel refuses a namespace to this user.
func needRoot(t *testing.T) {
	t.Helper()
	n, err := netns.New()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("no network namespaces for user %d: %v", os.Geteuid(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

// newLab makes a Lab that is closed at the end of the test.
func newLab(t *testing.T) *netlab.Lab {
	t.Helper()
	needRoot(t)
	lab, err := netlab.NewLab(clientAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	return lab
}

// newServer cables a namespace with serverAddr to the lab's bridge; its port there is called "server".
func newServer(t *testing.T, lab *netlab.Lab) *netns.Namespace {
	t.Helper()
	server, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	err = errors.Join(lab.Services.Veth("server", server, "eth0"), server.AddAddr("eth0", serverAddr),
		lab.Services.Enslave("server", netlab.BridgeName))
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// serveEcho answers every TCP connection to the namespace's serverAddr with what it sends.
func serveEcho(t *testing.T, n *netns.Namespace) string {
	t.Helper()
	l, err := n.Listen("tcp", netip.AddrPortFrom(serverAddr.Addr(), 7).String())
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
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	return l.Addr().String()
}

// echo sends a line to the echo server and expects it back.
func echo(n *netns.Namespace, addr string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := n.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	line := []byte("are you there?\n")
	if _, err := conn.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, line) {
		return fmt.Errorf("echo %q", got)
	}
	return nil
}

func TestBridgeCarriesTraffic(t *testing.T) {
	lab := newLab(t)
	server := newServer(t, lab)
	addr := serveEcho(t, server)

	if _, err := lab.Client.Neighbor(serverAddr.Addr()); !errors.Is(err, netns.ErrNoNeighbor) {
		t.Errorf("neighbour before any traffic: %v", err)
	}
	start := time.Now()
	if err := echo(lab.Client, addr, time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("first echo through a fresh bridge after %v", time.Since(start))

	mac, err := lab.Client.Neighbor(serverAddr.Addr())
	if err != nil {
		t.Fatal(err)
	}
	want := linkMAC(t, server, "eth0")
	if !bytes.Equal(mac, want) {
		t.Errorf("neighbour %v, want %v", mac, want)
	}

	if err := lab.Services.Release("server"); err != nil {
		t.Fatal(err)
	}
	if err := echo(lab.Client, addr, 100*time.Millisecond); err == nil {
		t.Error("echo through a released port")
	}
	if err := lab.Services.Enslave("server", netlab.BridgeName); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := echo(lab.Client, addr, time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("echo %v after the port was enslaved again", time.Since(start))
}

// TestBridges checks which bridges are listed, and for how long each keeps a new port from forwarding. The
// spanning tree protocol's least delay is 2 s.
func TestBridges(t *testing.T) {
	needRoot(t)
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	err = n.Do(func() error {
		for _, args := range []string{"plain type bridge", "delayed type bridge forward_delay 1500", "stp type bridge stp_state 1", "soon type bridge stp_state 1 forward_delay 200", "cable type veth peer name other"} {
			if out, err := exec.Command("ip", append([]string{"link", "add"}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip link add %s: %w: %s", args, err, out)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.Bridges()
	want := map[string]time.Duration{"plain": 0, "delayed": 0, "stp": 30 * time.Second, "soon": 4 * time.Second}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// linkMAC returns the MAC address of a link.
func linkMAC(t *testing.T, n *netns.Namespace, name string) net.HardwareAddr {
	t.Helper()
	var mac net.HardwareAddr
	err := n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func TestUDP(t *testing.T) {
	lab := newLab(t)
	server := newServer(t, lab)
	var pc net.PacketConn
	err := server.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", netip.AddrPortFrom(serverAddr.Addr(), 7).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 2000)
		if n, from, err := pc.ReadFrom(buf); err == nil {
			pc.WriteTo(buf[:n], from)
		}
	}()
	conn, err := lab.Client.DialContext(t.Context(), "udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 100)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "ping" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func TestBridgeForwardsAtOnce(t *testing.T) {
	lab := newLab(t)
	var out []byte
	err := lab.Services.Do(func() (err error) {
		out, err = exec.Command("ip", "-d", "link", "show", netlab.BridgeName).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"forward_delay 0 ", "stp_state 0 ", ",UP"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("bridge lacks %q: %s", want, out)
		}
	}
	if err := lab.Services.Bridge(netlab.BridgeName); !errors.Is(err, unix.EEXIST) {
		t.Errorf("same bridge twice: %v", err)
	}
}
