// Package hold keeps a Linux from saving anything by itself. What a test or the demo
// leaves unsaved is unsaved at the crash because of these settings, and not because
// the machine was quick enough.
package hold

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
)

// Source is this file. Whatever is made in a guest with these settings, and then kept,
// depends on it.
//
//go:embed hold.go
var Source string

// Dirty are settings below /proc/sys with which the kernel writes dirty pages back only
// when it is told to, or short of memory: neither periodically, nor when a tenth of the
// memory is dirty (Documentation/admin-guide/sysctl/vm.rst).
var Dirty = map[string]string{
	"vm/dirty_writeback_centisecs": "0",
	"vm/dirty_expire_centisecs":    "360000",
	"vm/dirty_background_ratio":    "89",
	"vm/dirty_ratio":               "90",
}

// XFS are settings below /proc/sys of a kernel that has XFS, to be made before the mount.
// Otherwise XFS forces its log and writes metadata back every 30 s, and every 5 minutes
// it frees blocks that it preallocated (fs/xfs/xfs_globals.c has the limits).
var XFS = map[string]string{
	"fs/xfs/xfssyncd_centisecs":            "720000",
	"fs/xfs/speculative_prealloc_lifetime": "86400",
}

// Commit is the mount option with which ext3, ext4 and btrfs commit a transaction only
// once a day. They still commit one that grows too large, or at an fsync.
const Commit = "commit=86400"

// Ext4 are the mount options Commit and noinit_itable: no thread initializes the inode
// tables in the background, which takes handles and writes.
const Ext4 = Commit + ",noinit_itable"

// Parameters are Dirty for the command line of a kernel (since Linux 5.8).
func Parameters() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(Dirty)) {
		all = append(all, "sysctl."+strings.ReplaceAll(name, "/", ".")+"="+Dirty[name])
	}
	return strings.Join(all, " ")
}
