package audit

import (
	"encoding/binary"
	"io"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// What a changed block is, for tests that spoil some.
const (
	KindSuper       = "superblock"
	KindDescriptors = "descriptors"
	KindBlockMap    = "block bitmap"
	KindInodeMap    = "inode bitmap"
	KindTable       = "inode table"
	KindNode        = "node"
	KindPointers    = "pointers"
	KindLeaf        = "directory leaf"
	KindIndex       = "directory index"
	KindAttributes  = "attributes"
	KindOther       = "other"
)

// Part is what a changed block is, and whose.
type Part struct {
	Kind  string
	Group uint32   // of bitmaps and tables
	Ino   addr.Ino // of what belongs to an inode; the first one of a table
	First bool     // the first block of a directory
}

// Parts says what changed blocks are.
func Parts(old io.ReaderAt, changed map[addr.Block][]byte) (ext4.Super, map[addr.Block]Part, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return ext4.Super{}, nil, err
	}
	c := newChecker(fs.Super, old, changed)
	c.run(changed)
	out := make(map[addr.Block]Part)
	s := &fs.Super
	super, _ := s.Location()
	for b := range changed {
		out[b] = Part{Kind: KindOther}
		if place, _ := s.DescriptorLocation(0); b >= place && uint64(b-place) < (s.Groups()*uint64(s.DescSize)+uint64(s.BlockSize)-1)/uint64(s.BlockSize) {
			out[b] = Part{Kind: KindDescriptors}
		}
	}
	out[super] = Part{Kind: KindSuper}
	for n := range uint32(s.Groups()) {
		g, err := c.old.group(n)
		if err != nil {
			return *s, nil, err
		}
		out[g.BlockBitmap] = Part{Kind: KindBlockMap, Group: n}
		out[g.InodeBitmap] = Part{Kind: KindInodeMap, Group: n}
	}
	for _, t := range c.tables {
		out[t.block] = Part{Kind: KindTable, Ino: t.first}
	}
	for n, i := range c.inodes {
		if i.new == nil {
			continue
		}
		for _, b := range i.new.file.nodes {
			out[b] = Part{Kind: KindPointers, Ino: n}
			if i.new.Flags&ext4.InodeExtents != 0 {
				out[b] = Part{Kind: KindNode, Ino: n}
			}
		}
		if i.new.Attributes != 0 {
			out[i.new.Attributes] = Part{Kind: KindAttributes}
		}
		if !i.new.live() {
			continue
		}
		blocks := c.directoryBlocks(i.new)
		for at, b := range blocks {
			out[b] = Part{Kind: KindLeaf, Ino: n, First: at == 0}
		}
		if i.new.Flags&ext4.InodeIndex == 0 {
			continue
		}
		x, err := c.new.index(i.new, blocks)
		if err != nil {
			return *s, nil, err
		}
		out[blocks[0]] = Part{Kind: KindIndex, Ino: n, First: true}
		for at := range x.nodes {
			out[blocks[at]] = Part{Kind: KindIndex, Ino: n}
		}
	}
	maps.DeleteFunc(out, func(b addr.Block, _ Part) bool { _, ok := changed[b]; return !ok })
	return *s, out, nil
}

