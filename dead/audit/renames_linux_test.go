package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/tier"
)

// torn is a file system with operations on names half done.
type torn struct {
	*testing.T
	fs      *ext4.FS
	image   []byte
	changed map[addr.Block][]byte
	ino     map[string]addr.Ino // by path
	spare   addr.Ino            // free
}

// paths are the files of tornImage. /from/h and /to/h are one file, /from/large has an index.
var paths = []string{"/", "/from", "/to", "/from/g", "/from/h", "/from/d", "/from/large", "/to/t", "/to/h", "/to/e", "/to/s"}

// tornImage makes a file system on which nothing is done yet.
func tornImage(t *testing.T, options ...string) *torn {
	t.Helper()
	path, _, _ := made(t, func(dir string) (err error) {
		for _, d := range []string{"from/d", "from/large", "to/e"} {
			err = errors.Join(err, os.MkdirAll(filepath.Join(dir, d), 0o755))
		}
		for _, f := range []string{"from/g", "from/h", "from/d/x", "to/t"} {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, f), bytes.Repeat([]byte(f), 3000), 0o644))
		}
		for n := range 100 {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, "from/large", fmt.Sprint(n, strings.Repeat("n", 100))), nil, 0o644))
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "to/s"), nil, 0o644))
		return errors.Join(err, os.Link(filepath.Join(dir, "from/h"), filepath.Join(dir, "to/h")))
	}, options...)
	_ = exec.Command("e2fsck", "-fyD", path).Run() // it makes the index, and says that it changed something
	if found := fsck(t, path); len(found) > 0 {
		t.Fatalf("%q", found)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	return &torn{T: t, fs: fs, image: image, ino: map[string]addr.Ino{"/": 2}}
}

// on returns the same file system for another test, with no change yet but in the times of inodes.
func (o *torn) on(t *testing.T) *torn {
	t.Helper()
	out := &torn{T: t, fs: o.fs, image: o.image, changed: make(map[addr.Block][]byte), ino: map[string]addr.Ino{"/": 2}}
	for _, p := range paths[1:] {
		b, at := out.entry(p)
		out.ino[p] = addr.Ino(u32(b, at))
	}
	for _, n := range out.ino {
		raw := out.raw(n)
		set32(raw, 0x0c, u32(raw, 0x0c)+1) // ctime
	}
	out.spare = addr.Ino(out.fs.Super.Inodes) - 5
	return out
}

// block returns a block that the caller may change.
func (o *torn) block(at addr.Block) []byte {
	o.Helper()
	if o.changed[at] == nil {
		size := int(o.fs.Super.BlockSize)
		o.changed[at] = bytes.Clone(o.image[int(at)*size:][:size])
	}
	return o.changed[at]
}

func (o *torn) raw(n addr.Ino) []byte {
	o.Helper()
	group, block, offset, err := o.fs.Super.InodeLocation(n)
	if err != nil {
		o.Fatal(err)
	}
	g, err := o.fs.Group(group)
	if err != nil {
		o.Fatal(err)
	}
	return o.block(g.InodeTable + addr.Block(block))[offset:][:o.fs.Super.InodeSize]
}

// first returns the first block of a directory.
func (o *torn) first(n addr.Ino) []byte {
	o.Helper()
	i, err := o.fs.Inode(n)
	if err != nil {
		o.Fatal(err)
	}
	run, err := o.fs.Map(i, 0)
	if err != nil {
		o.Fatal(err)
	}
	return o.block(run.Physical)
}

// find returns the directory of a path, its block, and the offset of the entry in it; -1 if
// it has none.
func (o *torn) find(path string) ([]byte, int) {
	o.Helper()
	dir := addr.Ino(2)
	if up := filepath.Dir(path); up != "/" {
		b, at := o.entry(up)
		dir = addr.Ino(u32(b, at))
	}
	b := o.first(dir)
	for at := 0; at+8 <= len(b); at += u16(b, at+4) {
		if u32(b, at) != 0 && string(b[at+8:][:b[at+6]]) == filepath.Base(path) {
			return b, at
		}
	}
	return b, -1
}

func (o *torn) entry(path string) ([]byte, int) {
	o.Helper()
	b, at := o.find(path)
	if at < 0 {
		o.Fatalf("%s is not there", path)
	}
	return b, at
}

// The steps of operations: each changes one block.

