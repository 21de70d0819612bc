package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Entries of directories (fs/ext4/ext4.h, struct ext4_dir_entry_2).
const (
	entryHeader = 8    // an entry without the name, in bytes
	entryTail   = 12   // tail of a leaf with a checksum
	tailType    = 0xde // EXT4_FT_DIR_CSUM
)

// entry is a name in a directory.
type entry struct {
	offset int
	ino    addr.Ino
	kind   byte // type of file; 0 if entries have none
	name   []byte
}

// entries returns the names in a block of a directory, whose entries must fill the
// block up to end.
func (v *view) entries(b []byte, end int) ([]entry, error) {
	var out []entry
	typed := v.super.Incompat&ext4.IncompatFiletype != 0
	for at := 0; at < end; {
		if at+entryHeader > end {
			return nil, fmt.Errorf("no room for an entry at offset %d", at)
		}
		length, name := int(binary.LittleEndian.Uint16(b[at+4:])), int(b[at+6])
		if length < entryHeader || length%4 != 0 || at+length > end || entryHeader+name > length {
			return nil, fmt.Errorf("entry of %d bytes at offset %d, with %d of name", length, at, name)
		}
		e := entry{at, addr.Ino(binary.LittleEndian.Uint32(b[at:])), b[at+7], b[at+entryHeader:][:name:name]}
		if e.ino != 0 {
			if name == 0 || !typed && e.kind != 0 {
				return nil, fmt.Errorf("entry at offset %d has %d bytes of name and type %d", at, name, e.kind)
			}
			out = append(out, e)
		}
		at += length
	}
	return out, v.budget.spend(len(out))
}

// lenient returns the names of a block without verifying a checksum. The checksum, and
// the rest of an index, look like entries without an inode.
func (v *view) lenient(b []byte) ([]entry, error) { return v.entries(b, len(b)) }

// leafEntries returns the names of a leaf, and verifies its checksum
// (fs/ext4/namei.c, ext4_dirblock_csum_verify).
func (v *view) leafEntries(n *ext4.Inode, b []byte) ([]entry, error) {
	if !v.super.Checksummed() {
		return v.entries(b, len(b))
	}
	if err := v.checkLeaf(n, b); err != nil {
		return nil, err
	}
	return v.entries(b, len(b)-entryTail)
}

// checkLeaf verifies the checksum of a leaf of a file system that has them.
func (v *view) checkLeaf(n *ext4.Inode, b []byte) error {
	at := len(b) - entryTail
	if binary.LittleEndian.Uint64(b[at:]) != entryTail<<32|tailType<<56 {
		return errors.New("no checksum")
	}
	if want, got := binary.LittleEndian.Uint32(b[at+8:]), ext4.CRC32C(n.Seed, b[:at]); want != got {
		return fmt.Errorf("%w: %#x instead of %#x", ext4.ErrChecksum, want, got)
	}
	return nil
}

// fileKinds are the types of entries, by the type of the file, which is its mode
// divided by 4096 (fs/ext4/ext4.h, EXT4_FT_*).
var fileKinds = [16]byte{0x8: 1, 0x4: 2, 0x2: 3, 0x6: 4, 0x1: 5, 0xc: 6, 0xa: 7}

// checkEntryNames judges the names of a block by themselves: each must be a valid part
// of a path, and "." and ".." stand at the beginning of the first block only.
func (c *checker) checkEntryNames(dir addr.Ino, first bool, list []entry) error {
	s := &c.new.super
	if first {
		if len(list) < 2 || string(list[0].name) != "." || list[0].ino != dir || list[0].offset != 0 || string(list[1].name) != ".." || list[1].offset != 12 {
			return errors.New(`it does not begin with "." and ".."`)
		}
		if parent := list[1].ino; parent != rootInode && (parent < s.FirstInode || parent > addr.Ino(s.Inodes)) {
			return fmt.Errorf("its .. is inode %d", parent)
		}
		for _, e := range list[:2] {
			if s.Incompat&ext4.IncompatFiletype != 0 && e.kind != fileKinds[4] {
				return fmt.Errorf("%q has type %d", e.name, e.kind)
			}
		}
		list = list[2:]
	}
	for _, e := range list {
		switch {
		case string(e.name) == "." || string(e.name) == "..":
			return fmt.Errorf("%q stands at offset %d", e.name, e.offset)
		case bytes.ContainsAny(e.name, "/\x00"):
			return fmt.Errorf("name %q has a slash or a zero byte", e.name)
		case e.ino < s.FirstInode || e.ino > addr.Ino(s.Inodes) || e.ino == dir || e.ino == s.OrphanFile:
			return fmt.Errorf("%q is for inode %d, which is reserved, out of range or the directory itself", e.name, e.ino)
		}
	}
	return nil
}

// edge says that a directory has an entry for an inode, whatever the name.
type edge struct {
	dir, ino addr.Ino
	kind     byte
	role     role
}

// role is what an entry means for the shape of the tree.
type role byte

const (
	child  role = iota
	self        // "."
	parent      // ".."
)

func roleOf(first bool, at int) role {
	if first && at < 2 {
		return [...]role{self, parent}[at]
	}
	return child
}

// newPlaces records which names of a block were not there before.
func (c *checker) newPlaces(dir addr.Ino, block addr.Block, first bool, before, after []entry) {
	was := make(map[int]entry, len(before))
	for _, e := range before {
		was[e.offset] = e
	}
	for n, e := range after {
		if roleOf(first, n) != child {
			continue
		}
		if o, there := was[e.offset]; !there || o.ino != e.ino || !bytes.Equal(o.name, e.name) {
			c.places[e.ino] = append(c.places[e.ino], place{dir, block, e.offset, e.ino, string(e.name)})
		}
	}
}

// compareEntries counts the entries that are only in the old block, and those that
// are only in the new one.
func (c *checker) compareEntries(dir addr.Ino, first bool, before, after []entry) {
	o, n := 0, 0
	for o < len(before) || n < len(after) {
		if o < len(before) && n < len(after) && before[o].offset == after[n].offset {
			if a, b := before[o], after[n]; a.ino == b.ino && a.kind == b.kind && roleOf(first, o) == roleOf(first, n) {
				o, n = o+1, n+1
				continue
			}
		}
		if n == len(after) || o < len(before) && before[o].offset <= after[n].offset {
			c.edges[edge{dir, before[o].ino, before[o].kind, roleOf(first, o)}]--
			o++
		} else {
			c.edges[edge{dir, after[n].ino, after[n].kind, roleOf(first, n)}]++
			n++
		}
	}
}
