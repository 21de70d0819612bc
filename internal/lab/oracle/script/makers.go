package script

import (
	"fmt"
	"path"
	"strings"
)

// makers make random operations; each reports whether there was one to make.
var makers = [...]struct {
	weight int
	make   func(*Script) (Op, bool)
}{
	{14, (*Script).create}, {4, (*Script).mkdir}, {3, (*Script).symlink}, {4, (*Script).link},
	{8, (*Script).unlink}, {1, (*Script).removeAll}, {1, (*Script).rmdir},
	{8, (*Script).rename}, {4, (*Script).renameOver}, {2, (*Script).renameDir},
	{26, (*Script).write}, {3, (*Script).store}, {6, (*Script).truncate}, {3, (*Script).allocate}, {3, (*Script).punch},
	{3, (*Script).chmod}, {3, (*Script).chown}, {2, (*Script).utimes},
	{4, (*Script).setXattr}, {2, (*Script).removeXattr}, {1, (*Script).capability}, {2, (*Script).setFlags},
	{2, (*Script).fsync}, {2, (*Script).open}, {2, (*Script).close},
}

// name returns a path for something new.
func (s *Script) name() string {
	base := ""
	if n := len(s.reuse); n > 0 && s.rng.IntN(4) == 0 {
		base, s.reuse = s.reuse[n-1], s.reuse[:n-1]
	} else {
		s.names++
		base = fmt.Sprintf("n%d", s.names)
		switch s.rng.IntN(12) {
		case 0: // a directory of such names soon takes several blocks
			base += strings.Repeat("-long", s.rng.IntN(40))
		case 1:
			base += " é\xff\n"
		}
	}
	dir := s.dir()
	if dir.Children[base] != nil {
		s.names++
		base = fmt.Sprintf("n%d", s.names)
	}
	return path.Join(dir.Path(), base)
}

// dir picks a directory; half of the time one of a few.
func (s *Script) dir() *Node {
	n := len(s.dirs)
	if n > 4 && s.rng.IntN(2) == 0 {
		n = 4
	}
	if i := s.rng.IntN(n + 1); i < n {
		return s.dirs[i]
	}
	return s.Top
}

// some picks a node, one of the latest half of the time.
func (s *Script) some(from []*Node) *Node {
	n := len(from)
	if n == 0 {
		return nil
	}
	if s.rng.IntN(2) == 0 {
		return from[n-1-s.rng.IntN(min(n, 8))]
	}
	return from[s.rng.IntN(n)]
}

// path picks one of the node's names.
func (s *Script) path(n *Node) string {
	at := n.Names[s.rng.IntN(len(n.Names))]
	return path.Join(at.Dir.Path(), at.Base)
}

func on(at string) Ref { return Ref{at, NoSlot} }

// file picks a regular file and a way to name it: by a slot if one holds it open.
func (s *Script) file() (*Node, Ref) {
	if slot := s.rng.IntN(Slots * 4); slot < Slots && s.slots[slot] != nil {
		return s.slots[slot], Ref{"", slot}
	}
	n := s.some(s.files)
	if n == nil {
		return nil, Ref{}
	}
	return n, on(s.path(n))
}

// any picks a node that has a name.
func (s *Script) any() (*Node, Ref) {
	from := s.files
	switch s.rng.IntN(6) {
	case 0:
		from = s.dirs
	case 1:
		from = s.links
	}
	n := s.some(from)
	if n == nil {
		return nil, Ref{}
	}
	return n, on(s.path(n))
}

func (s *Script) create() (Op, bool) {
	modes := []uint32{0o644, 0o600, 0o755, 0o444, 0o4755}
	return Op{Kind: Create, On: on(s.name()), Mode: modes[s.rng.IntN(len(modes))]}, len(s.files) < maxFiles
}

func (s *Script) mkdir() (Op, bool) {
	at := s.name()
	deep := strings.Count(at, "/") > 6 || len(at) > 1500
	return Op{Kind: Mkdir, On: on(at), Mode: 0o755}, len(s.dirs) < maxDirs && !deep
}

func (s *Script) symlink() (Op, bool) {
	// Targets of up to 59 bytes are stored in the inode (fs/ext4/symlink.c).
	target := strings.Repeat("target/", 1+s.rng.IntN(20))
	return Op{Kind: Symlink, On: on(s.name()), To: target}, len(s.links) < maxLinks
}

func (s *Script) link() (Op, bool) {
	n := s.some(s.files)
	if n == nil || len(n.Names) > 5 {
		return Op{}, false
	}
	return Op{Kind: Link, On: on(s.path(n)), To: s.name()}, true
}

