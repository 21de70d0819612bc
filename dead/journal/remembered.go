package journal

import (
	"fmt"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/pagecache"
)

// remember returns what the audit may ask memory for. All inodes are walked once, at the
// first question.
func (f *finisher) remember() audit.Memory {
	all := sync.OnceValue(func() (inodes []*pagecache.Inode) {
		for i, err := range f.cache.Inodes(f.super) {
			if err == nil { // the plan of the files reports it
				inodes = append(inodes, i)
			}
		}
		return inodes
	})
	changed := sync.OnceValue(func() map[addr.Block]Buffer {
		if f.Journal == nil {
			return nil
		}
		return f.Journal.newest()
	})
	byNumber := sync.OnceValue(func() map[addr.Ino]*pagecache.Inode {
		out := make(map[addr.Ino]*pagecache.Inode)
		for _, i := range all() {
			if !i.Deleted() { // another inode, which is being deleted, may have its number
				out[i.Ino] = i
			}
		}
		return out
	})
	return audit.Memory{
		Inode: func(n addr.Ino) ([]byte, int64, bool) {
			i, there := byNumber()[n]
			if !there {
				return nil, 0, false
			}
			return f.cache.InBlock(i)
		},
		File:  func(b addr.Block) addr.Ino { return changed()[b].File },
		Names: func(n addr.Ino) ([]audit.Name, error) { return f.names(all(), n) },
		Inodes: func() ([]audit.Known, error) {
			out := make([]audit.Known, 0, len(all()))
			for _, i := range all() {
				out = append(out, audit.Known{
					Ino: i.Ino, Generation: i.Generation, Quota: i.Regular() && i.Flags&pagecache.FlagNoQuota != 0,
					Busy: i.Writing, Torn: f.cache.MayBeTorn(i),
				})
			}
			return out, nil
		},
	}
}

// names returns the names of an inode that programs saw. Another inode with the same number may be
// in the process of being deleted, and has no names.
func (f *finisher) names(inodes []*pagecache.Inode, n addr.Ino) ([]audit.Name, error) {
	var out []audit.Name
	there := false
	for _, i := range inodes {
		if i.Ino != n {
			continue
		}
		there = true
		found, err := f.cache.Paths(f.super).Names(i)
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			out = append(out, audit.Name{Dir: name.Dir, Name: name.Name})
		}
	}
	if !there {
		return nil, fmt.Errorf("inode %d is not in memory, so that its dentries are not known: not understood", n)
	}
	return out, nil
}
