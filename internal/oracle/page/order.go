package page

import (
	"understudy/internal/fixture/record"
	"understudy/internal/oracle/script"
)

// Order is what a guest is to do: to work until a crash, or to walk over trees.
type Order struct {
	Work *Work `json:",omitempty"`
	Walk *Walk `json:",omitempty"`
}

// Mount is a disk, by its serial number, and how it is mounted.
type Mount struct {
	Disk    string
	Type    string // for mount(2)
	Options string // likewise
}

// Work is to change a tree until the kernel dies.
type Work struct {
	Mount    Mount
	Seed     uint64
	Threads  int
	Features script.Features
	Sysctls  map[string]string // below /proc/sys, by path
	Drop     bool              // drop caches once at the barrier

	// After Go was set: this much later the crash comes. With Sync, a syncfs(2)
	// begins then, and the crash comes SyncMicros later, or, with Writeback, when
	// so many KiB are under writeback.
	Millis     int
	Sync       bool
	SyncMicros int
	Writeback  int
	// How it ends. Without Panic, nobody dies: the threads stop, and the disk is
	// unmounted (Unmount), or the host ends the guest.
	Panic   bool
	Unmount bool
}

// Walk is to mount trees and tell what is in them.
type Walk struct {
	Mounts []Mount
	Dump   []record.Path // files whose pages are wanted, if they are there
}

// Entry is a line of a walk's answer, in JSON: what a walk found, or that a
// disk ends, or cannot be walked.
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
	// Xattrs are in order: name, value, name, value.
	Xattrs [][]byte         `json:",omitempty"`
	Sum    []byte           `json:",omitempty"` // script.Content.Sum
	Pages  map[int64][]byte `json:",omitempty"` // if they are wanted: those that are not all zeros
	Error  string           `json:",omitempty"` // reading it failed
	End    bool             `json:",omitempty"` // it was the last of the disk, which was unmounted
}
