package main

import (
	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
)

// Flags of an inode as programs know them: FS_IMMUTABLE_FL and FS_APPEND_FL
// (include/uapi/linux/fs.h).
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
)

// linkAttr is what there is to a planned file besides its content, as it is sent to
// the agent. partial has it made again even if some of it is lost.
func linkAttr(place int, f *salvage.File, partial bool) wire.Attr {
	l := f.Loose
	a := wire.Attr{
		File: place, Root: l.Root, Settled: l.Settled, Links: f.NLink, Mode: uint32(f.Mode), UID: f.UID, GID: f.GID,
		Target: []byte(l.Target), Zeros: linkRanges(l.Zeros), Kept: l.Kept || len(l.Unknown) > 0, Partial: partial,
	}
	for _, path := range l.Paths {
		a.Paths = append(a.Paths, []byte(path))
	}
	if len(a.Paths) == 0 && f.Mode&pagecache.ModeType == pagecache.ModeDir && f.NLink > 0 {
		a.Paths = [][]byte{[]byte(f.Path)} // by which others name it
	}
	if f.Flags&pagecache.FlagImmutable != 0 {
		a.Flags |= flagImmutable
	}
	if f.Flags&pagecache.FlagAppend != 0 {
		a.Flags |= flagAppend
	}
	for _, p := range l.Places {
		a.Places = append(a.Places, wire.Place{Range: wire.Range{Off: p.Off, Len: p.Len()}, Disk: p.Disk})
	}
	return a
}

func linkRanges(spans []addr.Span) []wire.Range {
	var out []wire.Range
	for _, s := range spans {
		out = append(out, wire.Range{Off: s.Off, Len: s.Len()})
	}
	return out
}
