package announce

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// SendFrames sends Ethernet frames from the interface with that index.
func SendFrames(index int, frames [][]byte) error {
	// Protocol 0: nothing is received.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: index}
	for _, f := range frames {
		if err := unix.Sendto(fd, f, 0, to); err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
	}
	return nil
}

// Sockets send IP packets that include their headers. They are raw sockets, not packet
// sockets: so the kernel's routes and neighbours give the interface and the MACs at both
// ends, as they would for the connection's own packets, also where a peer is behind a
// router.
type Sockets struct{ ip4, ip6 int }

// OpenSockets opens a socket for IPv4 and one for IPv6, or only the first if the kernel has no IPv6.
func OpenSockets() (*Sockets, error) {
	open := func(family int) (int, error) {
		// IPPROTO_RAW: packets include their header, and nothing is received (raw(7),
		// and inet6_create in net/ipv6/af_inet6.c).
		return unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	}
	s := &Sockets{ip4: -1, ip6: -1}
	var err error
	if s.ip4, err = open(unix.AF_INET); err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	if s.ip6, err = open(unix.AF_INET6); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		unix.Close(s.ip4)
		return nil, fmt.Errorf("open raw IPv6 socket: %w", err)
	}
	return s, nil
}

// Send sends a packet to an address, which is the destination in its header. A
// link-local address is on the link of the interface with that index.
func (s *Sockets) Send(packet []byte, to netip.Addr, index int) error {
	if to.Is4() {
		return unix.Sendto(s.ip4, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	}
	if s.ip6 < 0 {
		return unix.EAFNOSUPPORT
	}
	address := &unix.SockaddrInet6{Addr: to.As16()}
	if to.IsLinkLocalUnicast() {
		address.ZoneId = uint32(index)
	}
	return unix.Sendto(s.ip6, packet, 0, address)
}

// Close closes the sockets.
func (s *Sockets) Close() error {
	err := unix.Close(s.ip4)
	if s.ip6 >= 0 {
		err = errors.Join(err, unix.Close(s.ip6))
	}
	return err
}
