package salvage

import (
	"path"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// Named is an inode and the names that the kernel had for it. A name changes in memory
// only at the end of an operation, so these are the names from before any operation that
// was in flight.
type Named struct {
	Ino        addr.Ino
	Generation uint32
	NLink      uint32
	Paths      []string // from the top of the file system
	New        bool     // it was being created, and had no name yet
	Dir        bool
}

// Unfinished returns the inodes that operations in flight were about: those in wanted,
// those that are locked for writing (whose names or content were being changed), those
// that were being created, and the directories in a directory that is locked for writing,
// since not every kernel locks a directory that it renames. dirs are the paths of the
// locked directories.
func Unfinished(c *pagecache.Cache, s *pagecache.Superblock, wanted []addr.Ino) (files []Named, dirs []string) {
	paths := c.Paths(s)
	var within []Named // directories that are not locked
	for i, err := range c.Inodes(s) {
		if err != nil {
			continue // what is wanted and not found stays where it is, and is named
		}
		isDir, chosen := i.Mode&pagecache.ModeType == pagecache.ModeDir, i.Writing || i.New || slices.Contains(wanted, i.Ino)
		if !isDir && !chosen {
			continue
		}
		n := Named{Ino: i.Ino, Generation: i.Generation, NLink: i.NLink, Paths: paths.All(i), New: i.New, Dir: isDir}
		if isDir && i.Writing && len(n.Paths) > 0 {
			dirs = append(dirs, n.Paths[0])
		}
		if chosen {
			files = append(files, n)
		} else if len(n.Paths) > 0 && n.Paths[0] != "" {
			within = append(within, n)
		}
	}
	for _, n := range within {
		dir, _ := path.Split(n.Paths[0])
		if slices.Contains(dirs, strings.TrimSuffix(dir, "/")) {
			files = append(files, n)
		}
	}
	return files, dirs
}
