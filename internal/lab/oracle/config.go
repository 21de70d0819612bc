// Package oracle finds out whether a rescue brings a disk to the state at the
// crash: it has a guest change a file system at random and report each
// operation, kills it at a random instant, has the rescue done, and compares
// what is on the disk with what the reports say must be there.
//
// Everything but the timing follows from a seed. Each thread of the guest works
// in a tree of its own, so that a model of it (package script) is exact; only
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
	script.Features
	NoJournal bool
	// Without are kernels that do not have it, by the beginnings of their names.
	Without []string
}

// mkfs makes what an ordinary disk has: mke2fs gives a small one other blocks.
func mkfs(more ...string) []string { return append([]string{"mkfs.ext4", "-b", "4096"}, more...) }

var extents = script.Features{Extents: true, ZeroRange: true}

// Configs are all configurations.
var Configs = []Config{
	{Name: "ext4", Type: "ext4", Mkfs: mkfs(), Features: extents},
	// With the least of pauses in ext4lazyinit, which changes group descriptors meanwhile.
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

// Kernels are those that everything is done with.
var Kernels = []string{"5.10-cloud", "6.1-cloud", "6.12-cloud", "newest-cloud"}

// On reports whether a kernel has the configuration.
func (c Config) On(kernel string) bool {
	return !slices.ContainsFunc(c.Without, func(without string) bool { return strings.HasPrefix(kernel, without) })
}

// FindConfig returns the configuration of a name.
func FindConfig(name string) (Config, error) {
	var names []string
	for _, c := range Configs {
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
