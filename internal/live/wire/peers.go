package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Verbs about the peers of a dead side, asked of the agent of its understudy.
const (
	Acquaint = "acquaint" // AcquaintRequest to AcquaintResult: know the peers, tell them nothing yet
	Announce = "announce" // tell the networks where the addresses of the role are
	Tell     = "tell"     // TellRequest to TellResult: tell the peers that their connections are gone
)

// Route is a route to a network through a router on the interface's own network, or, without a router, directly.
type Route struct {
	To  string `json:"to"`            // prefix notation
	Via string `json:"via,omitempty"` // the router, of To's family
	// OnLink says that the router is reached directly, although no address or route says so.
	OnLink bool `json:"on_link,omitempty"`
}

// AcquaintRequest has encoded peers (EncodePeers), and the calls to send to some of them, which an agent of an older
// version does not send.
type AcquaintRequest struct {
	Peers []byte `json:"peers"`
	Calls []Call `json:"calls,omitempty"`
}

// Call is the Call of a Connection.
type Call struct {
	Connection int    `json:"connection"` // index of the Connection in Peers
	Bytes      []byte `json:"bytes"`
}

// NewAcquaintRequest encodes peers.
func NewAcquaintRequest(p Peers) (r AcquaintRequest, err error) {
	for i, c := range p.Connections {
		if len(c.Call) > 0 {
			r.Calls = append(r.Calls, Call{Connection: i, Bytes: c.Call})
		}
	}
	r.Peers, err = EncodePeers(p)
	return r, err
}

// Decode reads what NewAcquaintRequest wrote.
func (r AcquaintRequest) Decode() (Peers, error) {
	p, err := DecodePeers(r.Peers)
	if err != nil {
		return p, err
	}
	if len(r.Calls) > MaxCalls {
		return Peers{}, fmt.Errorf("%w: %d calls", errPeers, len(r.Calls))
	}
	for _, c := range r.Calls {
		if c.Connection < 0 || c.Connection >= len(p.Connections) || len(c.Bytes) > MaxCall {
			return Peers{}, fmt.Errorf("%w: a call of %d bytes on connection %d of %d", errPeers, len(c.Bytes), c.Connection, len(p.Connections))
		}
		p.Connections[c.Connection].Call = c.Bytes
	}
	return p, nil
}

// AcquaintResult says how many neighbours the kernel knows now, and why one was
// not accepted.
type AcquaintResult struct {
	Neighbours int    `json:"neighbours"`
	Failure    string `json:"failure,omitempty"`
}

// TellRequest says how fast to tell the peers of the last AcquaintRequest, and when
// to give up.
type TellRequest struct {
	Rate  int           `json:"rate"` // packets a second
	Limit time.Duration `json:"limit"`
}

// TellResult counts the peers.
type TellResult struct {
	Reset   int    `json:"reset"`   // sent a reset with the dead side's numbers
	Tickled int    `json:"tickled"` // asked for their numbers, to be reset by the kernel
	Called  int    `json:"called"`  // sent their Call; they are reset when they have answered
	Untold  int    `json:"untold"`  // not sent anything
	Failure string `json:"failure,omitempty"`
}

// Peers are the hosts that a side knew, and its connections with them.
type Peers struct {
	Neighbours  []Neighbour
	Connections []Connection
}

// Neighbour is a host on a network of the side, and its MAC.
type Neighbour struct {
	Address   netip.Addr // not an IPv4-mapped IPv6 address
	MAC       [6]byte
	Interface string // of the side, at most MaxInterface bytes
}

// Connection is a TCP connection whose far end has not been told of its end.
// Addresses are as a Neighbour's.
type Connection struct {
	Local, Remote netip.AddrPort
	// SndUna, SndNxt and RcvNxt are the side's SND.UNA, SND.NXT and RCV.NXT (RFC
	// 9293, 3.3.1). Exact says that the far end certainly expects SndNxt next.
	SndUna, SndNxt, RcvNxt uint32
	Exact                  bool
	// Call is data to send to the far end on the connection, from SndNxt on, before the far end is told that the
	// connection has ended: complete records of ONC RPC, at most MaxCall bytes; empty: nothing.
	Call []byte
}

// Bounds on the peers that can be encoded: the message must fit in a frame.
const (
	MaxNeighbours  = 1 << 12
	MaxConnections = 1 << 17
	MaxInterface   = 15 // IFNAMSIZ - 1, include/uapi/linux/if.h
	MaxCalls       = 1 << 13
	MaxCall        = 256 // bytes: fits with its headers in one packet on any network (RFC 8200, 5)
)

// errPeers is wrapped by every error of DecodePeers.
var errPeers = errors.New("peers are damaged")

