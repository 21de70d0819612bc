package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// Adoption brings the disks of a QEMU up to date that somebody else started, and whose
// kernel has died in it.
type Adoption struct {
	Options        // of each disk; Image, Disk and FS are found
	Memory  string // where to keep the memory; empty: in Work, or beside the first disk
	// End allows the process to be ended, once its memory is safe. Without it nothing is
	// written to a disk.
	End bool
	// Hung says that a kernel that is in no panic is dead all the same.
	Hung bool
}

// Adopted is what became of it.
type Adopted struct {
	Memory  string    `json:"memory,omitempty"` // the file that is kept; empty: it is not needed any more
	Reports []*Report `json:"disks"`
	// Missing are file systems that the dead kernel had mounted, which none of the disks has.
	Missing []string `json:"missing"`
}

// Complete says whether everything in memory is on the disks.
func (a *Adopted) Complete() bool {
	for _, r := range a.Reports {
		if !r.Complete {
			return false
		}
	}
	return len(a.Missing) == 0
}

var (
	errRuns = errors.New("its kernel is in no panic: it may be alive")
	errHeld = errors.New("the process has its disks open")
)

// endLimit is how long a process may take to be gone after it was killed.
const endLimit = 30 * time.Second

// Run freezes the process, copies its memory to a file, ends the process, and does what Run of
// Options does to each disk with a file system that the dead kernel had mounted. Before the
// process is ended, nothing has changed, and with an error it goes on, once it is closed. The file with its
// memory is removed only if everything in it is on the disks.
func (a Adoption) Run(ctx context.Context, m *foreign.Machine) (*Adopted, error) {
	if err := m.Freeze(); err != nil {
		return nil, err
	}
	disks, err := m.Disks()
	if err != nil {
		return nil, err
	}
	if !a.End {
		return nil, hint.New(fmt.Sprintf("write to the disks of process %d", m.PID), errHeld,
			"Nothing was touched. With --end, its memory is kept in a file, the process is ended, and its disks are brought up to date. To look first: understudy salvage save.")
	}
	if err := a.place(m, disks); err != nil {
		return nil, err
	}
	if err := m.Save(ctx, a.Memory); err != nil {
		return nil, err
	}
	out := &Adopted{Memory: a.Memory, Reports: []*Report{}, Missing: []string{}}
	found, err := a.found(disks, out)
	if err != nil {
		return nil, errors.Join(err, os.Remove(a.Memory))
	}
	if err := m.End(endLimit); err != nil { // it may end yet: the file may be all that is left
		return out, err
	}
	if err := a.apply(ctx, found, out); err != nil || !out.Complete() {
		return out, err
	}
	out.Memory = ""
	return out, os.Remove(a.Memory)
}

// apply brings each disk up to date: one that fails does not keep the others from it.
func (a *Adoption) apply(ctx context.Context, disks []string, out *Adopted) error {
	var errs []error
	for _, d := range disks {
		o := a.Options
		o.Image, o.Disk = a.Memory, d
		r, err := Run(ctx, o)
		if err != nil {
			errs = append(errs, hint.New("bring "+d+" up to date", err, "Its machine's memory is in "+a.Memory+": keep it, and go on with understudy salvage apply."))
			continue
		}
		out.Reports = append(out.Reports, r)
	}
	return errors.Join(errs...)
}

// place chooses where the memory is kept.
func (a *Adoption) place(m *foreign.Machine, disks []foreign.Disk) error {
	if a.Memory != "" {
		return nil
	}
	dir := a.Work
	for _, d := range disks {
		if dir == "" && !strings.HasPrefix(d.Path, "/dev/") {
			dir = filepath.Dir(d.Path)
		}
	}
	if dir == "" {
		return hint.New(fmt.Sprintf("keep the memory of process %d", m.PID), errors.New("there is no room beside its disks"), "Name a file with --memory, on a disk with room for it.")
	}
	a.Memory = filepath.Join(dir, fmt.Sprintf("qemu-%d.memory", m.PID))
	return nil
}

// found returns the disks that have a file system which the dead kernel had mounted.
func (a *Adoption) found(disks []foreign.Disk, out *Adopted) ([]string, error) {
	memory, err := inventory.Open(a.Memory, morgue.Builds()...)
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	if _, panicked, err := memory.Kernel.PanicCPU(); (err != nil || !panicked) && !a.Hung {
		return nil, hint.New("salvage a running machine", errRuns, "Nothing was touched, and it goes on. If it hangs and will not come back, say so with --hung.")
	}
	all, _, err := memory.FileSystems()
	if err != nil {
		return nil, err
	}
	on, err := identified(disks)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, f := range all {
		if !f.HasDevice() {
			continue
		}
		if path, ok := on[f.Super.UUID]; ok {
			found = append(found, path)
			continue
		}
		if !f.Super.HasBuffers() && f.Super.Type != "xfs" && f.Super.Type != "btrfs" && idle(f) {
			continue // a CD, a disk of firmware's
		}
		out.Missing = append(out.Missing, fmt.Sprintf("%s %s, %s", f.Super.Type, f.Super.UUID, f.Device))
	}
	if len(found) == 0 {
		return nil, hint.New("find the dead machine's disks", ErrNotMounted, fmt.Sprintf("It had %v mounted. Its process has %v open for writing.", out.Missing, disks))
	}
	return found, nil
}

// idle says whether nothing of a file system waits to be written.
func idle(f *inventory.FileSystem) bool {
	found := f.Find(inventory.Query{Accept: func(string) bool { return true }})
	return len(found.Files)+len(found.Refused)+len(found.Faults) == 0
}

// identified are the disks by the file system that they have. Two with the same one cannot be
// told from each other.
func identified(disks []foreign.Disk) (map[pagecache.UUID]string, error) {
	on := make(map[pagecache.UUID]string)
	for _, d := range disks {
		if d.Format != "raw" {
			return nil, hint.New("open disk "+d.Path, fmt.Errorf("it is a %s image", d.Format),
				"Only raw images and block devices can be written to. Save its memory (understudy salvage save), end QEMU in good order (quit, in its monitor), convert the image (qemu-img convert -O raw), and apply the memory to that.")
		}
		f, err := os.Open(d.Path)
		if err != nil {
			return nil, err
		}
		fs, err := salvage.Identify(f)
		if err = errors.Join(err, f.Close()); errors.Is(err, salvage.ErrNoFileSystem) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open disk %s: %w", d.Path, err)
		}
		if other, taken := on[fs.UUID]; taken {
			return nil, hint.New("find the dead machine's disks", fmt.Errorf("%s and %s have file system %v both", other, d.Path, fs.UUID),
				"Save its memory (understudy salvage save), end QEMU, and apply the memory to the one that was mounted.")
		}
		on[fs.UUID] = d.Path
	}
	return on, nil
}
