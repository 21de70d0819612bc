package jbd2

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// revocations has for each revoked block the last transaction that revoked it.
type revocations map[addr.Block]TID

// since reports whether a block of a transaction was revoked in it or later
// (fs/jbd2/revoke.c, jbd2_journal_test_revoke).
func (r revocations) since(b addr.Block, sequence TID) bool {
	last, ok := r[b]
	return ok && !last.before(sequence)
}

func (s *Scan) revoked() revocations {
	r := maps.Clone(s.freed)
	if r == nil {
		r = make(revocations)
	}
	for _, t := range s.Transactions {
		for _, b := range t.Revokes {
			if !r.since(b, t.Sequence) {
				r[b] = t.Sequence
			}
		}
	}
	return r
}

// Newest is the last version of a block, which a replay writes.
type Newest struct {
	LoggedBlock
	Sequence TID // of the transaction that has it
}

// Newest returns what a replay writes, in the order of the disk: the last version of
// each block, unless the block was revoked since.
func (s *Scan) Newest() []Newest {
	revoked := s.revoked()
	last := make(map[addr.Block]Newest)
	for _, t := range s.Transactions {
		for _, b := range t.Blocks {
			if !revoked.since(b.Home, t.Sequence) {
				last[b.Home] = Newest{b, t.Sequence}
			}
		}
	}
	list := make([]Newest, 0, len(last))
	for _, b := range last {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Newest) int { return cmp.Compare(a.Home, b.Home) })
	return list
}

// putMagic restores the magic of a block that has zeros for it in the log.
func putMagic(b []byte) { binary.BigEndian.PutUint32(b, magic) }

func putUint32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }

func putUint64(b []byte, v uint64) { binary.BigEndian.PutUint64(b, v) }
