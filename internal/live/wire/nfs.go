package wire

import "time"

// Begin makes the services of the active role begin what needs none of the disks yet.
// It is sent when the dead side is fenced; Start, after the mounts, completes it.
const Begin = "begin"

// NFS is the kernel's NFS server as a service of the role.
type NFS struct {
	// Host is the name that the server has towards its clients (nodename). It
	// must be the same on both sides: NFSv4.1 clients take another name for
	// another server, and give up their locks (RFC 8881, 2.10.4).
	Host    string   `json:"host"`
	Exports []string `json:"exports"` // lines of exports(5)
	State   string   `json:"state"`   // directory on a shared disk
	// Monitor is the directory, on a shared disk, that has the status monitor's state of the server's own system
	// (/var/lib/nfs); empty: one in State.
	Monitor string        `json:"monitor,omitempty"`
	Lease   time.Duration `json:"lease"` // whole seconds, at least 10
	Grace   time.Duration `json:"grace"` // likewise
	Threads int           `json:"threads"`
	UDP     bool          `json:"udp,omitempty"`
}
