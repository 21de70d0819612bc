//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/rtnl"
)

// board is all networks of the guest and the sockets in them.
type board struct {
	home   *space // of PID 1
	away   *space // connected to home by a cable
	own    *space // with its own hash table, where the kernel supports that
	tables int
	held   []held
}

// held is a socket that stays open.
type held struct {
	kind string
	fd   int
	in   *space
	to   netip.AddrPort // the peer that does not answer
}

// space is a network namespace, with a thread in it.
type space struct {
	inode uint32
	work  chan func()
}

// newSpace starts a thread in a namespace: a new one, or the one of PID 1.
func newSpace(fresh bool) (*space, error) {
	s := &space{work: make(chan func())}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- func() error {
			if fresh {
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return fmt.Errorf("unshare: %w", err)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
				return err
			}
			s.inode = uint32(st.Ino)
			// Make addresses usable at once.
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
				return err
			}
			return up("lo")
		}()
		for f := range s.work {
			f()
		}
	}()
	return s, <-started
}

// do runs f in the namespace.
func (s *space) do(f func() error) error {
	done := make(chan error)
	s.work <- func() { done <- f() }
	return <-done
}

func up(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if address.IP.To4() == nil {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// tableEntries gives new namespaces their own hash tables (since 6.1).
const tableEntries = "/proc/sys/net/ipv4/tcp_child_ehash_entries"

// newBoard makes the networks: a dummy device at home that swallows what is sent to
// it, and a cable between home and away.
func newBoard() (*board, error) {
	b := &board{tables: 1}
	var err error
	if b.home, err = newSpace(false); err != nil {
		return nil, err
	}
	if b.away, err = newSpace(true); err != nil {
		return nil, err
	}
	if err := os.WriteFile(tableEntries, []byte("512"), 0); err == nil {
		b.tables++
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if b.own, err = newSpace(true); err != nil {
		return nil, err
	}
	var far int
	err = b.away.do(func() (err error) {
		far, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = b.home.do(func() error {
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerNamespace: netlink.NsFd(far)}
		if err := netlink.LinkAdd(cable); err != nil {
			return fmt.Errorf("add cable: %w", err)
		}
		if _, err := netlink.LinkByName("dummy0"); err != nil {
			if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "dummy0"}}); err != nil {
				return fmt.Errorf("add dummy: %w", err)
			}
		}
		return errors.Join(up("dummy0", "10.9.0.1/24", "fd09::1/64"), up("near", "10.8.0.1/24", "fd08::1/64"))
	})
	if err != nil {
		return nil, err
	}
	if err := b.away.do(func() error { return up("far", "10.8.0.2/24", "fd08::2/64") }); err != nil {
		return nil, err
	}
	return b, b.setNeighbours()
}

// setNeighbours adds some neighbours, and makes the kernel look for one that does not
// exist.
func (b *board) setNeighbours() error {
	set := func(device string, addresses ...string) func() error {
		return func() error {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			for i, a := range addresses {
				n := &netlink.Neigh{
					LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(a),
					HardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(len(device)), byte(i)},
				}
				if i%2 == 1 {
					n.Flags = netlink.NTF_ROUTER
				}
				if err := netlink.NeighAdd(n); err != nil {
					return fmt.Errorf("add neighbour %s: %w", a, err)
				}
			}
			return nil
		}
	}
	if err := b.home.do(set("near", "10.8.0.70", "10.8.0.71", "fd08::70", "fd08::71")); err != nil {
		return err
	}
	if err := b.away.do(set("far", "10.8.0.80", "fd08::80")); err != nil {
		return err
	}
	return b.home.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 8, 0, 99}})
	})
}

// linkLocal returns the link-local address and the index of a device.
func linkLocal(name string) (netip.Addr, uint32, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	list, err := rtnl.Addresses(link, unix.AF_INET6)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() {
			return ip, uint32(link.Attrs().Index), nil
		}
	}
	return netip.Addr{}, 0, fmt.Errorf("%s has no link-local address", name)
}