// set makes a name lead to another inode.
func (o *torn) set(path string, n addr.Ino, kind byte) {
	b, at := o.entry(path)
	set32(b, at, uint32(n))
	b[at+7] = kind
}

// add adds a name behind the last one.
func (o *torn) add(path string, n addr.Ino, kind byte) {
	b, at := o.find(path)
	if at >= 0 {
		o.Fatalf("%s is there", path)
	}
	for at = 0; ; at += u16(b, at+4) {
		if used := (8 + int(b[at+6]) + 3) &^ 3; u16(b, at+4) >= used+8+255 {
			rest := u16(b, at+4) - used
			set16(b, at+4, used)
			at += used
			set32(b, at, uint32(n))
			set16(b, at+4, rest)
			b[at+6], b[at+7] = byte(len(filepath.Base(path))), kind
			copy(b[at+8:], filepath.Base(path))
			return
		}
	}
}

func (o *torn) remove(path string) { o.set(path, 0, 0) }

func (o *torn) links(n addr.Ino, more int) {
	raw := o.raw(n)
	set16(raw, 0x1a, u16(raw, 0x1a)+more)
}

// orphan makes an inode without links the first one of the orphan list.
func (o *torn) orphan(n addr.Ino) {
	home, offset := o.fs.Super.Location()
	set32(o.block(home), offset+0xe8, uint32(n))
}

// dotdot sets the parent of a directory.
func (o *torn) dotdot(n, up addr.Ino) { set32(o.first(n), 12, uint32(up)) }

// whiteout makes the spare inode a whiteout.
func (o *torn) whiteout() {
	g, err := o.fs.Group(uint32((o.spare - 1) / addr.Ino(o.fs.Super.InodesPerGroup)))
	if err != nil {
		o.Fatal(err)
	}
	bit := int(o.spare-1) % int(o.fs.Super.InodesPerGroup)
	o.block(g.InodeBitmap)[bit/8] |= 1 << (bit % 8)
	home, _ := o.fs.Super.DescriptorLocation(g.Number)
	o.block(home)
	raw := o.raw(o.spare)
	set16(raw, 0, 0x2000)
	set16(raw, 0x1a, 1)
	set16(raw, 0x80, 32)
}

// turn makes an empty file a FIFO of the same inode number and name, as if the file had been deleted, and its inode used again.
func (o *torn) turn(path string) {
	raw := o.raw(o.ino[path])
	set16(raw, 0, 0x1000|u16(raw, 0)&0xfff)
	set32(raw, 0x20, u32(raw, 0x20)&^uint32(ext4.InodeExtents))
	clear(raw[0x28:][:60])
	set32(raw, 0x64, u32(raw, 0x64)+1)
	o.set(path, o.ino[path], 5)
}

// names returns the names that programs saw: all that were there before.
func (o *torn) names(n addr.Ino) ([]audit.Name, error) {
	var out []audit.Name
	for p, is := range o.ino {
		if is == n && p != "/" {
			out = append(out, audit.Name{Dir: o.ino[filepath.Dir(p)], Name: filepath.Base(p)})
		}
	}
	return out, nil
}

// step is a step of an operation.
type step func(o *torn)

// operation is an operation that changes names; its steps are in the order in which ext4 changes blocks.
type operation struct {
	name  string
	steps func(o *torn) []step
	// before and after have the names that it changes, each with the old path of the inode that
	// it leads to; "" if there is no such name.
	before, after map[string]string
}

func (o *torn) swap(a, b string, kindA, kindB byte) []step {
	return []step{
		func(o *torn) { o.set(b, o.ino[a], kindA) },
		func(o *torn) { o.set(a, o.ino[b], kindB) },
	}
}

