package salvage_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

var matrixTable = flag.String("salvage.matrix", "", "the file that TestMatrix writes its results to (make matrix)")

// crashes are the rows for each kernel.
var crashes = []struct {
	name string
	spec fixture.Spec
	only []string // kernels; nil: all
}{
	{"basic", fixture.Everything(""), nil},
	{"basic, 4 GiB, 1 CPU, 4-level paging", fixture.Spec{Workload: "basic", Memory: 4 << 30, CPUs: 1, CPU: "la57=off", FS: []string{"ext4", "ext3", "xfs"}}, nil},
	{"under writeback", fixture.Spec{Workload: "writeback", FS: []string{"ext4", "ext3", "xfs", "btrfs"}}, nil},
	{"20,000 files", fixture.Spec{Workload: "many", Memory: 512 << 20, FS: []string{"ext4"}}, nil},
	{"100,000 files, 16 GiB", fixture.Spec{Workload: "crowd", Memory: 16 << 30, FS: []string{"ext4"}}, []string{fixture.Default, "newest-cloud"}},
}

// leastWriteback is how many bytes of each file system must be under writeback in
// a crash during a sync, for the row to prove anything.
const leastWriteback = 100 << 10

// cell is one result of the matrix.
type cell struct {
	result
	failed bool
}

// row is the results of one crash.
type row struct {
	kernel, crash string
	cells         map[string]cell
}

func TestMatrix(t *testing.T) {
	into := *matrixTable
	rows := make(map[string][]row) // by kernel
	for _, crash := range crashes {
		for _, name := range fixture.Kernels {
			if crash.only != nil && !slices.Contains(crash.only, name) {
				continue
			}
			spec := crash.spec
			spec.Kernel = name
			t.Run(name+"/"+crash.name, func(t *testing.T) {
				defer func() {
					if t.Skipped() && into != "" {
						t.Error("the matrix is not whole")
					}
				}()
				r := row{kernel: name, crash: crash.name, cells: make(map[string]cell)}
				for _, fs := range spec.FS {
					r.cells[fs] = cell{failed: true}
				}
				defer func() { rows[name] = append(rows[name], r) }()
				if crash.name != "basic" {
					tier.Full(t, "another crash than the basic one")
				}
				image := fixture.Get(t, spec)
				r.kernel = image.Release
				checkImage(t, image, spec, r.cells)
			})
		}
	}
	if into != "" {
		if err := writeMatrix(into, rows); err != nil {
			t.Error(err)
		}
	}
}

// checkImage checks every file system of a crash image, and fills the cells.
func checkImage(t *testing.T, image *fixture.Image, spec fixture.Spec, cells map[string]cell) {
	k := openKernel(t, image)
	for _, fs := range spec.FS {
		t.Run(fs, func(t *testing.T) {
			var found result
			if i := slices.IndexFunc(image.Disks, func(d fixture.Disk) bool { return d.Name == fs }); i >= 0 && fs != "vfat" {
				if strings.HasPrefix(fs, "ext") {
					checkPlan(t, k, image.Disks[i], image.Files(fs))
				}
				checkForDisk(t, k, image.Disks[i])
			}
			found = checkPlanUnits(t, k, image, fs, spec.Workload)
			cells[fs] = cell{found, t.Failed()}
		})
	}
}

