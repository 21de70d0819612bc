package filewriter

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// undone is a file system in which a check has moved things to lost+found.
type undone struct {
	*scene
	request wire.NameRequest
	done    bool // the operation is finished, and not undone
}

func newUndone(t *testing.T) *undone {
	u := &undone{scene: newScene(t), request: wire.NameRequest{Check: &wire.Check{}}}
	u.onDisk("lost+found/", "")
	return u
}

// lose moves an inode that has a name to lost+found, as a check moves one that has none.
func (u *undone) lose(name string) uint64 {
	u.t.Helper()
	ino, _ := u.of(name)
	if err := os.Rename(u.path(name), u.path(fmt.Sprintf("lost+found/#%d", ino))); err != nil {
		u.t.Fatal(err)
	}
	u.request.Check.Lost = append(u.request.Check.Lost, ino)
	return ino
}

// had adds to the request the names that the dead kernel had for the inode that now names.
func (u *undone) had(now string, isNew bool, paths ...string) *wire.Named {
	u.t.Helper()
	n := wire.Named{New: isNew, Links: uint32(max(1, len(paths)))}
	n.Inode, n.Generation = u.of(now)
	for _, p := range paths {
		n.Paths = append(n.Paths, []byte(p))
	}
	u.request.Files = append(u.request.Files, n)
	return &u.request.Files[len(u.request.Files)-1]
}

func (u *undone) undo() wire.NameResult {
	u.t.Helper()
	mount, err := os.Open(u.dir)
	if err != nil {
		u.t.Fatal(err)
	}
	defer mount.Close()
	return Undo(mount, u.request)
}

