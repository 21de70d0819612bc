package morgue

import (
	"errors"
	"fmt"
	"net/netip"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/nfsd"
	"understudy.dev/understudy/dead/sockets"
	server "understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// Peers reads the dead kernel's neighbours and TCP connections from its memory, and prepares the calls for
// clients of NFSv4.1 or later. By such a call, a client with nothing to do learns before its next renewal that
// its server is another one: until it knows, nobody gets a new lock. What is left out is counted, with the
// first reason.
func (m *Morgue) Peers(of func(local netip.AddrPort) bool) (p wire.Peers, err error) {
	k, err := m.known()
	if err != nil {
		return p, fmt.Errorf("find kernel: %w", err)
	}
	var neighbours, connections omitted
	r := recaller{k: k}
	for n, err := range sockets.Neighbours(k) {
		switch {
		case err != nil:
			neighbours.add(err)
		case !wire.Host(n.Address) || len(n.Interface) > wire.MaxInterface:
			// Such as multicast groups, which have entries too.
		case len(p.Neighbours) == wire.MaxNeighbours:
			neighbours.add(errors.New("too many"))
		default:
			p.Neighbours = append(p.Neighbours, wire.Neighbour{Address: n.Address, MAC: n.MAC, Interface: n.Interface})
		}
	}
	for c, err := range sockets.Connections(k) {
		switch {
		case err != nil:
			connections.add(err)
		case !wantsTelling(&c) || !of(c.Local):
		case len(p.Connections) == wire.MaxConnections:
			connections.add(errors.New("too many"))
		default:
			p.Connections = append(p.Connections, wire.Connection{
				Local: c.Local, Remote: c.Remote, SndUna: c.SndUna, SndNxt: c.SndNxt, RcvNxt: c.RcvNxt, Exact: c.Exact(),
				Call: r.call(&c),
			})
		}
	}
	return p, errors.Join(neighbours.err("neighbours"), connections.err("connections"), r.omitted.err("backchannels of NFS clients"))
}

// recaller prepares the calls for clients of NFSv4.1 or later.
type recaller struct {
	k        *kernel.Kernel
	channels map[[2]netip.AddrPort]nfsd.Backchannel // by connection; nil: not read yet
	omitted  omitted
}

// call returns the call for the client at the far end of a connection. It is empty if that is no client, or one
// that has to say something anyway. What the dead side sends next must begin a record: all that was written is
// sent, and no thread was writing. If some of that is lost, the call is out of order for the client, which
// never sees it.
func (r *recaller) call(c *sockets.Connection) []byte {
	if c.Local.Port() != server.Port || c.State != sockets.Established || c.Unsure || c.WriteSeq != c.SndNxt {
		return nil
	}
	if r.channels == nil {
		r.read()
	}
	b, ok := r.channels[[2]netip.AddrPort{c.Local, c.Remote}]
	if !ok {
		return nil
	}
	return server.Recall(b.Program, b.Minor, b.Session, b.Sequence, b.Slots)
}

// read reads the backchannels, as many as can be handed on. A kernel without an NFS server has none, and a
// kernel before 5.11 does not keep the types of its modules.
func (r *recaller) read() {
	r.channels = make(map[[2]netip.AddrPort]nfsd.Backchannel)
	for b, err := range nfsd.Backchannels(r.k) {
		switch {
		case errors.Is(err, kernel.ErrNotFound):
		case err != nil:
			r.omitted.add(err)
		case b.Idle && len(r.channels) < wire.MaxCalls:
			r.channels[[2]netip.AddrPort{b.Local, b.Remote}] = b
		}
	}
}

// NFSClients returns the names of the NFSv4 clients that the dead kernel's server had recorded in stable
// storage. Names that were found before an error are valid.
func (m *Morgue) NFSClients() (names [][]byte, err error) {
	k, err := m.known()
	if err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	for c, err := range nfsd.Clients(k) {
		if err != nil {
			return names, err
		}
		names = append(names, c.Name)
	}
	return names, nil
}

// wantsTelling says whether a connection's far end could be waiting for something. A peer that the dead side
// was connecting to is not waiting yet; a peer that was connecting to the dead side may have been answered.
func wantsTelling(c *sockets.Connection) bool {
	if c.State == sockets.SynSent || c.State == sockets.SynRecv {
		return false
	}
	return wire.Host(c.Remote.Addr()) && c.Local.Addr().Is4() == c.Remote.Addr().Is4()
}

// omitted counts what was left out of a walk.
type omitted struct {
	n     int
	first error
}

func (o *omitted) add(err error) {
	if o.n++; o.first == nil {
		o.first = err
	}
}

func (o *omitted) err(what string) error {
	if o.n == 0 {
		return nil
	}
	return fmt.Errorf("%d %s left out, the first: %w", o.n, what, o.first)
}
