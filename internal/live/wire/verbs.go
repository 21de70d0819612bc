package wire

import (
	"fmt"
	"time"
)

// PortName is the virtio-serial port that an agent speaks on.
const PortName = "org.understudy.agent"

// StagingDisk is the serial number of the disk that has the salvaged data.
const StagingDisk = "staging"

// RehearsalDisk is the serial number of the small and empty disk that stands for shared disk
// i when a takeover is rehearsed.
func RehearsalDisk(i int) string { return fmt.Sprintf("rehearsal-%d", i) }

// TrialDisk is the serial number of the disk that stands for image n of shared disk i when a
// takeover is rehearsed, if there are layers between the image and the file system: it shows the
// image itself, and writes to it are kept aside.
func TrialDisk(i, n int) string { return fmt.Sprintf("rehearsal-%d.%d", i, n) }

// Checker is the program in a guest that checks a file system of the ext family.
const Checker = "/sbin/e2fsck"

// Verbs that the supervisor asks of an agent. Hello and Trouble go the other way; Hello is
// the agent's first message.
const (
	Hello     = "hello"     // agent to supervisor: Greeting
	Trouble   = "trouble"   // agent to supervisor: TroubleNotice
	Configure = "configure" // Config
	Activate  = "activate"  // ActivateRequest to ActivateResult: bring up the layers under a file system
	Read      = "read"      // ReadRequest to ReadResult: bytes of a disk
	Write     = "write"     // WriteRequest: blocks of a disk that is not mounted
	Mount     = "mount"     // MountRequest to MountResult
	Name      = "name"      // NameRequest to NameResult: give names back after a check
	Apply     = "apply"     // ApplyRequest to ApplyResult
	Start     = "start"     // StartRequest -> StartResult
	Stop      = "stop"      // stop the services, unmount the shared disks
	Sync      = "sync"      // make what was applied durable
	PowerOff  = "poweroff"  // shut the system down in good order; it is answered before that
	Crash     = "crash"     // CrashRequest: panic the kernel on purpose
	Rehearse  = "rehearse"  // RehearseRequest: go through a takeover without one
)

// Greeting is what an agent says when its partition has booted.
type Greeting struct {
	Release string `json:"release"` // uname -r
	BootID  string `json:"boot_id"`
	// Checker says that the guest can check a file system of the ext family. Without it, a takeover
	// that finds one mid-update fails.
	Checker bool `json:"checker"`
	// Layers are the programs that the guest has for layers under a file system.
	Layers []string `json:"layers,omitempty"`
	// Configured says that another supervisor has configured the agent before.
	Configured bool `json:"configured,omitempty"`
}

// Config tells an agent what its partition is for. Everything in it is known
// before any crash, so a takeover need not send it.
type Config struct {
	Partition string    `json:"partition"`
	Disks     []Disk    `json:"disks"`
	NICs      []NIC     `json:"nics"`
	Services  []Service `json:"services"`
	NFS       *NFS      `json:"nfs,omitempty"` // nil: no NFS server
	Beat      Beat      `json:"beat"`
	// Without are directories, on a bare machine, that no service needs: what is mounted on
	// them, or below, is not taken over.
	Without []string `json:"without,omitempty"`
	// Dump is a disk, or a partition, on a bare machine, named as those of Disks: data that is only in the dead
	// kernel's memory, and on no disk, is kept there. Empty: nowhere.
	Dump string `json:"dump,omitempty"`
}

// Disk is a shared disk as the guest sees it: a virtio disk whose serial
// number is its name.
type Disk struct {
	Name string `json:"name"`
	Part int    `json:"part,omitempty"` // number of the partition with the file system; 0: none
	// The layers between the disk, or its partition, and the file system, in this order. Empty:
	// not used.
	Mirror  string `json:"mirror,omitempty"` // serial number of the other disk of an array of md, level 1
	LUKS    string `json:"luks,omitempty"`   // path in the guest of a file with a key
	Volume  string `json:"volume,omitempty"` // GROUP/NAME of a logical volume of LVM
	Type    string `json:"type"`
	Mount   string `json:"mount"`
	Options string `json:"options,omitempty"`
	// Also are further directories that the file system is mounted on, with other options: subvolumes of btrfs.
	Also []MountPoint `json:"also,omitempty"`
}

// MountPoint is a directory that a file system is mounted on, with options of mount(8).
type MountPoint struct {
	Dir     string `json:"mount"`
	Options string `json:"options,omitempty"`
}

// Points returns all directories that a disk's file system is mounted on, Mount first.
func (d *Disk) Points() []MountPoint {
	return append([]MountPoint{{d.Mount, d.Options}}, d.Also...)
}

// NIC is a network interface that follows the active role.
type NIC struct {
	MAC      string  `json:"mac"`
	Address  string  `json:"address"`            // prefix notation
	Gateway  string  `json:"gateway,omitempty"`  // empty: none
	Address6 string  `json:"address6,omitempty"` // likewise, of IPv6
	Gateway6 string  `json:"gateway6,omitempty"`
	Routes   []Route `json:"routes,omitempty"`
	MTU      int     `json:"mtu,omitempty"` // bytes; 0: as it is
}

// Service is a command that is started and stopped with the role.
type Service struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
	Ready   int      `json:"ready,omitempty"` // TCP port that answers once it is ready
	// Unit is a systemd service, instead of Command: of the system that a partition
	// runs, or, on bare machines, of a root file system that is taken over.
	Unit string `json:"unit,omitempty"`
	// Stop is how long Command may take to end after SIGTERM, before SIGKILL.
	Stop time.Duration `json:"stop,omitempty"`
	// Unrehearsed says that the service is not started in a rehearsal, since it cannot start on an empty disk.
	Unrehearsed bool `json:"unrehearsed,omitempty"`
}