func (s *Script) unlink() (Op, bool) {
	n, ref := s.any()
	if n == nil || n.Dir() {
		return Op{}, false
	}
	s.reuse = append(s.reuse, path.Base(ref.Path))
	return Op{Kind: Unlink, On: ref}, true
}

func (s *Script) rmdir() (Op, bool) {
	n := s.some(s.dirs)
	if n == nil || len(n.Children) > 0 {
		return Op{}, false
	}
	return Op{Kind: Rmdir, On: on(n.Path())}, true
}

// removeAll removes a directory and all below it, one by one.
func (s *Script) removeAll() (Op, bool) {
	n := s.some(s.dirs)
	if n == nil {
		return Op{}, false
	}
	var ops []Op
	n.Walk(n.Path(), func(at string, below *Node) {
		kind := Unlink
		if below.Dir() {
			kind = Rmdir
		}
		ops = append([]Op{{Kind: kind, On: on(at)}}, ops...)
	})
	if len(ops) > 40 {
		return Op{}, false
	}
	s.queue = append([]Op{{}}, ops[1:]...) // Next puts the first in front
	return ops[0], true
}

func (s *Script) rename() (Op, bool) {
	n, ref := s.any()
	if n == nil || n.Dir() {
		return Op{}, false
	}
	return Op{Kind: Rename, On: ref, To: s.name()}, true
}

func (s *Script) renameOver() (Op, bool) {
	n, ref := s.any()
	over, to := s.any()
	// If both names are of one file, rename(2) does nothing.
	if n == nil || over == nil || n == over || n.Dir() || over.Dir() {
		return Op{}, false
	}
	return Op{Kind: Rename, On: ref, To: to.Path}, true
}

// renameDir moves a directory, now and then over an empty one.
func (s *Script) renameDir() (Op, bool) {
	n := s.some(s.dirs)
	if n == nil {
		return Op{}, false
	}
	from, to := n.Path(), s.name()
	if over := s.some(s.dirs); s.rng.IntN(3) == 0 && over != n && len(over.Children) == 0 {
		to = over.Path()
	}
	inside := strings.HasPrefix(to+"/", from+"/")
	deep := strings.Count(to, "/") > 6 || len(to) > 1500
	return Op{Kind: Rename, On: on(from), To: to}, !inside && !deep
}

func (s *Script) size() int64 {
	n := 1 + s.rng.Int64N(s.dataSize*2)
	switch s.rng.IntN(20) {
	case 0:
		n *= 16
	case 1, 2:
		n = (n/PageSize + 1) * PageSize
	}
	return n
}

func (s *Script) write() (Op, bool) {
	n, ref := s.file()
	if n == nil {
		return Op{}, false
	}
	op := Op{Kind: Write, On: ref, Off: n.Size, Len: s.size()}
	switch s.rng.IntN(8) {
	case 0, 1, 2:
		op.Off = s.rng.Int64N(n.Size + 1)
	case 3:
		op.Off += s.rng.Int64N(64 << 10)
	}
	return op, op.Off+op.Len <= maxSize
}

// maxInline is how many bytes of a file fit into any inode at most (its size is 1024 bytes in one configuration).
const maxInline = 1024

// inline reports whether a file may have its data in its inode.
func (s *Script) inline(n *Node) bool { return s.features.Inline && n.Size <= maxInline }

func (s *Script) store() (Op, bool) {
	n, ref := s.file()
	if n == nil || n.Size == 0 || s.inline(n) {
		return Op{}, false
	}
	off := s.rng.Int64N(n.Size)
	return Op{Kind: Store, On: ref, Off: off, Len: min(s.size(), n.Size-off)}, true
}

func (s *Script) truncate() (Op, bool) {
	n, ref := s.file()
	if n == nil {
		return Op{}, false
	}
	size := s.rng.Int64N(n.Size + 1)
	switch s.rng.IntN(4) {
	case 0:
		size = n.Size + s.size()
	case 1:
		size = 0
	}
	return Op{Kind: Truncate, On: ref, Off: size}, size <= maxSize && (size <= n.Size || !s.inline(n))
}

func (s *Script) allocate() (Op, bool) {
	n, ref := s.file()
	if n == nil || !s.features.Extents || s.inline(n) {
		return Op{}, false
	}
	op := Op{Kind: Fallocate, On: ref, Off: s.rng.Int64N(n.Size + 1), Len: s.size()}
	switch s.rng.IntN(4) {
	case 0:
		op.Off = n.Size
	case 1:
		op.Off, op.Mode = n.Size, KeepSize
	case 2:
		if s.features.ZeroRange {
			op.Mode = ZeroRange | KeepSize*uint32(s.rng.IntN(2))
		}
	}
	return op, op.Off+op.Len <= maxSize
}

