package placement

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// run is a range of blocks of the disk, half-open.
type run struct{ from, to addr.Block }

// volume is a file system that files are placed in.
type volume struct {
	super ext4.Super
	old   io.ReaderAt
	over  map[addr.Block][]byte // what the last transaction changes
	out   map[addr.Block][]byte // what changes beyond that
	avoid []addr.Block          // blocks that must not be allocated, ascending
	reads int
	last  struct { // the last block read from old: the inodes of successive files are often in one block
		at   addr.Block
		data []byte
	}

	file struct { // the one that is being placed; reused for each
		inode   ext4.Inode
		was, is []byte // the bytes of the inode, before and after
		tree    tree
		parts   []part
	}

	cluster   uint32        // blocks in a cluster: 1 without bigalloc
	groups    []*ext4.Group // by number, as the last transaction leaves them
	system    []run         // blocks of the file system's own metadata, ascending
	maps      map[uint32]*groupMap
	allocated uint64 // clusters
	quotas    []*quota
}

// Features that are understood; others are refused. Files that use a feature such as
// encryption are refused by the flags of their inodes.
const (
	incompats = ext4.IncompatFiletype | ext4.IncompatRecover | ext4.IncompatMetaBG | ext4.IncompatExtents | ext4.Incompat64Bit |
		ext4.IncompatMMP | ext4.IncompatFlexBG | ext4.IncompatCsumSeed | ext4.IncompatEAInode | ext4.IncompatLargeDir |
		ext4.IncompatInlineData | ext4.IncompatEncrypt | ext4.IncompatCasefold
	roCompats = ext4.ROCompatSparseSuper | ext4.ROCompatLargeFile | ext4.ROCompatHugeFile | ext4.ROCompatGDTCsum |
		ext4.ROCompatDirNlink | ext4.ROCompatExtraIsize | ext4.ROCompatMetadataCsum | ext4.ROCompatOrphanPresent |
		ext4.ROCompatQuota | ext4.ROCompatBigalloc | ext4.ROCompatProject | ext4.ROCompatVerity
)

const (
	// maxGroups bounds the number of groups: as many as 128 TiB have with blocks of 4 KiB.
	maxGroups = 1 << 20
	// maxReads bounds the number of blocks that are read, in addition to one for each group.
	maxReads = 1 << 20
)

func openVolume(old io.ReaderAt, changed map[addr.Block][]byte) (*volume, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, err
	}
	v := &volume{super: fs.Super, old: old, over: changed, out: make(map[addr.Block][]byte), maps: make(map[uint32]*groupMap)}
	for b, data := range changed {
		if len(data) != int(v.super.BlockSize) {
			return nil, fmt.Errorf("block %d is given with %d bytes instead of %d", b, len(data), v.super.BlockSize)
		}
	}
	home, offset := v.super.Location()
	b, err := v.block(home)
	if err != nil {
		return nil, err
	}
	super, err := ext4.ParseSuper(b[offset:])
	if err == nil {
		err = super.Check()
	}
	if err != nil {
		return nil, err
	}
	switch was := &fs.Super; {
	case super.Blocks != was.Blocks || super.BlockSize != was.BlockSize || super.BlocksPerGroup != was.BlocksPerGroup ||
		super.InodesPerGroup != was.InodesPerGroup || super.DescSize != was.DescSize || super.InodeSize != was.InodeSize || super.ClusterSize != was.ClusterSize:
		return nil, refuse("the file system was being resized")
	case super.Incompat&^incompats != 0:
		return nil, refuse("the file system has unsupported features: %v", super.Incompat&^incompats)
	case super.ROCompat&^roCompats != 0:
		return nil, refuse("the file system has unsupported read-only-compatible features: %#x", uint32(super.ROCompat&^roCompats))
	case (super.State|was.State)&ext4.StateError != 0 || super.ErrorCount != 0:
		return nil, refuse("errors were recorded in the superblock")
	case !super.Linux:
		return nil, refuse("the superblock's creator OS is not Linux")
	case super.Groups() > maxGroups:
		return nil, refuse("the file system has %d groups, which are too many", super.Groups())
	case super.BlocksPerGroup%(8*clusterOf(&super)) != 0 || super.BlocksPerGroup > super.BlockSize*8*clusterOf(&super):
		return nil, refuse("groups of %d blocks are not supported", super.BlocksPerGroup)
	case clusterOf(&super) > 1 && (super.FirstDataBlock > 0 || super.Incompat&ext4.IncompatExtents == 0):
		return nil, refuse("bigalloc with clusters of %d bytes, but without extents or with s_first_data_block 1", super.ClusterSize)
	}
	v.super, v.cluster = super, clusterOf(&super)
	if err := v.readGroups(); err != nil {
		return nil, err
	}
	return v, v.openQuotas()
}

