package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// rhashLayout is what is read of a resizable hash table (include/linux/rhashtable-types.h, rhashtable.h).
type rhashLayout struct {
	table              kernel.Field // in rhashtable
	count, nest, after kernel.Field // in bucket_table
	buckets            int          // likewise: where they begin
}

func newRhashLayout(k *kernel.Kernel) (rhashLayout, error) {
	h, t := k.Types().Layout("rhashtable"), k.Types().Layout("bucket_table")
	return rhashLayout{
		table: h.Field("tbl", 8), count: t.Field("size", 4), nest: t.Field("nest", 4), after: t.Field("future_tbl", 8), buckets: t.Size,
	}, errors.Join(h.Err(), t.Err())
}

// Bounds of a hash table.
const (
	maxRhashBuckets = 1 << 22
	maxRhashTables  = 4 // while it is resized there are two
)

var (
	errRhash     = errors.New("a hash table does not check out")
	errRhashSize = fmt.Errorf("%w: it has too many nodes, or is circular", errRhash)
)

// hashed yields the addresses of all nodes (struct rhash_head) in the hash table at an address. left is how many buckets and nodes
// there may be.
func (c *Cache) hashed(at addr.Virt, l rhashLayout, left *int) iter.Seq2[addr.Virt, error] {
	return func(yield func(addr.Virt, error) bool) {
		table, err := c.k.Pointer(l.table.In(at))
		for n := 0; err == nil && table != 0; n++ {
			if n == maxRhashTables {
				err = fmt.Errorf("%w: more than %d tables", errRhash, n)
				break
			}
			var more bool
			if table, more, err = c.bucketsOf(table, l, left, yield); !more {
				return
			}
		}
		if err != nil {
			yield(0, err)
		}
	}
}

// bucketsOf yields the nodes of one table, and returns the table that its nodes are being moved to, or 0. more
// is false if the caller wants no more.
func (c *Cache) bucketsOf(table addr.Virt, l rhashLayout, left *int, yield func(addr.Virt, error) bool) (after addr.Virt, more bool, err error) {
	b, err := c.k.Bytes(table, l.buckets)
	if err != nil {
		return 0, true, err
	}
	count := l.count.Uint(b)
	if count == 0 || count > maxRhashBuckets || l.nest.Uint(b) != 0 {
		return 0, true, fmt.Errorf("%w: a table of %d buckets, nested below %d bits", errRhash, count, l.nest.Uint(b))
	}
	if *left -= int(count); *left < 0 {
		return 0, true, errRhashSize
	}
	for n := range count {
		// Bit 0 is the lock of a bucket; in a link it says that the chain ends.
		node, err := c.k.Pointer(table + addr.Virt(uint64(l.buckets)+8*n))
		for node &^= 1; err == nil && node != 0 && node&1 == 0; node, err = c.k.Pointer(node) {
			if *left--; *left < 0 {
				return 0, true, errRhashSize
			}
			if !yield(node, nil) {
				return 0, false, nil
			}
		}
		if err != nil {
			return 0, true, err
		}
	}
	return l.after.Pointer(b), true, nil
}
