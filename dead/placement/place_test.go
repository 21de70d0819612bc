package placement_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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

// disk is a file system in an image file, and the expected content of its files.
type disk struct {
	t     testing.TB
	path  string
	image []byte
	fs    *ext4.FS
	files map[addr.Ino][]byte
}

// kinds are file systems of many kinds: options of mke2fs(8), and a size in MiB.
var kinds = []struct {
	name, options string
	size          int
}{
	{"ext4", "-t ext4 -b 4096", 64},
	{"ext4-1k", "-t ext4 -b 1024", 24},
	{"ext3", "-t ext3 -b 4096", 32},
	{"project", "-t ext4 -O project,quota,bigalloc -C 65536 -I 256", 64},
	{"others", "-t ext4 -O encrypt,casefold,verity,ea_inode,large_dir,inline_data", 32},
	{"uninit", "-t ext4 -O ^metadata_csum,uninit_bg", 64},
	{"ext4-2k", "-t ext4 -b 2048", 24},
	{"ext3-1k", "-t ext3 -b 1024", 24},
	{"ext2", "-t ext2", 32},
	{"plain", "-t ext4 -O ^metadata_csum,^64bit,^flex_bg", 64},
	{"32bit", "-t ext4 -O ^64bit", 64},
	{"meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode -g 1024", 24},
	{"seed", "-t ext4 -O metadata_csum_seed,orphan_file", 64},
	{"small inodes", "-t ext4 -I 128", 32},
	{"small groups", "-t ext4 -g 1024", 64},
	{"no journal", "-t ext4 -O ^has_journal", 64},
	{"no huge files", "-t ext4 -O ^huge_file", 32},
	{"64k", "-t ext4 -b 65536", 256},
	{"bigalloc", "-t ext4 -O bigalloc -C 16384", 64},
	{"bigalloc-1k", "-t ext4 -b 1024 -O bigalloc,^metadata_csum -C 8192", 32},
	{"inline", "-t ext4 -O inline_data -I 512", 32},
	{"inline without extents", "-t ext4 -O inline_data,^extent,^64bit", 32},
	{"quota", "-t ext4 -O quota -E quotatype=usrquota:grpquota", 32},
	{"ea_inode", "-t ext4 -O ea_inode -I 256", 32},
	{"packed", "-t ext4 -b 1024 -g 1024 -E packed_meta_blocks=1", 48},
	{"8k", "-t ext4 -b 8192", 64},
	{"16k", "-t ext4 -b 16384 -O ^metadata_csum", 64},
	{"sparse_super2", "-t ext4 -b 1024 -g 1024 -O sparse_super2,^resize_inode", 48},
	{"large inodes", "-t ext4 -b 1024 -I 1024 -O ^flex_bg", 32},
	{"bigalloc-1k-64k", "-t ext4 -b 1024 -O bigalloc -C 65536", 128},
}

func (d *disk) debugfs(script string) string {
	d.t.Helper()
	cmd := exec.Command("debugfs", "-w", "-f", "-", d.path)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("debugfs: %v: %s", err, out)
	}
	return string(out)
}

// emptyDisk makes a file system in an image file with options of mke2fs(8), and a size in MiB.
func emptyDisk(t testing.TB, options string, size int) string {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		tier.Lacks(t, err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(size)<<20); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-qF", "-N", "256", "-E", "lazy_itable_init=1"}, strings.Fields(options)...)
	args = append(args, path)
	if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %q: %v: %s", args, err, out)
	}
	return path
}

