package sockets

import (
	"errors"
	"math/bits"
	"net/netip"

	"understudy.dev/understudy/dead/addr"
)

// Numbers of include/linux/socket.h and include/uapi/linux/in.h.
const (
	afInet   = 2
	afInet6  = 10
	protoTCP = 6
)

// errMini says that an entry is not a struct tcp_sock.
var errMini = errors.New("it is a minisock")

// sock reads the connection at an address; common is the beginning of it.
func (r *reader) sock(t *table, bucket int, at addr.Virt, common []byte) (Connection, error) {
	l := &r.l.common
	hash := uint32(l.hash.Uint(common))
	if uint64(hash)&t.mask != uint64(bucket) {
		return Connection{}, bad(BadHash, "its hash is %#x", hash)
	}
	state := State(l.state.Uint(common))
	in := r.l.commonIn
	switch state {
	case timeWait:
		return Connection{}, errMini
	case HalfOpen:
		in = r.l.requestIn
	}
	c := Connection{State: state, Addr: at - addr.Virt(in.Off), Bound: uint32(l.bound.Uint(common))}
	if _, ok := stateNames[state]; !ok {
		return c, bad(BadState, "its state is %d", uint8(state))
	}
	net, ok := r.spaces[l.net.Pointer(common)]
	if !ok {
		return c, bad(BadNamespace, "its namespace is at %v", l.net.Pointer(common))
	}
	c.Namespace = net.inode
	if err := r.addresses(&c, common); err != nil {
		return c, err
	}
	if h := r.hashers[r.kind(&c)]; h.form != nil {
		t := r.tuple(common, r.kind(&c))
		if want := h.form(&t, h.key, h.remoteKey); hash != want {
			return c, bad(BadHash, "its hash is %#x, that of its addresses %#x", hash, want)
		}
	}
	if err := r.protocol(l.proto.Pointer(common)); err != nil {
		return c, err
	}
	if state == HalfOpen {
		return c, r.request(&c)
	}
	return c, r.tcp(&c)
}

// request reads the numbers of a struct tcp_request_sock: each side has sent its SYN
// and nothing else (net/ipv4/tcp_input.c, tcp_conn_request).
func (r *reader) request(c *Connection) error {
	l := r.l
	b, err := r.k.Bytes(c.Addr, l.requestSize)
	if err != nil {
		return err
	}
	next := uint32(l.synSent.Uint(b)) + 1
	c.SndUna, c.SndNxt, c.WriteSeq = next, next, next
	c.RcvNxt = uint32(l.requestNxt.Uint(b))
	c.CopiedSeq = c.RcvNxt
	c.Unsure = uint32(l.synReceived.Uint(b))+1 != c.RcvNxt
	return nil
}

// addresses reads both ends.
func (r *reader) addresses(c *Connection, common []byte) error {
	l := &r.l.common
	local := netip.AddrFrom4([4]byte(l.local4.Bytes(common)))
	remote := netip.AddrFrom4([4]byte(l.remote4.Bytes(common)))
	family := l.family.Uint(common)
	switch {
	case family == afInet:
	case family == afInet6 && l.remote6.Present() && l.local6.Present():
		// An IPv4 address is stored in both forms (include/net/inet_sock.h,
		// sk_daddr_set).
		local6 := netip.AddrFrom16([16]byte(l.local6.Bytes(common)))
		remote6 := netip.AddrFrom16([16]byte(l.remote6.Bytes(common)))
		switch {
		case !remote6.Is4In6():
			local, remote = local6, remote6
		case remote6.Unmap() != remote || local6.Unmap() != local:
			return bad(BadAddress, "it is from %v and %v to %v and %v", local6, local, remote6, remote)
		}
	default:
		return bad(BadProtocol, "its address family is %d", family)
	}
	if local.IsUnspecified() || remote.IsUnspecified() {
		return bad(BadAddress, "it is from %v to %v", local, remote)
	}
	from, to := uint16(l.num.Uint(common)), bits.ReverseBytes16(uint16(l.remotePort.Uint(common)))
	if from == 0 || to == 0 {
		return bad(BadPort, "it is from port %d to %d", from, to)
	}
	c.Local, c.Remote = netip.AddrPortFrom(local, from), netip.AddrPortFrom(remote, to)
	return nil
}

// protocol checks a struct proto. There may be several for TCP: MPTCP, kTLS and BPF
// replace tcp_prot and tcpv6_prot by copies with the same name.
func (r *reader) protocol(at addr.Virt) error {
	tcp, seen := r.protocols[at]
	if !seen {
		b, err := r.k.Bytes(r.l.protoName.In(at), r.l.protoName.Size)
		if err != nil {
			return err
		}
		l := r.l.protoName
		l.Off = 0
		name := l.String(b)
		tcp = name == "TCP" || name == "TCPv6"
		r.protocols[at] = tcp
	}
	if !tcp {
		return bad(BadProtocol, "its protocol at %v is not TCP", at)
	}
	return nil
}

// tcp reads the numbers of a struct tcp_sock.
func (r *reader) tcp(c *Connection) error {
	l := r.l
	b, err := r.k.Bytes(c.Addr, l.tcpSize)
	if err != nil {
		return err
	}
	if p := l.protocol.Uint(b); p != protoTCP {
		return bad(BadProtocol, "its protocol is %d", p)
	}
	if port := bits.ReverseBytes16(uint16(l.sport.Uint(b))); port != c.Local.Port() {
		return bad(BadPort, "it is from port %d and %d", c.Local.Port(), port)
	}
	if err := r.source(c, b); err != nil {
		return err
	}
	c.SndUna, c.SndNxt, c.RcvNxt = uint32(l.sndUna.Uint(b)), uint32(l.sndNxt.Uint(b)), uint32(l.rcvNxt.Uint(b))
	c.WriteSeq, c.CopiedSeq = uint32(l.writeSeq.Uint(b)), uint32(l.copied.Uint(b))
	c.Unsure = !l.slock.Free(b) || l.owned.Uint(b) != 0 || !c.consistent(uint32(l.out.Uint(b)))
	return nil
}

// source checks the address that a connection sends from: of an IPv6 address, the hash
// covers only a part.
func (r *reader) source(c *Connection, b []byte) error {
	var from netip.Addr
	switch {
	case c.Local.Addr().Is4():
		from = netip.AddrFrom4([4]byte(r.l.source4.Bytes(b)))
	case !r.l.source6.Present():
		return nil
	default:
		saddr, err := r.k.Bytes(r.l.source6.In(r.l.more6.Pointer(b)), r.l.source6.Size)
		if err != nil {
			return err
		}
		from = netip.AddrFrom16([16]byte(saddr))
	}
	if from != c.Local.Addr() {
		return bad(BadAddress, "it is at %v and sends from %v", c.Local.Addr(), from)
	}
	return nil
}

// consistent checks the numbers of a connection against each other. packets is how many
// packets are unacknowledged: some are if and only if bytes are (net/ipv4/tcp_output.c,
// tcp_event_new_data_sent).
func (c *Connection) consistent(packets uint32) bool {
	before := func(a, b uint32) bool { return int32(b-a) >= 0 } // or equal
	if !before(c.SndUna, c.SndNxt) || !before(c.SndNxt, c.WriteSeq) || !before(c.CopiedSeq, c.RcvNxt) {
		return false
	}
	return (packets == 0) == (c.SndUna == c.SndNxt)
}