func (s *Script) punch() (Op, bool) {
	n, ref := s.file()
	if n == nil || n.Size == 0 || s.inline(n) {
		return Op{}, false
	}
	return Op{Kind: Fallocate, On: ref, Off: s.rng.Int64N(n.Size), Len: s.size(), Mode: PunchHole | KeepSize}, true
}

func (s *Script) chmod() (Op, bool) {
	n, ref := s.any()
	if n == nil || n.Mode&TypeMask == TypeLink {
		return Op{}, false
	}
	mode := uint32(s.rng.IntN(0o1000))
	if n.File() {
		mode |= uint32(s.rng.IntN(2)) * 0o4000
	}
	return Op{Kind: Chmod, On: ref, Mode: mode}, true
}

func (s *Script) chown() (Op, bool) {
	n, ref := s.any()
	// Beyond 16 bits the upper half is kept elsewhere (struct ext4_inode).
	return Op{Kind: Chown, On: ref, UID: uint32(s.rng.IntN(100000)), GID: uint32(s.rng.IntN(100000))}, n != nil
}

func (s *Script) utimes() (Op, bool) {
	n, ref := s.any()
	// After 2038 the time takes two more bits (ext4_encode_extra_time).
	op := Op{Kind: Utimes, On: ref, Sec: s.rng.Int64N(4e9), Nsec: s.rng.Int64N(1e9)}
	if s.features.Seconds {
		op.Sec, op.Nsec = op.Sec/2, 0
	}
	return op, n != nil
}

func (s *Script) setXattr() (Op, bool) {
	n, ref := s.any()
	name := fmt.Sprintf("user.a%d", s.rng.IntN(xattrs))
	if n == nil || n.Mode&TypeMask == TypeLink {
		return Op{}, false
	}
	// Files with equal attributes share a block of them (fs/mbcache.c).
	value := strings.Repeat(string(rune('a'+s.rng.IntN(3))), 1+s.rng.IntN(4)*60)
	if s.features.LargeXattrs {
		value = strings.Repeat(value, 1+s.rng.IntN(2)*60) // up to 11 KiB
	}
	return Op{Kind: SetXattr, On: ref, Name: name, Value: value}, true
}

func (s *Script) removeXattr() (Op, bool) {
	n, ref := s.any()
	if n == nil {
		return Op{}, false
	}
	for i := range xattrs {
		if name := fmt.Sprintf("user.a%d", i); n.Xattrs[name] != "" {
			return Op{Kind: RemoveXattr, On: ref, Name: name}, true
		}
	}
	return Op{Kind: RemoveXattr, On: ref, Name: Capability}, n.cap
}

// capability sets a capability. The value is of revision 2 and grants CAP_NET_BIND_SERVICE or
// CAP_NET_RAW (struct vfs_cap_data, include/uapi/linux/capability.h).
func (s *Script) capability() (Op, bool) {
	n := s.some(s.files)
	if n == nil {
		return Op{}, false
	}
	value := []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	value[5] <<= s.rng.IntN(4)
	return Op{Kind: SetXattr, On: on(s.path(n)), Name: Capability, Value: string(value)}, true
}

// setFlags changes the flag "no dump".
func (s *Script) setFlags() (Op, bool) {
	n, ref := s.any()
	if n == nil || n.Mode&TypeMask == TypeLink {
		return Op{}, false
	}
	return Op{Kind: SetFlags, On: ref, Mode: uint32(s.rng.IntN(2))}, true // the guest's script does not know what is set
}

func (s *Script) fsync() (Op, bool) {
	n, ref := s.any()
	if n == nil || n.Mode&TypeMask == TypeLink {
		return Op{}, false
	}
	return Op{Kind: Fsync, On: ref}, true
}

func (s *Script) open() (Op, bool) {
	n := s.some(s.files)
	slot := s.rng.IntN(Slots)
	if n == nil || s.slots[slot] != nil {
		return Op{}, false
	}
	return Op{Kind: Open, On: on(s.path(n)), Slot: slot}, true
}

func (s *Script) close() (Op, bool) {
	slot := s.rng.IntN(Slots)
	return Op{Kind: Close, On: Ref{Slot: slot}, Slot: slot}, s.slots[slot] != nil && s.rng.IntN(3) == 0
}
