// Package oracle finds out whether a rescue brings a disk to the state at the
// crash: it lets a guest change a file system at random and report each
// operation, kills it at a random instant, runs the rescue, and compares
// what is on the disk with what the reports say must be there.
//
// Everything but the timing follows from a seed. Each thread of the guest works
// in its own tree, so that a model of it (package script) is exact; only
// the one operation that each thread had not reported may be absent, done, or,
// for a write, done in part.
package oracle

import (
	"fmt"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/lab/oracle/script"
)

// Config is a way to make and to mount a file system.
type Config struct {
	Name    string
	Type    string   // for mount(2)
	Options string   // likewise
	Mkfs    []string // the program and its arguments, without UUID and image
	// Extended are further extended options (-E) of mkfs, each preceded by a comma, and
	// Size is the size of the file system, if that is not all of the disk.
	Extended, Size string
	script.Features
	NoJournal bool
	// Full says that so few blocks or inodes are free that an operation may fail for want
	// of them, which ends its thread; Ballast says that blocks are taken beforehand.
	Full, Ballast bool
	// Grow is how many blocks the file system is resized to while threads work in it; 0 means no resize.
	Grow uint64
	// Tune are commands that change what was made; each gets the image as its last argument.
	Tune [][]string
	// Outside says that the journal is on a separate disk. Refused is what the rescue
	// must say then, and the disk must stay as it was.
	Outside bool
	Refused string
	// Without are kernels that do not support the configuration, by the beginnings of their names.
	Without []string
}

// mkfs makes the blocks of an ordinary disk: mke2fs gives a small one other blocks.
func mkfs(more ...string) []string { return append([]string{"mkfs.ext4", "-b", "4096"}, more...) }

var extents = script.Features{Extents: true, ZeroRange: true}

// Configs are all configurations.
var Configs = []Config{
	{Name: "ext4", Type: "ext4", Mkfs: mkfs(), Features: extents},
	// With the shortest pauses in ext4lazyinit, which changes group descriptors meanwhile.
	{Name: "ext3", Type: "ext3", Options: "init_itable=0", Mkfs: []string{"mkfs.ext3", "-b", "4096"}},
	// Zeroing a range is refused there up to 6.0 (ext4_zero_range).
	{Name: "data-journal", Type: "ext4", Options: "data=journal", Mkfs: mkfs(), Features: script.Features{Extents: true}},
	{Name: "data-writeback", Type: "ext4", Options: "data=writeback", Mkfs: mkfs(), Features: extents},
	{Name: "nodelalloc", Type: "ext4", Options: "nodelalloc", Mkfs: mkfs(), Features: extents},
	{Name: "1k", Type: "ext4", Mkfs: []string{"mkfs.ext4", "-b", "1024"}, Features: extents},
	{Name: "bigalloc", Type: "ext4", Mkfs: mkfs("-O", "bigalloc", "-C", "16384"), Features: extents},
	{Name: "inline_data", Type: "ext4", Mkfs: mkfs("-O", "inline_data"), Features: script.Features{Extents: true, ZeroRange: true, Inline: true}},
	{Name: "no-csum", Type: "ext4", Options: "init_itable=0", Mkfs: mkfs("-O", "^metadata_csum"), Features: extents},
	{Name: "fast_commit", Type: "ext4", Mkfs: mkfs("-O", "fast_commit"), Features: extents},
	// Since 5.15.
	{Name: "orphan_file", Type: "ext4", Mkfs: mkfs("-O", "orphan_file"), Features: extents, Without: []string{"5.10"}},
	{Name: "commit-1", Type: "ext4", Options: "commit=1", Mkfs: mkfs(), Features: extents},
	{Name: "commit-300", Type: "ext4", Options: "commit=300", Mkfs: mkfs(), Features: extents},
	{Name: "tiny-journal", Type: "ext4", Mkfs: mkfs("-J", "size=4"), Features: extents},
	{Name: "no-journal", Type: "ext4", Mkfs: mkfs("-O", "^has_journal"), Features: extents, NoJournal: true},
}

// journaled and pointers are the features of data=journal, and of files without extents.
var (
	journaled = script.Features{Extents: true}
	pointers  = script.Features{}
)

// Kernels without case-insensitive directories (Debian's 5.10), and kernels that do not
// mount blocks larger than a page (before 6.19).
var (
	noCasefold    = []string{"5.10"}
	noLargeBlocks = []string{"5.10", "6.1-", "6.12"}
)

// on1k makes blocks of 1 KiB, with which a disk of this size has 64 groups.
func on1k(more ...string) []string { return append([]string{"mkfs.ext4", "-b", "1024"}, more...) }

// debugfs returns a command for Tune.
func debugfs(command string) []string { return []string{"debugfs", "-w", "-R", command} }