// makeDisk makes a file system with files of many kinds.
func makeDisk(t testing.TB, options string, size int, rng *rand.Rand) *disk {
	t.Helper()
	d := &disk{t: t, files: make(map[addr.Ino][]byte)}
	tree := t.TempDir()
	for n := range 24 {
		b := make([]byte, []int{0, 100, 5000, 70000, 400000}[n%5])
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint("f", n)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.path = emptyDisk(t, options+" -d "+tree, size)
	d.load()
	// Unwritten extents, some behind the end of the file, and holes.
	var script strings.Builder
	if d.fs.Super.Incompat&ext4.IncompatExtents != 0 {
		for n := 0; n < 24; n += 3 {
			if n%5 == 1 && d.fs.Super.Incompat&ext4.IncompatInlineData != 0 {
				continue // debugfs gets fallocate wrong with inline data
			}
			fmt.Fprintf(&script, "fallocate f%d %d %d\n", n, 3+n, 40+n)
		}
		fmt.Fprintf(&script, "punch f4 10 12\npunch f9 4 5\n")
	}
	if d.fs.Super.Incompat&(ext4.IncompatEAInode|ext4.IncompatInlineData) == ext4.IncompatEAInode {
		value := filepath.Join(t.TempDir(), "value")
		if err := os.WriteFile(value, bytes.Repeat([]byte("large"), 3000), 0o600); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 24; n += 4 {
			fmt.Fprintf(&script, "ea_set -f %s f%d user.l\nea_set f%d user.s small\n", value, n, n)
		}
	}
	d.debugfs(script.String())
	if d.fs.Super.ROCompat&ext4.ROCompatQuota != 0 || d.fs.Super.Incompat&ext4.IncompatEAInode != 0 {
		// mke2fs and debugfs do not count quotas, or count them wrongly. e2fsck's exit status says so: no fault.
		_ = exec.Command("e2fsck", "-fy", d.path).Run()
	}
	d.load()
	for n := range 24 {
		ino, b := d.dump(fmt.Sprint("f", n))
		i, err := d.fs.Inode(ino)
		if err != nil {
			t.Fatal(err)
		}
		d.files[ino] = b[:min(uint64(len(b)), i.Size)] // see compare
	}
	d.fsck()
	return d
}

func (d *disk) load() {
	d.t.Helper()
	var err error
	if d.image, err = os.ReadFile(d.path); err != nil {
		d.t.Fatal(err)
	}
	if d.fs, err = ext4.Open(bytes.NewReader(d.image)); err != nil {
		d.t.Fatal(err)
	}
}

// dump returns the number of a file and its content, as debugfs(8) reads it.
func (d *disk) dump(name string) (addr.Ino, []byte) {
	d.t.Helper()
	to := filepath.Join(d.t.TempDir(), "out")
	out := d.debugfs(fmt.Sprintf("dump %s %s\nstat %s\n", name, to, name))
	b, err := os.ReadFile(to)
	if err != nil {
		d.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(out, "Inode: ")
	var ino addr.Ino
	if _, err := fmt.Sscan(rest, &ino); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	return ino, b
}

func (d *disk) fsck() {
	d.t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", d.path).CombinedOutput(); err != nil {
		d.t.Fatalf("e2fsck: %v: %s", err, out)
	}
}

// request makes up unsaved ranges of a file, in ascending order, and changes the expected
// content accordingly.
func (d *disk) request(rng *rand.Rand, ino addr.Ino, most int64) placement.File {
	d.t.Helper()
	i, err := d.fs.Inode(ino)
	if err != nil {
		d.t.Fatal(err)
	}
	block := int64(d.fs.Super.BlockSize)
	last := int64(1<<31 - 1)
	if d.fs.Super.InodeSize > 128 {
		last = 1<<33 - 1<<31 // which takes another bit
	}
	stamp := func() time.Time { return time.Unix(1_600_000_000+rng.Int64N(last-1_600_000_000), rng.Int64N(1e9)) }
	f := placement.File{Ino: ino, Generation: i.Generation, Size: int64(i.Size), Atime: stamp(), Mtime: stamp(), Ctime: stamp()}
	content := d.files[ino]
	if rng.IntN(3) > 0 {
		f.Size += rng.Int64N(most)
	}
	if int64(len(content)) > f.Size {
		d.t.Fatalf("inode %d has %d bytes, and reads as %d", ino, i.Size, len(content))
	}
	content = append(content, make([]byte, f.Size-int64(len(content)))...)
	at := int64(0)
	inline := i.Flags&ext4.InodeInlineData != 0 // then the first block is unsaved
	if inline {
		f.Size = max(f.Size, 1)
		content = append(content, make([]byte, f.Size-int64(len(content)))...)
	}
	for n := range 1 + rng.IntN(6) {
		if n > 0 || !inline {
			at += rng.Int64N(12) * block
		}
		if rng.IntN(4) == 0 && (n > 0 || !inline) {
			at += rng.Int64N(f.Size/2+1) / block * block
		}
		if at >= f.Size {
			break
		}
		length := (1 + rng.Int64N(20)) * block
		if rng.IntN(3) == 0 {
			length += rng.Int64N(f.Size+1) / block * block
		}
		length = min(length, (f.Size-at+block-1)/block*block)
		f.Unsaved = append(f.Unsaved, placement.Stretch{Span: addr.Span{Off: at, End: at + length}})
		for k := at; k < min(at+length, f.Size); k++ {
			content[k] = byte(rng.Uint32())
		}
		at += length + block
	}
	d.files[ino] = content
	return f
}

// write writes the expected content to the places of files, and the changed blocks.
func (d *disk) write(r *placement.Result) {
	d.t.Helper()
	block := int64(d.fs.Super.BlockSize)
	for _, p := range r.Placed {
		content := append(slices.Clone(d.files[p.File.Ino]), make([]byte, block)...)
		spans := p.File.Unsaved
		at := int64(-1)
		for _, piece := range p.Pieces {
			if at != piece.Off { // the pieces must cover all of the spans
				if at >= 0 {
					if at != spans[0].End {
						d.t.Fatalf("pieces %v of %v", p.Pieces, p.File.Unsaved)
					}
					spans = spans[1:]
				}
				if len(spans) == 0 || piece.Off != spans[0].Off {
					d.t.Fatalf("pieces %v of %v", p.Pieces, p.File.Unsaved)
				}
			}
			copy(d.image[piece.Disk:piece.Disk+piece.Len()], content[piece.Off:piece.End])
			at = piece.End
		}
		if at >= 0 && (len(spans) != 1 || at != spans[0].End) {
			d.t.Fatalf("pieces %v of %v", p.Pieces, p.File.Unsaved)
		}
	}
	for b, data := range r.Blocks {
		copy(d.image[int64(b)*block:], data)
	}
	if err := os.WriteFile(d.path, d.image, 0o600); err != nil {
		d.t.Fatal(err)
	}
	var err error
	if d.fs, err = ext4.Open(bytes.NewReader(d.image)); err != nil {
		d.t.Fatal(err)
	}
}

// compare reads all files with debugfs, and compares them with the expected content.
func (d *disk) compare() {
	d.t.Helper()
	dir := d.t.TempDir()
	var script strings.Builder
	for ino := range d.files {
		fmt.Fprintf(&script, "dump <%d> %s/%d\n", ino, dir, ino)
	}
	d.debugfs(script.String())
	for ino, want := range d.files {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(ino)))
		if err != nil {
			d.t.Fatal(err)
		}
		if i, err := d.fs.Inode(ino); err == nil {
			got = got[:min(uint64(len(got)), i.Size)] // debugfs has 60 bytes of empty inline data
		}
		if !bytes.Equal(got, want) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			d.t.Errorf("inode %d has %d bytes instead of %d, and differs at %d", ino, len(got), len(want), at)
		}
	}
}

