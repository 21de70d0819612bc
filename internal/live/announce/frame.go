// Package announce tells a network where an address is now, and the clients of a
// dead kernel that their connections are gone. It makes the frames and packets for
// that, byte by byte, and sends them at a limited rate. A connection on which something is left to say (Call) is carried
// on by our kernel until the far end has answered.
//
// # Caveats
//
// A packet about a connection is only as good as the sequence numbers in it: the caller,
// which has them from the memory of a dead kernel, must know whether they are exact. A
// receiver ignores a reset with wrong numbers (RFC 5961), and answers a tickle with its
// own.
package announce

import (
	"encoding/binary"
	"net/netip"
)

// MAC is the address of an interface on an Ethernet.
type MAC [6]byte

const (
	etherBytes = 14 // of an Ethernet header
	etherARP   = 0x0806
	etherIPv6  = 0x86dd

	arpBytes   = 28 // RFC 826, for Ethernet and IPv4
	arpRequest = 1
	arpReply   = 2
)

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Gratuitous returns the two frames that tell every host of an Ethernet that an
// IPv4 address is at mac: an ARP request for the address by itself, which is the
// announcement of RFC 5227 (2.3), and the same as a reply (RFC 5944, 4.6), since
// some hosts and switches heed only one of the two.
func Gratuitous(mac MAC, a netip.Addr) [][]byte {
	return [][]byte{arp(mac, a, arpRequest, MAC{}), arp(mac, a, arpReply, mac)}
}

func arp(mac MAC, a netip.Addr, operation uint16, target MAC) []byte {
	be := binary.BigEndian
	ip := a.As4()
	b := ether(etherBytes+arpBytes, broadcast, mac, etherARP)
	b = be.AppendUint16(b, 1)      // hardware: Ethernet
	b = be.AppendUint16(b, 0x0800) // protocol: IPv4
	b = append(b, 6, 4)            // lengths of their addresses
	b = be.AppendUint16(b, operation)
	b = append(b, mac[:]...)
	b = append(b, ip[:]...)
	b = append(b, target[:]...)
	return append(b, ip[:]...)
}

// ether begins a frame, in a slice with room for size bytes.
func ether(size int, to, from MAC, kind uint16) []byte {
	b := append(make([]byte, 0, size), to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, kind)
}

// Numbers of ICMPv6 and its options (RFC 4861, RFC 3810).
const (
	protocolICMPv6 = 58

	neighbourAdvertisement = 136
	flagRouter             = 1 << 31
	flagOverride           = 1 << 29
	targetLinkAddress      = 2 // option

	listenerReport  = 143
	changeToExclude = 4 // of no source: "I listen to this group"
)

// Advertisement returns the unsolicited neighbour advertisement that tells every
// host of a link that an IPv6 address is at mac, whatever the host knew before (RFC
// 4861, 7.2.6, with the override flag). router says whether we forward packets: the
// neighbours of a router that says no would remove it from their router lists.
func Advertisement(mac MAC, a netip.Addr, router bool) []byte {
	flags := uint32(flagOverride)
	if router {
		flags |= flagRouter
	}
	target := a.As16()
	body := binary.BigEndian.AppendUint32(nil, flags)
	body = append(body, target[:]...)
	body = append(body, targetLinkAddress, 1) // length in units of 8 bytes
	body = append(body, mac[:]...)
	// A hop limit of 255 proves to the receiver that no router forwarded the packet.
	return icmp6(mac, a, netip.IPv6LinkLocalAllNodes(), 255, nil, neighbourAdvertisement, body)
}

// Membership returns the report that makes snooping switches forward what is sent to
// the solicited-node multicast group of an IPv6 address, where its neighbours look
// for it (RFC 3810, 5.2; RFC 4291, 2.7.1). Without the report the switches would do
// so only after their next query, perhaps two minutes later.
func Membership(mac MAC, a netip.Addr) []byte {
	solicited := netip.MustParseAddr("ff02::1:ff00:0").As16()
	ip := a.As16()
	copy(solicited[13:], ip[13:])
	body := []byte{0, 0, 0, 1, changeToExclude, 0, 0, 0} // one record, of no sources
	body = append(body, solicited[:]...)
	// Router alert for multicast listeners, and padding (RFC 2711, 2.1).
	alert := []byte{protocolICMPv6, 0, 5, 2, 0, 0, 1, 0}
	return icmp6(mac, linkLocal(mac), netip.MustParseAddr("ff02::16"), 1, alert, listenerReport, body)
}

// linkLocal is the link-local address that a host derives from a MAC (RFC 4291, appendix A).
func linkLocal(mac MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// icmp6 is a frame to a multicast group, with a hop-by-hop header if one is given.
func icmp6(mac MAC, from, to netip.Addr, hops byte, hopByHop []byte, kind byte, body []byte) []byte {
	group := to.As16()
	payload := len(hopByHop) + 4 + len(body)
	b := ether(etherBytes+ip6Bytes+payload, MAC{0x33, 0x33, group[12], group[13], group[14], group[15]}, mac, etherIPv6)
	next := byte(protocolICMPv6)
	if len(hopByHop) > 0 {
		next = 0
	}
	b = appendIPv6(b, payload, next, hops, from, to)
	b = append(b, hopByHop...)
	at := len(b)
	b = append(b, kind, 0, 0, 0)
	b = append(b, body...)
	binary.BigEndian.PutUint16(b[at+2:], checksum(b[at:], pseudo(from, to, protocolICMPv6, len(b)-at)))
	return b
}
