package pagecache_test

import (
	"fmt"
	"log"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// The dirty inodes of every mounted file system, and where in memory their unsaved bytes
// are.
func Example() {
	memory, err := ram.OpenFile("crash.dump")
	if err != nil {
		log.Fatal(err)
	}
	defer memory.Close()
	k, err := kernel.Find(memory)
	if err != nil {
		log.Fatal(err)
	}
	cache, err := pagecache.Open(k)
	if err != nil {
		log.Fatal(err)
	}
	for super, err := range cache.Superblocks() {
		if err != nil {
			log.Print(err)
			continue
		}
		for inode, err := range cache.Dirty(super) {
			if err != nil {
				log.Print(err) // what is refused, and why
				continue
			}
			for piece, err := range cache.Unsaved(super, inode) {
				if err != nil {
					log.Print(err)
					continue
				}
				fmt.Printf("%s inode %d: bytes %v at physical %v\n", super.ID, inode.Ino, piece.Span, piece.Phys)
			}
		}
	}
}