// checkForDisk checks that what brings a disk up to date can be planned, and for the ext family that the last commit can be finished.
func checkForDisk(t *testing.T, k *kernel.Kernel, d fixture.Disk) {
	t.Helper()
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	p, s, disk := planFor(t, c, d.Image)
	for _, err := range p.Faults {
		t.Error(err)
	}
	if err := p.Check(disk); err != nil {
		t.Error(err)
	}
	if !s.HasBuffers() {
		return
	}
	finished := duplicate(t, d.Image)
	finishOn(t, c, finished)
	out, err := exec.Command("e2fsck", "-fp", finished).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) { // it has removed orphans
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// checkPlanUnits checks the plan for a file system against the guest's checksums.
func checkPlanUnits(t *testing.T, k *kernel.Kernel, image *fixture.Image, name, workload string) result {
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	p, err := salvage.Of(c, superOf(t, c, image, name))
	if err != nil {
		t.Fatal(err)
	}
	staged := make([]byte, p.StagingSize())
	if err := p.Gather(staged); err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Refused {
		t.Error(r)
	}
	for _, err := range p.Faults {
		t.Error(err)
	}
	var onDisk func() map[uint32]bool
	// The journal of ext3 writes data back with each commit. checkPlan checks whole
	// files of the ext family in addition.
	if disk := image.Format(name); disk.Image != "" && (workload != "basic" || strings.HasPrefix(name, "ext")) {
		onDisk = sync.OnceValue(func() map[uint32]bool { return unitsOf(t, disk.Image) })
	}
	r := checkUnits(t, p, staged, image.Files(name), onDisk)
	if r.folio, r.writeback = lookAtPieces(c, &p.Super); r.folio <= k.Pages().Size() {
		r.folio = 0
	}
	t.Logf("%v; %d files, %d bytes exact, %d under writeback", p.Report(), r.files, r.bytes, r.writeback)
	if workload == "writeback" && r.writeback < leastWriteback {
		t.Errorf("only %d bytes were under writeback", r.writeback)
	}
	return r
}

// lookAtPieces returns how many bytes the largest folio among the unsaved pages has,
// and how many unsaved bytes are in pages under writeback.
func lookAtPieces(c *pagecache.Cache, s *pagecache.Superblock) (largest, writeback int64) {
	walk, pieces := c.Dirty, c.Unsaved
	if s.InMemory() {
		walk, pieces = c.Inodes, c.Held
	}
	for i, err := range walk(s) {
		if err != nil || !i.Regular() {
			continue
		}
		for piece, err := range pieces(s, i) {
			if err != nil {
				continue
			}
			largest = max(largest, piece.Len())
			if piece.Writeback {
				writeback += piece.Clip(i.Size).Len()
			}
		}
	}
	return largest, writeback
}

// TestUnsupported checks that a type that is not understood is refused by name, and that
// Check fails for a disk that cannot be compared with memory.
func TestUnsupported(t *testing.T) {
	k := openKernel(t, fixture.Get(t, fixture.Basic))
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for s, err := range c.Superblocks() {
		switch {
		case err != nil:
			t.Fatal(err)
		case s.Type == "proc" || s.Type == "sysfs":
			tried++
			if _, err := salvage.Of(c, s); !errors.Is(err, salvage.ErrUnsupported) || !strings.Contains(err.Error(), s.Type) {
				t.Errorf("%s: %v", s.Type, err)
			}
		case s.Type == "tmpfs":
			tried++
			p, err := salvage.Of(c, s)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Check(strings.NewReader("")); !errors.Is(err, salvage.ErrUnsupported) {
				t.Errorf("check of %s: %v", s.Type, err)
			}
		}
	}
	if tried < 3 {
		t.Errorf("only %d file systems to try", tried)
	}
}

// matrixHead begins docs/SUPPORT.md.
const matrixHead = `# What is supported

Made by ` + "`make matrix`" + ` on %s: do not edit.

Each row is a crash (sysrq c) of a stock Debian kernel under QEMU, with KASLR on, and nothing but its memory at hand: no symbols,
no debug information. Each cell is one file system in that crash. A cell with numbers means: every regular file that has anything
unsaved was found, with path, inode, generation, size, mode, owner, links and mtime as the guest itself said right before the
crash; every byte that is handed out has the checksum that the guest said; every byte that the guest changed since its last sync is
among them (in the row "under writeback", and where a journal commits data with names: or has reached the disk); nothing is handed out that the guest did not have, and
nothing was refused. For ext2, ext3 and ext4, moreover: written over what the disk itself has (after e2fsck in a copy), whole files
have the SHA-256 that the guest said. The numbers are regular files in all, and KiB that came out of memory, and how many of those
were in pages on their way to the disk; where the kernel keeps pages in large folios, the size of the largest that had unsaved bytes.

The workload "basic" is: new files in new directories, overwrites, appends, truncation, sparse files, stores through mmap, rename, hard
links, files deleted while open, one-page files, one-block changes to pages that are not in memory, names that are not UTF-8, mode,
owner and times, and files written in a control group of their own. Names that were not committed are the journal's matter, and
not part of this table.

`

// writeMatrix writes docs/SUPPORT.md.
func writeMatrix(path string, rows map[string][]row) error {
	var b strings.Builder
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// What other tests write follows it.
	_, rest, found := strings.Cut(string(old), arm64Title)
	title := arm64Title
	if !found {
		_, rest, _ = strings.Cut(string(old), wideTitle)
		title = wideTitle
	}
	fmt.Fprintf(&b, matrixHead, time.Now().UTC().Format("2006-01-02"))
	columnHeads(&b)
	for _, name := range fixture.Kernels {
		for _, r := range rows[name] {
			fmt.Fprintf(&b, "| %s | %s |%s\n", r.kernel, r.crash, r.line())
		}
	}
	b.WriteString(supportFormats + supportHosts)
	if rest != "" {
		b.WriteString(title + rest)
	}
	return replaceFile(path, b.String())
}

// replaceSection writes a section of docs/SUPPORT.md, which begins with its title, in place of the one
// that is there, or at the end.
func replaceSection(path, title, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	before, rest, _ := strings.Cut(string(old), title)
	if _, after, found := strings.Cut(rest, "\n## "); found {
		text += "\n## " + after
	}
	return replaceFile(path, before+text)
}

func columnHeads(b *strings.Builder) {
	fmt.Fprintf(b, "| kernel | crash | %s |\n|---|---|%s\n", strings.Join(fixture.FileSystems, " | "), strings.Repeat("---|", len(fixture.FileSystems)))
}

func replaceFile(path, text string) error {
	tmp := path + ".new"
	return cmp.Or(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(tmp, []byte(text), 0o644), os.Rename(tmp, path))
}

// line returns a row of the table without its first two columns.
func (r row) line() string {
	var b strings.Builder
	for _, fs := range fixture.FileSystems {
		switch c, ok := r.cells[fs]; {
		case !ok:
			b.WriteString(" |")
		case c.failed:
			b.WriteString(" **not exact** |")
		default:
			fmt.Fprintf(&b, " %d files, %d KiB", c.files, c.bytes>>10)
			if c.writeback > 0 {
				fmt.Fprintf(&b, ", %d under writeback", c.writeback>>10)
			}
			if c.folio > 0 {
				fmt.Fprintf(&b, ", folios to %d KiB", c.folio>>10)
			}
			b.WriteString(" |")
		}
	}
	return b.String()
}