var operations = []operation{
	{"rename", func(*torn) []step {
		return []step{
			func(o *torn) { o.add("/to/new", o.ino["/from/g"], 1) },
			func(o *torn) { o.remove("/from/g") },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/new": ""}, map[string]string{"/from/g": "", "/to/new": "/from/g"}},
	{"rename over a file", func(*torn) []step {
		return []step{
			func(o *torn) { o.set("/to/t", o.ino["/from/g"], 1) },
			func(o *torn) { o.remove("/from/g") },
			func(o *torn) { o.links(o.ino["/to/t"], -1) },
			func(o *torn) { o.orphan(o.ino["/to/t"]) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/t": "/to/t"}, map[string]string{"/from/g": "", "/to/t": "/from/g"}},
	{"rename over what was another kind of file", func(*torn) []step {
		return []step{
			func(o *torn) { o.turn("/to/s"); o.set("/to/s", o.ino["/from/g"], 1) },
			func(o *torn) { o.remove("/from/g") },
			func(o *torn) { o.links(o.ino["/to/s"], -1) },
			func(o *torn) { o.orphan(o.ino["/to/s"]) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/s": "/to/s"}, map[string]string{"/from/g": "", "/to/s": "/from/g"}},
	{"link of what was another kind of file", func(*torn) []step {
		return []step{
			func(o *torn) { o.turn("/to/s"); o.add("/to/new", o.ino["/to/s"], 5) },
			func(o *torn) { o.links(o.ino["/to/s"], 1) },
		}
	}, map[string]string{"/to/s": "/to/s", "/to/new": ""}, map[string]string{"/to/s": "/to/s", "/to/new": "/to/s"}},
	{"rename over one of two names", func(*torn) []step {
		return []step{
			func(o *torn) { o.set("/to/h", o.ino["/from/g"], 1) },
			func(o *torn) { o.remove("/from/g") },
			func(o *torn) { o.links(o.ino["/to/h"], -1) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/h": "/to/h", "/from/h": "/to/h"}, map[string]string{"/from/g": "", "/to/h": "/from/g", "/from/h": "/to/h"}},
	{"rename of one of two names", func(*torn) []step {
		return []step{
			func(o *torn) { o.add("/to/new", o.ino["/from/h"], 1) },
			func(o *torn) { o.remove("/from/h") },
		}
	}, map[string]string{"/from/h": "/from/h", "/to/new": "", "/to/h": "/from/h"}, map[string]string{"/from/h": "", "/to/new": "/from/h", "/to/h": "/from/h"}},
	{"rename of a directory", func(*torn) []step {
		return []step{
			func(o *torn) { o.add("/to/new", o.ino["/from/d"], 2) },
			func(o *torn) { o.remove("/from/d") },
			func(o *torn) { o.dotdot(o.ino["/from/d"], o.ino["/to"]) },
			func(o *torn) { o.links(o.ino["/to"], 1) },
			func(o *torn) { o.links(o.ino["/from"], -1) },
		}
	}, map[string]string{"/from/d": "/from/d", "/to/new": ""}, map[string]string{"/from/d": "", "/to/new": "/from/d"}},
	{"rename of a directory with an index", func(*torn) []step {
		return []step{
			func(o *torn) { o.add("/to/new", o.ino["/from/large"], 2) },
			func(o *torn) { o.remove("/from/large") },
			func(o *torn) { o.dotdot(o.ino["/from/large"], o.ino["/to"]) },
			func(o *torn) { o.links(o.ino["/to"], 1) },
			func(o *torn) { o.links(o.ino["/from"], -1) },
		}
	}, map[string]string{"/from/large": "/from/large", "/to/new": ""}, map[string]string{"/from/large": "", "/to/new": "/from/large"}},
	{"rename over a directory", func(*torn) []step {
		return []step{
			func(o *torn) { o.set("/to/e", o.ino["/from/d"], 2) },
			func(o *torn) { o.remove("/from/d") },
			func(o *torn) { o.dotdot(o.ino["/from/d"], o.ino["/to"]) },
			func(o *torn) { o.links(o.ino["/from"], -1) },
			func(o *torn) { o.links(o.ino["/to/e"], -2) },
			func(o *torn) { o.orphan(o.ino["/to/e"]) },
		}
	}, map[string]string{"/from/d": "/from/d", "/to/e": "/to/e"}, map[string]string{"/from/d": "", "/to/e": "/from/d"}},
	{"exchange of files", func(o *torn) []step { return o.swap("/from/g", "/to/t", 1, 1) },
		map[string]string{"/from/g": "/from/g", "/to/t": "/to/t"}, map[string]string{"/from/g": "/to/t", "/to/t": "/from/g"}},
	{"exchange of directories", func(o *torn) []step {
		return append(o.swap("/from/large", "/to/e", 2, 2),
			func(o *torn) { o.dotdot(o.ino["/from/large"], o.ino["/to"]) },
			func(o *torn) { o.dotdot(o.ino["/to/e"], o.ino["/from"]) })
	}, map[string]string{"/from/large": "/from/large", "/to/e": "/to/e"}, map[string]string{"/from/large": "/to/e", "/to/e": "/from/large"}},
	{"exchange of a directory and a file", func(o *torn) []step {
		return append(o.swap("/from/d", "/to/t", 2, 1),
			func(o *torn) { o.dotdot(o.ino["/from/d"], o.ino["/to"]) },
			func(o *torn) { o.links(o.ino["/from"], -1) },
			func(o *torn) { o.links(o.ino["/to"], 1) })
	}, map[string]string{"/from/d": "/from/d", "/to/t": "/to/t"}, map[string]string{"/from/d": "/to/t", "/to/t": "/from/d"}},
	{"rename with a whiteout", func(*torn) []step {
		return []step{
			func(o *torn) { o.whiteout() },
			func(o *torn) { o.set("/from/g", o.spare, 3) },
			func(o *torn) { o.add("/to/new", o.ino["/from/g"], 1) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/new": ""}, map[string]string{"/from/g": "whiteout", "/to/new": "/from/g"}},
	{"rename with a whiteout over a file", func(*torn) []step {
		return []step{
			func(o *torn) { o.whiteout() },
			func(o *torn) { o.set("/from/g", o.spare, 3) },
			func(o *torn) { o.set("/to/t", o.ino["/from/g"], 1) },
			func(o *torn) { o.links(o.ino["/to/t"], -1) },
			func(o *torn) { o.orphan(o.ino["/to/t"]) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/t": "/to/t"}, map[string]string{"/from/g": "whiteout", "/to/t": "/from/g"}},
	{"link", func(*torn) []step {
		return []step{
			func(o *torn) { o.add("/to/new", o.ino["/from/g"], 1) },
			func(o *torn) { o.links(o.ino["/from/g"], 1) },
		}
	}, map[string]string{"/from/g": "/from/g", "/to/new": ""}, map[string]string{"/from/g": "/from/g", "/to/new": "/from/g"}},
}

// TestTornNames stops operations on names between any two blocks that they change. The mended
// result must be sound, and the names must be as before the operation, or as after it.
func TestTornNames(t *testing.T) {
	for kind, options := range map[string][]string{"ext4": nil, "no-csum": {"-O", "^metadata_csum"}, "bigalloc": {"-O", "bigalloc", "-C", "16384"}} {
		t.Run(kind, func(t *testing.T) {
			if kind != "ext4" {
				tier.Full(t, "operations half done with "+kind)
			}
			image := tornImage(t, options...)
			for _, op := range operations {
				for stop := range len(op.steps(image)) + 1 {
					t.Run(fmt.Sprint(op.name, " ", stop), func(t *testing.T) { image.on(t).stopped(op, stop) })
				}
			}
		})
	}
}

// stopped carries out the first stop steps, and judges what is mended.
func (o *torn) stopped(op operation, stop int) {
	scratch := o.on(o.T)
	for _, do := range op.steps(scratch) {
		do(scratch)
	}
	for at := range scratch.changed {
		o.block(at)
	}
	for _, n := range o.ino {
		o.fs.Super.SealInode(n, o.raw(n))
	}
	old := bytes.NewReader(o.image)
	super, parts, err := audit.Parts(old, o.changed)
	if err != nil {
		o.Fatal(err)
	}
	for _, do := range op.steps(o)[:stop] {
		do(o)
	}
	audit.Seal(super, old, o.changed, parts)
	all, m, ok := mended(o.T, old, o.changed, 1, audit.Memory{Names: o.names})
	if !ok {
		o.Fatalf("not mended: %q", m.What)
	}
	size := int(super.BlockSize)
	if found := fsckOf(o.T, o.image, all, size, filepath.Join(o.TempDir(), "image")); len(found) > 0 {
		o.Fatalf("mended %q, but e2fsck found %q", m.What, found)
	}
	done := *o
	done.changed = all
	if !done.has(op.before) && !done.has(op.after) {
		o.Errorf("mended %q: neither as before nor as after", m.What)
	}
	// Without the names that programs saw, nothing tells what a name led to before.
	unknown := audit.Memory{Names: func(addr.Ino) ([]audit.Name, error) { return nil, errors.New("not in memory") }}
	if len(m.Blocks) > 0 && slices.ContainsFunc(m.What, func(s string) bool { return strings.Contains(s, "taken back") }) {
		if all, m, ok := mended(o.T, old, o.changed, 1, unknown); ok {
			o.Errorf("without names: mended %q, %d blocks", m.What, len(all))
		}
	}
}

// free returns a block that is free, and its bit in the bitmap.
func (o *torn) free() (at addr.Block, bitmap []byte, bit int) {
	g, err := o.fs.Group(0)
	if err != nil {
		o.Fatal(err)
	}
	each := int(o.fs.Super.ClusterSize / o.fs.Super.BlockSize)
	bitmap = o.block(g.BlockBitmap)
	for bit = range int(o.fs.Super.Blocks) / each {
		if bitmap[bit/8]>>(bit%8)&1 == 0 {
			return addr.Block(bit * each), bitmap, bit
		}
	}
	o.Fatal("no block is free")
	return 0, nil, 0
}

// making returns the steps in which a directory or symbolic link is created, before it gets its name.
func (o *torn) making(mode int) []step {
	at, bitmap, bit := o.free()
	g, err := o.fs.Group(uint32((o.spare - 1) / addr.Ino(o.fs.Super.InodesPerGroup)))
	if err != nil {
		o.Fatal(err)
	}
	ino := int(o.spare-1) % int(o.fs.Super.InodesPerGroup)
	inodes, raw := o.block(g.InodeBitmap), o.raw(o.spare)
	home, _ := o.fs.Super.DescriptorLocation(0)
	o.block(home)
	return []step{
		func(*torn) { inodes[ino/8] |= 1 << (ino % 8) },
		func(*torn) {
			set16(raw, 0, mode)
			set16(raw, 0x1a, 1)
			set16(raw, 0x80, 32)
			set32(raw, 0x20, uint32(ext4.InodeExtents))
			copy(raw[0x28:], []byte{0x0a, 0xf3, 0, 0, 4, 0})
		},
		func(*torn) { bitmap[bit/8] |= 1 << (bit % 8) },
		func(*torn) { set32(raw, 0x1c, o.fs.Super.ClusterSize/512) }, // i_blocks
		func(*torn) {
			raw[0x2a] = 1 // eh_entries
			set16(raw, 0x28+12+4, 1)
			set32(raw, 0x28+12+8, uint32(at))
		},
		func(*torn) { set32(raw, 4, o.fs.Super.BlockSize) },
	}
}

// TestTornMaking stops the creation of directories and symbolic links before they have a name,
// and of one that is to be deleted as soon as it is closed.
func TestTornMaking(t *testing.T) {
	gone := 0
	for kind, options := range map[string][]string{"ext4": nil, "no-csum": {"-O", "^metadata_csum"}, "bigalloc": {"-O", "bigalloc", "-C", "16384"}} {
		image := tornImage(t, options...)
		for what, mode := range map[string]int{"directory": 0x41ed, "symbolic link": 0xa1ff} {
			for stop := range len(image.on(t).making(mode)) + 1 {
				t.Run(fmt.Sprint(kind, " ", what, " ", stop), func(t *testing.T) {
					o := image.on(t)
					for _, do := range o.making(mode)[:stop] {
						do(o)
					}
					for _, n := range append(slices.Collect(maps.Values(o.ino)), o.spare)[:len(o.ino)+min(1, stop/2)] {
						o.fs.Super.SealInode(n, o.raw(n))
					}
					old := bytes.NewReader(o.image)
					all, m, ok := mended(t, old, o.changed, 1, audit.Memory{Names: o.names})
					if !ok {
						t.Fatalf("not mended: %q", m.What)
					}
					for n := range m.Gone {
						if gone++; n != o.spare {
							t.Errorf("inode %d is gone", n)
						}
					}
					if found := fsckOf(t, o.image, all, int(o.fs.Super.BlockSize), filepath.Join(t.TempDir(), "image")); len(found) > 0 {
						t.Errorf("mended %q, but e2fsck found %q", m.What, found)
					}
					if _, _, ok := mended(t, old, o.changed, 0, audit.Memory{Names: o.names}); ok && stop > 1 {
						t.Error("mended, and no operation was in flight")
					}
				})
			}
		}
	}
	if gone == 0 {
		t.Error("whatever was being made is not said to be gone")
	}
}

// has reports whether each name leads to the inode that want has for it.
func (o *torn) has(want map[string]string) bool {
	for p, old := range want {
		n := o.ino[old]
		if old == "whiteout" {
			n = o.spare
		}
		is := addr.Ino(0)
		if b, at := o.find(p); at >= 0 {
			is = addr.Ino(binary.LittleEndian.Uint32(b[at:]))
		}
		if is != n {
			return false
		}
	}
	return true
}
