package ram

import (
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// copied is memory that is stored in a file as it is, but cannot be mapped: it is
// read piece by piece.
type copied struct {
	image
	in      input
	extents extents
}

func (c *copied) View(pa addr.Phys, n int) ([]byte, error) {
	if absent, ok := c.extents.present(pa, n); !ok {
		return nil, c.fault(pa, n, absent)
	}
	return c.extents.assemble(pa, n, func(dst []byte, off int64) error {
		_, err := c.in.ReadAt(dst, off)
		return err
	})
}

// Touched yields what is present.
func (c *copied) Touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return joinedSeq(func(yield func(addr.PhysRange) bool) {
		for e := range c.extents.within(r) {
			if !yield(e.phys) {
				return
			}
		}
	})
}

func (c *copied) arranged(x extents, im image) Memory {
	return borrowed{&copied{image: im, in: c.in, extents: x}}
}

func (c *copied) Close() error { return c.in.Close() }
