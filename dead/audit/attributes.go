package audit

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Extended attributes (fs/ext4/xattr.h): entries, and their values at the end.
const (
	attributeMagic  = 0xea020000
	attributeHeader = 32 // header of a block, in bytes
	attributeEntry  = 16 // an entry without the name
)

// checkExtra judges what lies behind the first 128 bytes of an inode: more
// fields, and attributes (e2fsck, pass 1, check_inode_extra_space).
func (c *checker) checkExtra(i *inode) error {
	raw := i.new.raw
	if len(raw) <= 128 {
		return nil
	}
	extra := int(binary.LittleEndian.Uint16(raw[128:]))
	room := len(raw) - 128
	if extra != 0 && extra < 4 || extra > room || extra%4 != 0 {
		return fmt.Errorf("inode %d has an i_extra_isize of %d", i.number, extra)
	}
	if err := checkTimes(i.new, extra); err != nil {
		return err
	}
	if extra >= room-4 || binary.LittleEndian.Uint32(raw[128+extra:]) != attributeMagic {
		return nil
	}
	if i.old != nil && len(i.old.raw) == len(raw) && bytes.Equal(i.old.raw[128:130], raw[128:130]) && bytes.Equal(i.old.raw[128+extra:], raw[128+extra:]) {
		return nil // the attributes did not change
	}
	if err := checkEntries(raw[128+extra+4:], 0); err != nil {
		return fmt.Errorf("inode %d: %w", i.number, err)
	}
	return nil
}

// checkTimes refuses times after 2310. Any program may set them, and e2fsck takes them for times before
// 1970 that an old kernel wrote (e2fsck/pass1.c, check_inode_extra_negative_epoch).
func checkTimes(n *state, extra int) error {
	for _, t := range [][2]int{{0x08, 0x8c}, {0x0c, 0x84}, {0x10, 0x88}, {0x90, 0x94}} { // atime, ctime, mtime, crtime
		if t[1]+4 > 128+extra {
			continue
		}
		if n.raw[t[0]+3]&0x80 != 0 && n.raw[t[1]]&3 == 3 {
			return foreignf("inode %d has a time behind 2310: not understood", n.Number)
		}
	}
	return nil
}

// attribute is an entry of a list of attributes.
type attribute struct {
	index byte
	name  []byte
}

// checkEntries judges a list of attributes behind a header. In a block, which has a
// header, the list is sorted and each attribute has a hash; in an inode the hash may be 0.
func checkEntries(b []byte, header int) error {
	used := []run{{0, addr.Block(header)}}
	var names []attribute
	take := func(from, size int) {
		used = append(used, run{addr.Block(from), addr.Block(from + (size+3)&^3)})
	}
	at := header
	for {
		if at+4 > len(b) {
			return errNoEnd
		}
		if binary.LittleEndian.Uint32(b[at:]) == 0 {
			take(at, 4)
			break
		}
		if at+attributeEntry > len(b) || at+attributeEntry+int(b[at]) > len(b) {
			return errNoEnd
		}
		e := b[at : at+attributeEntry+int(b[at])]
		name := e[attributeEntry:]
		offset, size := int(binary.LittleEndian.Uint16(e[2:])), int64(binary.LittleEndian.Uint32(e[8:]))
		if binary.LittleEndian.Uint32(e[4:]) != 0 {
			return foreignf("an attribute has its value in an inode, which is not understood")
		}
		padded := (size + 3) &^ 3
		if e[1] == 0 || size > 0 && int64(offset)+padded > int64(len(b)) {
			return fmt.Errorf("attribute %q has index %d, and %d bytes at %d", name, e[1], size, offset)
		}
		var value []byte
		if size > 0 {
			value = b[offset:][:padded]
			take(offset, int(size))
		}
		if hash := binary.LittleEndian.Uint32(e[12:]); !hashed(name, value, hash) && (header > 0 || hash != 0) {
			return fmt.Errorf("attribute %q has a wrong hash", name)
		}
		take(at, len(e))
		names = append(names, attribute{e[1], name})
		at += (len(e) + 3) &^ 3
	}
	if merge(&used) != nil {
		return errors.New("its attributes overlap")
	}
	if header > 0 && !slices.IsSortedFunc(names, compareAttributes) {
		return errors.New("its attributes are out of order")
	}
	return checkNames(names)
}

var errNoEnd = errors.New("its list of attributes is not terminated")

