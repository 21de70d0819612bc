package journal_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/tier"
)

// outcomes counts the results for damaged memories of one kind.
type outcomes struct{ refused, checked, unproven, placed int }

// TestHostilePlace damages the structures that places are made from. Whatever they say,
// e2fsck finds nothing wrong with the file system afterwards, or the rescue was refused, or
// it asks for a check itself. Each file that is said to be whole, or was on the disk before,
// has exactly the bytes that it had, unless its inode in memory has another size by now.
func TestHostilePlace(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	for _, d := range image.Disks {
		t.Run(d.Name, func(t *testing.T) {
			if d.Name != "ext4" {
				tier.Full(t, "hostile memory of files to be placed on "+d.Name)
			}
			disk := openDisk(t, d.Image)
			c := openCache(t, image)
			rec := &recorder{Memory: c.Kernel().Memory(), block: int(superOf(t, c, d).BlockSize)}
			what := lookAround(t, rec, d, disk)
			mem := &damaged{Memory: rec.Memory}
			in := cacheOf(t, mem) // the memory that the kernel is found by is not damaged
			id := superOf(t, in, d).UUID
			j := newFiles(t, image.Files(d.Name), disk)
			of := make([]outcomes, len(damages))
			done, failed, worst := 0, 0, time.Duration(0)
			end, limited := t.Deadline()
			for seed := *damageFrom; seed < *damageFrom+*damageCases && failed < 20; seed++ {
				if limited && done > 0 && time.Until(end) < time.Minute {
					break // the log says how many were done
				}
				done++
				kind := seed % len(damages)
				mem.pages = make(map[addr.Phys][]byte)
				damages[kind].do(mem, rand.New(rand.NewPCG(uint64(seed), 5)), what)
				start := cpuTime(t)
				j.inFlight = seed / len(damages) % 2
				found, err := j.judge(in, id, disk, &of[kind])
				worst = max(worst, cpuTime(t)-start)
				if len(found) > 0 {
					failed++
					t.Errorf("seed %d: %s (%v): %s; %v", seed, damages[kind].name, err, mem.differences(), errors.Join(found...))
				}
			}
			for n, o := range of {
				t.Logf("%-20s %5d refused, %5d that e2fsck finds nothing wrong with, %5d to be checked; %7d files placed",
					damages[n].name, o.refused, o.checked, o.unproven, o.placed)
			}
			t.Logf("%d damaged memories from %d on; the slowest took %v of a CPU", done, *damageFrom, worst)
			if worst > 30*time.Second {
				t.Errorf("it took %v of a CPU", worst)
			}
		})
	}
}