// Rare are configurations beside those of Configs, which a seed does not choose: disks
// made long ago or by others, and mounts tuned by others.
var Rare = []Config{
	{Name: "ext2", Type: "ext2", Mkfs: []string{"mkfs.ext2", "-b", "4096"}, Features: pointers, NoJournal: true},
	{Name: "ext3-old", Type: "ext3", Mkfs: []string{"mkfs.ext3", "-b", "1024", "-I", "128", "-O", "^dir_index,^resize_inode"}, Features: script.Features{Seconds: true}},
	{Name: "2k", Type: "ext4", Mkfs: []string{"mkfs.ext4", "-b", "2048"}, Features: extents},
	{Name: "8k", Type: "ext4", Mkfs: []string{"mkfs.ext4", "-b", "8192"}, Features: extents, Without: noLargeBlocks},
	{Name: "16k", Type: "ext4", Mkfs: []string{"mkfs.ext4", "-b", "16384"}, Features: extents, Without: noLargeBlocks},
	{Name: "64k", Type: "ext4", Mkfs: []string{"mkfs.ext4", "-b", "65536"}, Features: extents, Without: noLargeBlocks},
	{Name: "1k-bigalloc", Type: "ext4", Mkfs: on1k("-O", "bigalloc", "-C", "65536"), Features: extents},
	{Name: "bigalloc-journal", Type: "ext4", Options: "data=journal", Mkfs: mkfs("-O", "bigalloc", "-C", "65536"), Features: journaled},
	{Name: "1k-journal", Type: "ext4", Options: "data=journal", Mkfs: on1k(), Features: journaled},
	{Name: "meta_bg", Type: "ext4", Mkfs: on1k("-O", "meta_bg,^resize_inode"), Features: extents},
	{Name: "no-flex_bg", Type: "ext4", Mkfs: on1k("-O", "^flex_bg"), Features: extents},
	{Name: "packed_meta_blocks", Type: "ext4", Mkfs: on1k(), Extended: ",packed_meta_blocks=1", Features: extents},
	{Name: "sparse_super2", Type: "ext4", Mkfs: on1k("-O", "sparse_super2"), Features: extents},
	{Name: "no-64bit", Type: "ext4", Mkfs: mkfs("-O", "^64bit"), Features: extents},
	{Name: "no-extent", Type: "ext4", Mkfs: mkfs("-O", "^extent,^64bit"), Features: pointers},
	{Name: "no-dir_index", Type: "ext4", Mkfs: mkfs("-O", "^dir_index"), Features: extents},
	{Name: "uninit_bg", Type: "ext4", Mkfs: on1k("-O", "uninit_bg,^metadata_csum"), Features: extents},
	{Name: "inode-128", Type: "ext4", Mkfs: mkfs("-I", "128"), Features: script.Features{Extents: true, ZeroRange: true, Seconds: true}},
	{Name: "inode-512", Type: "ext4", Mkfs: mkfs("-I", "512"), Features: extents},
	{Name: "inode-1024", Type: "ext4", Mkfs: on1k("-I", "1024"), Features: extents},
	// Nothing is preallocated there, since ext4 itself then loses what a file had in its inode: the data goes to a
	// block by way of the journal, and the next write to that block fills its page from the disk, which does not have
	// it yet (seen in 6.12, without any crash).
	{Name: "inline-1024", Type: "ext4", Mkfs: mkfs("-I", "1024", "-O", "inline_data"), Features: script.Features{Inline: true}},
	{Name: "large_dir", Type: "ext4", Mkfs: on1k("-O", "large_dir"), Features: extents},
	{Name: "ea_inode", Type: "ext4", Mkfs: mkfs("-O", "ea_inode"), Features: script.Features{Extents: true, ZeroRange: true, LargeXattrs: true}},
	// The flag is set on the top directory, and all directories that are made below inherit it.
	{Name: "casefold", Type: "ext4", Mkfs: mkfs("-O", "casefold"), Extended: ",encoding=utf8", Tune: [][]string{debugfs("set_inode_field / flags 0x40080000")}, Features: extents, Without: noCasefold},
	{Name: "stable_inodes", Type: "ext4", Mkfs: mkfs("-O", "stable_inodes,encrypt,verity"), Features: extents},
	// All files belong to project 42, which e2fsck counts.
	{Name: "prjquota", Type: "ext4", Options: "prjquota", Mkfs: mkfs("-O", "quota,project"), Extended: ",quotatype=usrquota:grpquota:prjquota",
		Tune: [][]string{debugfs("set_inode_field / flags 0x20080000"), debugfs("set_inode_field / projid 42"), {"e2fsck", "-fy"}}, Features: extents},
	{Name: "mmp", Type: "ext4", Mkfs: mkfs("-O", "mmp"), Features: extents},
	{Name: "stripe", Type: "ext4", Options: "stripe=64", Mkfs: mkfs(), Extended: ",stride=16,stripe_width=64", Features: extents},
	// What e2fsprogs makes from 1.47.1 on.
	{Name: "today", Type: "ext4", Mkfs: mkfs("-O", "metadata_csum_seed,orphan_file"), Features: extents, Without: []string{"5.10"}},
	{Name: "journal-outside", Type: "ext4", Options: "journal_path=/dev/vdb", Mkfs: mkfs("-O", "^has_journal"), Features: extents, Outside: true, Refused: "the journal is on another device"},
	{Name: "journal_checksum", Type: "ext4", Options: "journal_checksum", Mkfs: mkfs("-O", "^metadata_csum"), Features: extents},
	// With data=ordered it is refused (ext4_load_and_init_journal).
	{Name: "async_commit", Type: "ext4", Options: "journal_async_commit,data=writeback", Mkfs: mkfs(), Features: extents},
	{Name: "dioread_nolock", Type: "ext4", Options: "dioread_nolock", Mkfs: on1k(), Features: extents},
	{Name: "dioread_lock", Type: "ext4", Options: "dioread_lock", Mkfs: mkfs(), Features: extents},
	{Name: "lazytime", Type: "ext4", Options: "lazytime", Mkfs: mkfs(), Features: extents},
	{Name: "strictatime", Type: "ext4", Options: "strictatime,noauto_da_alloc,nobarrier,discard", Mkfs: mkfs(), Features: extents},
	{Name: "batch_time", Type: "ext4", Options: "min_batch_time=20000,max_batch_time=40000,nodelalloc", Mkfs: on1k(), Features: extents},
	{Name: "full", Type: "ext4", Mkfs: mkfs(), Features: extents, Full: true, Ballast: true},
	{Name: "no-inodes", Type: "ext4", Mkfs: mkfs("-N", "1024"), Features: extents, Full: true},
	{Name: "resized", Type: "ext4", Mkfs: mkfs(), Size: "256M", Features: extents, Grow: diskSize / 4096},
	{Name: "resized-meta_bg", Type: "ext4", Mkfs: on1k("-O", "meta_bg,^resize_inode"), Size: "128M", Features: extents, Grow: diskSize / 1024},
}

