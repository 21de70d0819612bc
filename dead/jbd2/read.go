package jbd2

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/ext4"
)

// maxWindow bounds what is read at once, in bytes.
const maxWindow = 256 << 10

var errDamaged = errors.New("wrong checksum")

// reader reads blocks of the journal, and consecutive blocks at once. It does not see
// later writes to blocks that it has read.
type reader struct {
	l     *Log
	first Pos // where data begins
	data  []byte
	next  Pos // the block after the one that was asked for last
}

// block reads a block. The result is the caller's until the next block is read.
func (r *reader) block(p Pos) ([]byte, error) {
	size := int(r.l.Super.BlockSize)
	if n := int64(p) - int64(r.first); n < 0 || n >= int64(len(r.data)/size) {
		if err := r.fill(p); err != nil {
			return nil, fmt.Errorf("block %d of the journal: %w", p, err)
		}
	}
	r.next = p + 1
	at := int(p-r.first) * size
	return r.data[at : at+size : at+size], nil
}

// fill reads one block, or a run of blocks if p follows the block that was asked for last.
func (r *reader) fill(p Pos) error {
	r.data = r.data[:0]
	run, err := r.l.from(p)
	if err != nil {
		return err
	}
	size := int(r.l.Super.BlockSize)
	count := 1
	if p == r.next {
		count = min(int(run.Length), maxWindow/size)
	}
	data := slices.Grow(r.data, count*size)[:count*size]
	if err := r.l.FS.ReadBlocks(data, run.Physical); err != nil {
		return err
	}
	r.first, r.data = p, data
	return nil
}

// from maps the journal from a block on, as far as it is contiguous on the disk.
func (l *Log) from(p Pos) (ext4.Run, error) {
	i, found := slices.BinarySearchFunc(l.runs, uint32(p), func(r ext4.Run, p uint32) int {
		switch {
		case p < r.Logical:
			return 1
		case p-r.Logical >= r.Length:
			return -1
		}
		return 0
	})
	if !found {
		return ext4.Run{}, fmt.Errorf("the journal has only %d blocks", l.Super.Length)
	}
	return l.runs[i].Skip(uint32(p) - l.runs[i].Logical), nil
}

// Read returns a block as it is to be written to its home.
func (l *Log) Read(b LoggedBlock) ([]byte, error) { return (&reader{l: l}).home(b) }

// home reads a block as it is to be written to its home. The result is the caller's
// until the next block is read.
func (r *reader) home(b LoggedBlock) ([]byte, error) {
	if b.Damaged {
		return nil, fmt.Errorf("block %d of the journal: %w", b.At, errDamaged)
	}
	data, err := r.block(b.At)
	if err == nil && b.Escaped {
		putMagic(data)
	}
	return data, err
}