// openDisk opens an image for reading only.
func openDisk(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// lookAround reads what a rescue with placement reads, except for the content of files.
func lookAround(t *testing.T, rec *recorder, d fixture.Disk, disk io.ReaderAt) *seen {
	t.Helper()
	c := cacheOf(t, rec)
	s := superOf(t, c, d)
	rec.looks = nil
	r, err := journal.Plan(c, s, jbd2.NewRecording(disk))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := c.Device(s, disk)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range c.Dirty(s) {
		if err == nil && i.Regular() {
			_, _ = dev.UnsavedBlocks(i) // only the reads matter
		}
	}
	if _, err := c.Quotas(s); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ext4(s); err != nil {
		t.Fatal(err)
	}
	return rec.seen(t, r.Journal, recovered(t, jbd2.NewRecording(disk)))
}

// placeIn carries a rescue out with inFlight more handles open, and returns the sizes that memory has
// for its files.
func placeIn(c *pagecache.Cache, id addr.UUID, disk *jbd2.Recording, inFlight int) (*journal.Report, map[addr.Ino]int64, error) {
	s, err := c.Superblock(id)
	if err != nil {
		return nil, nil, err
	}
	r, err := journal.Plan(c, s, disk)
	if err != nil {
		return nil, nil, err
	}
	r.Place = true
	if r.Journal != nil && r.Journal.Running != nil {
		r.Journal.Running.Updates += inFlight
	}
	report, err := r.Finish(disk)
	sizes := make(map[addr.Ino]int64)
	for i, err := range c.Dirty(s) {
		if err == nil {
			sizes[i.Ino] = i.Size
		}
	}
	return report, sizes, err
}

// files is what the crash recorded about its files, and a disk.
type files struct {
	t       *testing.T
	of      map[addr.Ino]record.File
	content map[addr.Ino][]byte // of files that were found to be unchanged
	saved   map[addr.Ino]bool   // files that are on the disk without a rescue
	base    *memoryDisk

	inFlight int // how many more handles memory has open
}

func newFiles(t *testing.T, all []record.File, disk *os.File) *files {
	t.Helper()
	j := &files{t: t, of: make(map[addr.Ino]record.File), content: make(map[addr.Ino][]byte), saved: make(map[addr.Ino]bool), base: newMemoryDisk(t, disk)}
	for _, f := range all {
		j.of[addr.Ino(f.Ino)] = f
	}
	fs, err := ext4.Open(recovered(t, jbd2.NewRecording(disk)))
	if err != nil {
		t.Fatal(err)
	}
	for ino := range j.of {
		if i, err := fs.Inode(ino); err == nil && i.IsRegular() {
			j.saved[ino] = j.is(fs, i) == nil
		}
	}
	return j
}

// is returns how a file on a disk differs from what it was.
func (j *files) is(fs *ext4.FS, i *ext4.Inode) error {
	b, err := contentOf(fs, i)
	if err != nil {
		return err
	}
	if known, ok := j.content[i.Number]; ok {
		if !bytes.Equal(b, known) {
			return errors.New("it is not what it was")
		}
		return nil
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != j.of[i.Number].SHA256 {
		return errors.New("it is not what it was")
	}
	j.content[i.Number] = b
	return nil
}

// judge carries a rescue out, and returns what is wrong with the result, and why it was refused.
func (j *files) judge(c *pagecache.Cache, id addr.UUID, disk io.ReaderAt, o *outcomes) (wrong []error, refused error) {
	out := jbd2.NewRecording(disk)
	report, sizes, err := placeIn(c, id, out, j.inFlight)
	switch {
	case err != nil:
		refused = err
		o.refused++
		report = &journal.Report{} // the disk is as the crash left it
	case report.Check != "":
		o.unproven++
	default:
		o.checked++
	}
	if report.Placement != nil {
		o.placed += len(report.Placement.Files)
	}
	var checked io.ReaderAt = recovered(j.t, out)
	if len(out.Ops()) > 0 {
		repaired, err := j.base.fsck(out, report.Check != "")
		if repaired != nil {
			defer repaired.Close()
			checked = repaired
		}
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	fs, err := ext4.Open(checked)
	if err != nil {
		j.t.Fatal(err)
	}
	for ino, want := range j.of {
		_, whole := report.Written[ino]
		if !whole && !j.saved[ino] {
			continue
		}
		i, err := fs.Inode(ino)
		if err != nil || !i.IsRegular() {
			continue
		}
		if n := int64(i.Size); n != want.Size && n == sizes[ino] {
			continue // as memory says
		}
		if err := j.is(fs, i); err != nil {
			wrong = append(wrong, fmt.Errorf("inode %d (said to be whole: %v; on the disk before: %v): %w", ino, whole, j.saved[ino], err))
		}
	}
	return wrong, refused
}

// contentOf reads a file.
func contentOf(fs *ext4.FS, i *ext4.Inode) ([]byte, error) {
	size := uint64(fs.Super.BlockSize)
	if i.Size > 1<<30 {
		return nil, errors.New("it is too large")
	}
	out := make([]byte, (i.Size+size-1)/size*size)
	for at := uint64(0); at*size < i.Size; {
		r, err := fs.Map(i, uint32(at))
		if errors.Is(err, ext4.ErrHole) {
			at++
			continue
		}
		if err != nil {
			return nil, err
		}
		n := min(uint64(r.Length), uint64(len(out))/size-at)
		if !r.Unwritten {
			if err := fs.ReadBlocks(out[at*size:][:n*size], r.Physical); err != nil {
				return nil, err
			}
		}
		at += n
	}
	return out[:i.Size], nil
}

// memoryDisk is a disk that can be copied in memory.
type memoryDisk struct {
	size int64
	data []jbd2.Op // everything but the holes
}

func newMemoryDisk(t *testing.T, disk *os.File) *memoryDisk {
	t.Helper()
	info, err := disk.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m := &memoryDisk{size: info.Size()}
	for at := int64(0); at < m.size; {
		from, err := unix.Seek(int(disk.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		to, err2 := unix.Seek(int(disk.Fd()), from, unix.SEEK_HOLE)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		b, err := unix.Mmap(int(disk.Fd()), from, int(to-from), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(b) })
		m.data = append(m.data, jbd2.Op{Offset: from, Data: b})
		at = to
	}
	return m
}

// copy returns the disk with what was written to it, in memory.
func (m *memoryDisk) copy(out *jbd2.Recording) (f *os.File, err error) {
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f = os.NewFile(uintptr(fd), "disk")
	if err = f.Truncate(m.size); err != nil {
		return f, err
	}
	for _, op := range m.data {
		if _, err = f.WriteAt(op.Data, op.Offset); err != nil {
			return f, err
		}
	}
	for off, data := range out.Changed() {
		if _, err = f.WriteAt(data, off); err != nil {
			return f, err
		}
	}
	return f, nil
}

var listed = regexp.MustCompile(`(?m)^.*: Truncating orphaned inode .*$`)

// fsck runs e2fsck on the disk with what was written to it, and returns the result. If it is to
// repair the disk, it may find something.
func (m *memoryDisk) fsck(out *jbd2.Recording, repair bool) (*os.File, error) {
	f, err := m.copy(out)
	if err != nil {
		return f, err
	}
	cmd := exec.Command("e2fsck", "-fp", "/dev/fd/3")
	if repair {
		cmd.Args[1] = "-fy"
	}
	cmd.ExtraFiles = []*os.File{f}
	said, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code == 0 || code == 1 { // 1: it has corrected what is harmless
		err = nil
	}
	// e2fsck deletes files that were deleted while open, which is no fault. A file of an older state may have
	// its name back and still be on the orphan list, which e2fsck and a mount take it off.
	left := strings.TrimSpace(listed.ReplaceAllString(harmless.ReplaceAllString(string(said), ""), ""))
	if err != nil || !repair && left != "" || !strings.Contains(string(said), " files (") {
		return f, fmt.Errorf("e2fsck found: %v: %s", err, left)
	}
	return f, nil
}
