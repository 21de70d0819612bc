package announce_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/live/announce"
	"understudy.dev/understudy/internal/live/netns"
)

const (
	server4, server6 = "10.77.0.2", "fd00::2"
	client4, client6 = "10.77.0.1", "fd00::1"
)

// newServer is a lab with a server on its bridge, which has both addresses.
func newServer(t *testing.T) (*netlab.Lab, *netns.Namespace) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: no network namespaces")
	}
	lab, err := netlab.NewLab(netip.MustParsePrefix(client4+"/24"), netip.MustParsePrefix(client6+"/64"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	server, err := netns.New6()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	err = errors.Join(lab.Services.Veth("server", server, "eth0"), lab.Services.Enslave("server", netlab.BridgeName),
		server.AddAddr("eth0", netip.MustParsePrefix(server4+"/24")), server.AddAddr("eth0", netip.MustParsePrefix(server6+"/64")))
	if err != nil {
		t.Fatal(err)
	}
	return lab, server
}

func send(t *testing.T, n *netns.Namespace, frames ...[]byte) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return announce.SendFrames(i.Index, frames)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// connect connects the client to the server, and returns both ends.
func connect(t *testing.T, lab *netlab.Lab, server *netns.Namespace, address string) (client, served net.Conn) {
	t.Helper()
	l, err := server.Listen("tcp", net.JoinHostPort(address, "7"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = lab.Client.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if served, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, served
}

// TestNeighboursBelieve: hosts that knew an address at another MAC know the new one
// as soon as it is announced.
func TestNeighboursBelieve(t *testing.T) {
	lab, server := newServer(t)
	for _, address := range []string{server4, server6} {
		connect(t, lab, server, address)
	}
	for i, tt := range []struct {
		name, address string
		frame         func(announce.MAC, netip.Addr) []byte
	}{
		{"ARP request", server4, func(m announce.MAC, a netip.Addr) []byte { return announce.Gratuitous(m, a)[0] }},
		{"ARP reply", server4, func(m announce.MAC, a netip.Addr) []byte { return announce.Gratuitous(m, a)[1] }},
		{"advertisement", server6, func(m announce.MAC, a netip.Addr) []byte { return announce.Advertisement(m, a, false) }},
	} {
		moved := announce.MAC{0x52, 0x54, 0, 0, 0, byte(i)}
		address := netip.MustParseAddr(tt.address)
		send(t, server, tt.frame(moved, address))
		var known net.HardwareAddr
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			var err error
			if known, err = lab.Client.Neighbor(address); err != nil {
				t.Fatal(err)
			}
			if announce.MAC(known) == moved {
				break
			}
		}
		if announce.MAC(known) != moved {
			t.Errorf("%s: %s is at %s", tt.name, address, known)
		}
	}
}

// TestSnoopersListen: a bridge with multicast snooping accepts the report.
func TestSnoopersListen(t *testing.T) {
	lab, server := newServer(t)
	if _, err := exec.LookPath("bridge"); err != nil {
		t.Skipf("%v: package iproute2 has it", err)
	}
	send(t, server, announce.Membership(announce.MAC{0x52, 0x54, 0, 0, 0, 2}, netip.MustParseAddr("fd00::12ab:cdef")))
	var table string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		err := lab.Services.Do(func() error {
			out, err := exec.Command("bridge", "mdb", "show", "dev", netlab.BridgeName).CombinedOutput()
			table = string(out)
			return err
		})
		if err != nil {
			t.Fatalf("%v: %s", err, table)
		}
		if strings.Contains(table, "port server grp ff02::1:ffab:cdef") {
			return
		}
	}
	t.Errorf("the bridge knows of these groups:\n%s", table)
}

// numbers reads a connection's sequence numbers from its kernel, and removes the
// connection as if that kernel had died: its peer is sent nothing (TCP_REPAIR,
// net/ipv4/tcp.c). On an idle connection all that was sent is acknowledged.
func numbers(t *testing.T, conn net.Conn) (nxt, rcv uint32) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	queue := func(fd, which int) (uint32, error) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, which); err != nil {
			return 0, err
		}
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		return uint32(n), err
	}
	const receive, transmit = 1, 2 // TCP_RECV_QUEUE, TCP_SEND_QUEUE
	var failed error
	err = raw.Control(func(descriptor uintptr) {
		fd := int(descriptor)
		if failed = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); failed != nil {
			return
		}
		if nxt, failed = queue(fd, transmit); failed == nil {
			rcv, failed = queue(fd, receive)
		}
	})
	if err := errors.Join(err, failed, conn.Close()); err != nil {
		t.Fatal(err)
	}
	return nxt, rcv
}

