package jbd2

import (
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// ForgetFreed makes a replay leave out logged blocks that were freed later, as a bitmap of blocks
// in a later transaction says. The kernel revokes such blocks, except with data=journal:
// there it takes for granted that the next owner of such a block journals all of it
// (fs/ext4/ext4_jbd2.c, __ext4_forget). That is not true of blocks that are zeroed on the disk itself
// when a part of an unwritten extent is written (extents.c, ext4_ext_zeroout): a replay puts the data
// of a deleted file there. The scan must be of this log; it also affects later scans of the log.
func (l *Log) ForgetFreed(s *Scan) error {
	groups, err := l.bitmaps(s)
	if err != nil {
		return err
	}
	freed, in := make(revocations), &reader{l: l}
	free := make(map[uint32][]byte) // by group: the blocks that some later transaction has as free
	for _, t := range slices.Backward(s.Transactions) {
		for _, b := range t.Blocks {
			n, bit := l.group(b.Home), l.bit(b.Home)
			if _, known := freed[b.Home]; !known && free[n] != nil && free[n][bit/8]>>(bit%8)&1 == 1 {
				freed[b.Home] = t.Sequence
			}
		}
		for _, b := range t.Blocks {
			n, is := groups[b.Home]
			if !is {
				continue
			}
			bitmap, err := in.home(b)
			if err != nil {
				return err
			}
			if free[n] == nil {
				free[n] = make([]byte, len(bitmap))
			}
			for i, used := range bitmap {
				free[n][i] |= ^used
			}
		}
	}
	l.freed, s.freed = freed, freed
	return nil
}

// Forget makes a replay leave out everything that a scan of this log has of some blocks, whose homes have the right
// content, or get it otherwise. It must be called after ForgetFreed.
func (l *Log) Forget(s *Scan, blocks []addr.Block) {
	for _, b := range blocks {
		l.freed[b] = s.Next - 1
	}
	s.freed = l.freed
}

// Frees reports whether a block is free according to the bitmap of its group, as content, which returns blocks that are not in the
// log, has it. Nothing is known without it.
func (l *Log) Frees(content func(addr.Block) []byte, b addr.Block) bool {
	if b < addr.Block(l.FS.Super.FirstDataBlock) {
		return false
	}
	g, err := l.FS.Group(l.group(b))
	if err != nil {
		return false
	}
	bitmap, bit := content(g.BlockBitmap), l.bit(b)
	return uint64(bit) < 8*uint64(len(bitmap)) && bitmap[bit/8]>>(bit%8)&1 == 0
}

// bitmaps returns the bitmaps of blocks of the groups that have blocks in the log, with the number of
// the group. A group whose descriptor cannot be read on the disk as it is is left out.
func (l *Log) bitmaps(s *Scan) (map[addr.Block]uint32, error) {
	looked, out := make(map[uint32]bool), make(map[addr.Block]uint32)
	for _, t := range s.Transactions {
		for _, b := range t.Blocks {
			n := l.group(b.Home)
			if looked[n] || b.Home < addr.Block(l.FS.Super.FirstDataBlock) {
				continue
			}
			looked[n] = true
			g, err := l.FS.Group(n)
			if err == nil {
				out[g.BlockBitmap] = n
			}
		}
	}
	if l.FS.Super.BlocksPerGroup/l.ratio() > 8*l.FS.Super.BlockSize {
		return nil, fmt.Errorf("groups of %d blocks need more than one block for their bitmap", l.FS.Super.BlocksPerGroup)
	}
	return out, nil
}

// ratio returns how many blocks a bit of a bitmap stands for.
func (l *Log) ratio() uint32 { return max(1, l.FS.Super.ClusterSize/l.FS.Super.BlockSize) }

func (l *Log) group(b addr.Block) uint32 {
	s := &l.FS.Super
	return uint32((uint64(b) - uint64(s.FirstDataBlock)) / uint64(s.BlocksPerGroup))
}

// bit returns the number of a block's bit in the bitmap of its group.
func (l *Log) bit(b addr.Block) uint32 {
	s := &l.FS.Super
	return uint32((uint64(b)-uint64(s.FirstDataBlock))%uint64(s.BlocksPerGroup)) / l.ratio()
}
