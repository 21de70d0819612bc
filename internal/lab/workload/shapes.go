package workload

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
)

// builder makes the files of a Plan one by one.
type builder struct {
	rng   *rand.Rand
	files []*file
	f     *file  // the latest
	id    uint64 // of the next payload, on either side
}

// add makes f the latest file.
func (b *builder) add(f *file) {
	b.files, b.f = append(b.files, f), f
}

// setBase fixes the latest file's size before Run.
func (b *builder) setBase(size int64) {
	b.f.base, b.f.id = size, b.id
	b.id += payloads(size)
}

// write plans a write of n bytes to the latest file, in as many operations as that takes.
func (b *builder) write(kind opKind, off, n int64) {
	for n > 0 {
		part := min(n, maxPayload)
		b.f.ops = append(b.f.ops, op{kind: kind, off: off, len: part, id: b.id})
		b.id++
		off, n = off+part, n-part
	}
}

// upTo is a random number from 1 to n.
func (b *builder) upTo(n int64) int64 { return 1 + b.rng.Int64N(max(n, 1)) }

// shape gives the latest file, still without a size, its base and operations that dirty at least n bytes.
type shape func(b *builder, n int64)

// shapes are the kinds of files that the crash finds, each with its weight: mapped stores cost a fault per page.
var shapes = []struct {
	make   shape
	weight float64
}{
	{overwritten, 1}, {appended, 1}, {sparse, 1}, {mapped, 0.4}, {cut, 1}, {overwrittenAndAppended, 1},
}

// unsavedFiles makes the files that carry the unsaved data: every fourth of at most a page, the others with shares of
// the rest that differ by a factor of ten.
func (b *builder) unsavedFiles(spec Spec) {
	modes := []fs.FileMode{0o644, 0o644, 0o600, 0o755}
	left := spec.UnsavedBytes
	weights := make([]float64, spec.Files)
	var sum float64
	for i := range weights {
		if i%4 != 0 || i == spec.Files-1 {
			weights[i] = (0.15 + 1.6*b.square()) * shapes[i%len(shapes)].weight
			sum += weights[i]
		}
	}
	for i, w := range weights {
		path := fmt.Sprintf("d%02d/s%d/f%04d.bin", i%8, i%3, i)
		b.add(&file{path: path, mode: modes[i%len(modes)], class: unsaved})
		if w == 0 {
			left -= small(b, i)
			continue
		}
		// left shrinks by what the small files take on the way, so the shares may come out a little large: no harm.
		share := max(0, int64(float64(left)*w/sum)) + 1
		shapes[i%len(shapes)].make(b, share)
		left, sum = left-share, sum-w
	}
}

// square is the square of a random number below 1.
func (b *builder) square() float64 {
	x := b.rng.Float64()
	return x * x
}

// small makes a file of at most one page that is rewritten whole; the first has 1 byte, the second a page.
func small(b *builder, i int) int64 {
	size := b.upTo(PageSize)
	switch i {
	case 0:
		size = 1
	case 4:
		size = PageSize
	}
	b.setBase(size)
	b.write(opWrite, 0, size)
	return size
}

// inside plans n bytes of stores into the middle of the latest file, apart from each other, and returns the offset
// after the last.
func (b *builder) inside(kind opKind, n int64) int64 {
	var off int64
	for pieces := b.upTo(4); pieces > 0 && n > 0; pieces-- {
		off += b.rng.Int64N(3 * PageSize)
		part := n
		if pieces > 1 {
			part = min(n, b.upTo(2*n/pieces))
		}
		b.write(kind, off, part)
		off, n = off+part, n-part
	}
	return off
}

// again plans a second, small store over what an earlier operation of the latest file wrote.
func (b *builder) again(kind opKind) {
	o := b.f.ops[b.rng.IntN(len(b.f.ops))]
	skip := b.rng.Int64N(o.len)
	b.write(kind, o.off+skip, b.upTo(min(o.len-skip, 3*PageSize)))
}

func overwritten(b *builder, n int64) {
	end := b.inside(opWrite, n)
	b.again(opWrite)
	b.setBase(end + b.rng.Int64N(2*PageSize))
}

func mapped(b *builder, n int64) {
	end := b.inside(opMap, n)
	b.again(opMap)
	b.setBase(end + b.rng.Int64N(2*PageSize))
}

// grow plans n bytes of appends to the latest file from off on.
func (b *builder) grow(off, n int64) {
	for n > 0 {
		part := min(n, b.upTo(n/2+PageSize))
		b.write(opWrite, off, part)
		off, n = off+part, n-part
	}
}

func appended(b *builder, n int64) {
	b.setBase(b.upTo(n / 2))
	b.grow(b.f.base, n)
}

func overwrittenAndAppended(b *builder, n int64) {
	end := b.inside(opWrite, n/2)
	b.setBase(end + b.rng.Int64N(2*PageSize) + 1)
	b.grow(b.f.base, n-n/2)
}

// sparse writes beyond the end, so that holes stay behind.
func sparse(b *builder, n int64) {
	b.setBase(b.upTo(n / 4))
	off := b.f.base
	for pieces := b.upTo(3); pieces > 0 && n > 0; pieces-- {
		off += b.upTo(n/8 + 3*PageSize)
		part := n
		if pieces > 1 {
			part = min(n, b.upTo(2*n/pieces))
		}
		b.write(opWrite, off, part)
		off, n = off+part, n-part
	}
}

// cut truncates and then appends without a hole, so that every page beyond the cut is dirty; half of the files end up
// shorter than they were. It never cuts to zero: ext4 takes that for a replacement and writes the file at its close
// (auto_da_alloc).
func cut(b *builder, n int64) {
	keep := b.upTo(n / 2)
	base := keep + b.upTo(n/2)
	if b.rng.IntN(2) == 0 {
		base = keep + n + b.upTo(n)
	}
	b.setBase(base)
	b.f.ops = append(b.f.ops, op{kind: opTruncate, off: keep})
	b.grow(keep, n)
}

// untouchedFile makes a file that must come through unchanged.
func (b *builder) untouchedFile(i int) {
	b.add(&file{path: fmt.Sprintf("saved/f%02d.bin", i), mode: 0o640, class: untouched})
	b.setBase(b.upTo(16 * PageSize))
}

// syncedFile makes a file that Run writes and fsyncs: every third one is new then, the others are overwritten.
func (b *builder) syncedFile(i int) {
	b.add(&file{path: fmt.Sprintf("synced/f%02d.bin", i), mode: 0o644, class: synced})
	n := b.upTo(8 * PageSize)
	if i%3 == 1 {
		b.f.base = absent
		b.grow(0, n)
		return
	}
	overwrittenAndAppended(b, n)
}

// newFile makes a file that Run creates, in a new directory, and never syncs.
func (b *builder) newFile(i int) {
	b.add(&file{path: fmt.Sprintf("new/d%d/f%02d.bin", i%3, i), mode: 0o640, class: unsaved, base: absent})
	b.grow(0, b.upTo(8*PageSize))
}

// renamedFile makes a file that Run gives another name, in a new directory.
func (b *builder) renamedFile(i int) {
	b.add(&file{path: fmt.Sprintf("moved/to%02d.bin", i), was: fmt.Sprintf("saved/from%02d.bin", i), mode: 0o644, class: renamed})
	b.setBase(b.upTo(4 * PageSize))
}

// removedFile makes a file that Run removes.
func (b *builder) removedFile(i int) {
	b.add(&file{path: fmt.Sprintf("saved/gone%02d.bin", i), mode: 0o644, class: removed})
	b.setBase(b.upTo(4 * PageSize))
}
