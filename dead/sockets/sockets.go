// Package sockets says which TCP connections a dead Linux kernel had, with their
// sequence numbers, and which neighbours it knew, from its memory alone.
//
// # Caveats
//
// Nothing in memory is trusted: each entry must be where its own hash puts it, and
// point back to the one before it; what does not check out is yielded as a *Refusal,
// and the walk goes on. Both ends of a connection are proven by its hash; of the address
// of a neighbour, only the few bits of the hash that choose its bucket are known, so
// that some damage to it does not show.
//
// Connections that are over (TCP_TIME_WAIT) are left out: their peers expect nothing more.
package sockets

import (
	"fmt"
	"iter"
	"net/netip"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// State is the state of a TCP connection (include/net/tcp_states.h).
type State uint8

// The states of connections; the numbers are the kernel's.
const (
	Established State = 1
	SynSent     State = 2
	SynRecv     State = 3 // a connection accepted with data in its SYN (TCP Fast Open)
	FinWait1    State = 4
	FinWait2    State = 5
	timeWait    State = 6 // a struct inet_timewait_sock, and no longer a connection
	CloseWait   State = 8
	LastAck     State = 9
	Closing     State = 11
	HalfOpen    State = 12 // TCP_NEW_SYN_RECV, a struct request_sock: whether its peer has heard of it is not known
)

var stateNames = map[State]string{
	Established: "ESTAB", SynSent: "SYN-SENT", SynRecv: "SYN-RECV", FinWait1: "FIN-WAIT-1", FinWait2: "FIN-WAIT-2",
	CloseWait: "CLOSE-WAIT", LastAck: "LAST-ACK", Closing: "CLOSING", HalfOpen: "SYN-RECV",
}

// String names a state as ss(8) does.
func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText makes states readable in reports.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Connection is a TCP connection that a dead kernel had.
type Connection struct {
	// Local and Remote have IPv4 addresses if the connection used IPv4, also for
	// IPv6 sockets. They have no zones: see Bound.
	Local, Remote netip.AddrPort
	State         State
	// From struct tcp_sock or tcp_request_sock: the first byte that the peer has not acknowledged, the
	// next one to be sent, and the next one expected from the peer.
	SndUna, SndNxt, RcvNxt uint32
	// WriteSeq is the end of what the program has written; from SndNxt on that was
	// never sent. CopiedSeq is the end of what the program has read.
	WriteSeq, CopiedSeq uint32
	// Unsure says that the numbers are not to be relied on: the kernel was at work on
	// the connection when it died, or they contradict each other.
	Unsure bool
	// Namespace is the inode number of its network namespace (net->ns.inum), as
	// /proc/PID/ns/net has it.
	Namespace uint32
	// Bound is the index of the network device that it is bound to, as with link-local
	// addresses; 0 if it is bound to none.
	Bound uint32
	// Addr is where its struct sock is, or its struct request_sock.
	Addr addr.Virt
}

// Exact reports whether nothing is in flight, and nothing in doubt: then the peer
// expects SndNxt next, and a reset with this number is exactly valid (RFC 5961,
// 3.2). For a half-open connection, nothing else in memory confirms the number.
func (c *Connection) Exact() bool {
	return !c.Unsure && c.SndUna == c.SndNxt && c.State != SynSent && c.State != SynRecv && c.State != HalfOpen
}

// Connections yields the TCP connections of all network namespaces, each once. An
// entry that does not check out is a *Refusal, and the walk goes on; other errors
// say what part of the kernel could not be walked. A kernel that was built without TCP (Without) has none.
func Connections(k *kernel.Kernel) iter.Seq2[Connection, error] {
	return func(yield func(Connection, error) bool) {
		if Without(k) != "" {
			return
		}
		l, err := newSockLayout(k)
		if err != nil {
			yield(Connection{}, fmt.Errorf("read layouts of %s: %w", k.Release, err))
			return
		}
		r := newReader(k, l)
		var listErr error
		if r.spaces, listErr = readNamespaces(k); listErr != nil {
			if !yield(Connection{}, fmt.Errorf("walk network namespaces: %w", listErr)) {
				return
			}
		}
		tables, err := r.tables()
		if err != nil && !yield(Connection{}, err) {
			return
		}
		r.hashers = r.findHashers(tables)
		for _, t := range tables {
			if !r.walk(t, yield) {
				return
			}
		}
	}
}
