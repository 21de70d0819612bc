package ram

import (
	"errors"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// paged is memory kept in blocks that must be decoded to be read.
type paged struct {
	image
	in     input
	blocks blocks
	cache  *cache
}

// blocks is what differs between formats of paged memory. It is safe for concurrent use.
type blocks interface {
	// find returns the number of the block that holds the byte at pa, and the memory
	// that the block is of; ok is false if the byte is absent.
	find(pa addr.Phys) (number int64, r addr.PhysRange, ok bool)
	// decode fills dst, which is as long as the block, or fails. The error wraps
	// errLost if the block turns out not to be in the file.
	decode(number int64, dst []byte) error
	// present is as for extents.
	present(pa addr.Phys, n int) (absent addr.Phys, ok bool)
	// touched yields the parts of r that are present, in ascending order.
	touched(r addr.PhysRange) iter.Seq[addr.PhysRange]
}

// errLost says that the file does not have a block that it lists.
var errLost = errors.New("it is not in the file: the dump is incomplete")

// Sizes in bytes: of the cache of decoded blocks, and of the largest request whose blocks
// are cached, which excludes a search through all memory.
const (
	pagedCacheSize = 64 << 20
	pagedCacheable = 256 << 10
)

func newPaged(in input, b blocks, im image) *paged {
	return &paged{image: im, in: in, blocks: b, cache: newCache(pagedCacheSize)}
}

// View decodes what it needs. Bytes of a single block are shared with the cache;
// bytes of several blocks are copied together.
func (p *paged) View(pa addr.Phys, n int) ([]byte, error) {
	number, r, ok := p.blocks.find(pa)
	if ok && n >= 0 && r.Contains(pa, uint64(n)) {
		b, err := p.block(number, r)
		if err != nil {
			return nil, p.damaged(pa, n, err)
		}
		off := int(pa - r.Start)
		return b[off : off+n : off+n], nil
	}
	if absent, ok := p.blocks.present(pa, n); !ok {
		return nil, p.fault(pa, n, absent)
	}
	out := make([]byte, n)
	for done := 0; done < n; {
		got, err := p.fill(out[done:], pa+addr.Phys(done), n <= pagedCacheable)
		if err != nil {
			return nil, p.damaged(pa+addr.Phys(done), n-done, err)
		}
		done += got
	}
	return out, nil
}

// fill copies what the block at pa has for dst, and returns how many bytes that is.
func (p *paged) fill(dst []byte, pa addr.Phys, remember bool) (int, error) {
	number, r, ok := p.blocks.find(pa)
	if !ok {
		return 0, errLost // it was present a moment ago
	}
	whole := pa == r.Start && uint64(len(dst)) >= r.Len()
	if b, ok := p.cache.get(number); ok {
		return copy(dst, b[pa-r.Start:]), nil
	}
	if whole && !remember {
		n := int(r.Len())
		return n, p.blocks.decode(number, dst[:n])
	}
	b, err := p.block(number, r)
	if err != nil {
		return 0, err
	}
	return copy(dst, b[pa-r.Start:]), nil
}

func (p *paged) block(number int64, r addr.PhysRange) ([]byte, error) {
	if b, ok := p.cache.get(number); ok {
		return b, nil
	}
	b := make([]byte, r.Len())
	if err := p.blocks.decode(number, b); err != nil {
		return nil, err
	}
	p.cache.put(number, b)
	return b, nil
}

func (p *paged) damaged(pa addr.Phys, n int, err error) *Fault {
	return &Fault{Addr: pa, Len: n, Excluded: errors.Is(err, errLost), Cause: err}
}

// Touched yields what is present.
func (p *paged) Touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return joinedSeq(p.blocks.touched(r))
}

func (p *paged) Close() error { return p.in.Close() }