// TestClientsAreReset: a client with an idle connection to a kernel that is gone learns of that at once, by an
// exact reset and by a tickle, but not by a reset with any other number.
func TestClientsAreReset(t *testing.T) {
	lab, server := newServer(t)
	for _, address := range []string{server4, server6} {
		for name, packet := range map[string]func(e announce.Ends, nxt, rcv uint32) []byte{
			"reset":    func(e announce.Ends, nxt, rcv uint32) []byte { return e.Reset(nxt) },
			"tickle":   func(e announce.Ends, nxt, rcv uint32) []byte { return e.Tickle(nxt, rcv) },
			"no reset": func(e announce.Ends, nxt, rcv uint32) []byte { return e.Reset(nxt - 1) },
		} {
			t.Run(name+" of "+address, func(t *testing.T) {
				client, served := connect(t, lab, server, address)
				if _, err := client.Write([]byte("data")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(served, make([]byte, 4)); err != nil {
					t.Fatal(err)
				}
				ends := announce.Ends{Local: at(served.LocalAddr()), Remote: at(served.RemoteAddr())}
				nxt, rcv := numbers(t, served)
				err := server.Do(func() error {
					s, err := announce.OpenSockets()
					if err != nil {
						return err
					}
					return errors.Join(s.Send(packet(ends, nxt, rcv), ends.Remote.Addr(), 0), s.Close())
				})
				if err != nil {
					t.Fatal(err)
				}
				wait := time.Minute
				if name == "no reset" {
					wait = 300 * time.Millisecond
				}
				client.SetReadDeadline(time.Now().Add(wait))
				_, err = client.Read(make([]byte, 1))
				if reset := errors.Is(err, syscall.ECONNRESET); reset == (name == "no reset") {
					t.Errorf("the client read %v", err)
				}
			})
		}
	}
}

// TestResetIsNoRefusal: a client that has had no answer to its SYN yet does not take a
// reset or a tickle for a refusal. It sends the SYN again, and connects.
func TestResetIsNoRefusal(t *testing.T) {
	lab, server := newServer(t)
	l, err := server.Listen("tcp", net.JoinHostPort(server4, "7"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ip := func(args ...string) {
		t.Helper()
		if err := server.Do(func() error { return exec.Command("ip", args...).Run() }); err != nil {
			t.Fatalf("ip %v: %v", args, err)
		}
	}
	ip("route", "add", "blackhole", client4) // no answer gets out
	ended := make(chan error, 1)
	go func() {
		client, err := lab.Client.DialContext(t.Context(), "tcp", l.Addr().String())
		if err == nil {
			err = client.Close()
		}
		ended <- err
	}()
	var port uint16
	for deadline := time.Now().Add(time.Minute); port == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if port, err = calling(lab.Client); err != nil {
			t.Fatal(err)
		}
	}
	ip("route", "del", "blackhole", client4)
	err = server.Do(func() error {
		s, err := announce.OpenSockets()
		if err != nil {
			return err
		}
		ends := announce.Ends{Local: netip.MustParseAddrPort(l.Addr().String()), Remote: netip.AddrPortFrom(netip.MustParseAddr(client4), port)}
		return errors.Join(s.Send(ends.Reset(1), ends.Remote.Addr(), 0), s.Send(ends.Tickle(1, 2), ends.Remote.Addr(), 0), s.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || port == 0 {
		t.Errorf("the client at port %d: %v", port, err)
	}
}

// calling is the port of a connection whose SYN has had no answer; 0 if there is none.
func calling(n *netns.Namespace) (port uint16, err error) {
	err = n.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range strings.Lines(string(table)) {
			var local, remote uint32
			var slot, state int
			if k, _ := fmt.Sscanf(strings.TrimSpace(line), "%d: %X:%X %X:0007 %X", &slot, &local, &port, &remote, &state); k == 5 && state == 2 {
				return nil
			}
		}
		port = 0
		return err
	})
	return port, err
}

func at(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// TestSendRefused: a packet that cannot be sent is an error, and not dropped silently.
func TestSendRefused(t *testing.T) {
	_, server := newServer(t)
	err := server.Do(func() error {
		s, err := announce.OpenSockets()
		if err != nil {
			return err
		}
		defer s.Close()
		for _, there := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
			to := netip.MustParseAddrPort(there)
			local := netip.MustParseAddrPort(net.JoinHostPort(server4, "7"))
			if to.Addr().Is6() {
				local = netip.MustParseAddrPort(net.JoinHostPort(server6, "7"))
			}
			if err := s.Send(announce.Ends{Local: local, Remote: to}.Reset(1), to.Addr(), 0); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("to %s: %v", there, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := announce.SendFrames(1<<30, [][]byte{make([]byte, 60)}); err == nil {
		t.Error("sent from no interface")
	}
}