// Beat says how often the agent counts on its beat page, and within which limits it must
// have counted the pulses of its CPUs, its scheduler and its disks; zero means that there is no such pulse.
type Beat struct {
	Period    time.Duration `json:"period"`
	CPU       time.Duration `json:"cpu,omitempty"`
	Scheduler time.Duration `json:"scheduler,omitempty"`
	Disk      time.Duration `json:"disk,omitempty"`
}

// TroubleNotice says which part of a partition's task does not work; or, if Ends is the What of
// an earlier notice, that the earlier trouble is over.
type TroubleNotice struct {
	What string `json:"what"`
	Ends string `json:"ends,omitempty"`
}

// StartRequest asks to start the services of the role. If Within is 0, each must be ready. Otherwise
// those that are not ready within that time are named, and the others serve: in a takeover no
// other side could.
type StartRequest struct {
	Within time.Duration `json:"within,omitempty"`
}

// StartResult tells which services are not ready, and why.
type StartResult struct {
	Unready []Unready `json:"unready,omitempty"`
}

// Unready is a service that did not come up. If it still runs, a TroubleNotice with its String as
// Ends follows once it is ready.
type Unready struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
}

func (u Unready) String() string { return "service " + u.Service + " is not ready: " + u.Reason }

// MountRequest names a shared disk that has become this partition's. Check makes the
// agent check and repair its file system, one of the ext family, before the mount.
type MountRequest struct {
	Disk  string `json:"disk"`
	Check bool   `json:"check,omitempty"`
}

// MountResult tells what a check found; nil if none was asked for.
type MountResult struct {
	Check *Check `json:"check,omitempty"`
}

// Check is the result of e2fsck(8).
type Check struct {
	Status int    `json:"status"` // its exit status: 0 clean, 1 and 2 repaired
	Output string `json:"output"` // at most its last 64 KiB
	// Lost are the inodes that it moved to lost+found, Surplus those that had more
	// names than links, and Cleared those that had neither a name nor content.
	Lost    []uint64 `json:"lost,omitempty"`
	Surplus []uint64 `json:"surplus,omitempty"`
	Cleared []uint64 `json:"cleared,omitempty"`
	More    int      `json:"more,omitempty"` // number of further such inodes, which are not kept
}

// Names reports whether there is anything for NameRequest.
func (c *Check) Names() bool { return c != nil && len(c.Lost)+len(c.Surplus)+len(c.Cleared) > 0 }

// ActivateRequest names a disk that has become this partition's, to get the device that its
// file system is on.
type ActivateRequest struct {
	Disk string `json:"disk"`
}

// ActivateResult describes the device.
type ActivateResult struct {
	Size int64 `json:"size"` // of the device, bytes
}

// ReadRequest asks for bytes of the device that a disk's file system is on.
type ReadRequest struct {
	Disk string `json:"disk"`
	Off  int64  `json:"off"` // both in bytes, and whole sectors
	Len  int64  `json:"len"` // at most MaxRead
}

// MaxRead bounds what is read at once, in bytes.
const MaxRead = 1 << 20

// ReadResult has the bytes of a ReadRequest.
type ReadResult struct {
	Data []byte `json:"data"`
}

// WriteRequest points at an encoded list of blocks on the staging disk
// (EncodeBlocks). They are written to a disk before anything mounts it.
type WriteRequest struct {
	Disk   string `json:"disk"`
	Blocks int64  `json:"blocks"` // offset of the list on the staging disk, bytes
	Len    int64  `json:"len"`    // length of the encoded list, bytes
}

// ApplyRequest points at an encoded plan on the staging disk, with the data
// that it refers to.
type ApplyRequest struct {
	Disk string `json:"disk"`
	Plan int64  `json:"plan"` // offset of the plan on the staging disk, bytes
	Len  int64  `json:"len"`  // length of the encoded plan, bytes

	// Attrs and AttrsLen point at encoded attributes of files of the plan (EncodeAttrs), likewise.
	// Without them files are written in place, and nothing else is done to them.
	Attrs    int64 `json:"attrs,omitempty"`
	AttrsLen int64 `json:"attrs_len,omitempty"`
}

// ApplyResult tells what became of a plan.
type ApplyResult struct {
	Files    int         `json:"files"`
	Bytes    int64       `json:"bytes"`
	Failures []Failure   `json:"failures,omitempty"`
	Acts     []Act       `json:"acts,omitempty"`
	Phases   []PhaseTime `json:"phases,omitempty"`
	// How many more failures and acts there are than an answer has room for (Fit).
	MoreFailures int `json:"more_failures,omitempty"`
	MoreActs     int `json:"more_acts,omitempty"`
}

// Failure is one file that could not be brought up to date.
type Failure struct {
	Inode      uint64 `json:"inode"`
	Generation uint32 `json:"generation"`
	Reason     string `json:"reason"`
}

// PhaseTime is the agent's own measure of a part of its work.
type PhaseTime struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// CrashRequest asks the kernel to die. Silent means without a dying message.
type CrashRequest struct {
	Silent bool `json:"silent"`
}

// RehearseRequest asks to rehearse a takeover, on the rehearsal disks.
type RehearseRequest struct {
	Services bool `json:"services"` // start and stop the services, too
}
