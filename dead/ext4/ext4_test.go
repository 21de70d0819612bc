package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// formats are options of mke2fs for file systems that differ in how their structure is found.
var formats = map[string][]string{
	"ext4":       {"-t", "ext4", "-b", "4096"},
	"ext4-1k":    {"-t", "ext4", "-b", "1024"},
	"ext3":       {"-t", "ext3", "-b", "4096"},
	"ext3-1k":    {"-t", "ext3", "-b", "1024", "-I", "128"},
	"ext2-rev0":  {"-t", "ext2", "-b", "1024", "-r", "0", "-O", "none"},
	"64k":        {"-t", "ext4", "-b", "65536", "-J", "size=64"},
	"uninit_bg":  {"-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"},
	"gdt_64bit":  {"-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,64bit"},
	"meta_bg":    {"-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"},
	"sparse2":    {"-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"},
	"bigalloc":   {"-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "65536"},
	"bigalloc1k": {"-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"},
	"seed":       {"-t", "ext4", "-b", "2048", "-O", "metadata_csum_seed", "-U", "01234567-89ab-cdef-0123-456789abcdef"},
	"orphans":    {"-t", "ext4", "-b", "4096", "-O", "orphan_file"},
	"inode512":   {"-t", "ext4", "-b", "4096", "-I", "512"},
	"csum128":    {"-t", "ext4", "-b", "1024", "-I", "128"},
}

// run runs a program of e2fsprogs and returns its standard output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err, "; run scripts/setup.sh")
	}
	cmd := exec.Command(name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s%s", cmd, err, out, errs.String())
	}
	return string(out)
}

