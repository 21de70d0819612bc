package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
	"understudy.dev/understudy/internal/live/partition"
)

// Tree is what a walk found on a disk.
type Tree struct {
	Entries map[string]page.Entry // by path; the top is ""
	Said    []page.Entry          // by the checks of a program, in their order
	Error   string                // it could not be mounted, walked to the end, or unmounted
}

// Walk mounts disks in a guest with the kernel that died, one after the other, and
// returns what is in them. They are unmounted cleanly.
func (c *Crashed) Walk(ctx context.Context, disks ...string) ([]Tree, error) {
	order := page.Walk{Dump: c.pending("")}
	var devices []partition.Device
	if c.ran != nil {
		tools, err := toolsDisk()
		if err != nil {
			return nil, err
		}
		order.Tools, order.Commands = &toolsMount, c.ran.check
		devices = append(devices, partition.Disk{Name: toolsName, Image: tools, ReadOnly: true})
	}
	return c.walk(ctx, c.Dir, order, devices, disks)
}

func (c Case) walk(ctx context.Context, dir string, order page.Walk, devices []partition.Device, disks []string) ([]Tree, error) {
	for i, image := range disks {
		name := fmt.Sprintf("disk%d", i)
		order.Mounts = append(order.Mounts, page.Mount{Disk: name, Type: c.Config.Type, Options: c.Config.Options})
		devices = append(devices, partition.Disk{Name: name, Image: image})
	}
	g, err := c.boot(ctx, page.Ended, func() error { return nil }, dir, "walk", page.Order{Walk: &order}, devices...)
	if err != nil {
		return nil, fmt.Errorf("walk: %w", err)
	}
	defer func() {
		g.release()
		_ = g.Spec.Remove() // its memory is of no use
	}()
	g.end()
	b, err := g.page.Told()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "trees.json"), b, 0o600); err != nil {
		return nil, err
	}
	all, err := trees(b, order.Mounts)
	if err != nil {
		return nil, err
	}
	var out []Tree
	for _, m := range order.Mounts {
		out = append(out, *all[m.Disk])
	}
	return out, nil
}

// pending returns the files that an operation was pending on, where the threads' trees
// are below top.
func (c *Crashed) pending(top string) []record.Path {
	var all []record.Path
	for i, t := range c.Threads {
		if t.Pending == nil {
			continue
		}
		t.After.Top.Walk(threadDir(i), func(at string, n *script.Node) {
			if t.on(n) {
				all = append(all, record.Path(path.Join(top, at)))
			}
		})
	}
	return all
}

func threadDir(i int) string { return fmt.Sprintf("t%d", i) }

// trees sorts a walk's lines by disk; the walk of each mount must be complete.
func trees(b []byte, mounts []page.Mount) (map[string]*Tree, error) {
	all := make(map[string]*Tree)
	ended := 0
	for dec := json.NewDecoder(bytes.NewReader(b)); dec.More(); {
		var e page.Entry
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("read walk: %w", err)
		}
		t := all[e.Disk]
		if t == nil {
			t = &Tree{Entries: make(map[string]page.Entry)}
			all[e.Disk] = t
		}
		switch {
		case e.End:
			t.Error = e.Error
			ended++
		case e.Command != nil:
			t.Said = append(t.Said, e)
		default:
			t.Entries[string(e.Path)] = e
		}
	}
	if ended != len(mounts) || len(all) == 0 {
		return nil, errors.New("read walk: it is not whole")
	}
	return all, nil
}

// place is where an entry is: the inode number of its directory, and its name.
type place struct {
	dir  uint64
	base string
}

// place returns where a path is.
func (t Tree) place(at string) place {
	dir := path.Dir(at)
	if dir == "." {
		dir = ""
	}
	return place{t.Entries[dir].Ino, path.Base(at)}
}

// places returns all names of a tree.
func (t Tree) places() map[place]page.Entry {
	all := make(map[place]page.Entry)
	for at, e := range t.Entries {
		if at != "" {
			all[t.place(at)] = e
		}
	}
	return all
}
