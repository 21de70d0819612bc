package announce

import (
	"encoding/binary"
	"net/netip"
)

const (
	ip4Bytes    = 20 // without options
	ip6Bytes    = 40
	tcpBytes    = 20 // without options
	protocolTCP = 6
	hopLimit    = 64 // IPDEFTTL, include/uapi/linux/ip.h

	flagRST = 1 << 2
	flagACK = 1 << 4
)

// Ends are the two ends of a TCP connection, of one address family. Neither is an
// IPv4-mapped IPv6 address.
type Ends struct {
	Local, Remote netip.AddrPort
}

// Reset returns the IP packet that ends a connection at its remote end, if seq is
// exactly the next byte that end expects (RFC 5961, 3.2): the dead side's SND.NXT if
// none of its data was in flight. It acknowledges nothing, so that an end which has had
// no answer to its SYN yet does not take it for a refusal (RFC 9293, 3.10.7.3).
func (e Ends) Reset(seq uint32) []byte { return e.segment(seq, 0, flagRST) }

// Tickle returns the IP packet that makes the remote end say which numbers it
// expects: an acknowledgement with a sequence number that the remote end has had
// already, like a keep-alive (RFC 1122, 4.2.3.6). The remote end answers with the
// right numbers, and a kernel that does not know the connection answers that with an
// exact reset. una is the dead side's SND.UNA, which the remote end has acknowledged.
func (e Ends) Tickle(una, ack uint32) []byte { return e.segment(una-1, ack, flagACK) }

// segment is a packet with a TCP segment without options or data, and a window of 0: it allows no answer but an acknowledgement.
func (e Ends) segment(seq, ack uint32, flags byte) []byte {
	be := binary.BigEndian
	from, to := e.Local.Addr(), e.Remote.Addr()
	var b []byte
	if from.Is4() {
		b = appendIPv4(make([]byte, 0, ip4Bytes+tcpBytes), tcpBytes, protocolTCP, from, to)
	} else {
		b = appendIPv6(make([]byte, 0, ip6Bytes+tcpBytes), tcpBytes, protocolTCP, hopLimit, from, to)
	}
	at := len(b)
	b = be.AppendUint16(b, e.Local.Port())
	b = be.AppendUint16(b, e.Remote.Port())
	b = be.AppendUint32(b, seq)
	b = be.AppendUint32(b, ack)
	b = append(b, tcpBytes/4<<4, flags)
	b = append(b, 0, 0, 0, 0, 0, 0) // window, checksum, urgent pointer
	be.PutUint16(b[at+16:], checksum(b[at:], pseudo(from, to, protocolTCP, tcpBytes)))
	return b
}

// appendIPv4 appends a header (RFC 791) with "don't fragment" set, for which no
// identification is needed (RFC 6864, 4.1).
func appendIPv4(b []byte, payload int, protocol byte, from, to netip.Addr) []byte {
	be := binary.BigEndian
	at := len(b)
	src, dst := from.As4(), to.As4()
	b = append(b, 4<<4|ip4Bytes/4, 0)
	b = be.AppendUint16(b, uint16(ip4Bytes+payload))
	b = append(b, 0, 0, 0x40, 0, hopLimit, protocol, 0, 0)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	be.PutUint16(b[at+10:], checksum(b[at:], 0))
	return b
}

// appendIPv6 appends a header (RFC 8200).
func appendIPv6(b []byte, payload int, next, hops byte, from, to netip.Addr) []byte {
	src, dst := from.As16(), to.As16()
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(payload))
	b = append(b, next, hops)
	b = append(b, src[:]...)
	return append(b, dst[:]...)
}

// pseudo is the sum over the pseudo-header that a payload's checksum covers besides
// the payload (RFC 9293, 3.1, and RFC 8200, 8.1: the sums of the two are the same).
func pseudo(from, to netip.Addr, protocol byte, payload int) uint32 {
	return sum(from.AsSlice()) + sum(to.AsSlice()) + uint32(protocol) + uint32(payload)
}

// checksum is the Internet checksum (RFC 1071) of b, which has an even length and
// zeros where the checksum goes.
func checksum(b []byte, start uint32) uint16 {
	s := start + sum(b)
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func sum(b []byte) (s uint32) {
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}