// checkNames checks that each attribute is there once.
func checkNames(names []attribute) error {
	slices.SortFunc(names, compareAttributes)
	for i := 1; i < len(names); i++ {
		if compareAttributes(names[i-1], names[i]) == 0 {
			return fmt.Errorf("attribute %q is there twice", names[i].name)
		}
	}
	return nil
}

func compareAttributes(a, b attribute) int {
	return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), bytes.Compare(a.name, b.name))
}

// hashed reports whether want is the hash of a name and a value with its padding
// (fs/ext4/xattr.c, ext4_xattr_hash_entry). Kernels before 6.2 took the characters
// of the name as signed.
func hashed(name, value []byte, want uint32) bool {
	for _, signed := range []bool{false, true} {
		h := uint32(0)
		for _, ch := range name {
			v := uint32(ch)
			if signed {
				v = uint32(int32(int8(ch)))
			}
			h = h<<5 ^ h>>27 ^ v
		}
		for at := 0; at < len(value); at += 4 {
			h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value[at:])
		}
		if h == want {
			return true
		}
	}
	return false
}

// checkAttributes counts how many more inodes use each block of attributes than
// before, and judges these blocks. Inodes may share such a block, so that it is
// added to the owned clusters here, once.
func (c *checker) checkAttributes() {
	for _, i := range c.list {
		if i.old != nil && i.old.Attributes != 0 {
			c.attributes[i.old.Attributes]--
		}
		if i.new != nil && i.new.Attributes != 0 {
			c.attributes[i.new.Attributes]++
		}
	}
	for _, b := range sorted(c.attributes) {
		if !c.note(c.checkShared(b, c.attributes[b])) {
			return
		}
	}
}

// checkShared judges a block of attributes whose number of users changes by more.
func (c *checker) checkShared(b addr.Block, more int) error {
	if c.new.super.Compat&ext4.CompatExtAttr == 0 || !c.new.super.Contains(b, 1) {
		return fmt.Errorf("an inode has its attributes at block %d, which is outside of the file system, or the ext_attr feature is missing", b)
	}
	before, err := c.sharers(c.old, b)
	if err != nil {
		return asItWas(err)
	}
	now := int64(before) + int64(more)
	cluster := b / addr.Block(ratio(&c.new.super)) // nothing else is in this cluster
	if before > 0 {
		c.oldRuns = append(c.oldRuns, run{cluster, cluster + 1})
	}
	if now <= 0 {
		if now < 0 {
			return fmt.Errorf("the attribute block %d loses %d more inodes than its h_refcount counted", b, -now)
		}
		return nil
	}
	c.newRuns = append(c.newRuns, run{cluster, cluster + 1})
	after, err := c.sharers(c.new, b)
	if err != nil {
		return err
	}
	if int64(after) != now {
		return fmt.Errorf("the attribute block %d has an h_refcount of %d, but %d inodes use it", b, after, now)
	}
	data, err := c.new.block(b)
	if err != nil {
		return err
	}
	if err := checkEntries(data, attributeHeader); err != nil {
		return fmt.Errorf("attributes at block %d: %w", b, err)
	}
	return nil
}

// sharers returns how many inodes use a block of attributes according to the block
// itself (h_refcount); 0 if the block is free.
func (c *checker) sharers(v *view, b addr.Block) (uint32, error) {
	group, n := groupOf(&v.super, b)
	used, err := v.blockMap(group)
	if err != nil {
		return 0, err
	}
	if !used.has(n / ratio(&v.super)) {
		return 0, nil
	}
	data, err := v.block(b)
	if err != nil {
		return 0, err
	}
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(data[off:]) }
	if u32(0) != attributeMagic || u32(4) == 0 || u32(8) != 1 {
		return 0, fmt.Errorf("block %d is not a valid attribute block (h_magic, h_refcount, h_blocks)", b)
	}
	if v.super.Checksummed() {
		sum := ext4.CRC32C(v.super.ChecksumSeed, binary.LittleEndian.AppendUint64(nil, uint64(b)))
		sum = ext4.CRC32C(ext4.CRC32C(ext4.CRC32C(sum, data[:16]), []byte{0, 0, 0, 0}), data[20:])
		if sum != u32(16) {
			return 0, fmt.Errorf("attributes at block %d: %w", b, ext4.ErrChecksum)
		}
	}
	return u32(4), nil
}
