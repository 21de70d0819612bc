package filewriter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// scene is a file system as a crash left it, and a plan of what it was.
type scene struct {
	*bench
	files []wire.File
	attrs []wire.Attr
	next  uint64
}

func newScene(t *testing.T) *scene { return &scene{bench: newBench(t), next: 4e9} }

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

// onDisk makes a file or, with a slash at its end, a directory.
func (s *scene) onDisk(name, content string) {
	s.t.Helper()
	var err error
	if strings.HasSuffix(name, "/") {
		err = os.Mkdir(s.path(name), 0o755)
	} else {
		err = os.WriteFile(s.path(name), []byte(content), 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// of returns the number and generation of the inode that has a name on the disk.
func (s *scene) of(name string) (uint64, uint32) {
	s.t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, s.path(name), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	b := h.Bytes()
	return uint64(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
}

// was adds to the plan an inode that had these names. now is its name on the disk, or
// empty if it is not there. Its content was n bytes of the staging disk from off on.
func (s *scene) was(now string, mode uint32, off, n int64, names ...string) *wire.Attr {
	s.t.Helper()
	f := wire.File{Inode: s.next, Generation: 7, Size: n, Mtime: wire.Time{Sec: 1e9}, Atime: wire.Time{Sec: 1e9}}
	s.next++
	if now != "" {
		f.Inode, f.Generation = s.of(now)
	}
	if n > 0 {
		f.Runs = []wire.Run{{Len: n, Staged: off}}
	}
	a := wire.Attr{File: len(s.files), Mode: mode, UID: 12, GID: 34, Links: uint32(len(names))}
	for _, name := range names {
		a.Paths = append(a.Paths, []byte(name))
	}
	s.files, s.attrs = append(s.files, f), append(s.attrs, a)
	return &s.attrs[len(s.attrs)-1]
}

func (s *scene) restore(died time.Time) wire.ApplyResult {
	s.t.Helper()
	mount, err := os.Open(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	defer mount.Close()
	var r wire.ApplyResult
	w := &writer{mount: int(mount.Fd()), staging: int(s.staging.Fd())}
	if err := w.restore(mount, s.files, s.attrs, died, &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// has checks that the content of a file is n bytes of the staging disk from off on.
func (s *scene) has(name string, off, n int64) {
	s.t.Helper()
	got, err := os.ReadFile(s.path(name))
	if err != nil || !bytes.Equal(got, s.data[off:off+n]) {
		s.t.Errorf("%s has %d bytes, or other ones: %v", name, len(got), err)
	}
}

// holds checks the content of a file.
func (s *scene) holds(name, content string) {
	s.t.Helper()
	if got, err := os.ReadFile(s.path(name)); err != nil || string(got) != content {
		s.t.Errorf("%s has %q, %v, want %q", name, got, err, content)
	}
}

// link makes a symbolic link on the disk.
func (s *scene) link(name, target string) {
	s.t.Helper()
	if err := os.Symlink(target, s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

// copied makes a directory with two files, and adds to the plan a younger directory of the same name, owner,
// permissions and times.
func (s *scene) copied(name string) {
	s.t.Helper()
	s.onDisk(name+"/", "")
	s.onDisk(name+"/f", "content")
	s.onDisk(name+"/old", "content")
	a := s.was("", modeDir, 0, 0, name)
	at := s.path(name)
	err := errors.Join(os.Chown(at, int(a.UID), int(a.GID)), unix.Chmod(at, a.Mode&0o7777), os.Chtimes(at, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	if err != nil {
		s.t.Fatal(err)
	}
	a.Ctime = wire.Time{Sec: time.Now().Unix() + 60}
}

// leads checks that a name is that of a symbolic link to a target.
func (s *scene) leads(name, target string) {
	s.t.Helper()
	if got, err := os.Readlink(s.path(name)); err != nil || got != target {
		s.t.Errorf("%s leads to %q, %v, want %q", name, got, err, target)
	}
}

// node makes a fifo, a socket or a device on the disk, that of /dev/null.
func (s *scene) node(name string, mode uint32) {
	s.t.Helper()
	if err := unix.Mknod(s.path(name), mode, int(unix.Mkdev(1, 3))); err != nil {
		s.t.Fatal(err)
	}
}

// numbers matches the inode numbers in names.
var numbers = regexp.MustCompile(`[-/][0-9]{4,}`)

// names lists all names that are on the disk.
func (s *scene) names() string {
	var out []string
	filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			s.t.Fatal(err)
		}
		if path != s.dir {
			out = append(out, path[len(s.dir)+1:])
		}
		return nil
	})
	return strings.Join(out, " ")
}

func acts(r wire.ApplyResult) string {
	var out []string
	for _, a := range r.Acts {
		s := fmt.Sprintf("%s %s", a.Kind, a.Path)
		if len(a.Other) > 0 {
			s += " " + string(a.Other)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

const (
	modeFile = unix.S_IFREG | 0o4751
	modeDir  = unix.S_IFDIR | 0o2750
	modeLink = unix.S_IFLNK | 0o777
)

func TestRestoreNames(t *testing.T) {
	for _, tc := range []struct {
		name        string
		before      func(*scene)
		names, acts string
		fails       string
		after       func(*scene)
	}{
		{
			name: "missing file in missing directories",
			before: func(s *scene) {
				s.was("", modeFile, 4096, 5000, "a/b/f")
				s.was("", modeDir, 0, 0, "a/b")
				s.was("", modeDir, 0, 0, "a")
			},
			names: "a a/b a/b/f", acts: "created a, created a/b, created a/b/f",
			after: func(s *scene) { s.has("a/b/f", 4096, 5000) },
		},
		{
			name: "missing file with several names",
			before: func(s *scene) {
				s.was("", modeFile, 0, 100, "x", "y")
			},
			names: "x y", acts: "created x, linked y",
			after: func(s *scene) { s.has("y", 0, 100) },
		},
		{
			name: "renamed",
			before: func(s *scene) {
				s.onDisk("old", "content")
				s.was("old", modeFile, 0, 100, "new")
			},
			names: "new", acts: "linked new, unlinked old",
			after: func(s *scene) { s.has("new", 0, 100) },
		},
		{
			name: "link lost",
			before: func(s *scene) {
				s.onDisk("one", "content")
				s.was("one", modeFile, 0, 100, "one", "two")
			},
			names: "one two", acts: "linked two",
		},
		{
			name: "another name is not in memory", // so the old name may be that one
			before: func(s *scene) {
				s.onDisk("old", "content")
				s.was("old", modeFile, 0, 100, "new").Links = 2
			},
			names: "new old", acts: "linked new",
		},
		{
			name: "replaced by a new one", // the old file was closed and forgotten
			before: func(s *scene) {
				s.onDisk("f", "content")
				s.was("", modeFile, 0, 100, "f")
			},
			names: "f f.displaced-INO", acts: "created f, displaced f f.displaced-INO",
			after: func(s *scene) { s.has("f", 0, 100) },
		},
		{
			name: "replaced by a new one, with a long name",
			before: func(s *scene) {
				s.onDisk(strings.Repeat("ä", 120), "content")
				s.was("", modeFile, 0, 100, strings.Repeat("ä", 120))
			},
			names: strings.Repeat("ä", 100) + ".displaced-INO " + strings.Repeat("ä", 120),
		},
		{
			name: "replaced, and deleted while open",
			before: func(s *scene) {
				s.onDisk("f", "content")
				s.was("f", modeFile, 0, 0)
				s.was("", modeFile, 0, 100, "f")
			},
			names: "f", acts: "created f, unlinked f",
			after: func(s *scene) { s.has("f", 0, 100) },
		},
		{
			name: "rotated",
			before: func(s *scene) {
				s.onDisk("log", "content")
				s.was("log", modeFile, 4096, 200, "log.1")
				s.was("", modeFile, 0, 100, "log")
			},
			names: "log log.1", acts: "created log, linked log.1, unlinked log",
			after: func(s *scene) { s.has("log", 0, 100); s.has("log.1", 4096, 200) },
		},
		{
			name: "swapped",
			before: func(s *scene) {
				s.onDisk("a", "content of a")
				s.onDisk("b", "content of b")
				s.was("a", modeFile, 0, 100, "b")
				s.was("b", modeFile, 4096, 200, "a")
			},
			names: "a b",
			after: func(s *scene) { s.has("b", 0, 100); s.has("a", 4096, 200) },
		},
		{
			name: "directory renamed, with a new file in it",
			before: func(s *scene) {
				s.onDisk("before/", "")
				s.onDisk("before/kept", "content")
				s.was("before", modeDir, 0, 0, "after")
				s.was("", modeFile, 0, 100, "after/new")
			},
			names: "after after/kept after/new", acts: "created after/new, renamed after before",
		},
		{
			name: "directory's name is taken",
			before: func(s *scene) {
				s.onDisk("before/", "")
				s.onDisk("after/", "")
				s.was("before", modeDir, 0, 0, "after")
				s.was("", modeFile, 0, 100, "after/new") // in the renamed directory
			},
			names: "after after/new after.displaced-INO",
			acts:  "created after/new, displaced after after.displaced-INO, renamed after before",
		},
		{
			name: "directory put aside, and made again",
			before: func(s *scene) {
				s.onDisk("data/", "")
				s.onDisk("data/f", "content")
				s.was("data", modeDir, 0, 0, "data.bak")
				s.was("", modeDir, 0, 0, "data")
				s.was("", modeFile, 0, 100, "data/f")
			},
			names: "data data/f data.bak data.bak/f",
			acts:  "created data, created data/f, displaced data data.displaced-INO, renamed data.bak data.displaced-INO",
			after: func(s *scene) { s.has("data/f", 0, 100); s.holds("data.bak/f", "content") },
		},
		{
			name: "directory put aside, and another in its place",
			before: func(s *scene) {
				s.onDisk("data/", "")
				s.onDisk("data/f", "content")
				s.onDisk("next/", "")
				s.was("data", modeDir, 0, 0, "data.bak")
				s.was("next", modeDir, 0, 0, "data")
				s.was("", modeFile, 0, 100, "data/g")
			},
			names: "data data/g data.bak data.bak/f",
		},
		{
			name: "directories swapped",
			before: func(s *scene) {
				s.onDisk("a/", "")
				s.onDisk("a/f", "content of a")
				s.onDisk("b/", "")
				s.was("a", modeDir, 0, 0, "b")
				s.was("b", modeDir, 0, 0, "a")
			},
			names: "a b b/f",
		},
		{
			name: "directory in the place of the one that it was in",
			before: func(s *scene) {
				s.onDisk("a/", "")
				s.onDisk("a/b/", "")
				s.onDisk("a/b/f", "content")
				s.was("a/b", modeDir, 0, 0, "a")
				s.was("a", modeDir, 0, 0, "old")
			},
			names: "a a/f old",
		},
		{
			name: "directory removed, and made again",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.onDisk("d/f", "content")
				s.was("d", modeDir, 0, 0)
				s.was("", modeDir, 0, 0, "d")
				s.was("", modeFile, 0, 100, "d/f")
			},
			names: "d d/f d.displaced-INO d.displaced-INO/f",
			acts:  "created d, created d/f, displaced d d.displaced-INO, is back d.displaced-INO",
			after: func(s *scene) { s.has("d/f", 0, 100) },
		},
		{
			name: "directory renamed, and its copy in its place", // cp -a
			before: func(s *scene) {
				s.copied("d")
				s.was("d", modeDir, 0, 0, "d.bak")
				s.was("", modeFile, 0, 100, "d/f")
			},
			names: "d d/f d.bak d.bak/f d.bak/old",
			after: func(s *scene) { s.has("d/f", 0, 100); s.holds("d.bak/f", "content") },
		},
		{
			name: "directory removed, and its copy in its place",
			before: func(s *scene) {
				s.copied("d")
				s.was("", modeFile, 0, 100, "d/f")
			},
			names: "d d/f d.displaced-INO d.displaced-INO/f d.displaced-INO/old",
			after: func(s *scene) { s.has("d/f", 0, 100) },
		},
		{
			name: "removed, and still there",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.onDisk("d/old", "content")
				s.onDisk("d/sub/", "")
				s.onDisk("d/sub/f", "content")
				s.onDisk("d/kept", "content")
				s.was("d", modeDir, 0, 0, "d").Absent = [][]byte{[]byte("old"), []byte("sub"), []byte("never"), []byte("../d"), []byte("..")}
			},
			names: "d d/kept d/old.displaced-INO d/sub.displaced-INO d/sub.displaced-INO/f",
			acts:  "removed d/old d/old.displaced-INO, removed d/sub d/sub.displaced-INO",
		},
		{
			name: "removed from the top directory",
			before: func(s *scene) {
				s.onDisk("old", "content")
				s.was(".", modeDir, 0, 0, "").Absent = [][]byte{[]byte("old")}
			},
			names: "old.displaced-INO",
			acts:  "removed old old.displaced-INO",
		},
		{
			name: "removed, and another file made, in a directory that is renamed",
			before: func(s *scene) {
				s.onDisk("a/", "")
				s.onDisk("a/db-journal", "content")
				s.was("a", modeDir, 0, 0, "b").Absent = [][]byte{[]byte("db-journal"), []byte("new")}
				s.was("", modeFile, 0, 100, "b/new") // memory contradicts itself: what has data counts
			},
			names: "b b/db-journal.displaced-INO b/new",
			acts:  "created b/new, removed b/db-journal b/db-journal.displaced-INO, renamed b a",
			after: func(s *scene) { s.has("b/new", 0, 100) },
		},
		{
			name: "renamed, and the old name still there",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.onDisk("d/a", "content")
				s.was("d", modeDir, 0, 0, "d").Absent = [][]byte{[]byte("a")}
				s.was("d/a", modeFile, 0, 100, "b")
			},
			names: "b d",
		},
		{
			name: "directory in the place of a file",
			before: func(s *scene) {
				s.onDisk("d", "content")
				s.was("d", modeFile, 4096, 200, "d.txt")
				s.was("", modeDir, 0, 0, "d")
				s.was("", modeFile, 0, 100, "d/f")
			},
			names: "d d/f d.txt",
			after: func(s *scene) { s.has("d/f", 0, 100); s.has("d.txt", 4096, 200) },
		},
		{
			name: "deleted, and back",
			before: func(s *scene) {
				s.onDisk("gone", "content")
				s.was("gone", modeFile, 0, 0)
			},
			names: "gone", acts: "is back .inode-INO-INO",
		},
		{
			name: "deleted while it was open",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.onDisk("d/gone", "content")
				s.onDisk("two", "content")
				if err := os.Link(s.path("two"), s.path("two2")); err != nil {
					s.t.Fatal(err)
				}
				s.onDisk("other", "content")
				s.was("d", modeDir, 0, 0, "d")
				s.was("d/gone", modeFile, 0, 0).Former = [][]byte{[]byte("d/gone")}
				s.was("two", modeFile, 0, 0).Former = [][]byte{[]byte("two"), []byte("d/never"), []byte("../two")}
				s.was("", modeFile, 0, 0).Former = [][]byte{[]byte("other")}
			},
			names: "d other two2", acts: "deleted d/gone, deleted two, is back .inode-INO-INO",
			after: func(s *scene) {
				if st, err := os.Stat(s.path("d")); err != nil || st.ModTime().Unix() != 1e9 {
					s.t.Errorf("%v, %v", st, err)
				}
			},
		},
		{
			name: "deleted while it was open, and another has its name",
			before: func(s *scene) {
				s.onDisk("f", "content")
				s.onDisk("old", "content")
				s.was("f", modeFile, 0, 0).Former = [][]byte{[]byte("f")}
				s.was("", modeFile, 0, 100, "f")
				s.was("old", modeFile, 0, 0).Former = [][]byte{[]byte("f")}
			},
			names: "f old", acts: "created f, is back .inode-INO-INO, unlinked f",
			after: func(s *scene) { s.has("f", 0, 100) },
		},
		{
			name: "a directory made before, with the number of one that had been deleted",
			before: func(s *scene) {
				s.onDisk("d/", "")
				a := s.was("d", modeDir, 0, 0)
				err := errors.Join(os.Chown(s.path("d"), int(a.UID), int(a.GID)), unix.Chmod(s.path("d"), a.Mode&0o7777), os.Chtimes(s.path("d"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
				if err != nil {
					s.t.Fatal(err)
				}
				s.was("", modeDir, 0, 0, "d")
			},
			names: "d", acts: "",
		},
		{
			name: "directories deleted while they were open",
			before: func(s *scene) {
				for _, dir := range []string{"a/", "a/b/", "a/b/c/", "kept/"} {
					s.onDisk(dir, "")
				}
				s.onDisk("a/b/moved", "content")
				s.onDisk("kept/file", "content")
				for _, dir := range []string{"a", "a/b", "a/b/c", "kept"} {
					s.was(dir, modeDir, 0, 0)
				}
				s.was("a/b/moved", modeFile, 0, 100, "moved")
				s.was("", modeDir, 0, 0, "a")
			},
			names: "a kept kept/file moved",
			acts:  "created a, deleted a.displaced-INO, deleted a.displaced-INO/b, deleted a.displaced-INO/b/c, displaced a a.displaced-INO, is back kept, linked moved, unlinked a.displaced-INO/b/moved",
		},
		{
			name: "missing, and only a part in memory",
			before: func(s *scene) {
				s.was("", modeFile, 0, 100, "f").Mapped = []wire.Extent{{Range: wire.Range{Off: 4096, Len: 4096}, Disk: 1 << 20}}
				s.was("", modeFile, 0, 100, "g").Kept = true
			},
			fails: "a part of its content is not in memory",
		},
		{
			name:   "missing without a name",
			before: func(s *scene) { s.was("", modeFile, 0, 100).Links = 1 },
			fails:  "no name in memory",
		},
		{
			name: "hostile names",
			before: func(s *scene) {
				s.was("", modeFile, 0, 100, "../f")
				s.was("", modeFile, 0, 100, "..")
				s.was("", modeFile, 0, 100, "/etc/f")
				s.was("", modeDir, 0, 0, "../d")
			},
			fails: "open directory",
		},
		{
			name: "a link on the way",
			before: func(s *scene) {
				s.link("out", "/tmp")
				s.was("", modeFile, 0, 100, "out/f")
			},
			names: "out", fails: "open directory",
		},
		{
			name: "symbolic links",
			before: func(s *scene) {
				s.was("", unix.S_IFLNK|0o777, 0, 0, "known").Target = []byte("../x")
				s.was("", unix.S_IFLNK|0o777, 0, 0, "unknown")
			},
			names: "known", acts: "created known", fails: "pointed to is not in memory",
		},
		{
			name: "symbolic link renamed over another",
			before: func(s *scene) {
				s.link("current", "rel1")
				s.link("tmp", "rel2")
				s.was("tmp", modeLink, 0, 0, "current").Target = []byte("rel2")
			},
			names: "current current.displaced-INO",
			acts:  "displaced current current.displaced-INO, linked current, unlinked tmp",
			after: func(s *scene) { s.leads("current", "rel2") },
		},
		{
			name: "symbolic link replaced",
			before: func(s *scene) {
				s.link("current", "rel1")
				s.was("current", modeLink, 0, 0)
				s.was("", modeLink, 0, 0, "current").Target = []byte("rel2")
			},
			names: "current", acts: "created current, unlinked current",
			after: func(s *scene) { s.leads("current", "rel2") },
		},
		{
			name: "symbolic link put aside, and made again with the same target",
			before: func(s *scene) {
				s.link("current", "rel")
				s.was("current", modeLink, 0, 0, "old").Target = []byte("rel")
				s.was("", modeLink, 0, 0, "current").Target = []byte("rel")
			},
			names: "current old", acts: "created current, linked old, unlinked current",
		},
		{
			name: "symbolic link deleted, and back",
			before: func(s *scene) {
				s.link("gone", "rel")
				s.was("gone", modeLink, 0, 0)
			},
			names: "gone", acts: "is back .inode-INO-INO",
		},
		{
			name: "fifo renamed, device linked",
			before: func(s *scene) {
				s.node("old", unix.S_IFIFO|0o600)
				s.node("null", unix.S_IFCHR|0o600)
				s.was("old", unix.S_IFIFO|0o640, 0, 0, "new")
				s.was("null", unix.S_IFCHR|0o640, 0, 0, "null", "null2")
				s.was("", unix.S_IFIFO|0o640, 0, 0, "missing")
			},
			names: "missing new null null2", acts: "created missing, linked new, linked null2, unlinked old",
		},
		{
			name: "whiteouts of an overlay, and what had their names",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.node("d/same", unix.S_IFCHR|0o640)
				s.node("d/other", unix.S_IFCHR|0o640)
				s.was("", unix.S_IFCHR|0o640, 0, 0, "d/same").Device = unix.Mkdev(1, 3)
				s.was("", unix.S_IFCHR|0o640, 0, 0, "d/other")
				s.was("", unix.S_IFCHR, 0, 0, "d/new")
				s.was("", unix.S_IFSOCK|0o600, 0, 0, "d/socket")
			},
			names: "d d/new d/other d/other.displaced-INO d/same d/socket",
			after: func(s *scene) {
				for name, want := range map[string]uint64{"d/same": unix.Mkdev(1, 3), "d/other": 0, "d/new": 0, "d/other.displaced": unix.Mkdev(1, 3)} {
					all, _ := filepath.Glob(s.path(name) + "*")
					var st unix.Stat_t
					if err := unix.Lstat(all[0], &st); err != nil || st.Rdev != want {
						s.t.Errorf("%s is device %#x, %v, want %#x", all[0], st.Rdev, err, want)
					}
				}
			},
		},
		{
			name: "another type by now",
			before: func(s *scene) {
				s.onDisk("d/", "")
				s.was("d", modeFile, 0, 100, "f")
			},
			names: "d", fails: "another type",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t)
			tc.before(s)
			r := s.restore(time.Time{})
			if got := numbers.ReplaceAllString(s.names(), "-INO"); got != tc.names {
				t.Errorf("there is %q, want %q", got, tc.names)
			}
			if got := numbers.ReplaceAllString(acts(r), "-INO"); tc.acts != "" && got != tc.acts {
				t.Errorf("done was %q, want %q", got, tc.acts)
			}
			reasons := fmt.Sprint(r.Failures)
			if (tc.fails == "") != (len(r.Failures) == 0) || !strings.Contains(reasons, tc.fails) {
				t.Errorf("failures %v, want %q", reasons, tc.fails)
			}
			if tc.after != nil {
				tc.after(s)
			}
			if outside, _ := filepath.Glob(filepath.Join(filepath.Dir(s.dir), "[fd]")); len(outside) > 0 {
				t.Errorf("outside is %v", outside)
			}
		})
	}
}

// TestRestoreAttributes checks owner, permissions and times, of directories too.
func TestRestoreAttributes(t *testing.T) {
	s := newScene(t)
	s.onDisk("there/", "")
	s.onDisk("there/old", strings.Repeat("x", 9000))
	s.was("there", modeDir, 0, 0, "there")
	s.was("there/old", modeFile, 0, 4096, "there/old")
	s.was("", modeDir, 0, 0, "made")
	s.was("", modeFile, 0, 100, "made/new")
	s.was("", modeFile, 0, 100, "there/new").Settings.Flags = lockingFlags
	s.link("link", "target")
	s.node("fifo", unix.S_IFIFO|0o600)
	s.was("link", modeLink, 0, 0, "link")
	s.was("fifo", unix.S_IFIFO|0o620, 0, 0, "fifo")
	s.was("", modeLink, 0, 0, "made/link").Target = []byte("target")
	if r := s.restore(time.Time{}); len(r.Failures) > 0 {
		t.Fatalf("%+v", r)
	}
	defer setFileFlags(t, s.path("there/new"), lockingFlags, false)
	for name, mode := range map[string]uint32{"there": modeDir, "there/old": modeFile, "made": modeDir, "made/new": modeFile, "there/new": modeFile, "link": modeLink, "fifo": unix.S_IFIFO | 0o620, "made/link": modeLink} {
		var st unix.Stat_t
		if err := unix.Lstat(s.path(name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != mode || st.Uid != 12 || st.Gid != 34 || st.Mtim.Sec != 1e9 {
			t.Errorf("%s: mode %o, owner %d:%d, of %d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		}
	}
	if err := os.WriteFile(s.path("there/new"), nil, 0o600); err == nil {
		t.Error("the flags are not set")
	}
}

// TestRestoreLocked checks that directories have the flags that forbid changes to them and to the names in them when
// all else is done, and that such flags do not stand in the way of that.
func TestRestoreLocked(t *testing.T) {
	const flagImmutable, flagAppend = 0x8, 0x10
	s := newScene(t)
	for _, name := range []string{"log", "frozen", "opened"} {
		s.onDisk(name+"/", "")
		s.onDisk(name+"/f", strings.Repeat("x", 9000))
		if err := os.Chtimes(s.path(name), time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
		s.was(name+"/f", modeFile, 0, 4096, name+"/f")
	}
	s.was("log", modeDir, 0, 0, "log").Settings.Flags = flagAppend
	s.was("frozen", modeDir, 0, 0, "frozen").Committed = true
	s.was("opened", modeDir, 0, 0, "opened")
	s.was("", modeDir, 0, 0, "made").Settings.Flags = flagImmutable
	for _, name := range []string{"log/new", "opened/new", "made/new"} {
		s.was("", modeFile, 0, 100, name)
	}
	for name, flag := range map[string]uint32{"log": flagAppend, "frozen": flagImmutable, "opened": flagImmutable} {
		setFileFlags(t, s.path(name), flag, true)
	}
	defer func() {
		for _, name := range []string{"log", "frozen", "opened", "made"} {
			setFileFlags(t, s.path(name), lockingFlags, false)
		}
	}()
	if r := s.restore(time.Time{}); len(r.Failures) > 0 {
		t.Errorf("%+v", r.Failures)
	}
	s.has("made/new", 0, 100)
	for name, want := range map[string]uint32{"log": flagAppend, "frozen": flagImmutable, "opened": 0, "made": flagImmutable} {
		f, err := os.Open(s.path(name))
		if err != nil {
			t.Fatal(err)
		}
		now, err := readSettings(int(f.Fd()))
		st, statErr := f.Stat()
		f.Close()
		if err := errors.Join(err, statErr); err != nil || now.flags&lockingFlags != want || st.ModTime().Unix() != 1e9 {
			t.Errorf("%s has flags %#x, want %#x, and is of %v: %v", name, now.flags&lockingFlags, want, st.ModTime(), err)
		}
	}
}

// TestRestoreContent checks that what was a hole becomes one, and that a file is refused
// if content that is neither a hole nor in memory is not where it was.
func TestRestoreContent(t *testing.T) {
	s := newScene(t)
	s.onDisk("holes", strings.Repeat("x", 40000))
	s.onDisk("places", strings.Repeat("y", 40000))
	s.onDisk("moved", strings.Repeat("z", 40000))
	unix.Sync()
	holes := s.was("holes", modeFile, 0, 4096, "holes")
	s.files[0].Size = 20000
	holes.Zeros = []wire.Range{{Off: 4096, Len: 4096}, {Off: 12288, Len: 20000 - 12288}}
	for i, name := range []string{"places", "moved"} {
		f, err := os.Open(s.path(name))
		if err != nil {
			t.Fatal(err)
		}
		all, err := extents(int(f.Fd()))
		f.Close()
		if err != nil || len(all) == 0 {
			t.Fatalf("extents of %s: %v, %v", name, all, err)
		}
		a := s.was(name, modeFile, 0, 4096, name)
		s.files[len(s.files)-1].Size = 40000
		a.Mapped = []wire.Extent{{Range: wire.Range{Off: 4096, Len: 36864 - 4096}, Disk: int64(all[0].Physical) + 4096 + int64(i)*4096}}
	}
	r := s.restore(time.Time{})
	if len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Reason, "not those that the dead kernel had") {
		t.Errorf("%+v", r.Failures)
	}
	want := slices.Concat(s.data[:4096], make([]byte, 4096), bytes.Repeat([]byte("x"), 4096), make([]byte, 20000-12288))
	if got, err := os.ReadFile(s.path("holes")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("holes: %d bytes, or other ones: %v", len(got), err)
	}
	want = slices.Concat(s.data[:4096], bytes.Repeat([]byte("y"), 40000-4096))
	if got, err := os.ReadFile(s.path("places")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("places: %d bytes, or other ones: %v", len(got), err)
	}
	if got, err := os.ReadFile(s.path("moved")); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("z"), 40000)) {
		t.Errorf("what was refused has changed: %v", err)
	}
}

// TestRestoreBehind checks that content which the disk has of a file beyond the file's size there, and which memory
// does not hold, is not replaced by zeros.
func TestRestoreBehind(t *testing.T) {
	for _, tc := range []struct {
		name    string
		on, was int64 // sizes on the disk and in memory
		attr    wire.Attr
		run     int64 // bytes that memory holds, up to the end
		refused bool
		partial bool // what is missing is reported, and the rest is written
	}{
		{name: "in the last block", on: 100, was: 200, attr: wire.Attr{Kept: true}, refused: true},
		{name: "in memory", on: 100, was: 200, attr: wire.Attr{Kept: true}, run: 200},
		{name: "a part in memory", on: 100, was: 4296, attr: wire.Attr{Kept: true}, run: 200, refused: true},
		{name: "a hole", on: 4096, was: 8192, attr: wire.Attr{Kept: true}},
		{name: "zeros", on: 100, was: 8192, attr: wire.Attr{Zeros: []wire.Range{{Off: 0, Len: 8192}}}},
		{name: "zeros will do", on: 100, was: 200, attr: wire.Attr{Kept: true}, partial: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t)
			s.onDisk("f", strings.Repeat("x", int(tc.on)))
			a := s.was("f", modeFile, 0, 0, "f")
			a.Kept, a.Zeros, a.Partial = tc.attr.Kept, tc.attr.Zeros, tc.partial
			s.files[0].Size = tc.was
			if tc.run > 0 {
				s.files[0].Runs = []wire.Run{{Off: tc.was - tc.run, Len: tc.run}}
			}
			r := s.restore(time.Time{})
			size := tc.was
			if tc.refused {
				size = tc.on
			}
			st, err := os.Stat(s.path("f"))
			if err != nil || st.Size() != size || (len(r.Failures) > 0) != (tc.refused || tc.partial) {
				t.Errorf("it has %d bytes, want %d: %v, %+v", st.Size(), size, err, r.Failures)
			}
		})
	}
}

// TestRestoreLooks checks that an old name is not searched for further than needed: in an atomic replace it is
// beside the new one. The atime of a directory shows whether it was read.
func TestRestoreLooks(t *testing.T) {
	for _, tc := range []struct {
		name, old, new string
		wide           bool
	}{
		{"beside the new name", "d/.f.tmp", "d/f", false},
		{"elsewhere", "z/tmp", "d/f", true},
		{"deleted", "d/f", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t)
			for _, dir := range []string{"bystander/", "d/", "z/"} {
				s.onDisk(dir, "")
			}
			s.onDisk(tc.old, "content")
			if tc.new == "" {
				s.was(tc.old, modeFile, 0, 0)
			} else {
				s.was(tc.old, modeFile, 0, 100, tc.new)
			}
			// wasRead reports by its atime whether bystander was read, and sets the atime back.
			wasRead := func() bool {
				var st unix.Stat_t
				err := unix.Stat(s.path("bystander"), &st)
				if err == nil {
					err = os.Chtimes(s.path("bystander"), time.Unix(1e9, 0), time.Unix(2e9, 0))
				}
				if err != nil {
					t.Fatal(err)
				}
				return st.Atim.Sec != 1e9
			}
			wasRead()
			if _, err := os.ReadDir(s.path("bystander")); err != nil || !wasRead() {
				t.Skip("this file system keeps no atime")
			}
			if r := s.restore(time.Time{}); len(r.Failures) > 0 {
				t.Errorf("%+v", r.Failures)
			}
			if wasRead() != tc.wide {
				t.Errorf("a directory that has nothing to do with it was read: %v", !tc.wide)
			}
			if _, err := os.Lstat(s.path(tc.old)); err == nil && tc.new != "" {
				t.Error("the old name is there")
			}
		})
	}
}

// TestRestoreTop checks that directories are found below a mount point that a symbolic link leads to.
func TestRestoreTop(t *testing.T) {
	s := newScene(t)
	s.onDisk("a/", "")
	s.onDisk("b/", "")
	s.was("a", modeDir, 0, 0, "a")
	s.was("b", modeDir, 0, 0, "a/b")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.dir, link); err != nil {
		t.Fatal(err)
	}
	s.dir = link
	r := s.restore(time.Time{})
	if got, want := acts(r), "renamed a/b b"; got != want || len(r.Failures) > 0 {
		t.Errorf("it did %s, want %s; %+v", got, want, r.Failures)
	}
}

// TestRestoreTopKeeps checks that the top directory keeps its own owner, permissions and times, and gets none of a directory
// that was removed while it was open, and has no name.
func TestRestoreTopKeeps(t *testing.T) {
	s := newScene(t)
	s.onDisk("d/", "")
	s.onDisk("e/", "")
	stat := func() (st unix.Stat_t) {
		if err := unix.Stat(s.dir, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := stat()
	s.was("d", modeDir, 0, 0)
	top := s.was(".", before.Mode, 0, 0, "")
	top.Committed = true
	s.files[top.File].Mtime, s.files[top.File].Atime = wire.Time{Sec: 5e8}, wire.Time{Sec: 5e8}
	s.was("e", modeDir, 0, 0)
	if r := s.restore(time.Time{}); len(r.Failures) > 0 {
		t.Error(r.Failures)
	}
	now := stat()
	if now.Mode != before.Mode || now.Uid != before.Uid || now.Gid != before.Gid || now.Mtim.Sec != 5e8 {
		t.Errorf("mode %o, owner %d:%d, mtime %d; they were %o, %d:%d, %d", now.Mode, now.Uid, now.Gid, now.Mtim.Sec, before.Mode, before.Uid, before.Gid, int(5e8))
	}
}

// TestRestoreLater checks that what was changed after the crash is left alone.
func TestRestoreLater(t *testing.T) {
	s := newScene(t)
	s.onDisk("f", "newer")
	s.was("f", modeFile, 0, 100, "f")
	if r := s.restore(time.Now().Add(-time.Hour)); len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Reason, "after the crash") {
		t.Errorf("%+v", r)
	}
	if got, err := os.ReadFile(s.path("f")); err != nil || string(got) != "newer" {
		t.Errorf("it has %q, %v", got, err)
	}
	if r := s.restore(time.Now().Add(time.Hour)); len(r.Failures) > 0 {
		t.Errorf("%+v", r)
	}
	// What we do ourselves to files that are in the way does not count as such a change.
	s = newScene(t)
	s.onDisk("a/", "")
	s.onDisk("b/", "")
	s.onDisk("c", "content")
	s.was("a", modeDir, 0, 0, "b")
	s.was("b", modeDir, 0, 0, "c")
	s.was("c", modeFile, 0, 100, "a")
	if r := s.restore(time.Now()); len(r.Failures) > 0 || s.names() != "a b c" {
		t.Errorf("there is %s, %+v", s.names(), r)
	}
}

// TestRestoreRemovedLater checks that a name stays with what was changed after the crash, although nothing had it then.
func TestRestoreRemovedLater(t *testing.T) {
	s := newScene(t)
	s.onDisk("d/", "")
	s.onDisk("d/f", "newer")
	s.onDisk("gone", "newer")
	s.onDisk("dir/", "")
	s.onDisk("way", "newer")
	s.was("d", modeDir, 0, 0, "d").Absent = [][]byte{[]byte("f")}
	s.was("gone", modeFile, 0, 0).Former = [][]byte{[]byte("gone")}
	s.was("dir", modeDir, 0, 0)
	s.was("way", modeFile, 0, 0)
	s.was("", modeFile, 0, 100, "way")
	r := s.restore(time.Now().Add(-time.Hour))
	got, names := numbers.ReplaceAllString(acts(r), "-INO"), numbers.ReplaceAllString(s.names(), "-INO")
	if want := "created way, displaced way way.displaced-INO, is back .inode-INO-INO, is back .inode-INO-INO, is back dir"; got != want || names != "d d/f dir gone way way.displaced-INO" {
		t.Errorf("it did %s, and there are %s; %+v", acts(r), s.names(), r.Failures)
	}
}

// TestRestoreAgain: when a plan is carried out again, since the first attempt was interrupted,
// it finds what that attempt has made, complete or not, and makes nothing twice.
func TestRestoreAgain(t *testing.T) {
	s := newScene(t)
	s.onDisk("dir/", "") // the dead kernel removed it, and made it again
	s.was("", modeDir, 0, 0, "dir")
	s.was("", modeFile, 0, 5000, "dir/whole")
	torn := s.was("", modeFile, 8192, 6000, "torn")
	link := s.was("", unix.S_IFLNK|0o777, 0, 0, "link")
	link.Target = []byte("dir/whole")
	s.was("", modeFile, 16384, 100, "another")
	if r := s.restore(time.Time{}); len(r.Failures) > 0 {
		t.Fatalf("%+v", r.Failures)
	}
	// One file had not got its name yet, and one is another file that only has the same size.
	f := s.files[torn.File]
	if err := os.Rename(s.path("torn"), s.path(fmt.Sprintf(".understudy-%d-%d", f.Inode, f.Generation))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.path("another"), time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	r := s.restore(time.Time{})
	if len(r.Failures) > 0 {
		t.Errorf("%+v", r.Failures)
	}
	s.has("dir/whole", 0, 5000)
	s.has("torn", 8192, 6000)
	s.has("another", 16384, 100)
	names := s.names()
	if want := "another another.displaced-"; !strings.HasPrefix(names, want) {
		t.Errorf("there is %s, and another file that had the name is lost", names)
	}
	if strings.Count(names, "dir.displaced") != 1 || strings.Count(names, "another.displaced") != 1 || strings.Contains(names, ".understudy") {
		t.Errorf("there is %s", names)
	}
	if want := "created another, created torn, displaced another"; !strings.HasPrefix(acts(r), want) {
		t.Errorf("it did %s", acts(r))
	}
}
