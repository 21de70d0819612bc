//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/connections/truth"
	"understudy.dev/understudy/internal/live/rtnl"
)

// truth asks the kernel about all sockets and neighbours.
func (b *board) truth() (*truth.Truth, error) {
	all := &truth.Truth{Tables: b.tables}
	for _, h := range b.held {
		c, err := h.truth()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.kind, err)
		}
		all.Connections = append(all.Connections, c)
	}
	for _, s := range []*space{b.home, b.away, b.own} {
		err := s.do(func() error {
			if err := s.neighbours(all); err != nil {
				return err
			}
			return countProc(all)
		})
		if err != nil {
			return nil, err
		}
	}
	established := 0
	for _, c := range all.Connections {
		if c.State == 1 {
			established++
		}
	}
	if established != all.Established {
		return nil, fmt.Errorf("%d connections are established, and %d according to /proc", established, all.Established)
	}
	return all, nil
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func (h held) truth() (truth.Connection, error) {
	c := truth.Connection{Kind: h.kind, Namespace: h.in.inode}
	info, err := unix.GetsockoptTCPInfo(h.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return c, err
	}
	c.State = info.State
	local, err := unix.Getsockname(h.fd)
	if err != nil {
		return c, err
	}
	if c.Local = addrPort(local); c.Local.Addr().IsLinkLocalUnicast() {
		c.Bound = local.(*unix.SockaddrInet6).ZoneId
	}
	const synSent = 2
	if c.State == synSent {
		c.Remote = h.to
		return c, nil // the kernel tells nothing more
	}
	remote, err := unix.Getpeername(h.fd)
	if err != nil {
		return c, err
	}
	c.Remote = addrPort(remote)
	c.Numbers = true
	return c, numbers(h.fd, &c)
}

// numbers asks for the sequence numbers of a socket (TCP_REPAIR). The kernel tells only
// the end of what was written and of what was received; the others follow from the
// lengths of the queues (net/ipv4/tcp.c, tcp_ioctl).
func numbers(fd int, c *truth.Connection) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	for _, q := range []struct {
		queue int
		into  *uint32
	}{{sendQueue, &c.WriteSeq}, {recvQueue, &c.RcvNxt}} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
			return fmt.Errorf("repair queue: %w", err)
		}
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return fmt.Errorf("queue sequence: %w", err)
		}
		*q.into = uint32(v)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOff); err != nil {
		return fmt.Errorf("end of repair: %w", err)
	}
	unacked, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return err
	}
	unsent, err := unix.IoctlGetInt(fd, sioOutQueueUnsent)
	if err != nil {
		return err
	}
	unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return err
	}
	c.SndUna, c.SndNxt, c.CopiedSeq = c.WriteSeq-uint32(unacked), c.WriteSeq-uint32(unsent), c.RcvNxt-uint32(unread)
	return nil
}

// sioOutQueueUnsent is SIOCOUTQNSD (include/uapi/linux/sockios.h).
const sioOutQueueUnsent = 0x894b

// setWindow gives a connection in repair a window to send into: struct
// tcp_repair_window (include/uapi/linux/tcp.h).
func setWindow(fd int, recv uint32) error {
	var b []byte
	for _, v := range []uint32{recv, 60000, 60000, 60000, recv} { // snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return os.NewSyscallError("setsockopt TCP_REPAIR_WINDOW", unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, string(b)))
}

// neighbours adds the neighbours in the thread's namespace.
func (s *space) neighbours(all *truth.Truth) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := rtnl.Neighbours(0, family)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			const valid = netlink.NUD_PERMANENT | netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE
			if n.State&valid == 0 || len(n.HardwareAddr) != 6 {
				continue
			}
			link, err := netlink.LinkByIndex(n.LinkIndex)
			if err != nil {
				return err
			}
			address, _ := netip.AddrFromSlice(n.IP)
			all.Neighbours = append(all.Neighbours, truth.Neighbour{
				Interface: link.Attrs().Name, Index: uint32(n.LinkIndex), Address: address.Unmap(), MAC: [6]byte(n.HardwareAddr),
				Permanent: n.State == netlink.NUD_PERMANENT, Router: n.Flags&netlink.NTF_ROUTER != 0, Namespace: s.inode,
			})
		}
	}
	return nil
}

// countProc counts the sockets that /proc lists for the thread's namespace.
func countProc(all *truth.Truth) error {
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 4 {
				continue
			}
			switch fields[3] {
			case "01":
				all.Established++
			case "03":
				all.SynRecv++
			case "06":
				all.TimeWait++
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
