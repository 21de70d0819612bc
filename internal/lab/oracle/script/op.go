// Package script is what a thread of the oracle's guest does to its tree, as a
// pure function of a seed, and what the tree must be after each operation.
//
// The guest runs a script to know what to do, and the host runs the same script to
// know what the result must be. What a script cannot know (times, and what
// depends on the kernel's release) the guest reports after each operation.
package script

import "fmt"

// Kind is what an operation does. Each is one system call that changes
// something, so that a crash finds it done or not.
type Kind uint8

// The kinds of operations, each with its system call.
const (
	Create      Kind = iota // open(2) with O_CREAT and O_EXCL
	Mkdir                   // mkdir(2)
	Symlink                 // symlink(2)
	Link                    // link(2)
	Unlink                  // unlink(2)
	Rmdir                   // rmdir(2)
	Rename                  // rename(2), also over an existing name
	Write                   // pwrite(2)
	Store                   // stores through a shared mapping, within the file
	Truncate                // ftruncate(2)
	Fallocate               // fallocate(2) with Op.Mode as its flags
	Chmod                   // chmod(2)
	Chown                   // lchown(2)
	Utimes                  // utimensat(2)
	SetXattr                // setxattr(2)
	RemoveXattr             // removexattr(2)
	SetFlags                // ioctl_xfs_fsgetxattr(2): the flag "no dump", which is Op.Mode
	Fsync                   // fsync(2) of a file or a directory
	Open                    // open(2), kept open in Op.Slot
	Close                   // close(2) of Op.Slot
	Barrier                 // all threads meet, and sync(2) is done
	kinds
)

var kindNames = [kinds]string{
	"create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "store", "truncate", "fallocate",
	"chmod", "chown", "utimes", "setxattr", "removexattr", "setflags", "fsync", "open", "close", "barrier",
}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", k)
}

// Flags of fallocate(2) (include/uapi/linux/falloc.h).
const (
	KeepSize  = 0x01
	PunchHole = 0x02
	ZeroRange = 0x10
)

// Slots is how many files a thread holds open at most.
const Slots = 4

// NoSlot is the Slot of a Ref with a path.
const NoSlot = -1

// Ref names a file: by path from the top of the thread's tree, or by the slot
// that holds it open.
type Ref struct {
	Path string
	Slot int
}

func (r Ref) String() string {
	if r.Slot != NoSlot {
		return fmt.Sprintf("slot %d", r.Slot)
	}
	return r.Path
}

// MaxTouched bounds the length of Op.Touch.
const MaxTouched = 3

// Op is one operation. Which fields matter depends on its kind.
type Op struct {
	Kind   Kind
	On     Ref    // what it is done to
	To     string // Link and Rename: the new path; Symlink: the target
	Off    int64  // Write, Store, Fallocate; Truncate: the new size
	Len    int64
	Mode   uint32 // Create, Mkdir, Chmod: permissions; Fallocate: flags; SetFlags: whether it is set
	UID    uint32
	GID    uint32
	Sec    int64 // Utimes: the mtime
	Nsec   int64
	Name   string // of an extended attribute
	Value  string
	Slot   int   // Open, Close
	Number int   // of the operation in its script, from 0
	Touch  []Ref // the files that the guest has to report on, by their names after the operation
}

func (o Op) String() string {
	s := fmt.Sprintf("%d: %v %v", o.Number, o.Kind, o.On)
	switch o.Kind {
	case Link, Rename, Symlink:
		s += fmt.Sprintf(" to %s", o.To)
	case Write, Store:
		s += fmt.Sprintf(", %d bytes at %d", o.Len, o.Off)
	case Truncate:
		s += fmt.Sprintf(" to %d", o.Off)
	case Fallocate:
		s += fmt.Sprintf(", flags %#x, %d bytes at %d", o.Mode, o.Len, o.Off)
	case SetXattr, RemoveXattr:
		s += " " + o.Name
	case Open, Close:
		s += fmt.Sprintf(" as slot %d", o.Slot)
	}
	return s
}

// Stat is what the guest reports about a file after an operation.
type Stat struct {
	Ino   uint64
	Sec   int64 // of the mtime
	Nsec  uint32
	Mode  uint32 // with its type, as in stat(2)
	Size  int64
	Nlink uint32
	UID   uint32
	GID   uint32
	Cap   bool // it has the attribute Capability
	// NoDump is the inode flag FS_XFLAG_NODUMP, as statx(2) tells it. Some file systems give it to what is made in a directory that has it.
	NoDump bool
}

// Capability is the attribute that several operations remove. Which of them do depends on
// the kernel: fallocate does from 6.0 on (ext4_fallocate, file_modified).
const Capability = "security.capability"

// Fill fills b with what the operation writes, from the i-th byte of that on.
func (s *Script) Fill(b []byte, op Op, i int64) {
	key := mix(mix(mix(s.seed)^uint64(s.thread)) ^ uint64(op.Number))
	for n := range b {
		at := uint64(i) + uint64(n)
		b[n] = byte(mix(key+at/8) >> (8 * (at % 8)))
		if b[n] == 0 {
			b[n] = 0xa5 // a zero means lost data
		}
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