// clusterOf returns how many blocks a cluster has.
func clusterOf(s *ext4.Super) uint32 { return s.ClusterSize / s.BlockSize }

// block returns a block with the changes made so far. The caller must not write to it.
func (v *volume) block(b addr.Block) ([]byte, error) {
	if data, ok := v.out[b]; ok {
		return data, nil
	}
	if data, ok := v.over[b]; ok {
		return data, nil
	}
	return v.oldBlock(b)
}

// oldBlock returns a block as it is without the last transaction.
func (v *volume) oldBlock(b addr.Block) ([]byte, error) {
	if uint64(b) >= v.super.Blocks {
		return nil, fmt.Errorf("%w: block %d of %d", errDamaged, b, v.super.Blocks)
	}
	if v.last.data != nil && v.last.at == b {
		return v.last.data, nil
	}
	if v.reads++; v.reads > maxReads+int(v.super.Groups()) {
		return nil, refuse("too many blocks would have to be read")
	}
	data := make([]byte, v.super.BlockSize)
	if n, err := v.old.ReadAt(data, int64(b)*int64(len(data))); n < len(data) {
		return nil, fmt.Errorf("read block %d: %w", b, errors.Join(err, io.ErrUnexpectedEOF))
	}
	v.last.at, v.last.data = b, data
	return data, nil
}

// edit returns a block that the caller may write to; it is part of the result.
func (v *volume) edit(b addr.Block) ([]byte, error) {
	if data, ok := v.out[b]; ok {
		return data, nil
	}
	data, changed := v.over[b]
	if changed {
		data = slices.Clone(data)
	} else {
		var err error
		if data, err = v.oldBlock(b); err != nil {
			return nil, err
		}
		v.last.data = nil // the caller changes it
	}
	v.out[b] = data
	return data, nil
}

// readGroups reads all descriptors, and collects the file system's own blocks.
func (v *volume) readGroups() error {
	s := &v.super
	table := addr.Block((uint64(s.InodesPerGroup)*uint64(s.InodeSize) + uint64(s.BlockSize) - 1) / uint64(s.BlockSize))
	var descriptors []byte
	var from addr.Block
	for n := range uint32(s.Groups()) {
		home, offset := s.DescriptorLocation(n)
		if descriptors == nil || home != from {
			var err error
			if descriptors, err = v.block(home); err != nil {
				return err
			}
			from = home
		}
		g, err := s.ParseGroup(n, descriptors[offset:offset+int(s.DescSize)])
		if err != nil {
			return err
		}
		if !s.Contains(g.BlockBitmap, 1) || !s.Contains(g.InodeBitmap, 1) {
			return fmt.Errorf("%w: the bitmaps of group %d are blocks %d and %d, outside of the file system", errDamaged, n, g.BlockBitmap, g.InodeBitmap)
		}
		if s.ROCompat&(ext4.ROCompatGDTCsum|ext4.ROCompatMetadataCsum) == 0 {
			g.Flags = 0 // without checksums they have no meaning
		}
		v.groups = append(v.groups, g)
		start, _ := v.bounds(n)
		v.system = append(v.system, run{g.BlockBitmap, g.BlockBitmap + 1}, run{g.InodeBitmap, g.InodeBitmap + 1}, run{g.InodeTable, g.InodeTable + table})
		if base := s.BaseBlocks(n); base > 0 {
			v.system = append(v.system, run{start, start + addr.Block(base)})
		}
	}
	slices.SortFunc(v.system, func(a, b run) int { return cmp.Compare(a.from, b.from) })
	for i := 1; i < len(v.system); i++ {
		if v.system[i].from < v.system[i-1].to {
			return fmt.Errorf("%w: block %d belongs to two bitmaps or inode tables", errDamaged, v.system[i].from)
		}
	}
	return nil
}

