package salvage_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

func openKernel(t testing.TB, image *fixture.Image) *kernel.Kernel {
	t.Helper()
	return kernelIn(t, image.RAM)
}

// kernelIn finds the kernel in a memory file.
func kernelIn(t testing.TB, path string) *kernel.Kernel {
	t.Helper()
	mem, err := ram.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func uuidOf(t testing.TB, d fixture.Disk) pagecache.UUID {
	t.Helper()
	id, err := addr.ParseUUID(d.UUID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// dumpBase writes what the disk itself has of the files, by inode number, to a
// directory, after a replay of the journal in a copy.
func dumpBase(t testing.TB, disk string, files []record.File) string {
	t.Helper()
	dir := t.TempDir()
	img := filepath.Join(dir, "copy.img")
	if out, err := exec.Command("cp", "--sparse=always", disk, img).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-fy", img).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 3 {
			t.Fatalf("e2fsck: %v: %s", err, out)
		}
	}
	var script strings.Builder
	for _, f := range files {
		fmt.Fprintf(&script, "dump <%d> %s/%d\n", f.Ino, dir, f.Ino)
	}
	cmd := exec.Command("debugfs", "-f", "-", img)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	return dir
}

// rescued returns the content of a file after the plan: what the disk has, overwritten
// by the runs. It writes as a rescuer would: WriteLen bytes, and then the size.
func rescued(t testing.TB, base string, f *salvage.File, staged []byte) []byte {
	t.Helper()
	content, err := os.ReadFile(base)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	room := make([]byte, addr.AlignUp(max(f.Size, int64(len(content)))))
	copy(room, content)
	for i := range f.Runs {
		r := &f.Runs[i]
		copy(room[r.Off:r.Off+r.WriteLen()], staged[r.Staged:])
	}
	return room[:f.Size]
}

func TestPlanMatchesGuest(t *testing.T) {
	for name, spec := range fixture.Common {
		t.Run(name, func(t *testing.T) {
			image := fixture.Get(t, spec)
			k := openKernel(t, image)
			for _, disk := range image.Disks {
				t.Run(disk.Name, func(t *testing.T) { checkPlan(t, k, disk, image.Files(disk.Name)) })
			}
		})
	}
}

func checkPlan(t *testing.T, k *kernel.Kernel, disk fixture.Disk, truth []record.File) {
	start := time.Now()
	p, err := salvage.New(k, uuidOf(t, disk))
	if err != nil {
		t.Fatal(err)
	}
	planned := time.Since(start)
	staged := make([]byte, p.StagingSize())
	for i := range staged {
		staged[i] = 0xaa // whatever was there before must not show
	}
	start = time.Now()
	if err := p.Gather(staged); err != nil {
		t.Fatal(err)
	}
	report := p.Report()
	t.Logf("planned in %v, gathered in %v: %v", planned, time.Since(start), report)
	for _, r := range p.Refused {
		t.Error(r)
	}
	for _, err := range p.Faults {
		t.Error(err)
	}
	checkDisk(t, p, disk.Image)
	checkFiles(t, p, staged, disk.Image, truth)
}

// checkFiles checks that every regular file of the truth is as the guest said, once
// the plan is carried out, and that the plan has no other files.
func checkFiles(t *testing.T, p *salvage.Plan, staged []byte, disk string, truth []record.File) {
	t.Helper()
	planned := make(map[addr.Ino]*salvage.File)
	for i := range p.Files {
		planned[p.Files[i].Ino] = &p.Files[i]
	}
	names, deleted := make(map[addr.Ino][]string), 0
	var files []record.File
	for _, f := range truth {
		switch {
		case f.Mode&pagecache.ModeType != pagecache.ModeRegular:
		case f.NLink == 0:
			deleted++
		default:
			files = append(files, f)
			names[addr.Ino(f.Ino)] = append(names[addr.Ino(f.Ino)], string(f.Path))
		}
	}
	for ino, f := range planned {
		if names[ino] == nil {
			t.Errorf("inode %d, %q, is in the plan, and the guest had no such file", ino, f.Path)
		}
	}
	if p.Deleted != deleted {
		t.Errorf("%d deleted files instead of %d", p.Deleted, deleted)
	}
	base := dumpBase(t, disk, files)
	bad := 0
	for _, want := range files {
		f := planned[addr.Ino(want.Ino)]
		if f == nil {
			// Nothing unsaved: the disk must have it all.
			f = &salvage.File{Ino: addr.Ino(want.Ino), Size: want.Size}
		} else if err := sameAttributes(f, want, names[f.Ino]); err != nil {
			t.Errorf("%q: %v", want.Path, err)
		}
		sum := sha256.Sum256(rescued(t, filepath.Join(base, fmt.Sprint(want.Ino)), f, staged))
		if hex.EncodeToString(sum[:]) != want.SHA256 {
			if bad++; bad < 10 {
				t.Errorf("%q (inode %d, %d bytes, %d runs): content differs", want.Path, want.Ino, want.Size, len(f.Runs))
			}
		}
	}
	t.Logf("%d of %d files have the content that the guest says", len(files)-bad, len(files))
}

// TestRestore checks that files of which memory has everything are as the guest said, once
// they are restored, whatever the disk has of them: also files that were committed, and files
// of which nothing was unsaved.
func TestRestore(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	c, err := pagecache.Open(openKernel(t, image))
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range image.Disks {
		s, err := c.Superblock(uuidOf(t, disk))
		if err != nil {
			t.Fatal(err)
		}
		p, err := salvage.Of(c, s)
		if err != nil {
			t.Fatal(err)
		}
		committed, before := make(map[addr.Ino]struct{}), len(p.Files)
		for i := range p.Files {
			if i%2 == 0 {
				committed[p.Files[i].Ino] = struct{}{}
			}
		}
		p.Remove(committed)
		want := make(map[addr.Ino]record.File)
		for _, f := range image.Files(disk.Name) {
			want[addr.Ino(f.Ino)] = f
		}
		restored, holes := restoreKnown(t, c, s, p, want)
		if restored < before/2 || holes == 0 && disk.Type == "ext4" {
			t.Errorf("%s: %d files with %d holes are restored, of %d that had unsaved data", disk.Name, restored, holes, before)
		}
		t.Logf("%s: %d files with %d holes", disk.Name, restored, holes)
	}
}

// restoreKnown restores all files of which memory knows everything, and compares them.
func restoreKnown(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, p *salvage.Plan, want map[addr.Ino]record.File) (files, holes int) {
	restored := make(map[addr.Ino]struct{})
	for i, err := range c.Inodes(s) {
		if _, there := want[i.Ino]; err != nil || !there || !i.Regular() || i.Deleted() {
			continue
		}
		zeros, err := c.Zeros(s, i)
		if err != nil {
			t.Fatal(err)
		}
		var filled, empty []addr.Span
		at := int64(0)
		hole := func(end int64) {
			for _, z := range zeros {
				if z.Off <= at && z.End >= end && at < end {
					empty = append(empty, addr.Span{Off: at, End: end})
					at = end
				}
			}
		}
		for piece, err := range c.All(s, i) {
			if err != nil {
				t.Fatal(err)
			}
			if hole(piece.Off); piece.Off > at {
				break
			}
			filled = append(filled, piece.Span)
			at = piece.End
		}
		if hole(i.Size); at < i.Size {
			continue
		}
		p.Restore(c, s, journal.AfterMount{Inode: i, Filled: filled, Holes: empty})
		restored[i.Ino] = struct{}{}
		holes += len(empty)
	}
	staged := bytes.Repeat([]byte{0xaa}, int(p.StagingSize()))
	if err := p.Gather(staged); err != nil {
		t.Fatal(err)
	}
	for i := range p.Files {
		f := &p.Files[i]
		if _, there := restored[f.Ino]; !there {
			continue
		}
		files++
		room := bytes.Repeat([]byte{0xbb}, int(addr.AlignUp(f.Size)))
		for i := range f.Runs {
			r := &f.Runs[i]
			copy(room[r.Off:r.Off+r.WriteLen()], staged[r.Staged:])
		}
		for _, h := range f.Holes {
			clear(room[h.Off:h.End])
		}
		if sum := sha256.Sum256(room[:f.Size]); hex.EncodeToString(sum[:]) != want[f.Ino].SHA256 {
			t.Errorf("%q (inode %d, %d bytes, %d runs, %d holes): content differs", f.Path, f.Ino, f.Size, len(f.Runs), len(f.Holes))
		}
	}
	return files, holes
}

func sameAttributes(f *salvage.File, want record.File, paths []string) error {
	switch {
	case f.Size != want.Size, uint32(f.Mode) != want.Mode, f.UID != want.UID, f.GID != want.GID,
		uint64(f.NLink) != want.NLink, want.Generation >= 0 && int64(f.Generation) != want.Generation:
		return fmt.Errorf("attributes %d %o %d %d %d %d differ from %+v", f.Size, f.Mode, f.UID, f.GID, f.NLink, f.Generation, want)
	case !f.Mtime.Equal(want.Mtime):
		return fmt.Errorf("mtime is %v, not %v", f.Mtime, want.Mtime)
	case !slices.Contains(paths, f.Path):
		return fmt.Errorf("path is %q, not one of %q", f.Path, paths)
	}
	return nil
}

// checkDisk checks that the plan fits its disk, and no other.
func checkDisk(t *testing.T, p *salvage.Plan, disk string) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := p.Check(f); err != nil {
		t.Error(err)
	}
	super := make([]byte, 2*ext4.SuperOffset)
	if _, err := f.ReadAt(super, 0); err != nil {
		t.Fatal(err)
	}
	for field, off := range map[string]int{"uuid": 0x68, "mount count": 0x34, "mount time": 0x2c, "magic": 0x38} {
		changed := append([]byte(nil), super...)
		changed[ext4.SuperOffset+off]++
		if err := p.Check(strings.NewReader(string(changed))); !errors.Is(err, salvage.ErrDiskChanged) {
			t.Errorf("with another %s: %v", field, err)
		}
	}
}
