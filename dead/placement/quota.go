package placement

import (
	"encoding/binary"
	"fmt"
	"math"

	"understudy.dev/understudy/dead/addr"
)

// Quota files (fs/quota/quota_v2.c, quota_tree.c, quotaio_v2.h) have blocks of 1 KiB. The first
// one is a header; the second is the root of a tree of block numbers, four levels deep, indexed
// by the bytes of an owner's ID; below the tree are blocks of entries.
const (
	quotaBlock  = 1 << 10
	quotaHeader = 16 // header of a block of entries, in bytes
	quotaEntry  = 72 // an entry, in bytes: struct v2r1_disk_dqblk
	// Offsets in an entry, of 64 bits each.
	quotaSoft  = 40 // dqb_bsoftlimit, in KiB
	quotaSpace = 48 // dqb_curspace, in bytes
	quotaSince = 56 // dqb_btime
)

// quotaMagic are the first four bytes of the files of users, groups and projects.
var quotaMagic = [...]uint32{0xd9c01f11, 0xd9c01927, 0xd9c03f14}

// quota is a quota file: it counts the space of each owner on a file system.
type quota struct {
	v     *volume
	kind  int
	file  mapping
	added map[uint32]uint64 // bytes, by owner
}

// openQuotas opens the quota files of the file system. Their content is metadata, so that the
// last transaction has all changes to it.
func (v *volume) openQuotas() error {
	for kind, n := range v.super.Quotas {
		if n == 0 {
			continue
		}
		q := &quota{v: v, kind: kind, added: make(map[uint32]uint64)}
		raw, err := v.rawInode(n)
		if err != nil {
			return err
		}
		i, err := v.super.ParseInode(n, raw)
		if err != nil {
			return err
		}
		if q.file, err = v.mapping(&tree{}, i); err != nil {
			return fmt.Errorf("quota file %d: %w", n, err)
		}
		head, _, _, err := q.block(0)
		if err != nil {
			return err
		}
		if magic, revision := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:]); magic != quotaMagic[kind] || revision != 1 {
			return refuse("quota file %d has magic %#x, revision %d", n, magic, revision)
		}
		v.quotas = append(v.quotas, q)
	}
	return nil
}

// block returns a block of the quota file, the disk block that it lies in, and its offset
// there.
func (q *quota) block(n uint32) ([]byte, addr.Block, int, error) {
	off := uint64(n) * quotaBlock
	size := uint64(q.v.super.BlockSize)
	if off/size > math.MaxUint32 {
		return nil, 0, 0, fmt.Errorf("%w: a quota file refers to its block %d, beyond what a file can have", errDamaged, n)
	}
	r, _, err := q.file.at(uint32(off / size))
	if err != nil {
		return nil, 0, 0, err
	}
	if r.Physical == 0 || r.Unwritten {
		return nil, 0, 0, fmt.Errorf("%w: a quota file has no block %d", errDamaged, n)
	}
	b, err := q.v.block(r.Physical)
	if err != nil {
		return nil, 0, 0, err
	}
	return b[off%size:][:quotaBlock], r.Physical, int(off % size), nil
}

// entry returns the disk block of an owner's entry, and its offset there. The entry was made
// when the owner got its first inode.
func (q *quota) entry(id uint32) (addr.Block, int, error) {
	at := uint32(1)
	for shift := 24; shift >= 0; shift -= 8 {
		b, _, _, err := q.block(at)
		if err != nil {
			return 0, 0, err
		}
		if at = binary.LittleEndian.Uint32(b[4*(id>>shift&0xff):]); at <= 1 {
			return 0, 0, refuse("its owner %d is in no quota file", id)
		}
	}
	b, home, offset, err := q.block(at)
	if err != nil {
		return 0, 0, err
	}
	for e := quotaHeader; e+quotaEntry <= quotaBlock; e += quotaEntry {
		used := false
		for _, x := range b[e : e+quotaEntry] {
			used = used || x != 0
		}
		if used && binary.LittleEndian.Uint32(b[e:]) == id {
			return home, offset + e, nil
		}
	}
	return 0, 0, refuse("its owner %d is in no quota file", id)
}

// owner returns the ID of the user, group or project that an inode counts for.
func (q *quota) owner(raw []byte) uint32 {
	half := func(at int) uint32 { return uint32(binary.LittleEndian.Uint16(raw[at:])) }
	switch q.kind {
	case 0:
		return half(0x02) | half(0x78)<<16
	case 1:
		return half(0x18) | half(0x7a)<<16
	}
	if len(raw) < 0xa0 || half(0x80) < 0xa0-0x80 {
		return 0
	}
	return half(0x9c) | half(0x9e)<<16
}

// has checks that a file's owner has an entry to which its blocks can be added. It refuses an
// owner with a soft limit whose grace time does not run yet: beyond the limit, a kernel starts it.
func (q *quota) has(raw []byte) error {
	home, at, err := q.entry(q.owner(raw))
	if err != nil {
		return err
	}
	b, err := q.v.block(home)
	if err != nil {
		return err
	}
	if soft := binary.LittleEndian.Uint64(b[at+quotaSoft:]); soft != 0 && binary.LittleEndian.Uint64(b[at+quotaSince:]) == 0 {
		return refuse("its owner %d has a limit", q.owner(raw))
	}
	return nil
}

// add adds bytes to those counted for a file's owner.
func (q *quota) add(raw []byte, bytes uint64) error {
	q.added[q.owner(raw)] += bytes
	return nil
}

// put adds the bytes counted to the entries in the quota file.
func (q *quota) put() error {
	for id, bytes := range q.added {
		if bytes == 0 {
			continue
		}
		home, at, err := q.entry(id)
		if err != nil {
			return err
		}
		b, err := q.v.edit(home)
		if err != nil {
			return err
		}
		space := b[at+quotaSpace:]
		binary.LittleEndian.PutUint64(space, binary.LittleEndian.Uint64(space)+bytes)
	}
	return nil
}
