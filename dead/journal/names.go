package journal

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/pagecache"
)

// names returns what tells the names of inodes that programs saw.
func (f *finisher) names() audit.Names {
	var inodes map[addr.Ino][]*pagecache.Inode // nil until one is asked for
	paths := f.cache.Paths(f.super)
	return func(n addr.Ino) ([]audit.Name, error) {
		if inodes == nil {
			inodes = make(map[addr.Ino][]*pagecache.Inode)
			for i, err := range f.cache.Inodes(f.super) {
				if err == nil {
					inodes[i.Ino] = append(inodes[i.Ino], i) // one that goes, and has no names, may be beside it
				}
			}
		}
		if len(inodes[n]) == 0 {
			return nil, fmt.Errorf("inode %d is not in memory, and may have names: not understood", n)
		}
		var out []audit.Name
		for _, i := range inodes[n] {
			found, err := paths.Names(i)
			if err != nil {
				return nil, err
			}
			for _, name := range found {
				out = append(out, audit.Name{Dir: name.Dir, Name: name.Name})
			}
		}
		return out, nil
	}
}
