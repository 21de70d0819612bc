package placement_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/placement"
	"understudy.dev/understudy/internal/lab/tier"
)

// scattered returns a file of which every second block is unsaved, count blocks from first on.
func (d *disk) scattered(ino addr.Ino, first, count int64) placement.File {
	i, err := d.fs.Inode(ino)
	if err != nil {
		d.t.Fatal(err)
	}
	block := int64(d.fs.Super.BlockSize)
	f := placement.File{Ino: ino, Generation: i.Generation, Size: max(int64(i.Size), (2*count+first)*block)}
	f.Atime, f.Mtime, f.Ctime = time.Unix(1, 1), time.Unix(2, 2), time.Unix(3, 3)
	content := append(d.files[ino], make([]byte, f.Size-int64(len(d.files[ino])))...)
	for n := first; n < 2*count+first; n += 2 {
		f.Unsaved = append(f.Unsaved, placement.Stretch{Span: addr.Span{Off: n * block, End: (n + 1) * block}})
		for k := n * block; k < (n+1)*block; k++ {
			content[k] = byte(n*7 + k)
		}
	}
	d.files[ino] = content
	return f
}

// TestDeepTrees places files in thousands of pieces, whose trees get more levels: first
// every second block, and then those between.
func TestDeepTrees(t *testing.T) {
	for n, kind := range []string{"-t ext4 -b 1024", "-t ext4 -b 4096", "-t ext4 -b 1024 -O ^extent,^64bit", "-t ext3 -b 1024"} {
		t.Run(kind, func(t *testing.T) {
			if n%2 == 1 {
				tier.Full(t, "deep trees of "+kind)
			}
			t.Parallel()
			rng := rand.New(rand.NewPCG(1, 2))
			d := makeDisk(t, kind, 40, rng)
			inos := slices.Sorted(mapsKeys(d.files))
			a, b := inos[0], inos[5]
			count := int64(4000)
			if d.fs.Super.BlockSize > 1024 {
				count = 2000
			}
			step := func(files ...placement.File) {
				t.Helper()
				slices.SortFunc(files, func(a, b placement.File) int { return int(a.Ino) - int(b.Ino) })
				old := bytes.NewReader(slices.Clone(d.image))
				r, err := placement.Place(old, nil, files, nil)
				if err != nil || len(r.Refused) > 0 {
					t.Fatal(err, r)
				}
				if v, err := audit.Check(old, r.Blocks); err != nil || !v.Clean {
					t.Fatalf("%+v, %v", v, err)
				}
				d.write(r)
				d.fsck()
				d.compare()
			}
			step(d.scattered(a, 0, count), d.scattered(b, 40, count/2))
			i, err := d.fs.Inode(a)
			if err != nil {
				t.Fatal(err)
			}
			if depth := int(i.Block[6]); i.Flags&ext4.InodeExtents != 0 && depth < 2 {
				t.Errorf("the tree of %d pieces has %d levels", count, depth)
			}
			// The other blocks, some at a time, each of which splits a full leaf.
			for n := range int64(3) {
				all := d.scattered(a, 1, count)
				part := all.Unsaved[:0]
				for at, s := range all.Unsaved {
					if int64(at)%97 == 3*n {
						part = append(part, s)
					}
				}
				all.Unsaved = part
				d.restoreBut(all)
				step(all)
			}
			step(d.scattered(a, 1, count))
		})
	}
}

// restoreBut sets the expected content of a file to what the disk has, except for what is unsaved.
func (d *disk) restoreBut(f placement.File) {
	d.t.Helper()
	_, was := d.dump(fmt.Sprintf("<%d>", f.Ino))
	content := append(was, make([]byte, max(0, f.Size-int64(len(was))))...)
	for _, s := range f.Unsaved {
		copy(content[s.Off:s.End], d.files[f.Ino][s.Off:s.End])
	}
	d.files[f.Ino] = content
}

func mapsKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestNoSpace asks for more blocks than are free, and for nearly all that are free.
func TestNoSpace(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	d := makeDisk(t, "-t ext4 -b 1024 -m 0", 24, rng)
	ino := slices.Min(slices.Collect(mapsKeys(d.files)))
	i, err := d.fs.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	free := int64(0)
	for n := range uint32(d.fs.Super.Groups()) {
		g, err := d.fs.Group(n)
		if err != nil {
			t.Fatal(err)
		}
		free += int64(g.FreeClusters)
	}
	ask := func(blocks int64) error {
		size := max(int64(i.Size), 4<<20+blocks*1024)
		f := placement.File{Ino: ino, Generation: i.Generation, Size: size, Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0), Ctime: time.Unix(1, 0)}
		f.Unsaved = []placement.Stretch{{Span: addr.Span{Off: 4 << 20, End: 4<<20 + blocks*1024}}}
		old := bytes.NewReader(d.image)
		r, err := placement.Place(old, nil, []placement.File{f}, nil)
		if err != nil {
			return err
		}
		if v, err := audit.Check(old, r.Blocks); err != nil || !v.Clean {
			t.Fatalf("%+v, %v", v, err)
		}
		return nil
	}
	if err := ask(free + 1); !errors.Is(err, placement.ErrNoSpace) {
		t.Errorf("for more than there is: %v", err)
	}
	if err := ask(free - 4); err != nil { // the rest is for nodes of the tree
		t.Errorf("for all that there is: %v", err)
	}
}

