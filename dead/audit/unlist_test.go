package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// unlisted removes each possible set of orphans of a file system, and checks that the
// others stay, and that nothing else changes.
func unlisted(t *testing.T, image []byte, changed map[addr.Block][]byte, orphans []addr.Ino) {
	t.Helper()
	left := func(changed map[addr.Block][]byte) []addr.Ino {
		t.Helper()
		found, err := audit.Truncating(bytes.NewReader(image), changed)
		if err != nil {
			t.Fatal(err)
		}
		var out []addr.Ino
		for _, i := range found {
			if out = append(out, i.Number); i.Links == 0 {
				t.Errorf("inode %d has no links", i.Number)
			}
		}
		return out
	}
	if got := left(changed); !slices.Equal(got, orphans) {
		t.Fatalf("orphans %v instead of %v", got, orphans)
	}
	for set := range 1 << len(orphans) {
		var gone, want []addr.Ino
		for i, n := range orphans {
			if set>>i&1 != 0 {
				gone = append(gone, n)
			} else {
				want = append(want, n)
			}
		}
		edited, err := audit.Unlist(bytes.NewReader(image), changed, gone)
		if err != nil {
			t.Fatal(err)
		}
		if set == 0 && len(edited) > 0 {
			t.Errorf("%d blocks are edited for nothing", len(edited))
		}
		after := maps.Clone(edited)
		for at, b := range changed {
			if edited[at] == nil {
				after[at] = b
			}
		}
		if got := left(after); !slices.Equal(got, want) {
			t.Errorf("without %v: orphans %v instead of %v", gone, got, want)
		}
		// Numbers and checksums are all that may differ.
		different := 0
		for at, b := range edited {
			was := changed[at]
			if was == nil {
				was = image[int(at)*len(b):][:len(b)]
			}
			for i := range b {
				if b[i] != was[i] {
					different++
				}
			}
		}
		if most := 4 * (4*len(gone) + 2); different > most || different == 0 && len(gone) > 0 {
			t.Errorf("without %v: %d bytes differ, of %d at most", gone, different, most)
		}
	}
}

// TestUnlist removes orphans from a list of three.
func TestUnlist(t *testing.T) {
	for _, name := range smalls {
		image := small(t, name)
		changed := busy(t, image)
		super, parts, err := audit.Parts(bytes.NewReader(image), changed)
		if err != nil {
			t.Fatal(err)
		}
		place, at := super.Location()
		table := addr.Block(binary.LittleEndian.Uint32(changed[place+1][8:]))
		orphans := []addr.Ino{14, 16, 15}
		for i, n := range orphans {
			next := addr.Ino(0)
			if i+1 < len(orphans) {
				next = orphans[i+1]
			}
			_, block, offset, err := super.InodeLocation(n)
			if err != nil {
				t.Fatal(err)
			}
			binary.LittleEndian.PutUint32(changed[table+addr.Block(block)][offset+0x14:], uint32(next))
		}
		binary.LittleEndian.PutUint32(changed[place][at+0xe8:], uint32(orphans[0]))
		audit.Seal(super, bytes.NewReader(image), changed, parts)
		slices.Sort(orphans)
		unlisted(t, image, changed, orphans)
		// A list that does not end.
		_, block, offset, _ := super.InodeLocation(15)
		binary.LittleEndian.PutUint32(changed[table+addr.Block(block)][offset+0x14:], 14)
		audit.Seal(super, bytes.NewReader(image), changed, parts)
		if _, err := audit.Unlist(bytes.NewReader(image), changed, orphans[:1]); err == nil {
			t.Errorf("%s: a list without an end is edited", name)
		}
	}
}

// made makes a file system from a directory that fill has filled.
func made(t *testing.T, fill func(dir string) error, options ...string) (path string, image []byte, fs *ext4.FS) {
	t.Helper()
	for _, tool := range []string{"mke2fs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v; run scripts/setup.sh", err)
		}
	}
	from, path := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := fill(from); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-q", "-t", "ext4", "-b", "4096", "-d", from}, options...)
	if out, err := exec.Command("mke2fs", append(args, path, "16M")...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if fs, err = ext4.Open(bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	return path, image, fs
}

// TestUnlistFile removes orphans from an orphan file.
func TestUnlistFile(t *testing.T) {
	path, image, fs := made(t, func(dir string) error {
		var err error
		for _, name := range []string{"a", "b", "c"} {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
		}
		return err
	}, "-O", "orphan_file")
	file, err := fs.Inode(fs.Super.OrphanFile)
	if err != nil {
		t.Fatal(err)
	}
	trees, err := audit.Tree(bytes.NewReader(image), nil, fs.Super.OrphanFile)
	if err != nil || len(trees.New) == 0 {
		t.Fatal(trees, err)
	}
	size := int(fs.Super.BlockSize)
	orphans := []addr.Ino{12, 13, 14}
	for i, n := range orphans {
		run := trees.New[0]
		at := run.Physical + addr.Block(i%2)*addr.Block(run.Length-1) // the first or the last
		b := image[int(at)*size:][:size]
		binary.LittleEndian.PutUint32(b[400*i:], uint32(n))
		if err := fs.Super.SealOrphanBlock(file, at, b); err != nil {
			t.Fatal(err)
		}
	}
	toggle(image, ext4.ROCompatOrphanPresent)
	unlisted(t, image, nil, orphans)
	edited, err := audit.Unlist(bytes.NewReader(image), nil, orphans)
	if err != nil {
		t.Fatal(err)
	}
	for at, b := range edited {
		copy(image[int(at)*size:], b)
	}
	toggle(image, ext4.ROCompatOrphanPresent)
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// toggle turns a feature of an image on or off.
func toggle(image []byte, f ext4.ROCompat) {
	super := image[ext4.SuperOffset:][:ext4.SuperSize]
	binary.LittleEndian.PutUint32(super[0x64:], binary.LittleEndian.Uint32(super[0x64:])^uint32(f))
	binary.LittleEndian.PutUint32(super[0x3fc:], ext4.CRC32C(^uint32(0), super[:0x3fc]))
}