const (
	peersMagic      = "understudy peer\x01"
	neighbourBytes  = 16 + 6 + MaxInterface
	connectionBytes = 2*(16+2) + 3*4 + 1
)

// EncodePeers lays peers out for an AcquaintRequest, except for their Calls: a magic, the numbers of
// neighbours and connections, then each, of fixed width and little-endian.
// Addresses have 16 bytes, and IPv4 ones are mapped (RFC 4291, 2.5.5.2).
func EncodePeers(p Peers) ([]byte, error) {
	if len(p.Neighbours) > MaxNeighbours || len(p.Connections) > MaxConnections {
		return nil, fmt.Errorf("%d neighbours and %d connections are too many", len(p.Neighbours), len(p.Connections))
	}
	le := binary.LittleEndian
	size := len(peersMagic) + 8 + len(p.Neighbours)*neighbourBytes + len(p.Connections)*connectionBytes
	b := append(make([]byte, 0, size), peersMagic...)
	b = le.AppendUint32(b, uint32(len(p.Neighbours)))
	b = le.AppendUint32(b, uint32(len(p.Connections)))
	for _, n := range p.Neighbours {
		var name [MaxInterface]byte
		copy(name[:], n.Interface)
		address := n.Address.As16()
		b = append(append(append(b, address[:]...), n.MAC[:]...), name[:]...)
	}
	for _, c := range p.Connections {
		for _, end := range []netip.AddrPort{c.Local, c.Remote} {
			address := end.Addr().As16()
			b = le.AppendUint16(append(b, address[:]...), end.Port())
		}
		for _, number := range []uint32{c.SndUna, c.SndNxt, c.RcvNxt} {
			b = le.AppendUint32(b, number)
		}
		exact := byte(0)
		if c.Exact {
			exact = 1
		}
		b = append(b, exact)
	}
	return b, nil
}

// DecodePeers reads what EncodePeers wrote and nothing else: addresses must be those of
// hosts, and the two ends of a connection must be of one family.
func DecodePeers(b []byte) (p Peers, err error) {
	if len(b) < len(peersMagic)+8 || string(b[:len(peersMagic)]) != peersMagic {
		return p, fmt.Errorf("%w: no magic", errPeers)
	}
	d := decoder{b: b[len(peersMagic):]}
	neighbours, connections := d.u32(), d.u32()
	if neighbours > MaxNeighbours || connections > MaxConnections ||
		uint64(neighbours)*neighbourBytes+uint64(connections)*connectionBytes != uint64(len(d.b)) {
		return p, fmt.Errorf("%w: %d neighbours and %d connections in %d bytes", errPeers, neighbours, connections, len(d.b))
	}
	for i := range neighbours {
		n, err := d.neighbour()
		if err != nil {
			return Peers{}, fmt.Errorf("%w: neighbour %d: %w", errPeers, i, err)
		}
		p.Neighbours = append(p.Neighbours, n)
	}
	for i := range connections {
		c, err := d.connection()
		if err != nil {
			return Peers{}, fmt.Errorf("%w: connection %d: %w", errPeers, i, err)
		}
		p.Connections = append(p.Connections, c)
	}
	return p, nil
}

func (d *decoder) neighbour() (n Neighbour, err error) {
	if n.Address, err = d.host(); err != nil {
		return n, err
	}
	n.MAC = [6]byte(d.take(6))
	name, rest, _ := bytes.Cut(d.take(MaxInterface), []byte{0})
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return n, fmt.Errorf("name %q has bytes after its terminating NUL", name)
	}
	n.Interface = string(name)
	return n, nil
}

func (d *decoder) connection() (c Connection, err error) {
	for _, end := range []*netip.AddrPort{&c.Local, &c.Remote} {
		a, err := d.host()
		if err != nil {
			return c, err
		}
		*end = netip.AddrPortFrom(a, binary.LittleEndian.Uint16(d.take(2)))
	}
	c.SndUna, c.SndNxt, c.RcvNxt = d.u32(), d.u32(), d.u32()
	exact := d.take(1)[0]
	c.Exact = exact == 1
	if exact > 1 || c.Local.Addr().Is4() != c.Remote.Addr().Is4() {
		return c, fmt.Errorf("%v and %v are not ends of one connection", c.Local, c.Remote)
	}
	return c, nil
}

// host reads an address that a host can have.
func (d *decoder) host() (netip.Addr, error) {
	a := netip.AddrFrom16([16]byte(d.take(16))).Unmap()
	if !Host(a) {
		return a, fmt.Errorf("%v is not the address of a host", a)
	}
	return a, nil
}

// Host reports whether an address is one that another host can have: not multicast,
// broadcast or unspecified, and not this host's own loopback.
func Host(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