// Seal sets all checksums in changed blocks, so that only the other content decides
// whether the blocks are right. The descriptors that have the checksums of changed
// bitmaps must be among the blocks.
func Seal(s ext4.Super, old io.ReaderAt, changed map[addr.Block][]byte, parts map[addr.Block]Part) {
	if !s.Checksummed() {
		return
	}
	v := newView(s, old, changed, &budget{limit: 1 << 30, pieces: 1 << 30})
	put := binary.LittleEndian.PutUint32
	// Seeds come from inodes' generations, and descriptors have bitmaps' checksums.
	order := []string{KindTable, KindNode, KindLeaf, KindIndex, KindAttributes, KindBlockMap, KindInodeMap, KindDescriptors, KindSuper}
	blocks := slices.SortedFunc(maps.Keys(changed), func(a, b addr.Block) int {
		return slices.Index(order, parts[a].Kind) - slices.Index(order, parts[b].Kind)
	})
	seed := func(n addr.Ino) uint32 {
		group, block, offset, _ := s.InodeLocation(n)
		place, at := s.DescriptorLocation(group)
		d, _ := v.block(place)
		table := addr.Block(binary.LittleEndian.Uint32(d[at+8:]))
		b, _ := v.block(table + addr.Block(block))
		return ext4.CRC32C(ext4.CRC32C(s.ChecksumSeed, binary.LittleEndian.AppendUint32(nil, uint32(n))), b[offset+0x64:][:4])
	}
	for _, n := range blocks {
		b, p := changed[n], parts[n]
		switch p.Kind {
		case KindTable:
			for at := 0; at < len(b); at += int(s.InodeSize) {
				if slot := b[at : at+int(s.InodeSize)]; !zero(slot) {
					s.SealInode(p.Ino+addr.Ino(at/int(s.InodeSize)), slot)
				}
			}
		case KindNode:
			if tail := ext4.ExtentSize * (1 + int(binary.LittleEndian.Uint16(b[4:]))); tail <= len(b)-4 {
				put(b[tail:], ext4.CRC32C(seed(p.Ino), b[:tail]))
			}
		case KindLeaf:
			put(b[len(b)-4:], ext4.CRC32C(seed(p.Ino), b[:len(b)-entryTail]))
		case KindIndex:
			at := indexNode
			if p.First {
				at = indexInfo + indexInfoSize
			}
			limit, count := int(binary.LittleEndian.Uint16(b[at:])), int(binary.LittleEndian.Uint16(b[at+2:]))
			if end := at + limit*indexEntry; end+indexTail <= len(b) && count <= limit {
				sum := ext4.CRC32C(ext4.CRC32C(seed(p.Ino), b[:at+count*indexEntry]), b[end:end+4])
				put(b[end+4:], ext4.CRC32C(sum, []byte{0, 0, 0, 0}))
			}
		case KindAttributes:
			sum := ext4.CRC32C(s.ChecksumSeed, binary.LittleEndian.AppendUint64(nil, uint64(n)))
			put(b[16:], ext4.CRC32C(ext4.CRC32C(ext4.CRC32C(sum, b[:16]), []byte{0, 0, 0, 0}), b[20:]))
		case KindBlockMap, KindInodeMap:
			size, low, high := s.BlocksPerGroup/uint32(ratio(&s))/8, 0x18, 0x38
			if p.Kind == KindInodeMap {
				size, low, high = s.InodesPerGroup/8, 0x1a, 0x3a
			}
			place, at := s.DescriptorLocation(p.Group)
			if d, ok := changed[place]; ok {
				sum := ext4.CRC32C(s.ChecksumSeed, b[:size])
				binary.LittleEndian.PutUint16(d[at+low:], uint16(sum))
				if s.DescSize >= 64 {
					binary.LittleEndian.PutUint16(d[at+high:], uint16(sum>>16))
				}
			}
		case KindDescriptors:
			sealDescriptors(s, n, b)
		case KindSuper:
			_, at := s.Location()
			put(b[at+0x3fc:], ext4.CRC32C(^uint32(0), b[at:at+0x3fc]))
		}
	}
}

func sealDescriptors(s ext4.Super, n addr.Block, b []byte) {
	first, _ := s.DescriptorLocation(0)
	perBlock := int(s.BlockSize / uint32(s.DescSize))
	for at := range perBlock {
		group := int(n-first)*perBlock + at
		if uint64(group) >= s.Groups() {
			return
		}
		d := b[at*int(s.DescSize):][:s.DescSize]
		binary.LittleEndian.PutUint16(d[0x1e:], 0)
		sum := ext4.CRC32C(s.ChecksumSeed, binary.LittleEndian.AppendUint32(nil, uint32(group)))
		binary.LittleEndian.PutUint16(d[0x1e:], uint16(ext4.CRC32C(sum, d)))
	}
}

// Hash returns the hash of a name in a directory's index.
var Hash = nameHash

// Tree returns the mapping of one file alone.
func Tree(old io.ReaderAt, changed map[addr.Block][]byte, n addr.Ino) (*Trees, error) {
	m, err := NewMapper(old, changed)
	if err != nil {
		return nil, err
	}
	return m.Tree(n)
}
