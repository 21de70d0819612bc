package nfsbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nameBytes is the size of the files that a namer makes.
const nameBytes = 1000

// Names is a directory in which names were made, changed and removed, and what
// must be in it.
type Names struct {
	Dir    string         `json:"dir"`
	Seed   uint64         `json:"seed"`
	Files  map[string]int `json:"files"`  // name to the record in it
	Dirs   map[string]int `json:"dirs"`   // by name; the values mean nothing
	Unsure map[string]int `json:"unsure"` // names on which an operation failed or was under way
}

// keepNames is after how many rounds every second file, and every directory, is removed.
const keepNames = 4

// work makes files, renames them, makes directories and removes both, until the
// context ends.
func (n *Names) work(ctx context.Context, m *Moments) {
	n.Files, n.Dirs, n.Unsure = make(map[string]int), make(map[string]int), make(map[string]int)
	for i := 0; ctx.Err() == nil; i++ {
		if !n.round(ctx, m, i) {
			pause(ctx)
		}
	}
}

// round does one round. After a failure it leaves out the rest, and returns false.
func (n *Names) round(ctx context.Context, m *Moments, i int) bool {
	made, kept, dir := fmt.Sprintf("n%05d", i), fmt.Sprintf("r%05d", i), fmt.Sprintf("d%05d", i)
	old, oldDir := fmt.Sprintf("r%05d", i-keepNames), fmt.Sprintf("d%05d", i-keepNames)
	steps := []struct {
		op, name, to string
		f            func(path, to string) error
		apply        func()
	}{
		{"create", made, "", n.create(i), func() { n.Files[made] = i }},
		{"rename", made, kept, os.Rename, func() { delete(n.Files, made); n.Files[kept] = i }},
		{"mkdir", dir, "", func(path, _ string) error { return unix.Mkdir(path, 0o755) }, func() { n.Dirs[dir] = i }},
		{"stat", kept, "", func(path, _ string) error { return unix.Stat(path, new(unix.Stat_t)) }, func() {}},
		{"unlink", old, "", func(path, _ string) error { return unix.Unlink(path) }, func() { delete(n.Files, old) }},
		{"rmdir", oldDir, "", func(path, _ string) error { return unix.Rmdir(path) }, func() { delete(n.Dirs, oldDir) }},
	}
	for _, s := range steps {
		_, known := n.Files[s.name]
		_, knownDir := n.Dirs[s.name]
		switch {
		case s.op == "unlink" && (i%2 == 0 || !known), s.op == "rmdir" && !knownDir:
			continue
		}
		path := filepath.Join(n.Dir, s.name)
		n.Unsure[s.name], n.Unsure[s.to] = i, i
		err := m.do(s.op, path, func() error { return s.f(path, filepath.Join(n.Dir, s.to)) })
		if err != nil && !asIfRepeated(s.op, err) {
			return false
		}
		s.apply()
		delete(n.Unsure, s.name)
		delete(n.Unsure, s.to)
		rest(ctx)
	}
	return true
}

// create makes a file that must not exist, and syncs its content to the server.
func (n *Names) create(i int) func(path, _ string) error {
	return func(path, _ string) error {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		b := make([]byte, nameBytes)
		record(b, n.Seed, i)
		_, err = f.Write(b)
		return errors.Join(err, f.Sync(), f.Close())
	}
}

// asIfRepeated reports whether an error is what an operation returns when it is carried
// out a second time, because the reply to the first was lost.
func asIfRepeated(op string, err error) bool {
	switch op {
	case "mkdir":
		return errors.Is(err, unix.EEXIST)
	case "rename", "unlink", "rmdir":
		return errors.Is(err, unix.ENOENT)
	}
	return false
}

// check compares a directory with what must be in it. got has the content of each
// file, and nil for a directory.
func (n *Names) check(got map[string][]byte) (lost int64, findings []string) {
	want := make([]byte, nameBytes)
	for name, i := range n.Files {
		record(want, n.Seed, i)
		b, there := got[name]
		switch {
		case !there:
			findings = append(findings, fmt.Sprintf("%s/%s is gone", n.Dir, name))
			lost += nameBytes
		case string(b) != string(want):
			findings = append(findings, fmt.Sprintf("%s/%s has not what was written to it", n.Dir, name))
			lost += nameBytes
		}
	}
	for name := range n.Dirs {
		if b, there := got[name]; !there || b != nil {
			findings = append(findings, fmt.Sprintf("directory %s/%s is gone", n.Dir, name))
		}
	}
	for name := range got {
		_, file := n.Files[name]
		_, dir := n.Dirs[name]
		if _, unsure := n.Unsure[name]; !file && !dir && !unsure {
			findings = append(findings, fmt.Sprintf("%s/%s is there, removed or renamed though", n.Dir, name))
		}
	}
	return lost, findings
}