// TestRefused checks that file systems and files that only a kernel may write are refused.
func TestRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	other := makeDisk(t, "-t ext4 -b 4096", 64, rng)
	other.debugfs("feature read-only\n")
	other.load()
	if r, err := placement.Place(bytes.NewReader(other.image), nil, nil, nil); !errors.Is(err, placement.ErrRefused) {
		t.Errorf("read-only: %v, %+v", err, r)
	}
	d := makeDisk(t, "-t ext4 -b 4096", 64, rng)
	names := make(map[string]addr.Ino)
	for _, name := range []string{"f2", "f3", "f4"} {
		names[name], _ = d.dump(name)
	}
	d.debugfs("sif f3 flags 0x80800\nsif f4 flags 0x84000\n")
	d.load()
	good := func(name string) placement.File {
		i, err := d.fs.Inode(names[name])
		if err != nil {
			t.Fatal(err)
		}
		return placement.File{
			Ino: i.Number, Generation: i.Generation, Size: int64(i.Size), Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0), Ctime: time.Unix(1, 0),
			Unsaved: []placement.Stretch{{Span: addr.Span{Off: 0, End: 4096}}},
		}
	}
	for name, tc := range map[string]struct {
		of    string
		spoil func(*placement.File)
	}{
		"encrypted":             {"f3", func(*placement.File) {}},
		"its data is journaled": {"f4", func(*placement.File) {}},
		"another generation":    {"f2", func(f *placement.File) { f.Generation++ }},
		"shorter":               {"f2", func(f *placement.File) { f.Size-- }},
		"root directory":        {"f2", func(f *placement.File) { f.Ino = 2 }},
		"journal":               {"f2", func(f *placement.File) { f.Ino = 8 }},
		"a directory":           {"f2", func(f *placement.File) { f.Ino = 11 }},
		"no inode":              {"f2", func(f *placement.File) { f.Ino = 1 << 40 }},
		"a free inode":          {"f2", func(f *placement.File) { f.Ino = 200 }},
		"half a block":          {"f2", func(f *placement.File) { f.Unsaved[0].End = 512 }},
		"behind the end":        {"f2", func(f *placement.File) { f.Unsaved[0].End = 1 << 20 }},
		"overlapping":           {"f2", func(f *placement.File) { f.Unsaved = append(f.Unsaved, f.Unsaved[0]) }},
		"elsewhere":             {"f2", func(f *placement.File) { f.Unsaved[0].Mapped, f.Unsaved[0].Disk = true, 4096 }},
		"a year too late":       {"f2", func(f *placement.File) { f.Mtime = time.Unix(1<<40, 0) }},
	} {
		f := good(tc.of)
		tc.spoil(&f)
		r, err := placement.Place(bytes.NewReader(d.image), nil, []placement.File{f}, nil)
		if err != nil || r.Refused[f.Ino] == nil || len(r.Placed)+len(r.Blocks) > 0 {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
	}
	f := good("f2")
	if r, err := placement.Place(bytes.NewReader(d.image), nil, []placement.File{f}, nil); err != nil || len(r.Placed) != 1 {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestFreedBefore: the last transaction frees a file. The blocks that it frees must not be
// allocated, since a recovery without that transaction still has the file.
func TestFreedBefore(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	d := makeDisk(t, "-t ext4 -b 1024", 24, rng)
	before := slices.Clone(d.image)
	d.debugfs("rm f4\nrm f14\nrm f19\n")
	d.load()
	changed := make(map[addr.Block][]byte)
	for at := 0; at < len(before); at += 1024 {
		if !bytes.Equal(before[at:at+1024], d.image[at:at+1024]) {
			changed[addr.Block(at/1024)] = d.image[at : at+1024]
		}
	}
	ino, _ := d.dump("f3")
	i, err := d.fs.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	const most = 15 << 20 // nearly all free blocks
	f := placement.File{
		Ino: ino, Generation: i.Generation, Size: int64(i.Size) + most, Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0), Ctime: time.Unix(1, 0),
		Unsaved: []placement.Stretch{{Span: addr.Span{Off: 1 << 20, End: most}}},
	}
	old := bytes.NewReader(before)
	r, err := placement.Place(old, changed, []placement.File{f}, nil)
	if err != nil || len(r.Placed) != 1 {
		t.Fatal(err, r)
	}
	fs, err := ext4.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Placed[0].Pieces {
		for at := p.Disk / 1024; at < (p.Disk+p.Len())/1024; at++ {
			if used(t, fs, uint64(at)) {
				t.Fatalf("block %d is taken, and was in use", at)
			}
		}
	}
}

// used reports whether a block is in use according to its group's bitmap.
func used(t *testing.T, fs *ext4.FS, b uint64) bool {
	t.Helper()
	n := b - uint64(fs.Super.FirstDataBlock)
	g, err := fs.Group(uint32(n / uint64(fs.Super.BlocksPerGroup)))
	if err != nil {
		t.Fatal(err)
	}
	bits, err := fs.Block(g.BlockBitmap)
	if err != nil {
		t.Fatal(err)
	}
	n = n % uint64(fs.Super.BlocksPerGroup) / uint64(fs.Super.ClusterSize/fs.Super.BlockSize)
	return g.Flags&ext4.GroupBlockUninit == 0 && bits[n/8]>>(n%8)&1 != 0
}

// TestContiguous checks that the data of a new file is nearly in one piece, and that files of one
// block lie beside each other, as filefrag would show it.
func TestContiguous(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	d := makeDisk(t, "-t ext4 -b 4096", 256, rng)
	var files []placement.File
	for _, ino := range slices.Sorted(mapsKeys(d.files)) {
		i, err := d.fs.Inode(ino)
		if err != nil {
			t.Fatal(err)
		}
		if i.Size > 0 {
			continue
		}
		f := placement.File{Ino: ino, Generation: i.Generation, Size: 4096, Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0), Ctime: time.Unix(1, 0)}
		if len(files) == 0 {
			f.Size = 100 << 20
		}
		f.Unsaved = []placement.Stretch{{Span: addr.Span{Off: 0, End: f.Size}}}
		files = append(files, f)
	}
	r, err := placement.Place(bytes.NewReader(d.image), nil, files, nil)
	if err != nil || len(r.Placed) < 3 {
		t.Fatal(err, r)
	}
	// Unwritten extents stay where they are.
	if n := len(r.Placed[0].Pieces); n > 4 {
		t.Errorf("100 MiB are in %d pieces: %v", n, r.Placed[0].Pieces)
	}
	for n := 2; n < len(r.Placed); n++ {
		if r.Placed[n].Pieces[0].Disk != r.Placed[n-1].Pieces[0].Disk+4096 {
			t.Errorf("files of one block are at %d and %d", r.Placed[n-1].Pieces[0].Disk, r.Placed[n].Pieces[0].Disk)
		}
	}
}

