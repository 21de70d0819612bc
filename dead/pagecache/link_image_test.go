package pagecache_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestXFSLink reads the targets of symbolic links that only memory has.
func TestXFSLink(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		if !hasTypes(kernel) {
			continue
		}
		for _, name := range []string{"xfs", "xfs-1k"} {
			t.Run(kernel+" "+name, func(t *testing.T) {
				c, image := openImage(t, fixture.Everything(kernel))
				s := superOf(t, c, image, name)
				x, err := c.XFS(s)
				if err != nil {
					t.Fatal(err)
				}
				want := make(map[uint64]string)
				for _, f := range image.Files(name) {
					want[f.Ino] = f.SHA256
				}
				links := 0
				for i, err := range c.Inodes(s) {
					if err != nil {
						t.Fatal(err)
					}
					target, err := x.Link(i)
					if i.Mode&pagecache.ModeType != pagecache.ModeLink {
						if i.Regular() && err == nil {
							t.Errorf("inode %d, a file, is a link to %q", i.Ino, target)
						}
						continue
					}
					sum := sha256.Sum256([]byte(target))
					if err != nil || hex.EncodeToString(sum[:]) != want[uint64(i.Ino)] {
						t.Errorf("inode %d: %q, %v", i.Ino, target, err)
					}
					links++
				}
				if links == 0 {
					t.Error("there is no link")
				}
			})
		}
	}
}
