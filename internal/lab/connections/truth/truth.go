// Package truth is what a guest full of connections knows about them.
package truth

import "net/netip"

// OrderPath is where the guest finds its Order.
const OrderPath = "/order.json"

// Disk is the serial number of the disk that the Truth goes to, as JSON.
const Disk = "truth"

// Lines that the guest prints on its console, each followed by the reason.
const (
	Failed  = "connections: failed: "
	NotHeld = "connections: not held: " // the image has to be made again
)

// Order tells the guest what to do.
type Order struct {
	Pairs int // of plain connections: each is two sockets
}

// Truth is what the guest had when it died.
type Truth struct {
	Connections []Connection
	Neighbours  []Neighbour
	// Established is how many connections /proc/net/tcp and tcp6 had, of all
	// namespaces.
	Established int
	// TimeWait and SynRecv are how many sockets were in these states, which are no connections.
	TimeWait, SynRecv int
	// Tables is how many hash tables of connections there were.
	Tables int
}

// Connection is a socket.
type Connection struct {
	Kind          string // how it was made
	Local, Remote netip.AddrPort
	State         uint8
	Namespace     uint32
	Bound         uint32
	// Numbers says whether the kernel tells the sequence numbers below.
	Numbers                                     bool
	SndUna, SndNxt, RcvNxt, WriteSeq, CopiedSeq uint32
}

// Neighbour is a neighbour with a valid MAC address.
type Neighbour struct {
	Interface         string
	Index             uint32
	Address           netip.Addr
	MAC               [6]byte
	Permanent, Router bool
	Namespace         uint32
}