// bounds returns the first block of a group, and how many blocks it has.
func (v *volume) bounds(group uint32) (addr.Block, uint32) {
	start := uint64(v.super.FirstDataBlock) + uint64(group)*uint64(v.super.BlocksPerGroup)
	return addr.Block(start), uint32(min(uint64(v.super.BlocksPerGroup), v.super.Blocks-start))
}

// clusters returns how many clusters a group has. The end of the file system may cut off the last one.
func (v *volume) clusters(group uint32) uint32 {
	_, blocks := v.bounds(group)
	return (blocks + v.cluster - 1) / v.cluster
}

// groupOf returns the group of a block, and the number of the block's cluster in the group.
func (v *volume) groupOf(b addr.Block) (uint32, uint32) {
	n := uint64(b) - uint64(v.super.FirstDataBlock)
	return uint32(n / uint64(v.super.BlocksPerGroup)), uint32(n%uint64(v.super.BlocksPerGroup)) / v.cluster
}

// free reports whether none of the n blocks from a block on is the file system's own.
func (v *volume) free(from addr.Block, n uint32) bool {
	at, _ := slices.BinarySearchFunc(v.system, from, func(r run, b addr.Block) int {
		if r.to <= b {
			return -1
		}
		return 1
	})
	return at == len(v.system) || v.system[at].from >= from+addr.Block(n)
}

// systemIn returns the file system's own blocks in a group.
func (v *volume) systemIn(group uint32) []run {
	start, n := v.bounds(group)
	end := start + addr.Block(n)
	at, _ := slices.BinarySearchFunc(v.system, start, func(r run, b addr.Block) int {
		if r.to <= b {
			return -1
		}
		return 1
	})
	var out []run
	for ; at < len(v.system) && v.system[at].from < end; at++ {
		out = append(out, run{max(start, v.system[at].from), min(end, v.system[at].to)})
	}
	return out
}

// finish writes the quota entries, the bitmaps and descriptors of the groups that changed,
// and the counts in the superblock.
func (v *volume) finish() error {
	if len(v.out) == 0 && v.allocated == 0 {
		return nil
	}
	for _, q := range v.quotas {
		if err := q.put(); err != nil {
			return err
		}
	}
	for n, m := range v.maps {
		if m.taken == 0 {
			continue
		}
		if err := v.putMap(n, m); err != nil {
			return err
		}
	}
	free, inodes := uint64(0), uint32(0)
	for _, g := range v.groups {
		free += uint64(g.FreeClusters)
		inodes += g.FreeInodes
	}
	home, offset := v.super.Location()
	b, err := v.edit(home)
	if err != nil {
		return err
	}
	super, err := ext4.SetFree(b[offset:], free, inodes)
	if err != nil {
		return err
	}
	copy(b[offset:], super)
	return nil
}

// putMap writes the bitmap and the descriptor of a group that changed.
func (v *volume) putMap(n uint32, m *groupMap) error {
	g := v.groups[n]
	g.FreeClusters -= m.taken
	g.Flags &^= ext4.GroupBlockUninit
	g.BlockBitmapCsum = v.super.BitmapChecksum(m.used)
	v.out[g.BlockBitmap] = m.used
	home, offset := v.super.DescriptorLocation(n)
	b, err := v.edit(home)
	if err != nil {
		return err
	}
	v.super.SetGroup(b[offset:offset+int(v.super.DescSize)], g)
	return nil
}
