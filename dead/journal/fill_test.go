package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// TestGiven checks which blocks a file was given, compared with those that it had.
func TestGiven(t *testing.T) {
	run := func(logical uint32, physical addr.Block, n uint32) ext4.Run {
		return ext4.Run{Logical: logical, Physical: physical, Length: n}
	}
	unwritten := func(r ext4.Run) ext4.Run { r.Unwritten = true; return r }
	type runs []ext4.Run
	for name, tc := range map[string]struct{ old, now, want runs }{
		"nothing":                    {},
		"as it was":                  {runs{run(0, 100, 9)}, runs{run(0, 100, 9)}, nil},
		"split":                      {runs{run(0, 100, 9)}, runs{run(0, 100, 4), run(4, 104, 5)}, nil},
		"joined":                     {runs{run(0, 100, 4), run(4, 104, 5)}, runs{run(0, 100, 9)}, nil},
		"a new file":                 {nil, runs{run(0, 100, 9), run(12, 300, 1)}, runs{run(0, 100, 9), run(12, 300, 1)}},
		"a hole filled":              {runs{run(0, 100, 3), run(5, 105, 3)}, runs{run(0, 100, 8)}, runs{run(3, 103, 2)}},
		"longer":                     {runs{run(0, 100, 3)}, runs{run(0, 100, 5)}, runs{run(3, 103, 2)}},
		"shorter":                    {runs{run(0, 100, 3)}, runs{run(0, 100, 1)}, nil},
		"elsewhere":                  {runs{run(0, 100, 3)}, runs{run(0, 100, 1), run(1, 200, 2)}, runs{run(1, 200, 2)}},
		"written":                    {runs{unwritten(run(0, 100, 9))}, runs{unwritten(run(0, 100, 3)), run(3, 103, 2), unwritten(run(5, 105, 4))}, runs{unwritten(run(3, 103, 2))}},
		"unwritten":                  {nil, runs{unwritten(run(0, 100, 9))}, nil},
		"written elsewhere":          {runs{unwritten(run(0, 100, 2))}, runs{run(0, 200, 2)}, runs{run(0, 200, 2)}},
		"to the last block there is": {runs{run(1<<32-8, 100, 8)}, runs{run(1<<32-8, 100, 8)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := given(tc.old, tc.now); !slices.Equal(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// holed returns the change that gives a block to a hole, and that block, which has what another file
// left in it. The file is inode 12 and has three blocks, the middle one of which is the hole.
func holed(t *testing.T, kind string) (c *change, block addr.Block) {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v; run scripts/setup.sh", err)
		}
	}
	dir := t.TempDir()
	from, image := filepath.Join(dir, "from"), filepath.Join(dir, "image")
	content := bytes.Repeat([]byte("x"), 3*4096)
	clear(content[4096:8192])
	if err := errors.Join(os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(from, "file"), content, 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", kind, "-b", "4096", "-d", from, image, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	was, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "bmap -a <12> 1", image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	is, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(bytes.NewReader(was))
	if err != nil {
		t.Fatal(err)
	}
	c = &change{txn: &jbd2.Transaction{}, fs: fs, before: bytes.NewReader(was), blocks: make(map[addr.Block][]byte)}
	changed := make(map[addr.Block][]byte)
	for n := 0; n < len(was); n += 4096 {
		if !bytes.Equal(was[n:][:4096], is[n:][:4096]) {
			changed[addr.Block(n/4096)] = is[n:][:4096]
		}
	}
	if err := c.replaceAll(changed); err != nil {
		t.Fatal(err)
	}
	trees, err := c.tree(12)
	if err != nil {
		t.Fatal(err)
	}
	got := given(trees.Old, trees.New)
	if len(got) != 1 || got[0].Logical != 1 || got[0].Length != 1 {
		t.Fatalf("the file was given %+v", got)
	}
	copy(was[int(got[0].Physical)*4096:], bytes.Repeat([]byte("of another file "), 256))
	return c, got[0].Physical
}

// opens counts how often the superblock is read.
type opens struct {
	io.ReaderAt
	n int
}

func (o *opens) ReadAt(b []byte, off int64) (int, error) {
	if off == 1024 {
		o.n++
	}
	return o.ReaderAt.ReadAt(b, off)
}

// TestOpenOnce checks that a file system is opened only once, for all files on it that may have been written.
func TestOpenOnce(t *testing.T) {
	c, _ := holed(t, "ext4")
	count := &opens{ReaderAt: c.before}
	c.before, c.files = count, nil
	where := treesOn(count, c.blocks)
	for range 3 {
		got, err := c.tree(12)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := where(12)
		if err != nil || !slices.Equal(got.New, bare.New) || len(got.New) == 0 {
			t.Fatalf("%+v, %+v, %v", got, bare, err)
		}
	}
	if count.n != 2 {
		t.Errorf("it was opened %d times for two roads", count.n)
	}
	if err := c.replace(1<<10, make([]byte, 4096)); err != nil || c.files != nil {
		t.Errorf("what was read of other blocks is kept: %v", err)
	}
}

// TestFill checks that a block that was allocated to a file, and not filled yet, is committed with what
// belongs there. The audit cannot tell it from any other block.
func TestFill(t *testing.T) {
	const size, page = 3 * 4096, addr.Phys(0x5000)
	c, block := holed(t, "ext3")
	verdict, err := audit.Check(c.before, c.blocks)
	if err != nil || !verdict.Clean {
		t.Fatalf("%+v, %v", verdict, err)
	}
	data := bytes.Repeat([]byte("new "), 1024)
	in := func(logical int64, filled, fresh bool, disk int64) pagecache.FillingBlock {
		at := addr.Span{Off: logical * 4096, End: (logical + 1) * 4096}
		return pagecache.FillingBlock{Piece: pagecache.Piece{Span: at, Phys: page}, Disk: disk, Filled: filled, Fresh: fresh}
	}
	place, zeros := int64(block)*4096, make([]byte, 4096)
	for name, tc := range map[string]struct {
		block   pagecache.FillingBlock
		change  func(*filler)
		want    []byte // nil if nothing is to be written
		refused bool
	}{
		"allocated":                    {block: in(1, false, true, place), want: zeros},
		"being copied to":              {block: in(1, true, true, place), want: data},
		"not told yet where it is":     {block: in(1, true, false, -1), want: data},
		"the file ends in it":          {block: in(1, true, false, place), change: func(l *filler) { l.size = 4096 + 6 }, want: append([]byte("new ne"), zeros[6:]...)},
		"behind the end":               {block: in(1, true, false, place), change: func(l *filler) { l.size = 4096 }, want: zeros},
		"in the transaction":           {block: in(1, true, false, place), change: func(l *filler) { l.txn.Blocks = append(l.txn.Blocks, jbd2.Block{Home: block}) }},
		"it had it before":             {block: in(0, false, true, place)},
		"being read, or not yet known": {block: in(1, false, false, place), refused: true},
		"not told where, nor filled":   {block: in(1, false, false, -1), refused: true},
		"not told, behind the end":     {block: in(1, false, false, -1), change: func(l *filler) { l.size = 4096 }, want: zeros},
		"not told, behind, in use":     {block: in(1, false, false, -1), change: func(l *filler) { l.size, l.given[0].Physical = 4096, 1 }, refused: true},
		"elsewhere":                    {block: in(1, false, true, place+4096), refused: true},
		"filled, and elsewhere":        {block: in(1, true, false, place+4096), refused: true},
		"encrypted":                    {block: in(1, true, false, place), change: func(l *filler) { l.opaque = true }, refused: true},
		"in use before":                {block: in(1, false, true, 4096), change: func(l *filler) { l.given[0].Physical = 1 }, refused: true},
		"in use before, no journal":    {block: in(1, false, true, place), change: func(l *filler) { l.fresh, l.before = l.given, bytes.NewReader(nil) }, want: zeros},
		"the disk has it, no journal":  {block: in(1, true, true, place), change: func(l *filler) { l.fresh, l.given = l.given, nil }, want: data},
		"it had it, no journal":        {block: in(1, true, false, place), change: func(l *filler) { l.fresh, l.given = l.given, nil }},
		"elsewhere, no journal":        {block: in(1, false, true, place+4096), change: func(l *filler) { l.fresh = l.given }, refused: true},
		"its own, unwritten before":    {block: in(1, false, true, 4096), change: func(l *filler) { l.given[0].Physical, l.given[0].Unwritten = 1, true }, want: zeros},
		"revoked":                      {block: in(1, false, true, place), change: func(l *filler) { l.txn.Revokes = []addr.Block{block} }, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			one := *c
			one.txn, one.blocks = &jbd2.Transaction{}, make(map[addr.Block][]byte)
			l := &filler{
				change: &one, block: 4096, size: size, given: []ext4.Run{{Logical: 1, Physical: block, Length: 1}},
				view: func(at addr.Phys, n int) ([]byte, error) {
					if at != page {
						return nil, errors.New("no such page")
					}
					return data[:n], nil
				},
			}
			if tc.change != nil {
				tc.change(l)
			}
			before := len(one.txn.Blocks)
			err := l.fill(tc.block)
			if (err != nil) != tc.refused {
				t.Fatalf("%v; refused: %v", err, tc.refused)
			}
			if (len(one.txn.Blocks) > before) != (tc.want != nil) {
				t.Fatalf("%d blocks are added", len(one.txn.Blocks)-before)
			}
			if tc.want != nil && !bytes.Equal(one.txn.Blocks[0].Data, tc.want) {
				t.Errorf("it has %q", one.txn.Blocks[0].Data[:16])
			}
		})
	}
}

// TestFilled checks that the change is as sound with the filled block as before.
func TestFilled(t *testing.T) {
	c, block := holed(t, "ext3")
	l := &filler{change: c, block: 4096, size: 3 * 4096, given: []ext4.Run{{Logical: 1, Physical: block, Length: 1}}}
	at := pagecache.Piece{Span: addr.Span{Off: 4096, End: 8192}}
	if err := l.fill(pagecache.FillingBlock{Piece: at, Disk: int64(block) * 4096, Fresh: true}); err != nil {
		t.Fatal(err)
	}
	if verdict, err := audit.Check(c.before, c.blocks); err != nil || !verdict.Clean {
		t.Errorf("%+v, %v", verdict, err)
	}
	with, err := c.after()
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.fs.On(with).Block(block)
	if err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the block has %q, %v", b[:16], err)
	}
}

// TestFilledBare checks that without a journal the content of a filled block is written with the rest.
func TestFilledBare(t *testing.T) {
	c, block := holed(t, "ext2")
	disk, memory := jbd2.NewRecording(c.before), oneFile{}
	f := &finisher{Rescue: &Rescue{super: &pagecache.Superblock{BlockSize: 4096}}, disk: disk, report: &Report{}}
	for home, b := range c.blocks {
		f.data = append(f.data, inMemory(home, addr.Phys(len(memory.data))))
		memory.data = append(memory.data, b...)
	}
	f.mem = memory
	bare, err := f.bare()
	if err != nil {
		t.Fatal(err)
	}
	metadata := len(bare.txn.Blocks)
	if metadata != len(c.blocks) {
		t.Fatalf("%d blocks instead of %d", metadata, len(c.blocks))
	}
	trees, err := treesOn(bare.before, bare.blocks)(12)
	if err != nil {
		t.Fatal(err)
	}
	l := &filler{change: bare, block: 4096, size: 3 * 4096, given: given(trees.Old, trees.New), fresh: given(nil, trees.New)}
	at := pagecache.Piece{Span: addr.Span{Off: 4096, End: 8192}}
	if err := l.fill(pagecache.FillingBlock{Piece: at, Disk: int64(block) * 4096, Fresh: true}); err != nil {
		t.Fatal(err)
	}
	f.takeFilled(bare.txn.Blocks[metadata:])
	if err := f.write(nil); err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	i, err := fs.Inode(12)
	if err != nil {
		t.Fatal(err)
	}
	run, err := fs.Map(i, 1)
	if err != nil || run.Physical != block {
		t.Fatalf("%+v, %v", run, err)
	}
	if b, err := fs.Block(block); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the block has %q, %v", b[:16], err)
	}
}

// inMemory is a block of 4 KiB of metadata.
func inMemory(home addr.Block, at addr.Phys) block {
	return block{disk: int64(home) * 4096, phys: at, len: 4096, used: 4096}
}

// TestTreeUnordered checks the mapping of a file whose blocks of pointers never reached a disk without a journal: it is
// the one that is written now.
func TestTreeUnordered(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	from, path := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(filepath.Join(from, "file"), bytes.Repeat([]byte("x"), 20*1024), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext2", "-b", "1024", "-d", from, path, "4M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	i, err := fs.Inode(12)
	if err != nil {
		t.Fatal(err)
	}
	pointers := addr.Block(binary.LittleEndian.Uint32(i.Block[48:]))
	before := bytes.Clone(image)
	copy(before[int(pointers)*1024:][:1024], bytes.Repeat([]byte{0xa6}, 1024))
	changed := map[addr.Block][]byte{pointers: image[int(pointers)*1024:][:1024]}
	found, err := treesOn(bytes.NewReader(before), changed)(12)
	if err != nil || len(found.Old) != 0 || !found.Touched || found.Blocks != 21 {
		t.Errorf("%+v, %v", found, err)
	}
	if found, err := treesOn(bytes.NewReader(before), nil)(12); err == nil {
		t.Errorf("without the block: %+v", found)
	}
}
