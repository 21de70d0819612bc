package morgue

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
)

// Flags of an inode as programs know them: FS_XFLAG_IMMUTABLE and FS_XFLAG_APPEND
// (include/uapi/linux/fs.h).
const (
	flagImmutable = 0x8
	flagAppend    = 0x10
)

// wireAttr returns what a planned file has besides its content, as it is sent to the
// agent. With partial, the file is created again even if some of it is lost.
func wireAttr(place int, f *salvage.File, partial bool) wire.Attr {
	l := f.Metadata
	a := wire.Attr{
		File: place, Root: l.Root, Committed: l.Committed, Links: f.NLink, Mode: uint32(f.Mode), UID: f.UID, GID: f.GID,
		Target: []byte(l.Target), Device: unix.Mkdev(l.Device>>20, l.Device&(1<<20-1)), ACL: l.ACL, Zeros: wireRanges(l.Zeros), Kept: l.Kept || len(l.Unknown) > 0, Partial: partial,
	}
	for _, x := range l.Attributes {
		a.Xattrs = append(a.Xattrs, wire.Xattr{Name: []byte(x.Name), Value: x.Value})
	}
	if l.Lacking != nil {
		a.XattrsLack = l.Lacking.Error()
	}
	a.XattrsAll = l.Lacking == nil && !l.Committed && f.NLink > 0
	if l.Lacking != nil || f.Mode&pagecache.ModeType == pagecache.ModeDir {
		a.Ctime = wireTime(f.Ctime)
	}
	for _, path := range l.Paths {
		a.Paths = append(a.Paths, []byte(path))
	}
	if len(a.Paths) == 0 && f.Mode&pagecache.ModeType == pagecache.ModeDir && f.NLink > 0 && !l.Nameless {
		a.Paths = [][]byte{[]byte(f.Path)} // other files name it by this path
	}
	for _, path := range l.Former {
		a.Former = append(a.Former, []byte(path))
	}
	for _, name := range l.Absent {
		a.Absent = append(a.Absent, []byte(name))
	}
	if a.Settings = wire.Settings(l.Settings); a.Settings.Known == 0 { // the VFS knows these
		if f.Flags&pagecache.FlagImmutable != 0 {
			a.Settings.Flags |= flagImmutable
		}
		if f.Flags&pagecache.FlagAppend != 0 {
			a.Settings.Flags |= flagAppend
		}
	}
	for _, p := range l.Mapped {
		a.Mapped = append(a.Mapped, wire.Extent{Range: wire.Range{Off: p.Off, Len: p.Len()}, Disk: p.Disk})
	}
	return a
}

func wireRanges(spans []addr.Span) []wire.Range {
	var out []wire.Range
	for _, s := range spans {
		out = append(out, wire.Range{Off: s.Off, Len: s.Len()})
	}
	return out
}

// Files returns the planned files as they are sent to the agent, and the further
// attributes of those whose file system has a log that salvage does not finish (XFS,
// btrfs). With partial, such a file is created again even if some of it is lost.
func Files(p *salvage.Plan, partial bool) (files []wire.File, attrs []wire.Attr, err error) {
	for i := range p.Files {
		f, err := wireFile(&p.Files[i])
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
		if p.Files[i].Metadata != nil {
			attrs = append(attrs, wireAttr(i, &p.Files[i], partial))
		}
	}
	return files, attrs, nil
}

// wireFile is a planned file as it is sent to the agent.
func wireFile(f *salvage.File) (wire.File, error) {
	out := wire.File{
		Inode: uint64(f.Ino), Generation: f.Generation, Size: f.Size,
		Atime: wireTime(f.Atime), Mtime: wireTime(f.Mtime), Cut: f.Cut,
	}
	for i := range f.Runs {
		run := &f.Runs[i]
		if run.Off%512 != 0 || !run.Direct && run.End != f.Size && run.Len()%512 != 0 {
			return out, errors.New("a run is not made of whole sectors")
		}
		out.Runs = append(out.Runs, wire.Run{Off: run.Off, Len: run.WriteLen(), Staged: run.Staged})
	}
	for _, h := range f.Holes {
		out.Holes = append(out.Holes, wire.Range{Off: h.Off, Len: h.Len()})
	}
	return out, nil
}

func wireTime(t time.Time) wire.Time {
	return wire.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}
