package pagecache_test

import (
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
)

// TestMayBeTorn checks that in a guest that was at rest when it died no inode was being written, and
// that this is known for kernels that have ext4's types.
func TestMayBeTorn(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		t.Run(kernel, func(t *testing.T) {
			c, image := openImage(t, fixture.Everything(kernel))
			for _, name := range []string{"ext4", "ext3", "ext2"} {
				s := superOf(t, c, image, name)
				torn, all := 0, 0
				for i, err := range c.Inodes(s) {
					if err != nil {
						t.Fatal(err)
					}
					all++
					if c.MayBeTorn(i) {
						torn++
					}
				}
				known := hasTypes(kernel) || kernel == "5.10-cloud" // whose image has ext4
				if all == 0 || known && torn > 0 || !known && torn < all {
					t.Errorf("%s: %d of %d may be torn", name, torn, all)
				}
			}
		})
	}
}