// Remade are configurations of XFS and btrfs, which a seed does not choose either.
var Remade = []Config{
	other("xfs", "xfs", ""),
	other("btrfs", "btrfs", ""),
	other("xfs-1k", "xfs", "", "-b", "size=1024"),
	other("btrfs-commit-1", "btrfs", "commit=1"),
	other("btrfs-nodatacow", "btrfs", "nodatacow"),
	other("btrfs-compress", "btrfs", "compress-force=zstd"),
}

// other is a configuration of a type other than the ext family. With 5.10, whose modules have no types, these are refused.
func other(name, kind, options string, more ...string) Config {
	return Config{
		Name: name, Type: kind, Options: options, Mkfs: append([]string{"mkfs." + kind}, more...), Features: extents, Without: []string{"5.10"},
	}
}

// remakes reports whether a rescue leaves the log to the mount, and makes again what that lacks.
func (c Config) remakes() bool { return c.Type == "xfs" || c.Type == "btrfs" }

// Names returns the names of configurations.
func Names(configs []Config) []string {
	var names []string
	for _, c := range configs {
		names = append(names, c.Name)
	}
	return names
}

// Kernels are the kernels that all cases are done with.
var Kernels = []string{"5.10-cloud", "6.1-cloud", "6.12-cloud", "newest-cloud"}

// On reports whether a kernel has the configuration.
func (c Config) On(kernel string) bool {
	return !slices.ContainsFunc(c.Without, func(without string) bool { return strings.HasPrefix(kernel, without) })
}

// FindConfig returns the configuration with a name.
func FindConfig(name string) (Config, error) {
	var names []string
	for _, c := range slices.Concat(Configs, Rare, Remade) {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return Config{}, fmt.Errorf("no configuration %q: there are %s", name, strings.Join(names, ", "))
}

// Crash is how a guest ends.
type Crash string

// The crashes.
const (
	Panic     Crash = "panic"     // sysrq c at a random instant
	Kill      Crash = "kill"      // QEMU gets SIGKILL
	Commit    Crash = "commit"    // a panic within syncfs(2), 0 to 20 ms after it began, on a slow disk
	Writeback Crash = "writeback" // a panic when pages are under writeback
	Busy      Crash = "busy"      // a panic, with eight threads at work: handles are open
	Clean     Crash = "clean"     // none: the file system is unmounted
)

// Crashes are all that are worth a rescue.
var Crashes = []Crash{Panic, Kill, Commit, Writeback, Busy}
