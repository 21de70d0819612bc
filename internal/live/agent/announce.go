package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"understudy.dev/understudy/internal/live/announce"
	"understudy.dev/understudy/internal/live/wire"
)

// nic is an interface of the role that has been set up.
type nic struct {
	index    int
	name     string
	mac      announce.MAC
	prefixes []netip.Prefix // its addresses, with the lengths of their networks
}

// network holds the role's interfaces and the peers of the dead side. It has its own lock,
// since the peers arrive while the agent mounts disks and starts services.
type network struct {
	mu    sync.Mutex
	nics  []nic
	peers []packet // still to be told that their connections are gone
}

// setUp sets the role's interfaces up.
func (n *network) setUp(nics []wire.NIC) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nics = nil
	for _, c := range nics {
		up, err := setUpNIC(c)
		if err != nil {
			return err
		}
		n.nics = append(n.nics, up)
	}
	return nil
}

// again sets the interfaces up once more before the services of a role start, if the guest has its own
// system: something else there, such as NetworkManager, may have removed their addresses since.
func (n *network) again(system bool, nics []wire.NIC) error {
	if !system {
		return nil
	}
	return n.setUp(nics)
}

// addresses are the IP addresses at which the role can be reached from inside the guest.
func (n *network) addresses() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := []string{"127.0.0.1", "::1"}
	for i := range n.nics {
		for _, p := range n.nics[i].prefixes {
			all = append(all, p.Addr().String())
		}
	}
	return all
}

// packet tells one peer of the end of its connection.
type packet struct {
	bytes  []byte
	to     netip.Addr
	index  int // of the interface that the connection's address is on
	tickle bool
	call   func() (*announce.Call, error) // if not nil: instead of bytes, unless it fails
}

// acquaint adds the dead side's neighbours to the kernel's neighbour table, so that no MAC
// has to be resolved when the address is live, and makes the packets for the peers.
func (a *Agent) acquaint(_ context.Context, r wire.AcquaintRequest) (result wire.AcquaintResult, err error) {
	p, err := r.Decode()
	if err != nil {
		return result, err
	}
	n := &a.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, neighbour := range p.Neighbours {
		at := n.linkOf(neighbour)
		if at == nil {
			continue // on a network that does not follow the role
		}
		if err := know(at, neighbour); err != nil {
			result.Failure = err.Error()
			continue
		}
		result.Neighbours++
	}
	n.peers = make([]packet, 0, len(p.Connections))
	for _, c := range p.Connections {
		n.peers = append(n.peers, n.packet(c))
	}
	return result, nil
}

// linkOf is the interface that a neighbour is on: the one whose network contains the
// neighbour's address. A link-local address is in every network: its interface is the only
// one there is, or the one with the name that the interface had on the dead side.
func (n *network) linkOf(neighbour wire.Neighbour) *nic {
	for i := range n.nics {
		for _, p := range n.nics[i].prefixes {
			if p.Contains(neighbour.Address) && p.Addr() != neighbour.Address {
				return &n.nics[i]
			}
		}
	}
	if !neighbour.Address.Is6() || !neighbour.Address.IsLinkLocalUnicast() {
		return nil
	}
	if len(n.nics) == 1 {
		return &n.nics[0]
	}
	for i := range n.nics {
		if n.nics[i].name == neighbour.Interface {
			return &n.nics[i]
		}
	}
	return nil
}

// know puts a neighbour into the kernel's neighbour table as NUD_STALE: it is used at once,
// and confirmed after its first use (RFC 4861, 7.3.2). The MAC must be that of a single host.
func know(at *nic, neighbour wire.Neighbour) error {
	if neighbour.MAC[0]&1 != 0 || neighbour.MAC == [6]byte{} {
		return fmt.Errorf("neighbour %s: %v is not the MAC of a host", neighbour.Address, net.HardwareAddr(neighbour.MAC[:]))
	}
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: at.index, State: netlink.NUD_STALE,
		IP: neighbour.Address.AsSlice(), HardwareAddr: neighbour.MAC[:],
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s on %s: %w", neighbour.Address, at.name, err)
	}
	return nil
}

func (n *network) packet(c wire.Connection) packet {
	p := packet{to: c.Remote.Addr(), tickle: !c.Exact}
	ends := announce.Ends{Local: c.Local, Remote: c.Remote}
	if c.Exact {
		p.bytes = ends.Reset(c.SndNxt)
	} else {
		p.bytes = ends.Tickle(c.SndUna, c.RcvNxt)
	}
	for _, at := range n.nics {
		for _, prefix := range at.prefixes {
			if prefix.Addr() == c.Local.Addr() {
				p.index = at.index
			}
		}
	}
	if index := p.index; len(c.Call) > 0 {
		p.call = func() (*announce.Call, error) { return ends.StartCall(c.SndNxt, c.RcvNxt, c.Call, index) }
	}
	return p
}

