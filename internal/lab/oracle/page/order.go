package page

import (
	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// Order is what a guest has to do: work until a crash, run a program until a crash, or
// walk trees.
type Order struct {
	Work    *Work    `json:",omitempty"`
	Program *Program `json:",omitempty"`
	Walk    *Walk    `json:",omitempty"`
}

// Mount is a disk, by its serial number, and how it is mounted.
type Mount struct {
	Disk     string
	Type     string // for mount(2)
	Options  string // likewise
	ReadOnly bool
}

// Work is the order to change a tree until the kernel dies.
type Work struct {
	Mount    Mount
	Root     string // a directory of what is mounted already, instead of Mount; if it does not exist, nothing is done
	Seed     uint64
	Threads  int
	Features script.Features
	Sysctls  map[string]string // below /proc/sys, by path
	Drop     bool              // drop caches once at the barrier
	Full     bool              // an operation that finds no room ends its thread, and is not reported

	// The file system is resized to Grow blocks once GrowAt operations are done; with 0 it is not.
	Grow   uint64
	GrowAt int

	// The crash comes Millis after Go was set, and not before Ops operations are done.
	// With Sync, a syncfs(2) begins then; the guest waits, with Commit, until the
	// journal's thread waits for the disk, and, with Writeback, until that many KiB are
	// under writeback. The crash comes SyncMicros later.
	Millis     int
	Ops        int
	Sync       bool
	Commit     bool
	Writeback  int
	SyncMicros int
	Pieces     bool // the disk takes only small requests: its limit is on their number
	// How it ends. Without Panic, the kernel does not die: the threads stop, and the disk
	// is unmounted (Unmount), or the host ends the guest.
	Panic   bool
	Unmount bool
}

// Program is the order to let real programs change a tree until the kernel dies. They run
// in the tree of Tools, with the disk at /disk.
type Program struct {
	Mount Mount
	Tools Mount
	Steps [][]string // commands, one after another; Progress counts their lines
	Talk  *Talk      // after that

	// The crash comes at that Progress or, with 0, when all is done and the guest has
	// reported what is on the disk.
	Until int
	Panic bool // otherwise the host ends the guest
}

// Talk is a dialogue with a program that takes lines and answers. Progress counts the answers.
type Talk struct {
	Command []string
	Setup   string // written first
	Line    string // written again and again, %[1]d is a number from 1
	Answer  string // awaited before the next, likewise
}

// Walk is the order to mount trees and report what is in them, and what programs say of them.
type Walk struct {
	Mounts   []Mount
	Dump     []record.Path // files whose pages are wanted, if they exist
	Tools    *Mount        // as in Program; nil if there are no commands
	Commands [][]string    // to be run on each disk, after the walk
}

// Entry is a line of a walk's answer, in JSON: what the walk found, or the end of a disk,
// or why a disk cannot be walked.
type Entry struct {
	Disk   string
	Path   record.Path // from the top of the file system, which is ""
	Ino    uint64      `json:",omitempty"`
	Mode   uint32      `json:",omitempty"`
	UID    uint32      `json:",omitempty"`
	GID    uint32      `json:",omitempty"`
	Nlink  uint32      `json:",omitempty"`
	Size   int64       `json:",omitempty"`
	Sec    int64       `json:",omitempty"`
	Nsec   uint32      `json:",omitempty"`
	Target []byte      `json:",omitempty"`
	NoDump bool        `json:",omitempty"` // an inode flag (script.Stat)
	// Xattrs are in order: name, value, name, value.
	Xattrs [][]byte         `json:",omitempty"`
	Sum    []byte           `json:",omitempty"` // script.Content.Sum
	Pages  map[int64][]byte `json:",omitempty"` // if they are wanted: those that are not all zeros
	Error  string           `json:",omitempty"` // reading it failed
	// Command is one of Walk.Commands, instead of a path; Exit is its status.
	Command []string `json:",omitempty"`
	Exit    int      `json:",omitempty"`
	Output  []byte   `json:",omitempty"`
	End     bool     `json:",omitempty"` // it was the last of the disk, which was unmounted
}
