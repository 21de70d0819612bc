package audit_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// spoil does one thing and says what.
func (p *spoiler) spoil() string {
	names := slices.Sorted(maps.Keys(spoils))
	for {
		name := names[p.rand.IntN(len(names))]
		if what := spoils[name](p); what != "" {
			return strings.TrimSpace(name + " " + what)
		}
	}
}

// done returns what a spoiler says: something only if it did something.
func done(did bool) string {
	if did {
		return " "
	}
	return ""
}

// spoils are the ways to spoil a transaction. Some do no harm.
var spoils = map[string]func(*spoiler) string{
	"drop block": func(p *spoiler) string {
		b, _ := p.any(audit.KindTable, audit.KindNode, audit.KindPointers, audit.KindLeaf, audit.KindIndex, audit.KindAttributes,
			audit.KindBlockMap, audit.KindInodeMap, audit.KindDescriptors, audit.KindSuper, audit.KindOther)
		delete(p.changed, b)
		return p.parts[b].Kind
	},
	"drop inode": func(p *spoiler) string {
		b, data := p.any(audit.KindTable)
		before := make([]byte, len(data))
		_, _ = p.old.ReadAt(before, int64(b)*int64(len(data))) // it was read before
		at := p.rand.IntN(len(data)/int(p.super.InodeSize)) * int(p.super.InodeSize)
		copy(data[at:][:p.super.InodeSize], before[at:])
		return " "
	},
	"flip block": func(p *spoiler) string {
		b, data := p.any(audit.KindBlockMap)
		n := p.rand.IntN(int(p.super.BlocksPerGroup / p.ratio()))
		data[n/8] ^= 1 << (n % 8)
		counted := p.rand.IntN(2) == 0
		if d := p.descriptor(p.parts[b].Group); counted && d != nil {
			set16(d, 0x0c, u16(d, 0x0c)+1-2*int(data[n/8]>>(n%8)&1))
		}
		return fmt.Sprintf("counted %v", counted)
	},
	"flip inode": func(p *spoiler) string {
		b, data := p.any(audit.KindInodeMap)
		n := p.rand.IntN(int(p.super.InodesPerGroup))
		data[n/8] ^= 1 << (n % 8)
		if d := p.descriptor(p.parts[b].Group); d != nil {
			set16(d, 0x0e, u16(d, 0x0e)+1-2*int(data[n/8]>>(n%8)&1))
		}
		return " "
	},
	"count of group": func(p *spoiler) string {
		_, data := p.any(audit.KindDescriptors)
		if data == nil {
			return ""
		}
		at := []int{0x0c, 0x0e, 0x10, 0x1c}[p.rand.IntN(4)]
		at += int(p.super.DescSize) * p.rand.IntN(min(int(p.super.Groups()), len(data)/int(p.super.DescSize)))
		set16(data, at, u16(data, at)+p.one())
		return fmt.Sprintf("%#x", at%int(p.super.DescSize))
	},
	"place in group": func(p *spoiler) string {
		_, data := p.any(audit.KindDescriptors)
		if data == nil {
			return ""
		}
		at := 4 * p.rand.IntN(3)
		set32(data, at, u32(data, at)+1)
		return " "
	},
	"flags of group": func(p *spoiler) string {
		_, data := p.any(audit.KindDescriptors)
		if data == nil {
			return ""
		}
		at := 0x12 + int(p.super.DescSize)*p.rand.IntN(min(int(p.super.Groups()), len(data)/int(p.super.DescSize)))
		set16(data, at, u16(data, at)^1<<p.rand.IntN(3))
		return " "
	},
	"links": func(p *spoiler) string {
		_, raw := p.slot(always)
		set16(raw, 0x1a, u16(raw, 0x1a)+p.one())
		return fmt.Sprintf("%#o", u16(raw, 0))
	},
	"mode": func(p *spoiler) string {
		_, raw := p.slot(always)
		mode := u16(raw, 0)&0xfff | []int{1, 2, 4, 6, 8, 10, 12, 3}[p.rand.IntN(8)]<<12
		if mode == u16(raw, 0) {
			return ""
		}
		set16(raw, 0, mode)
		return " "
	},
	"permissions": func(p *spoiler) string {
		_, raw := p.slot(always)
		set16(raw, 0, u16(raw, 0)^p.rand.IntN(0o1000))
		set32(raw, 0x10, u32(raw, 0x10)-uint32(p.rand.IntN(1000)))
		return " "
	},
	"size": func(p *spoiler) string {
		_, raw := p.slot(always)
		set32(raw, 4, u32(raw, 4)+uint32(p.one()*(1<<p.rand.IntN(16))))
		return fmt.Sprintf("%#o", u16(raw, 0))
	},
	"sectors": func(p *spoiler) string {
		_, raw := p.slot(always)
		blocks := []uint32{1, p.ratio()}[p.rand.IntN(2)]
		set32(raw, 0x1c, u32(raw, 0x1c)+uint32(p.one()*int(blocks*p.super.BlockSize/512)))
		return fmt.Sprintf("%#o", u16(raw, 0))
	},
	"deleted": func(p *spoiler) string {
		_, raw := p.slot(always)
		set32(raw, 0x14, p.rand.Uint32N(2*p.super.Inodes))
		return " "
	},
	"flags": func(p *spoiler) string {
		_, raw := p.slot(always)
		bit := uint32(1) << p.rand.IntN(32)
		set32(raw, 0x20, u32(raw, 0x20)^bit)
		return fmt.Sprintf("%#x of %#o", bit, u16(raw, 0))
	},
	"generation": func(p *spoiler) string {
		_, raw := p.slot(always)
		set32(raw, 0x64, u32(raw, 0x64)+1)
		return " "
	},
	"extra": func(p *spoiler) string {
		_, raw := p.slot(always)
		set16(raw, 0x80, u16(raw, 0x80)+p.one()*(1<<p.rand.IntN(4)))
		return " "
	},
	"attributes of inode": func(p *spoiler) string {
		_, raw := p.slot(always)
		b, _ := p.any(audit.KindAttributes)
		if u32(raw, 0x68) == uint32(b) {
			b = 0
		}
		if u32(raw, 0x68) == uint32(b) {
			return ""
		}
		set32(raw, 0x68, uint32(b))
		return " "
	},
	"in-inode attribute": func(p *spoiler) string {
		_, raw := p.slot(func(raw []byte) bool {
			return u32(raw, 0x80+u16(raw, 0x80)) == 0xea020000 && u32(raw, 0x84+u16(raw, 0x80)) != 0
		})
		if raw == nil {
			return ""
		}
		at := 0x84 + u16(raw, 0x80)
		at += p.rand.IntN(len(raw) - at)
		raw[at] ^= 1 << p.rand.IntN(8)
		return " "
	},
	"attribute block": func(p *spoiler) string {
		_, data := p.any(audit.KindAttributes)
		if data == nil {
			return ""
		}
		at := []int{0, 4, 8, 12, 32, 33, 34, 40, 44, 48, 52, len(data) - 1, p.rand.IntN(len(data))}[p.rand.IntN(13)]
		data[at] ^= 1 << p.rand.IntN(4)
		return fmt.Sprintf("at %d", at)
	},
	"remove name": func(p *spoiler) string {
		data, at := p.name()
		if data != nil {
			set32(data, at, 0)
		}
		return done(data != nil)
	},
	"rename": func(p *spoiler) string {
		data, at := p.name()
		if data != nil {
			data[at+8+p.rand.IntN(int(data[at+6]))] ^= 1 << p.rand.IntN(7)
		}
		return done(data != nil)
	},
	"retarget name": func(p *spoiler) string {
		data, at := p.name()
		n, _ := p.slot(always)
		if p.rand.IntN(4) == 0 {
			n = addr.Ino(p.rand.Uint32N(p.super.Inodes + 2))
		}
		if data != nil {
			set32(data, at, uint32(n))
		}
		return done(data != nil)
	},
	"swap names": func(p *spoiler) string {
		a, from := p.name()
		b, to := p.name()
		if a == nil || u32(a, from) == u32(b, to) {
			return ""
		}
		x, y := u32(a, from), u32(b, to)
		set32(a, from, y)
		set32(b, to, x)
		return " "
	},
	"type of name": func(p *spoiler) string {
		data, at := p.name()
		if data != nil {
			data[at+7] ^= 1 << p.rand.IntN(4)
		}
		return done(data != nil)
	},
	"length of entry": func(p *spoiler) string {
		data, at := p.name()
		if data != nil {
			set16(data, at+4, u16(data, at+4)+p.one()*4)
		}
		return done(data != nil)
	},
	"swallow entry": func(p *spoiler) string {
		data, at := p.name()
		if data == nil || at+u16(data, at+4) >= len(data)-12 {
			return ""
		}
		next := at + u16(data, at+4)
		set16(data, at+4, u16(data, at+4)+u16(data, next+4))
		return " "
	},
	"length of name": func(p *spoiler) string {
		data, at := p.name()
		if data != nil {
			data[at+6] += byte(p.one())
		}
		return done(data != nil)
	},
	"copy name": func(p *spoiler) string {
		data, at := p.name()
		if data == nil || u16(data, at+4) < 2*(8+int(data[at+6]+3)&^3) {
			return ""
		}
		size := (8 + int(data[at+6]) + 3) &^ 3
		rest := u16(data, at+4) - size
		set16(data, at+4, size)
		copy(data[at+size:], data[at:at+size])
		set16(data, at+size+4, rest)
		if p.rand.IntN(2) == 0 {
			data[at+size+8] ^= 1
		}
		return " "
	},
	"parent": func(p *spoiler) string {
		for b, part := range p.parts {
			if _, there := p.changed[b]; part.First && there && p.rand.IntN(4) == 0 {
				n, _ := p.slot(func(raw []byte) bool { return u16(raw, 0)>>12 == 4 })
				set32(p.changed[b], []int{0, 12}[p.rand.IntN(2)], uint32(n))
				return " "
			}
		}
		return ""
	},
	"extent": func(p *spoiler) string {
		node, entries := p.extents()
		if node == nil {
			return ""
		}
		at := 12 * (1 + p.rand.IntN(entries))
		switch p.rand.IntN(5) {
		case 0:
			set32(node, at, u32(node, at)+uint32(p.one()))
			return "logical"
		case 1:
			set16(node, at+4, u16(node, at+4)+p.one())
			return "length"
		case 2:
			set16(node, at+4, u16(node, at+4)^0x8000)
			return "unwritten"
		case 3:
			set32(node, at+8, u32(node, at+8)+uint32(p.one()*(1<<p.rand.IntN(12))))
			return "start"
		}
		set16(node, 2, entries-1)
		return "cut"
	},
	"extent header": func(p *spoiler) string {
		node, _ := p.extents()
		if node == nil {
			return ""
		}
		at := 2 * p.rand.IntN(4)
		set16(node, at, u16(node, at)+p.one())
		return fmt.Sprintf("at %d", at)
	},
	"pointer": func(p *spoiler) string {
		_, data := p.any(audit.KindPointers)
		if data == nil {
			_, raw := p.slot(func(raw []byte) bool { return isRegular(raw) && u32(raw, 0x20)&0x80000 == 0 })
			if raw == nil {
				return ""
			}
			data = raw[0x28 : 0x28+60]
		}
		at := 4 * p.rand.IntN(len(data)/4)
		switch p.rand.IntN(3) {
		case 0:
			set32(data, at, 0)
		case 1:
			set32(data, at, u32(data, at)+uint32(p.one()))
		default:
			set32(data, at, p.rand.Uint32N(uint32(p.super.Blocks)+100))
		}
		return " "
	},
	"index": func(p *spoiler) string {
		b, data := p.any(audit.KindIndex)
		if data == nil {
			return ""
		}
		base := 8
		if p.parts[b].First {
			base = 32
		}
		count := u16(data, base+2)
		at, other := base+8*p.rand.IntN(count), base+8*p.rand.IntN(count)
		switch p.rand.IntN(6) {
		case 0:
			x, y := u32(data, at+4), u32(data, other+4)
			set32(data, at+4, y)
			set32(data, other+4, x)
			return "swap"
		case 1:
			set32(data, at+4, u32(data, at+4)+uint32(p.one()))
			return "block"
		case 2:
			if at == base {
				return ""
			}
			set32(data, at, u32(data, at)^1<<p.rand.IntN(32))
			return "hash"
		case 3:
			set16(data, base+2, count-1)
			return "cut"
		case 4:
			set16(data, base, u16(data, base)+p.one())
			return "limit"
		}
		if base == 32 {
			data[24+p.rand.IntN(8)] ^= 1 << p.rand.IntN(4)
			return "info"
		}
		return ""
	},
	"orphans": func(p *spoiler) string {
		_, data := p.any(audit.KindSuper)
		if data == nil {
			return ""
		}
		_, at := p.super.Location()
		n, _ := p.slot(always)
		if p.rand.IntN(2) == 0 {
			n = 0
		}
		set32(data, at+0xe8, uint32(n))
		return " "
	},
	"superblock": func(p *spoiler) string {
		_, data := p.any(audit.KindSuper)
		if data == nil {
			return ""
		}
		_, at := p.super.Location()
		off := []int{0x0, 0x4, 0x14, 0x18, 0x20, 0x28, 0x58, 0x5c, 0x60, 0x64, 0xe0, 0xec, 0xfc, 0xce, 0x0c, 0x10, 0x2c, 0x178}[p.rand.IntN(18)]
		data[at+off] ^= 1 << p.rand.IntN(8)
		return fmt.Sprintf("%#x", off)
	},
	"unlink": func(p *spoiler) string { // done right, of a file with more names
		data, at := p.name()
		if data == nil {
			return ""
		}
		n := addr.Ino(u32(data, at))
		for b, part := range p.parts {
			table, there := p.changed[b]
			perBlock := addr.Ino(len(table) / int(p.super.InodeSize))
			if part.Kind != audit.KindTable || !there || n < part.Ino || n >= part.Ino+perBlock {
				continue
			}
			raw := table[int(n-part.Ino)*int(p.super.InodeSize):][:p.super.InodeSize]
			if !isRegular(raw) || u16(raw, 0x1a) < 2 {
				return ""
			}
			set16(raw, 0x1a, u16(raw, 0x1a)-1)
			set32(data, at, 0)
			return "right"
		}
		return ""
	},
	"steal": func(p *spoiler) string { // a block of another file, and give one's own back
		one := func(raw []byte) bool {
			return isRegular(raw) && u32(raw, 0x20)&0x80000 != 0 && u16(raw, 0x2a) == 1 && u16(raw, 0x2e) == 0 && u16(raw, 0x38) == 1
		}
		_, a := p.slot(one)
		_, b := p.slot(one)
		if a == nil || b == nil || u32(a, 0x3c) == u32(b, 0x3c) {
			return ""
		}
		mine, other := u32(a, 0x3c), u32(b, 0x3c)
		set32(a, 0x3c, other)
		switch p.rand.IntN(3) {
		case 0:
			set32(b, 0x3c, mine)
			return "and swap"
		case 1: // of one that does not change, with luck
			set32(a, 0x3c, p.rand.Uint32N(uint32(p.super.Blocks)))
		}
		group := (mine - p.super.FirstDataBlock) / p.super.BlocksPerGroup
		for at, part := range p.parts {
			if bits, there := p.changed[at]; there && part.Kind == audit.KindBlockMap && part.Group == group {
				n := (mine - p.super.FirstDataBlock) % p.super.BlocksPerGroup / p.ratio()
				bits[n/8] &^= 1 << (n % 8)
				if d := p.descriptor(group); d != nil {
					set16(d, 0x0c, u16(d, 0x0c)+1)
				}
			}
		}
		return " "
	},
	"share a cluster": func(p *spoiler) string { // of another file, or of one's own, at its place in it or elsewhere
		node, entries := p.extents()
		other, more := p.extents()
		if p.ratio() == 1 || node == nil || other == nil || u16(node, 6) > 0 || u16(other, 6) > 0 {
			return ""
		}
		at, from := 12*(1+p.rand.IntN(entries)), 12*(1+p.rand.IntN(more))
		mask := p.ratio() - 1
		place := u32(node, at) & mask
		if p.rand.IntN(3) == 0 {
			place = p.rand.Uint32N(p.ratio())
		}
		start := u32(other, from+8)&^mask + place
		if start == u32(node, at+8) {
			return ""
		}
		set32(node, at+8, start)
		return " "
	},
	"leave a cluster": func(p *spoiler) string { // for the next, or the one before
		node, entries := p.extents()
		if p.ratio() == 1 || node == nil {
			return ""
		}
		at := 12 * (1 + p.rand.IntN(entries))
		set32(node, at+8, u32(node, at+8)+uint32(p.one())*p.ratio())
		return " "
	},
	"swap directories": func(p *spoiler) string { // with their parents
		a, from := p.directory()
		b, to := p.directory()
		if a == nil || b == nil || u32(a, from) == u32(b, to) {
			return ""
		}
		x, y := addr.Ino(u32(a, from)), addr.Ino(u32(b, to))
		first := func(n addr.Ino) []byte {
			for at, part := range p.parts {
				if part.First && part.Ino == n {
					return p.changed[at]
				}
			}
			return nil
		}
		if first(x) == nil || first(y) == nil {
			return ""
		}
		set32(a, from, uint32(y))
		set32(b, to, uint32(x))
		up, other := u32(first(x), 12), u32(first(y), 12)
		set32(first(x), 12, other)
		set32(first(y), 12, up)
		return " "
	},
	"nothing": func(p *spoiler) string { return " " },
}

// directory returns a leaf and the offset of the name of a directory in it.
func (p *spoiler) directory() ([]byte, int) {
	for range 500 {
		if data, at := p.name(); data != nil && data[at+7] == 2 {
			return data, at
		}
	}
	return nil, 0
}
