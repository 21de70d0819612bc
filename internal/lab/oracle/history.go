package oracle

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// Kept reads a case that was kept in a directory: what its threads did.
func Kept(dir string) (*Crashed, page.Page, error) {
	var r Result
	b, err := os.ReadFile(filepath.Join(dir, "result.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read kept case: %w", err)
	}
	c := Case{Seed: r.Seed, Kernel: r.Kernel, Crash: r.Crash}
	if c.Config, err = FindConfig(r.Config); err != nil {
		return nil, nil, err
	}
	if b, err = os.ReadFile(filepath.Join(dir, "work.page")); err != nil {
		return nil, nil, err
	}
	p, err := page.Of(b)
	if err != nil {
		return nil, nil, err
	}
	out := &Crashed{Case: c, Dir: dir, RAM: filepath.Join(dir, "work.ram"), Disk: filepath.Join(dir, "disk.img")}
	return out, p, out.learn(p, c.work())
}

// History writes what was done to an inode of a kept case, or, with 0, what was
// pending.
func History(w io.Writer, dir string, ino uint64) error {
	c, p, err := Kept(dir)
	if err != nil {
		return err
	}
	for i, t := range c.Threads {
		_, done, err := p.Area(i).Progress()
		if err != nil {
			return err
		}
		s := script.New(c.Seed, i, c.Config.Features, false)
		for n := range done {
			stats, err := p.Area(i).Reported(n)
			if err != nil {
				return err
			}
			op := s.Next()
			before, _ := s.At(op.On) // a new file does not exist yet
			if err := s.Apply(op, stats); err != nil {
				return err
			}
			about := func(st script.Stat) bool { return st.Ino == ino }
			if ino != 0 && (slices.ContainsFunc(stats, about) || before != nil && before.Ino == ino) {
				fmt.Fprintf(w, "thread %d: %v\n", i, op)
				for j, st := range stats {
					fmt.Fprintf(w, "\t%v: inode %d, mode %o, %d links, %d bytes, mtime %d.%09d\n", op.Touch[j], st.Ino, st.Mode, st.Nlink, st.Size, st.Sec, st.Nsec)
				}
			}
		}
		if t.Pending != nil {
			fmt.Fprintf(w, "thread %d: pending: %v\n", i, t.Pending)
		}
	}
	return nil
}

// pendingCount returns how many threads had an operation that was not reported.
func (c *Crashed) pendingCount() int {
	n := 0
	for _, t := range c.Threads {
		if t.Pending != nil {
			n++
		}
	}
	return n
}

// pendingText returns the pending operations, for people.
func (c *Crashed) pendingText() string {
	var all []string
	for i, t := range c.Threads {
		if t.Pending != nil {
			all = append(all, fmt.Sprintf("thread %d: %v", i, t.Pending))
		}
	}
	return strings.Join(all, "; ")
}