// mkfs makes a file system with a fragmented file in it, and returns its path
// and the number of that file.
func mkfs(t testing.TB, args []string) (string, addr.Ino) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	size := int64(48 << 20)
	if slices.Contains(args, "65536") {
		size = 512 << 20
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", append(append([]string{"-qF"}, args...), path)...)
	tiny, large := filepath.Join(dir, "tiny"), filepath.Join(dir, "large")
	if err := os.WriteFile(tiny, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Pieces of data and holes, larger than what fits between the tiny files.
	data := bytes.Repeat([]byte("data"), 3<<20/4)
	clear(data[1<<20 : 1<<20+1<<17])
	if err := os.WriteFile(large, data, 0o644); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for i := range 700 {
		fmt.Fprintf(&script, "write %s t%d\n", tiny, i)
	}
	for i := 0; i < 700; i += 2 {
		fmt.Fprintf(&script, "rm t%d\n", i)
	}
	fmt.Fprintf(&script, "write %s large\n", large)
	commands := filepath.Join(dir, "commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "debugfs", "-w", "-f", commands, path)
	found := regexp.MustCompile(`Inode: (\d+)`).FindStringSubmatch(run(t, "debugfs", "-R", "stat large", path))
	if found == nil {
		t.Fatal("there is no large file")
	}
	n, err := strconv.ParseUint(found[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return path, addr.Ino(n)
}

func open(t testing.TB, path string) *ext4.FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fs, err := ext4.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// field returns the value of a field in the output of dumpe2fs.
func field(dump, name string) string {
	for line := range strings.Lines(dump) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestAgainstE2fsprogs compares everything that is read with what e2fsprogs reads.
func TestAgainstE2fsprogs(t *testing.T) {
	for name, args := range formats {
		t.Run(name, func(t *testing.T) {
			path, large := mkfs(t, args)
			fs := open(t, path)
			dump := run(t, "dumpe2fs", path)
			s := &fs.Super
			for key, got := range map[string]any{
				"Filesystem UUID": s.UUID, "Block count": s.Blocks, "Inode count": s.Inodes, "First block": s.FirstDataBlock,
				"Block size": s.BlockSize, "Blocks per group": s.BlocksPerGroup, "Inodes per group": s.InodesPerGroup,
			} {
				if want := field(dump, key); fmt.Sprint(got) != want {
					t.Errorf("%s is %v instead of %s", key, got, want)
				}
			}
			for key, got := range map[string]any{ // fields that not all file systems have
				"Inode size": s.InodeSize, "Journal inode": s.JournalInode, "First inode": s.FirstInode, "Cluster size": s.ClusterSize,
				"Orphan file inode": s.OrphanFile, "Checksum seed": fmt.Sprintf("0x%08x", s.ChecksumSeed), "Group descriptor size": s.DescSize,
				"First meta block group": s.FirstMetaGroup,
			} {
				if want := field(dump, key); want != "" && fmt.Sprint(got) != want {
					t.Errorf("%s is %v instead of %s", key, got, want)
				}
			}
			compareGroups(t, fs, dump)
			compareMap(t, fs, path, large)
			if s.JournalInode != 0 {
				compareMap(t, fs, path, s.JournalInode)
				backup := s.JournalBackup
				if i, err := fs.Inode(s.JournalInode); err != nil || backup == nil || backup.Block != i.Block || backup.Size != i.Size {
					t.Errorf("the backup of the journal's inode is %+v, %v", backup, err)
				}
			}
		})
	}
}

// compareGroups compares group descriptors.
func compareGroups(t *testing.T, fs *ext4.FS, dump string) {
	tables := regexp.MustCompile(`Inode table at (\d+)`).FindAllStringSubmatch(dump, -1)
	bitmaps := regexp.MustCompile(`Block bitmap at (\d+)`).FindAllStringSubmatch(dump, -1)
	free := regexp.MustCompile(`(\d+) free (?:blocks|clusters), (\d+) free inodes, (\d+) directories`).FindAllStringSubmatch(dump, -1)
	if uint64(len(tables)) != fs.Super.Groups() || len(bitmaps) != len(tables) || len(free) != len(tables) {
		t.Fatalf("%d groups instead of %d", fs.Super.Groups(), len(tables))
	}
	for n := range tables {
		g, err := fs.Group(uint32(n))
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(g.InodeTable, g.BlockBitmap, g.FreeClusters, g.FreeInodes, g.Directories)
		if want := strings.Join([]string{tables[n][1], bitmaps[n][1], free[n][1], free[n][2], free[n][3]}, " "); got != want {
			t.Errorf("group %d is %s instead of %s", n, got, want)
		}
	}
}

// compareMap compares the block mapping of a file.
func compareMap(t *testing.T, fs *ext4.FS, path string, n addr.Ino) {
	i, err := fs.Inode(n)
	if err != nil {
		t.Fatal(err)
	}
	blocks := make(map[uint32]addr.Block)
	count := uint32((i.Size + uint64(fs.Super.BlockSize) - 1) / uint64(fs.Super.BlockSize))
	for at := uint32(0); at < count; {
		r, err := fs.Map(i, at)
		if errors.Is(err, ext4.ErrHole) {
			at++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Logical != at || r.Length == 0 {
			t.Fatalf("block %d: %+v", at, r)
		}
		for k := range r.Length {
			if r.Logical+k < count {
				blocks[r.Logical+k] = r.Physical + addr.Block(k)
			}
		}
		at += r.Length
	}
	want := strings.Fields(run(t, "debugfs", "-R", fmt.Sprintf("blocks <%d>", n), path))
	var got []string
	for at := range count {
		if b, ok := blocks[at]; ok {
			got = append(got, fmt.Sprint(b))
		}
	}
	// debugfs lists blocks of the tree too.
	rest := want
	for _, b := range got {
		at := slices.Index(rest, b)
		if at < 0 {
			t.Fatalf("inode %d: block %s is not among, or not in the order of, %v", n, b, want)
		}
		rest = rest[at+1:]
	}
	if tree := len(want) - len(got); tree < 0 || tree > 40 || len(got) == 0 {
		t.Errorf("inode %d: %d blocks instead of %d", n, len(got), len(want))
	}
}

// TestRefused checks that anything but a known file system is refused.
func TestRefused(t *testing.T) {
	path, _ := mkfs(t, formats["ext4-1k"])
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"no magic", func(b []byte) { b[0x38] = 0 }, ext4.ErrNotExt},
		{"block size", func(b []byte) { b[0x18] = 7 }, ext4.ErrNotExt},
		{"checksum", func(b []byte) { b[0x88]++ }, ext4.ErrChecksum},
		{"checksum type", func(b []byte) { b[0x175] = 2 }, nil},
		{"unknown feature", func(b []byte) { b[0x62] |= 0x80 }, nil},
		{"journal device", func(b []byte) { b[0x60] |= 8 }, nil},
		{"inode size", func(b []byte) { b[0x58] = 77 }, nil},
		{"no blocks in a group", func(b []byte) { clear(b[0x20:0x24]) }, nil},
		{"no inodes in a group", func(b []byte) { clear(b[0x28:0x2c]) }, nil},
		{"no blocks", func(b []byte) { clear(b[0x4:0x8]) }, nil},
		{"descriptor size", func(b []byte) { b[0xfe] = 33 }, nil},
		{"first block", func(b []byte) { b[0x14] = 9 }, nil},
		{"inodes", func(b []byte) { b[0]++ }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := slices.Clone(image)
			tc.edit(b[ext4.SuperOffset:])
			if tc.want == nil {
				super, err := ext4.SetRecover(b[ext4.SuperOffset:], false) // for the checksum
				if err != nil {
					t.Fatal(err)
				}
				copy(b[ext4.SuperOffset:], super)
			}
			_, err := ext4.Open(bytes.NewReader(b))
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || tc.want == nil && errors.Is(err, ext4.ErrChecksum) {
				t.Errorf("got %v", err)
			}
			if feature := new(ext4.FeatureError); tc.name == "unknown feature" && (!errors.As(err, &feature) || feature.Features.String() != "0x800000") {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := ext4.Open(bytes.NewReader(image[:len(image)-1])); err == nil || !strings.Contains(err.Error(), "the disk ends before") {
		t.Error("of a disk that is too small:", err)
	}
	for _, size := range []int{0, 1024, 2047} {
		if _, err := ext4.Open(bytes.NewReader(image[:size])); !errors.Is(err, ext4.ErrNotExt) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestDamage changes every byte of the structures that lead to the journal and
// to a fragmented file: where there are checksums, each change is noticed.
func TestDamage(t *testing.T) {
	for _, name := range []string{"ext4", "ext4-1k", "csum128", "inode512", "seed"} {
		t.Run(name, func(t *testing.T) {
			path, large := mkfs(t, formats[name])
			image, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fs := open(t, path)
			size := int(fs.Super.BlockSize)
			desc, descOffset := fs.Super.DescriptorLocation(0)
			check := func(what string, at, n int, read func(*ext4.FS) error) {
				for i := range n {
					image[at+i] ^= 0x10
					damaged, err := ext4.Open(bytes.NewReader(image))
					if err == nil {
						err = read(damaged)
					}
					if err == nil {
						t.Errorf("%s: nobody noticed the change of byte %d", what, i)
					}
					image[at+i] ^= 0x10
				}
			}
			check("superblock", ext4.SuperOffset, ext4.SuperSize, func(*ext4.FS) error { return nil })
			check("group", int(desc)*size+descOffset, int(fs.Super.DescSize), func(fs *ext4.FS) error { _, err := fs.Group(0); return err })
			_, block, offset, err := fs.Super.InodeLocation(large)
			if err != nil {
				t.Fatal(err)
			}
			g, err := fs.Group(0)
			if err != nil {
				t.Fatal(err)
			}
			check("inode", (int(g.InodeTable)+int(block))*size+offset, int(fs.Super.InodeSize), func(fs *ext4.FS) error { _, err := fs.Inode(large); return err })
			inode, err := fs.Inode(large)
			if err != nil {
				t.Fatal(err)
			}
			if inode.Block[6] == 0 {
				t.Fatal("the file has no tree")
			}
			leaf := int(inode.Block[16]) | int(inode.Block[17])<<8
			entries := 12 * (1 + (size-12)/12)
			check("tree", leaf*size, entries, func(fs *ext4.FS) error { _, err := fs.Map(inode, 0); return err })
		})
	}
}

// TestSealInode damages the checksum of every inode in use, and checks that SealInode restores it.
func TestSealInode(t *testing.T) {
	for _, name := range []string{"ext4", "csum128", "inode512", "seed", "uninit_bg"} {
		path, _ := mkfs(t, formats[name])
		fs := open(t, path)
		size, sealed := int(fs.Super.InodeSize), 0
		for n := addr.Ino(1); n <= addr.Ino(fs.Super.Inodes); n++ {
			i, err := fs.Inode(n)
			if err != nil || i.Mode == 0 {
				continue
			}
			group, block, offset, err := fs.Super.InodeLocation(n)
			if err != nil {
				t.Fatal(err)
			}
			g, err := fs.Group(group)
			if err != nil {
				t.Fatal(err)
			}
			b, err := fs.Block(g.InodeTable + addr.Block(block))
			if err != nil {
				t.Fatal(err)
			}
			raw := b[offset:][:size]
			whole := slices.Clone(raw)
			if fs.Super.Checksummed() {
				raw[0x7c]++
				if _, err := fs.Super.ParseInode(n, raw); !errors.Is(err, ext4.ErrChecksum) {
					t.Fatalf("%s: inode %d: %v", name, n, err)
				}
			}
			if fs.Super.SealInode(n, raw); !slices.Equal(raw, whole) {
				t.Errorf("%s: inode %d is sealed as % x instead of % x", name, n, raw, whole)
			}
			sealed++
		}
		if sealed < 3 {
			t.Errorf("%s: %d inodes in use", name, sealed)
		}
	}
}

// TestSetRecover checks that the flag and the checksum change, and nothing else.
func TestSetRecover(t *testing.T) {
	for _, name := range []string{"ext4", "ext3"} {
		path, _ := mkfs(t, formats[name])
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b := image[ext4.SuperOffset:][:ext4.SuperSize]
		set, err := ext4.SetRecover(b, true)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ext4.ParseSuper(set)
		if err != nil || !s.NeedsReplay() || ext4.CheckSuper(set) != nil {
			t.Errorf("%+v, %v, %v", s, err, ext4.CheckSuper(set))
		}
		for i := range b {
			if b[i] != set[i] && i != 0x60 && i < 0x3fc {
				t.Errorf("byte %#x is changed", i)
			}
		}
		again, err := ext4.SetRecover(set, false)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("it is not as it was: %v", err)
		}
		if copy(image[ext4.SuperOffset:], set); os.WriteFile(path, image, 0o644) != nil {
			t.Fatal("not written")
		}
		if dump := run(t, "dumpe2fs", "-h", path); !strings.Contains(dump, "needs_recovery") {
			t.Error(dump)
		}
	}
	if _, err := ext4.SetRecover(make([]byte, ext4.SuperSize), true); !errors.Is(err, ext4.ErrNotExt) {
		t.Error(err)
	}
}

// TestEditSuper checks that dumpe2fs understands what was set, and that nothing else changes.
func TestEditSuper(t *testing.T) {
	for _, name := range []string{"ext4", "ext3"} {
		path, _ := mkfs(t, formats[name])
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b := image[ext4.SuperOffset:][:ext4.SuperSize]
		set, err := ext4.SetLastOrphan(b, 1234)
		if err == nil {
			set, err = ext4.SetUnclean(set)
		}
		if err != nil || ext4.CheckSuper(set) != nil {
			t.Fatal(err, ext4.CheckSuper(set))
		}
		for i := range b {
			if b[i] != set[i] && i != 0x3a && i != 0xe8 && i != 0xe9 && i < 0x3fc {
				t.Errorf("byte %#x is changed", i)
			}
		}
		if copy(image[ext4.SuperOffset:], set); os.WriteFile(path, image, 0o644) != nil {
			t.Fatal("not written")
		}
		dump := run(t, "dumpe2fs", "-h", path)
		for _, want := range []string{"not clean", "First orphan inode:       1234"} {
			if !strings.Contains(dump, want) {
				t.Errorf("no %q in %s", want, dump)
			}
		}
	}
}

// TestReplayed checks that what the disk says about errors is kept.
func TestReplayed(t *testing.T) {
	path, _ := mkfs(t, formats["ext4"])
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	disk := image[ext4.SuperOffset:][:ext4.SuperSize]
	logged := slices.Clone(disk)
	logged[0x0c]++ // s_free_blocks_count
	disk[0x194], disk[0x1ff], disk[0x3a] = 3, 7, 3
	out, err := ext4.Replayed(logged, disk)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ext4.ParseSuper(out)
	if err != nil || ext4.CheckSuper(out) != nil {
		t.Fatal(err, ext4.CheckSuper(out))
	}
	if s.ErrorCount != 3 || out[0x1ff] != 7 || s.State&ext4.StateError == 0 || out[0x0c] != logged[0x0c] || !s.NeedsReplay() {
		t.Errorf("%+v", s)
	}
}

// FuzzSuper: a superblock that is accepted has the magic number and a valid block size.
func FuzzSuper(f *testing.F) {
	super := make([]byte, ext4.SuperSize)
	super[0x38], super[0x39] = 0x53, 0xef
	f.Add(super)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ext4.ParseSuper(b)
		if err == nil && (s.BlockSize < 1024 || s.BlockSize > 65536 || b[0x38] != 0x53 || b[0x39] != 0xef) {
			t.Errorf("accepted %+v", s)
		}
		if err == nil {
			_ = ext4.CheckSuper(b)
			if _, err := ext4.SetRecover(b, true); err != nil {
				t.Error(err)
			}
		}
	})
}

// patched is a disk with some bytes changed.
type patched struct {
	base  []byte
	patch map[int64]byte
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for i := range n {
		if v, ok := p.patch[off+int64(i)]; ok {
			b[i] = v
		}
	}
	return n, err
}

var _ io.ReaderAt = (*patched)(nil)

// FuzzMap: whatever the superblock, the descriptors, an inode and its tree say,
// every mapped run lies in the file system, and walking the mapping ends.
func FuzzMap(f *testing.F) {
	for _, name := range []string{"uninit_bg", "ext3-1k", "ext4-1k"} {
		f.Add(name == "ext3-1k", []byte{0, 1, 2}, []byte("inode"), []byte("tree"))
	}
	bases := make(map[bool][]byte)
	var large addr.Ino
	for old, name := range map[bool]string{false: "uninit_bg", true: "ext3-1k"} {
		path, n := mkfs(f, formats[name])
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		large, bases[old] = n, b
	}
	f.Fuzz(func(t *testing.T, old bool, super, inode, tree []byte) {
		p := &patched{bases[old], make(map[int64]byte)}
		edit := func(at int64, edits []byte) { // two bytes of offset and a value each
			for i := 0; i+2 < len(edits); i += 3 {
				p.patch[at+int64(edits[i])|int64(edits[i+1])<<8] = edits[i+2]
			}
		}
		edit(ext4.SuperOffset, super)
		fs, err := ext4.Open(p)
		if err != nil {
			return
		}
		g, err := fs.Group(0)
		if err != nil {
			return
		}
		_, block, offset, err := fs.Super.InodeLocation(large)
		if err != nil {
			return
		}
		edit((int64(g.InodeTable)+int64(block))*int64(fs.Super.BlockSize)+int64(offset), inode)
		i, err := fs.Inode(large)
		if err != nil {
			return
		}
		edit((int64(i.Block[16])|int64(i.Block[17])<<8)*int64(fs.Super.BlockSize), tree)
		edit((int64(i.Block[48])|int64(i.Block[49])<<8)*int64(fs.Super.BlockSize), tree)
		for at, steps := uint32(0), 0; steps < 2000; steps++ {
			r, err := fs.Map(i, at)
			if err != nil {
				return
			}
			if r.Length == 0 || r.Logical != at || !fs.Super.Contains(r.Physical, uint64(r.Length)) {
				t.Fatalf("%+v", r)
			}
			if at += r.Length; at < r.Logical {
				return
			}
		}
	})
}
