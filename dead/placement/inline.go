package placement

import (
	"bytes"
	"encoding/binary"

	"understudy.dev/understudy/dead/ext4"
)

// Attributes in an inode (fs/ext4/xattr.h): a magic number behind the fields, then entries
// up to a terminator of four zero bytes; their values lie at the end of the inode. Offsets
// count from the first entry.
const (
	attributeMagic = 0xea020000
	attributeEntry = 16 // size of an entry without the name, in bytes
	indexSystem    = 7  // EXT4_XATTR_INDEX_SYSTEM
)

// grow turns an inode with inline data into an empty one without, as the kernel does once the
// first block has a place (fs/ext4/inline.c, ext4_destroy_inline_data_nolock). The first block
// must be among the unsaved ones: in memory it holds the inline data. If nothing is unsaved and
// the size does not change, grow does nothing.
func (v *volume) grow(f *File, i *ext4.Inode) error {
	if i.Flags&ext4.InodeInlineData == 0 || len(f.Unsaved) == 0 && uint64(f.Size) == i.Size {
		return nil
	}
	if len(f.Unsaved) == 0 || f.Unsaved[0].Off != 0 || f.Unsaved[0].Kept || f.Unsaved[0].Mapped {
		return refuse("it has inline data, but its first block is not among its unsaved ones")
	}
	if i.Size > uint64(v.super.BlockSize) {
		return refuse("it has inline data of %d bytes", i.Size)
	}
	i.Flags &^= ext4.InodeInlineData
	clear(i.Block[:])
	if v.super.Incompat&ext4.IncompatExtents == 0 {
		return nil
	}
	i.Flags |= ext4.InodeExtents
	return ext4.PutExtents(i.Block[:], 0, nil, nil)
}

// outgrow updates the raw inode if grow has removed the inline data. It removes the attribute
// that held the inline data beyond i_block, too.
func (v *volume) outgrow(raw []byte, i *ext4.Inode) error {
	if ext4.InodeFlags(binary.LittleEndian.Uint32(raw[0x20:])) == i.Flags {
		return nil
	}
	list, err := attributes(raw)
	if err != nil {
		return err
	}
	kept := list[:0]
	for _, a := range list {
		if a.entry[1] != indexSystem || string(a.entry[attributeEntry:]) != "data" {
			kept = append(kept, a)
		}
	}
	binary.LittleEndian.PutUint32(raw[0x20:], uint32(i.Flags))
	copy(raw[0x28:], i.Block[:])
	putAttributes(raw, kept)
	return nil
}

// attribute is an entry including its name, and the value.
type attribute struct{ entry, value []byte }

// attributeArea returns the area of the attributes in an inode, from the first entry to the end of the
// inode; nil if it has none.
func attributeArea(raw []byte) []byte {
	if len(raw) <= 128 {
		return nil
	}
	at := 128 + int(binary.LittleEndian.Uint16(raw[128:]))
	if at+8 > len(raw) || binary.LittleEndian.Uint32(raw[at:]) != attributeMagic {
		return nil
	}
	return raw[at+4:]
}

// attributes returns copies of the attributes in an inode.
func attributes(raw []byte) ([]attribute, error) {
	area := attributeArea(raw)
	var out []attribute
	for at := 0; area != nil; {
		if at+4 > len(area) {
			return nil, refuse("its list of attributes is not terminated")
		}
		if binary.LittleEndian.Uint32(area[at:]) == 0 {
			return out, nil
		}
		if at+attributeEntry > len(area) || at+attributeEntry+int(area[at]) > len(area) {
			return nil, refuse("its list of attributes is not terminated")
		}
		e := bytes.Clone(area[at : at+attributeEntry+int(area[at])])
		offset, size := uint64(binary.LittleEndian.Uint16(e[2:])), uint64(binary.LittleEndian.Uint32(e[8:]))
		if binary.LittleEndian.Uint32(e[4:]) != 0 {
			return nil, refuse("an attribute has its value in an inode")
		}
		a := attribute{entry: e}
		if size > 0 {
			if offset+(size+3)&^3 > uint64(len(area)) {
				return nil, refuse("an attribute has %d bytes at %d", size, offset)
			}
			a.value = bytes.Clone(area[offset:][:(size+3)&^3])
		}
		out = append(out, a)
		at += (len(e) + 3) &^ 3
	}
	return nil, nil
}

// putAttributes replaces the attributes in an inode by list. If list is empty, it clears the area
// with its magic number.
func putAttributes(raw []byte, list []attribute) {
	area := attributeArea(raw)
	if area == nil {
		return
	}
	clear(area)
	if len(list) == 0 {
		clear(raw[len(raw)-len(area)-4:])
		return
	}
	at, end := 0, len(area)
	for _, a := range list {
		if len(a.value) > 0 {
			end -= len(a.value)
			copy(area[end:], a.value)
			binary.LittleEndian.PutUint16(a.entry[2:], uint16(end))
		}
		copy(area[at:], a.entry)
		at += (len(a.entry) + 3) &^ 3
	}
}