// TestPlace places files in file systems of many kinds, again and again until they are
// fragmented and full. An independent audit, e2fsck and debugfs must agree with it.
func TestPlace(t *testing.T) {
	for n, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			rounds := 3
			if n >= 6 {
				tier.Full(t, "places in a file system of kind "+kind.name)
				rounds = 8
			}
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(n), 13))
			d := makeDisk(t, kind.options, kind.size, rng)
			for round := range rounds {
				before := maps.Clone(d.files)
				for ino, b := range before {
					before[ino] = slices.Clone(b)
				}
				var files []placement.File
				for _, ino := range slices.Sorted(maps.Keys(d.files)) {
					if rng.IntN(3) > 0 {
						files = append(files, d.request(rng, ino, int64(kind.size)<<20/64))
					}
				}
				old := bytes.NewReader(slices.Clone(d.image))
				r, err := placement.Place(old, nil, files, nil)
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if len(r.Refused) > 0 {
					t.Fatalf("round %d: refused: %v", round, r.Refused)
				}
				v, err := audit.Check(old, r.Blocks)
				if err == nil && v.Foreign {
					v, err = audit.CheckAdded(old, old, r.Blocks)
				}
				if err != nil || !v.Clean && kind.name != "64k" { // a block size that the audit does not know
					t.Fatalf("round %d: audit: %+v, %v", round, v, err)
				}
				d.write(r)
				d.fsck()
				d.compare()
				if t.Failed() {
					return
				}
			}
		})
	}
}