func TestUndo(t *testing.T) {
	link1 := func(u *undone, from, to string) {
		if err := os.Link(u.path(from), u.path(to)); err != nil {
			u.t.Fatal(err)
		}
	}
	seen := make(map[string]bool)
	for _, tc := range []struct {
		row, name string // row of the table of cases
		make      func(u *undone)
		want      string // names, in order
		reported  string // a part of the reason why it was left; empty if it was not
	}{
		{"L6", "an unlink", func(u *undone) {
			u.onDisk("d/", "")
			u.onDisk("d/a", "content")
			u.had("d/a", false, "d/a")
			u.lose("d/a")
		}, "d d/a lost+found", ""},
		{"L3", "an unlink whose links are counted in memory", func(u *undone) {
			u.onDisk("a", "content")
			n := u.had("a", false, "a")
			n.Links = 0
			u.lose("a")
		}, "lost+found", ""},
		{"L3", "an rmdir whose links are counted in memory", func(u *undone) {
			u.onDisk("d/", "")
			n := u.had("d", false, "d")
			n.Links = 0
			u.lose("d")
		}, "lost+found", ""},
		{"L6", "an rmdir", func(u *undone) {
			u.onDisk("d/", "")
			u.had("d", false, "d")
			u.lose("d")
		}, "d lost+found", ""},
		{"L4", "a symlink that was being created", func(u *undone) {
			if err := os.Symlink("target", u.path("s")); err != nil {
				u.t.Fatal(err)
			}
			u.had("s", true)
			u.lose("s")
		}, "lost+found", ""},
		{"L4", "a mkdir", func(u *undone) {
			u.onDisk("d/", "")
			u.had("d", true)
			u.lose("d")
		}, "lost+found", ""},
		{"L8", "a rename over another, with both names", func(u *undone) {
			u.onDisk("from", "source")
			u.onDisk("to", "target")
			u.had("to", false, "to")
			u.had("from", false, "from")
			u.lose("to")
			link1(u, "from", "to")
		}, "from lost+found to", ""},
		{"L8", "a rename over another, the old name gone", func(u *undone) {
			u.onDisk("from", "source")
			u.onDisk("to", "target")
			u.had("to", false, "to")
			u.had("from", false, "from")
			u.lose("to")
			if err := os.Rename(u.path("from"), u.path("to")); err != nil {
				u.t.Fatal(err)
			}
		}, "from lost+found to", ""},
		{"S7", "a rename with both names", func(u *undone) {
			u.onDisk("d/", "")
			u.onDisk("d/from", "source")
			link1(u, "d/from", "to")
			n := u.had("d/from", false, "d/from")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{[]byte("gone/too"), []byte("d"), {}} // the first directory was being removed
		}, "d d/from lost+found", ""},
		{"S8", "a rename of one of two names over one of two names", func(u *undone) {
			u.onDisk("from", "source")
			u.onDisk("to", "target")
			link1(u, "from", "other")
			link1(u, "to", "second")
			n := u.had("from", false, "other", "from")
			u.had("to", false, "second", "to")
			os.Remove(u.path("to"))
			link1(u, "from", "to")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "from lost+found other second to", ""},
		{"L8", "a rename of one of two names over another, the old name gone", func(u *undone) {
			u.onDisk("from", "source")
			u.onDisk("to", "target")
			link1(u, "from", "other")
			u.had("from", false, "other", "from")
			u.had("to", false, "to")
			u.lose("to")
			if err := os.Rename(u.path("from"), u.path("to")); err != nil {
				u.t.Fatal(err)
			}
		}, "from lost+found other to", ""},
		{"L8", "a rename of a directory over another", func(u *undone) {
			u.onDisk("from/", "")
			u.onDisk("from/a", "")
			u.onDisk("to/", "")
			u.had("from", false, "from")
			u.had("to", false, "to")
			u.lose("to")
			if err := os.Rename(u.path("from"), u.path("to")); err != nil {
				u.t.Fatal(err)
			}
		}, "from from/a lost+found to", ""},
		{"S9", "a rename over an empty file that the check has cleared", func(u *undone) {
			u.onDisk("d/", "")
			u.onDisk("d/from", "source")
			u.onDisk("to", "")
			u.had("to", false, "to")
			n := u.had("d/from", false, "d/from")
			os.Remove(u.path("to"))
			link1(u, "d/from", "to")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Check.Cleared = []uint64{u.request.Files[0].Inode}
			u.request.Dirs = [][]byte{[]byte("d"), {}}
			// What is left is the rename, finished.
			u.request.Files[0].Paths, u.request.Files[1].Paths = [][]byte{[]byte("to")}, [][]byte{[]byte("d/from")}
			u.done = true
		}, "d lost+found to", ""},
		{"C3", "an unlink of an empty file that the check has cleared", func(u *undone) {
			u.onDisk("a", "")
			n := u.had("a", false, "a")
			os.Remove(u.path("a"))
			u.request.Check.Cleared = []uint64{n.Inode, 1 << 40}
			u.done = true
		}, "lost+found", ""},
		{"C2", "an empty file that is said to be cleared", func(u *undone) {
			u.onDisk("a", "")
			n := u.had("a", false, "a")
			u.request.Check.Cleared = []uint64{n.Inode}
		}, "a lost+found", ""},
		{"S11", "a name too many that may be either", func(u *undone) {
			u.onDisk("from", "source")
			link1(u, "from", "one")
			link1(u, "from", "two")
			n := u.had("from", false, "from")
			n.Links = 2
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "from lost+found one two", "are not in memory"},
		{"S2", "a directory whose links were counted", func(u *undone) {
			u.onDisk("d/", "")
			ino, _ := u.of(".")
			n := u.had("d", false, "d")
			n.Dir = true
			u.request.Check.Surplus = []uint64{ino, n.Inode}
		}, "d lost+found", ""},
		{"L1", "unknown to memory", func(u *undone) {
			u.onDisk("a", "")
			u.lose("a")
		}, "lost+found lost+found/#", "no name"},
		{"L5", "without a name in memory", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", false)
			u.lose("a")
		}, "lost+found lost+found/#", "no name"},
		{"L2", "another generation", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", true).Generation++
			u.lose("a")
		}, "lost+found lost+found/#", "another file"},
		{"L9", "its name taken by a stranger", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", false, "a")
			u.lose("a")
			u.onDisk("a", "other")
		}, "a lost+found lost+found/#", "no other name"},
		{"L10", "a path that leads out", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", false, "../a")
			u.lose("a")
		}, "lost+found lost+found/#", "open directory"},
		{"L7", "an unlink of the last of two names", func(u *undone) {
			u.onDisk("a", "content")
			n := u.had("a", false, "a", "b")
			n.Links = 2
			u.lose("a")
		}, "a b lost+found", ""},
		{"L9", "a rename over it of what had that name, too", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", false, "a")
			u.lose("a")
			u.onDisk("b", "other")
			link1(u, "b", "a")
			u.had("b", false, "b", "a")
		}, "a b lost+found lost+found/#", "no other name"},
		{"L10", "an unlink in a directory that is gone", func(u *undone) {
			u.onDisk("a", "")
			u.had("a", false, "d/a")
			u.lose("a")
		}, "lost+found lost+found/#", "open directory"},
		{"S1", "a file with nothing going on about it", func(u *undone) {
			u.onDisk("a", "")
			link1(u, "a", "b")
			ino, _ := u.of("a")
			u.request.Check.Surplus = []uint64{ino}
			u.request.Dirs = [][]byte{{}}
		}, "a b lost+found", ""},
		{"S3", "a name too many of a file that has none in memory", func(u *undone) {
			u.onDisk("a", "")
			link1(u, "a", "b")
			n := u.had("a", false)
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "a b lost+found", "no name"},
		{"S4", "a name too many of a file whose name another has", func(u *undone) {
			u.onDisk("a", "")
			link1(u, "a", "b")
			u.onDisk("c", "")
			n := u.had("a", false, "c")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "a b c lost+found", "has it"},
		{"S5", "a name too many of another generation", func(u *undone) {
			u.onDisk("a", "")
			link1(u, "a", "b")
			n := u.had("a", false, "a")
			n.Generation++
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "a b lost+found", "another file"},
		{"S6", "as many names as memory has", func(u *undone) {
			u.onDisk("a", "")
			link1(u, "a", "b")
			n := u.had("a", false, "a", "b")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "a b lost+found", ""},
		{"S7", "a link", func(u *undone) {
			u.onDisk("a", "content")
			link1(u, "a", "b")
			n := u.had("a", false, "a")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Dirs = [][]byte{{}}
		}, "a lost+found", ""},
		{"S10", "a rename of one of two names over what the check has cleared", func(u *undone) {
			u.onDisk("one", "source")
			u.onDisk("to", "")
			u.had("to", false, "to")
			os.Remove(u.path("to"))
			link1(u, "one", "two")
			link1(u, "one", "to")
			n := u.had("one", false, "one", "two")
			u.request.Check.Surplus = []uint64{n.Inode}
			u.request.Check.Cleared = []uint64{u.request.Files[0].Inode}
			u.request.Dirs = [][]byte{{}}
			u.done = true
		}, "lost+found one to two", "any of"},
		{"C1", "a cleared file with nothing going on about it", func(u *undone) {
			u.request.Check.Cleared = []uint64{1 << 30}
		}, "lost+found", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen[tc.row] = true
			u := newUndone(t)
			tc.make(u)
			inodes := make(map[string]uint64)
			for _, f := range u.request.Files {
				for _, at := range f.Paths {
					if f.Links > 0 {
						inodes[string(at)] = f.Inode
					}
				}
			}
			before, err := os.Stat(u.dir)
			if err != nil {
				t.Fatal(err)
			}
			r := u.undo()
			var names []string
			for _, n := range strings.Fields(u.names()) {
				names = append(names, strings.TrimRight(n, "0123456789"))
			}
			if got := strings.Join(names, " "); got != tc.want {
				t.Errorf("names %q, want %q", got, tc.want)
			}
			if tc.reported == "" && len(r.Failures) > 0 || tc.reported != "" && (len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Reason, tc.reported)) {
				t.Errorf("reported %v, want %q", r.Failures, tc.reported)
			}
			for _, f := range u.request.Files {
				gone := slices.ContainsFunc(r.Acts, func(a wire.Act) bool { return a.Kind == wire.ActGone && a.Inode == f.Inode })
				if cleared := slices.Contains(u.request.Check.Cleared, f.Inode); gone != (cleared && u.done) {
					t.Errorf("inode %d: %+v", f.Inode, r.Acts)
				}
				failed := []wire.Failure{{Inode: f.Inode, Generation: f.Generation}}
				if left := len(r.Left(failed)); left == 1 && gone || left == 0 && !gone {
					t.Errorf("a failure of inode %d counts: %v", f.Inode, left)
				}
			}
			if tc.reported == "" && !u.done {
				for at, ino := range inodes {
					if got, _ := u.of(at); got != ino {
						t.Errorf("%s is inode %d, want %d", at, got, ino)
					}
				}
			}
			after, err := os.Stat(u.dir)
			if err != nil || !after.ModTime().Equal(before.ModTime()) {
				t.Errorf("the top directory's mtime changed: %v", err)
			}
			var st unix.Stat_t
			for at := range inodes {
				if err := unix.Lstat(u.path(at), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && tc.reported == "" && int(st.Nlink) != countOf(inodes, st.Ino) {
					t.Errorf("%s has %d links", at, st.Nlink)
				}
			}
		})
	}
	source, err := os.ReadFile("undo.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile(`(?m)^//\t([LSC]\d+) `).FindAllSubmatch(source, -1) {
		if !seen[string(row[1])] {
			t.Errorf("no test has row %s of the table of cases", row[1])
		}
		delete(seen, string(row[1]))
	}
	if len(seen) > 0 {
		t.Errorf("the table of cases lacks %v", seen)
	}
}

// countOf is how many of the names are those of an inode.
func countOf(inodes map[string]uint64, ino uint64) (n int) {
	for _, i := range inodes {
		if i == ino {
			n++
		}
	}
	return n
}
