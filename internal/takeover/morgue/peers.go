package morgue

import (
	"errors"
	"fmt"
	"net/netip"

	"understudy.dev/understudy/dead/nfsd"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/live/wire"
)

// Peers takes the dead kernel's neighbours and TCP connections out of its memory.
// What is left out is counted, with the first reason.
func (m *Morgue) Peers(of func(local netip.AddrPort) bool) (p wire.Peers, err error) {
	k, err := m.known()
	if err != nil {
		return p, fmt.Errorf("find kernel: %w", err)
	}
	var neighbours, connections omitted
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
			})
		}
	}
	return p, errors.Join(neighbours.err("neighbours"), connections.err("connections"))
}

// NFSClients are the names of the clients of NFSv4 that the dead kernel's server had noted in stable storage. Those
// that were found before an error are good.
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

// wantsTelling says whether a connection's far end could wait for something. One that
// the dead side had called does not, yet; one that had called it may have been answered.
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