// announce announces the role's addresses on each of its networks: at once, and again
// within the next second, which it does not wait for.
func (a *Agent) announce(ctx context.Context, _ none) (none, error) {
	a.network.mu.Lock()
	nics := a.network.nics
	a.network.mu.Unlock()
	frames := make([][][]byte, len(nics))
	for i := range nics {
		frames[i] = nics[i].frames()
	}
	send := func() (err error) {
		for i := range nics {
			if e := announce.SendFrames(nics[i].index, frames[i]); e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", nics[i].name, e))
			}
		}
		return err
	}
	go announce.Repeat(context.WithoutCancel(ctx), func() {
		if err := send(); err != nil {
			fmt.Fprintln(os.Stderr, "understudy: announce again:", err)
		}
	})
	return none{}, send()
}

// frames are the frames that announce an interface's addresses.
func (n *nic) frames() (frames [][]byte) {
	for _, p := range n.prefixes {
		if p.Addr().Is4() {
			frames = append(frames, announce.Gratuitous(n.mac, p.Addr())...)
			continue
		}
		frames = append(frames, announce.Membership(n.mac, p.Addr()), announce.Advertisement(n.mac, p.Addr(), n.routes6()))
	}
	return frames
}

// routes6 says whether the host is a router on that link (Documentation/networking/
// ip-sysctl.rst, forwarding).
func (n *nic) routes6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + n.name + "/forwarding")
	return err == nil && !bytes.HasPrefix(b, []byte("0"))
}

// rehearse sends what a takeover will send, on interfaces that are connected to nothing
// yet: an announcement on each, and a packet to each of our own addresses.
func (n *network) rehearse() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	sockets, err := announce.OpenSockets()
	if err != nil {
		return err
	}
	defer sockets.Close()
	for i := range n.nics {
		at := &n.nics[i]
		if err := announce.SendFrames(at.index, at.frames()); err != nil {
			return fmt.Errorf("announce on %s: %w", at.name, err)
		}
		for _, p := range at.prefixes {
			own := netip.AddrPortFrom(p.Addr(), 1)
			packet := n.packet(wire.Connection{Local: own, Remote: own, Exact: true})
			if err := sockets.Send(packet.bytes, packet.to, packet.index); err != nil {
				return fmt.Errorf("send packet to %s: %w", p.Addr(), err)
			}
		}
	}
	return nil
}

// tell tells the peers, once, that their connections are gone. It does not wait for answers to calls.
func (a *Agent) tell(ctx context.Context, r wire.TellRequest) (result wire.TellResult, err error) {
	a.network.mu.Lock()
	peers := a.network.peers
	a.network.peers = nil
	a.network.mu.Unlock()
	sockets, err := announce.OpenSockets()
	if err != nil {
		return result, err
	}
	defer sockets.Close()
	ctx, cancel := context.WithTimeout(ctx, r.Limit)
	defer cancel()
	var calls []*announce.Call
	sent := announce.Pace{Rate: max(1, r.Rate)}.Run(ctx, len(peers), func(i int) {
		p := &peers[i]
		if c := p.start(len(calls), &result); c != nil {
			calls = append(calls, c)
			return
		}
		switch err := sockets.Send(p.bytes, p.to, p.index); {
		case err != nil:
			result.Untold++
			result.Failure = fmt.Sprintf("tell %s: %v", p.to, err)
		case p.tickle:
			result.Tickled++
		default:
			result.Reset++
		}
	})
	if len(calls) > 0 {
		go endCalls(calls)
	}
	if sent < len(peers) {
		result.Untold += len(peers) - sent
		result.Failure = fmt.Sprintf("%d clients at %d a second take more than %v", len(peers), r.Rate, r.Limit)
	}
	return result, nil
}

// maxCalls bounds the calls that wait for an answer at a time. Each has a file descriptor, of which PID 1 may have 4096
// (INR_OPEN_MAX, include/uapi/linux/fs.h).
const maxCalls = 2048

// start starts the call of a peer that has one, beside others that have begun. It returns nil if there is none to be started, or if that
// fails.
func (p *packet) start(others int, result *wire.TellResult) *announce.Call {
	if p.call == nil {
		return nil
	}
	if others >= maxCalls {
		result.Failure = fmt.Sprintf("more than %d clients to call at a time", maxCalls)
		return nil
	}
	c, err := p.call()
	if err != nil {
		result.Failure = fmt.Sprintf("call %s: %v", p.to, err)
		return nil
	}
	result.Called++
	return c
}

// callLimit is how long an answer to a call is waited for: two retransmissions (RFC 6298: after 1 s and 3 s), and the client's work.
const callLimit = 5 * time.Second

// endCalls ends the connections on which calls were sent, when they were answered. A client that has not answered may
// find out only when it renews its lease.
func endCalls(calls []*announce.Call) {
	n := len(calls)
	if answered := announce.EndCalls(calls, callLimit); answered < n {
		fmt.Fprintf(os.Stderr, "understudy: %d of %d calls to clients of NFS were answered\n", answered, n)
	}
}
