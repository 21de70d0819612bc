package pair

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/events"
)

// Pair is a valid pair.yaml with all paths absolute and defaults filled in.
type Pair struct {
	Name       string       // [a-z0-9-]+, names the run directory
	Partitions [2]Partition // the first one is active at the start
	Disks      []Disk       // in the order in which to mount them
	NICs       []NIC
	Services   []Service // in the order in which to start them
	NFS        *NFS      // nil: none
	Heartbeat  Heartbeat
	Takeover   Takeover
	Hooks      []events.Hook  // programs of this machine that are run at events
	Metrics    netip.AddrPort // where metrics are served; the zero value: nowhere

	file  string         // where it was read from, for messages
	lines map[string]int // line of each key, by its path: "partitions.left.cpus", "disks.0.image"
}

// Partition is a share of the machine with an operating system in it.
type Partition struct {
	Name      string
	CPUs      []int  // host processors, ascending; the other partition may have them, too
	VCPUs     int    // virtual CPUs; as many as CPUs unless it says otherwise
	Memory    uint64 // bytes, a multiple of 1 MiB
	Kernel    string // path of a bzImage
	Initramfs string // path of a cpio archive; may be empty if Root is not
	Root      string // path of a raw root disk image of its own, or empty
	Append    string // appended to our own kernel command line
	Accel     Accel
}

// Accel is what a partition's processors run on.
type Accel string

const (
	AccelAuto Accel = "auto" // KVM if a stock kernel really boots on it, else emulation
	AccelKVM  Accel = "kvm"  // KVM or nothing
	AccelTCG  Accel = "tcg"  // emulation
)

// Disk is a shared disk that follows the active role.
type Disk struct {
	Name  string
	Image string // path of a raw image or a block device
	Part  int    // number of the partition of Image that has the file system; 0: the whole Image
	// The layers between that and the file system, in this order; empty: not used.
	Mirror string // path of the image of the other disk of an array of md, level 1
	LUKS   string // path in the guests of a file with a key
	LVM    string // GROUP/NAME of a logical volume

	Type    FSType
	Mount   string // absolute path in the guest
	Options string // mount options, comma-separated, may be empty
}

// Images returns the image of the disk, and that of its mirror if it has one.
func (d *Disk) Images() []string {
	if d.Mirror == "" {
		return []string{d.Image}
	}
	return []string{d.Image, d.Mirror}
}

// Layers names the layers under the file system that only a guest can look through, the lowest first.
func (d *Disk) Layers() (layers []string) {
	for _, l := range []struct{ name, is string }{{"md", d.Mirror}, {"LUKS", d.LUKS}, {"LVM", d.LVM}} {
		if l.is != "" {
			layers = append(layers, l.name)
		}
	}
	return layers
}

// Layered reports whether the disk has any layers.
func (d *Disk) Layered() bool { return len(d.Layers()) > 0 }

// FSType is the type of the file system on a shared disk.
type FSType string

const (
	Ext3  FSType = "ext3"
	Ext4  FSType = "ext4"
	XFS   FSType = "xfs"
	Btrfs FSType = "btrfs"
)

// Ext reports whether t is of the ext family, whose log a takeover finishes before the mount. With
// the others, the mount replays the log on the disk, and the rest is written after the mount.
func (t FSType) Ext() bool { return t == Ext3 || t == Ext4 }

// NIC is a network identity that follows the active role.
type NIC struct {
	Name     string
	MAC      net.HardwareAddr // 6 bytes, unicast
	Address  netip.Prefix     // the address itself, with the length of its network's prefix
	Gateway  netip.Addr       // inside Address's network; the zero Addr if there is none
	Address6 netip.Prefix     // an additional IPv6 address; the zero Prefix if there is none
	Gateway6 netip.Addr       // inside Address6's network or link-local; the zero Addr if there is none
	Routes   []Route
	Bridge   string // the host's bridge that the active side's tap joins
}

