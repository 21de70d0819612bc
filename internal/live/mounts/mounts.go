// Package mounts reads what is mounted, from /proc/PID/mountinfo (proc(5)).
package mounts

import (
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Mount is one line of mountinfo.
type Mount struct {
	Device string // MAJOR:MINOR
	Root   string // the part of the file system that is mounted: "/", or a directory in it
	Dir    string // the mount point
	Type   string
	Source string

	options, super string
}

// Has reports whether the mount itself has an option, such as rw; HasSuper reports whether its
// file system has it.
func (m *Mount) Has(option string) bool { return has(m.options, option) }

func (m *Mount) HasSuper(option string) bool { return has(m.super, option) }

func has(options, option string) bool { return slices.Contains(strings.Split(options, ","), option) }

// Whole reports whether all of a file system is mounted, or, of btrfs, a whole subvolume. Bind mounts of directories are
// not.
func (m *Mount) Whole() bool {
	if m.Type == "btrfs" {
		return m.Root == m.Subvolume()
	}
	return m.Root == "/"
}

// Subvolume is the path of the subvolume that a mount of btrfs shows, from the file system's top; empty for others
// (fs/btrfs/super.c, btrfs_show_options).
func (m *Mount) Subvolume() string {
	for o := range strings.SplitSeq(m.super, ",") {
		if path, ok := strings.CutPrefix(o, "subvol="); ok && m.Type == "btrfs" {
			return unescape(path)
		}
	}
	return ""
}

// On reports whether something is mounted on a directory. It resolves symbolic links first, since the
// kernel lists mount points without them.
func On(dir string) bool {
	if at, err := filepath.EvalSymlinks(dir); err == nil {
		dir = at
	}
	for m := range Here() {
		if m.Dir == dir {
			return true
		}
	}
	return false
}

// Here yields the mounts of this process; none if they cannot be read.
func Here() iter.Seq[Mount] {
	b, _ := os.ReadFile("/proc/self/mountinfo") // it fails if there is no /proc
	return Parse(string(b))
}

// Parse yields the lines that can be parsed. Of two mounts on one directory, the later one is on top.
func Parse(info string) iter.Seq[Mount] {
	return func(yield func(Mount) bool) {
		for line := range strings.Lines(info) {
			before, after, ok := strings.Cut(line, " - ")
			f, g := strings.Fields(before), strings.Fields(after)
			if !ok || len(f) < 6 || len(g) < 2 {
				continue
			}
			m := Mount{Device: f[2], Root: unescape(f[3]), Dir: unescape(f[4]), options: f[5], Type: g[0], Source: unescape(g[1])}
			if len(g) > 2 {
				m.super = g[2]
			}
			if !yield(m) {
				return
			}
		}
	}
}

// unescape undoes \040 and its like (fs/proc_namespace.c, show_mountinfo).
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