func unpack(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzPlace damages a file system and asks for places in it. Whatever the damage, there is no
// panic, no block is taken twice, and every metadata block returned is whole and within the
// file system.
func FuzzPlace(f *testing.F) {
	images := [][]byte{unpack(f, "../audit/testdata/ext4.img.gz"), unpack(f, "../audit/testdata/plain.img.gz")}
	f.Add(uint8(0), uint32(12), []byte{})
	f.Add(uint8(1), uint32(13), []byte{0, 4, 0, 1})
	f.Add(uint8(0), uint32(14), []byte{1, 0, 32, 255, 8, 0, 33, 7})
	f.Fuzz(func(t *testing.T, which uint8, ino uint32, damage []byte) {
		image := slices.Clone(images[int(which)%len(images)])
		for ; len(damage) >= 4; damage = damage[4:] {
			at := int(damage[0])<<12 | int(damage[1])<<8 | int(damage[2])
			image[at%len(image)] ^= damage[3]
		}
		disk := bytes.NewReader(image)
		fs, err := ext4.Open(disk)
		if err != nil {
			return
		}
		var files []placement.File
		for _, n := range []addr.Ino{addr.Ino(ino % 128), addr.Ino(ino%128) + 1, 12} {
			i, err := fs.Inode(n)
			if err != nil {
				continue
			}
			block := int64(fs.Super.BlockSize)
			file := placement.File{Ino: n, Generation: i.Generation, Size: int64(i.Size&0xffffffffff) + 3*block}
			file.Unsaved = []placement.Stretch{{Span: addr.Span{Off: 0, End: block}}, {Span: addr.Span{Off: file.Size / block * block, End: (file.Size/block + 1) * block}}}
			files = append(files, file)
		}
		r, err := placement.Place(disk, nil, files, nil)
		if err != nil {
			return
		}
		taken := make(map[int64]bool)
		for _, p := range r.Placed {
			for _, piece := range p.Pieces {
				for at := piece.Disk; at < piece.Disk+piece.Len(); at += int64(fs.Super.BlockSize) {
					if taken[at] && !piece.Was {
						t.Errorf("byte %d is taken twice", at)
					}
					taken[at] = true
				}
			}
		}
		for b, data := range r.Blocks {
			if len(data) != int(fs.Super.BlockSize) || uint64(b) >= fs.Super.Blocks {
				t.Errorf("block %d has %d bytes", b, len(data))
			}
		}
	})
}

// TestTimes reads the times and the size of an inode back with debugfs.
func TestTimes(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	d := makeDisk(t, "-t ext4 -b 4096", 32, rng)
	ino, _ := d.dump("f0")
	i, err := d.fs.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	f := placement.File{
		Ino: ino, Generation: i.Generation, Size: 5000,
		Atime: time.Unix(1_700_000_001, 111_111_111), Mtime: time.Unix(3_000_000_002, 222_222_222), Ctime: time.Unix(1_700_000_003, 333_333_333),
		Unsaved: []placement.Stretch{{Span: addr.Span{Off: 0, End: 8192}}},
	}
	d.files[ino] = make([]byte, 5000)
	r, err := placement.Place(bytes.NewReader(d.image), nil, []placement.File{f}, nil)
	if err != nil || len(r.Refused) > 0 {
		t.Fatal(err, r.Refused)
	}
	d.write(r)
	out, err := exec.Command("debugfs", "-R", fmt.Sprintf("stat <%d>", ino), d.path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("atime: 0x%08x:%08x", 1_700_000_001, 111_111_111<<2), fmt.Sprintf("mtime: 0x%08x:%08x", uint32(3_000_000_002), 222_222_222<<2|1),
		fmt.Sprintf("ctime: 0x%08x:%08x", 1_700_000_003, 333_333_333<<2), "Size: 5000",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	d.fsck()
}

// TestInlineAttributes: inline data grows out of inodes that have attributes, too. These
// stay, and the attribute that held the data goes.
func TestInlineAttributes(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	d := makeDisk(t, "-t ext4 -O inline_data -I 512", 32, rng)
	d.debugfs("ea_set f1 user.one 1\nea_set f1 user.two twenty-two\nea_set f6 trusted.x y\n")
	d.load()
	var files []placement.File
	for _, name := range []string{"f1", "f6", "f11"} {
		ino, _ := d.dump(name)
		files = append(files, d.request(rng, ino, 1<<16))
	}
	// This one keeps its inline data; only its times change.
	ino, _ := d.dump("f16")
	i, err := d.fs.Inode(ino)
	if err != nil || i.Flags&ext4.InodeInlineData == 0 {
		t.Fatal(err, i)
	}
	stays := placement.File{Ino: ino, Generation: i.Generation, Size: int64(i.Size), Atime: time.Unix(5, 5), Mtime: time.Unix(6, 6), Ctime: time.Unix(7, 7)}
	files = append(files, stays)
	old := bytes.NewReader(slices.Clone(d.image))
	r, err := placement.Place(old, nil, files, nil)
	if err != nil || len(r.Placed) != 4 {
		t.Fatal(err, r)
	}
	if v, err := audit.CheckAdded(old, old, r.Blocks); err != nil || !v.Clean {
		t.Fatalf("%+v, %v", v, err)
	}
	d.write(r)
	d.fsck()
	d.compare()
	out := d.debugfs("ea_list f1\nea_get f1 user.two\nea_list f6\nea_list f11\nstat f1\n")
	for _, want := range []string{"user.one (1)", "user.two (10)", "twenty-two", "trusted.x (1)", "Flags: 0x80000"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if strings.Contains(out, "system.data") {
		t.Errorf("the inline data is still there: %s", out)
	}
}

// TestAddedDamaged damages the blocks that placement returns. Where the audit accepts them
// nevertheless, e2fsck must accept them, too.
func TestAddedDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	for _, kind := range []string{"-t ext4 -O quota,project,bigalloc,^metadata_csum -C 16384 -I 256", "-t ext4 -O quota,inline_data,^metadata_csum"} {
		d := makeDisk(t, kind, 32, rng)
		var files []placement.File
		for _, ino := range slices.Sorted(mapsKeys(d.files)) {
			files = append(files, d.request(rng, ino, 1<<16))
		}
		image := slices.Clone(d.image)
		old := bytes.NewReader(image)
		r, err := placement.Place(old, nil, files, nil)
		if err != nil || len(r.Placed) == 0 {
			t.Fatal(err, r)
		}
		if v, err := audit.CheckAdded(old, old, r.Blocks); err != nil || !v.Clean {
			t.Fatalf("%+v, %v", v, err)
		}
		homes := slices.Sorted(mapsKeys(r.Blocks))
		refused, taken := 0, 0
		for range 400 {
			home := homes[rng.IntN(len(homes))]
			data := slices.Clone(r.Blocks[home])
			used := len(bytes.TrimRight(data, "\x00"))
			data[rng.IntN(max(1, used))] ^= 1 << rng.IntN(8)
			blocks := make(map[addr.Block][]byte, len(r.Blocks))
			for b, whole := range r.Blocks {
				blocks[b] = whole
			}
			blocks[home] = data
			if v, err := audit.CheckAdded(old, old, blocks); err != nil || !v.Clean {
				refused++
				continue
			}
			if taken++; taken > 40 {
				continue
			}
			d.image = slices.Clone(image)
			d.write(&placement.Result{Blocks: blocks})
			d.fsck()
		}
		t.Logf("%s: %d refused, %d taken", kind, refused, taken)
		if refused < 100 {
			t.Errorf("%d of 400 refused", refused)
		}
	}
}

// TestAddedElsewhere checks that the audit refuses blocks of a file that only a recovery without
// the transaction still has, and blocks that the quotas do not count.
func TestAddedElsewhere(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 18))
	d := makeDisk(t, "-t ext4 -O quota", 32, rng)
	before := slices.Clone(d.image)
	d.debugfs("rm f4\nrm f14\nrm f19\n")
	_ = exec.Command("e2fsck", "-fy", d.path).Run() // it counts quotas
	d.load()
	with := bytes.NewReader(slices.Clone(d.image))
	ino, _ := d.dump("f3")
	f := d.request(rng, ino, 1)
	f.Size = 15 << 20
	f.Unsaved = []placement.Stretch{{Span: addr.Span{Off: 0, End: 15 << 20}}}
	r, err := placement.Place(with, nil, []placement.File{f}, nil)
	if err != nil || len(r.Placed) != 1 {
		t.Fatal(err, r)
	}
	if v, err := audit.CheckAdded(with, with, r.Blocks); err != nil || !v.Clean {
		t.Fatalf("%+v, %v", v, err)
	}
	if v, err := audit.CheckAdded(with, bytes.NewReader(before), r.Blocks); err != nil || v.Clean || !strings.Contains(v.Reasons[0], "in use before") {
		t.Errorf("%+v, %v", v, err)
	}
	for _, n := range d.fs.Super.Quotas[:2] {
		i, err := d.fs.Inode(n)
		if err != nil {
			t.Fatal(err)
		}
		blocks := make(map[addr.Block][]byte)
		for b, data := range r.Blocks {
			blocks[b] = data
		}
		for at := range uint32(i.Size / uint64(d.fs.Super.BlockSize)) {
			if run, err := d.fs.Map(i, at); err == nil {
				delete(blocks, run.Physical)
			}
		}
		if v, err := audit.CheckAdded(with, with, blocks); err != nil || v.Clean || !strings.Contains(v.Reasons[0], "bytes less") {
			t.Errorf("without what quota file %d counts: %+v, %v", n, v, err)
		}
	}
}