// Service is a command, or a systemd unit, that runs where the active role is.
type Service struct {
	Name     string
	Command  []string // program and arguments; no shell is involved; none if there is a unit
	Unit     string   // NAME.service of partitions with a root disk; empty: a command
	Ready    int      // TCP port that answers once it is ready; 0: ready when started
	Rehearse bool     // it is started in the rehearsal, on an empty disk
	// Stop is how long the command may take to end after SIGTERM, before SIGKILL. A unit has
	// TimeoutStopSec= for that.
	Stop time.Duration
}

// Heartbeat says how a hang is noticed.
type Heartbeat struct {
	Period time.Duration // between two beats of the guest
	Limit  time.Duration // without a beat until the verdict; at least 3 periods

	// How long one CPU may run no real-time thread, an ordinary thread may not run or not
	// get memory, and a disk may leave a read unanswered. 0 means that it is not watched.
	CPU, Scheduler, Disk time.Duration
}

// Takeover is the policy of a takeover.
type Takeover struct {
	Salvage bool // bring over the file data that the dead kernel had not written
	Sync    Sync
	// Rehearse makes the understudy mount, write, and start the services once on
	// a disk made for that, before the pair counts as protected.
	Rehearse bool
	// Refused is what is done if the unsaved data of a disk cannot be brought over.
	Refused Refused
	// Degraded is what is done if a service keeps ending, or a file system becomes
	// read-only.
	Degraded Degraded
	// Notify says which clients of the dead side are told that their connections
	// are gone, and NotifyRate how many of them per second.
	Notify     Notify
	NotifyRate int
}

// Sync says when salvaged data is made durable.
type Sync string

const (
	SyncBefore Sync = "before" // before the services start: slower, and safe against a second crash
	SyncAfter  Sync = "after"  // once the services run
)

// Refused is what a takeover does with a disk whose unsaved data it refuses.
type Refused string

const (
	RefusedServe Refused = "serve" // the service goes on as after an ordinary crash; the memory is kept
	RefusedStop  Refused = "stop"  // the takeover fails before the understudy sees the disk
)

// Degraded is what is done about a side that runs, but does not do what it is there for.
type Degraded string

const (
	DegradedReport   Degraded = "report"   // it is reported
	DegradedTakeOver Degraded = "takeover" // the understudy takes over, as from a dead side
)

// Limits on what a file may ask for.
const (
	maxFile   = 1 << 20   // bytes of pair.yaml
	maxCPU    = 8191      // NR_CPUS with MAXSMP, arch/x86/Kconfig
	maxVCPUs  = 255       // of QEMU's q35 without an IOMMU: x2APIC ids would need one
	minMemory = 128 << 20 // bytes; a Debian kernel and our initramfs need about as much
	maxMemory = 1 << 46   // bytes; 46 physical address bits with 4-level page tables
	maxIfName = 15        // IFNAMSIZ - 1, include/uapi/linux/if.h

	minPeriod = time.Millisecond
	maxLimit  = time.Minute
	minPulse  = time.Second // the least value of the slower limits
	minBeats  = 3           // heartbeat limit in periods: a late beat or two is not a death
)

// Problem is one thing wrong with a pair.yaml or with what it names.
type Problem struct {
	File string // as given to Load or parse
	Line int    // 1-based; 0 if it is not about a line
	Key  string // path of the key: "partitions.left.cpus"; empty if it is about the file
	What string // what is wrong
	Hint string // what the operator can do about it
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File + ":")
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:", p.Line)
	}
	b.WriteByte(' ')
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// line returns the line of the file that a key is on, or the line of what
// encloses it, or 0. Keys look like "partitions.left.cpus" and "disks.0.image".
func (p *Pair) line(key string) int {
	for {
		if line, ok := p.lines[key]; ok {
			return line
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

// problem makes a Problem about a key.
func (p *Pair) problem(key, hint, format string, args ...any) *Problem {
	return &Problem{File: p.file, Line: p.line(key), Key: key, What: fmt.Sprintf(format, args...), Hint: hint}
}
