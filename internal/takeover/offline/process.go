package offline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/qcow2"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// Adoption brings up to date the disks of a QEMU process that somebody else started, and
// whose guest kernel has died.
type Adoption struct {
	Options        // of each disk; Image, Disk and FS are found
	Memory  string // where to keep the memory; empty means in Work, or beside the largest disk
	// End allows the process to be ended, once its memory is safe. Without it nothing is
	// written to a disk.
	End bool
	// Hung says that the kernel is to be taken for dead even if it is not in panic.
	Hung bool
	// Record is the path of a file that says what is still to be done, from before the process is
	// ended until the disks are up to date, so that Resume can do it. Empty means that there is none.
	Record string
	// Note is kept in Record, and returned by Resume.
	Note json.RawMessage
	// Room is a directory for the memory if no disk is a file (otherwise the memory is kept
	// beside one). Empty means that such a run is refused.
	Room string

	run func(context.Context, Options) (*Report, error) // Run, unless a test sets it
}

// Adopted is the result of an Adoption.
type Adopted struct {
	Memory  string    `json:"memory,omitempty"` // the file that is kept; empty if it is not needed any more
	Reports []*Report `json:"disks"`
	// Missing are the file systems that the dead kernel had mounted, and that are on none of the disks.
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

// Files says how many files were written to the disks.
func (a *Adopted) Files() (n int) {
	for _, r := range a.Reports {
		if r.Plan != nil {
			n += len(r.Plan.Files)
		}
	}
	return n
}

var (
	errRuns = errors.New("its kernel is in no panic: it may be alive")
	errHeld = errors.New("the process has its disks open")
)

// endLimit is how long a process may take to be gone after it was killed, and quitLimit how long QEMU may take to write what it
// has of its images in its own memory, and to end.
const (
	endLimit  = 30 * time.Second
	quitLimit = 5 * time.Minute
)

// Run freezes the process, copies its memory to a file, ends the process, and brings up to date each file
// system of its disks that the dead kernel had mounted, as the function Run does. Until the process is
// ended nothing has changed, and after an error the process goes on when m is closed. The file with the
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
	c := &custody{Name: m.Name, PID: m.PID, Note: a.Note}
	for _, d := range disks {
		switch d.Format {
		case "raw":
			c.Raw = append(c.Raw, d.Path)
		case qcow2.Format:
			c.Quit, c.Backing = true, m.OpenFiles()
		}
	}
	if err := a.place(c, disks); err != nil {
		return nil, err
	}
	if err := a.take(ctx, m, disks, c); err != nil {
		return nil, err
	}
	if err := c.endOf(m); err != nil { // it may still end: the file may then be all that is left
		return c.adopted(), err
	}
	return a.finish(ctx, c)
}

// take copies the memory to its file, and finds the disks that it belongs to, for c. After an error, the
// file is removed.
func (a *Adoption) take(ctx context.Context, m *foreign.Machine, disks []foreign.Disk, c *custody) (err error) {
	f, err := newMemory(a.Memory)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		err = errors.Join(err, f.Close()) // this releases the lock
	}()
	if err := m.SaveTo(ctx, f); err != nil {
		return err
	}
	c.Memory = a.Memory
	if c.Started, err = m.Started(); err != nil {
		return err
	}
	if c.Boot, err = bootID(); err != nil {
		return err
	}
	types, err := a.find(f.Name(), disks, c)
	if err != nil {
		return err
	}
	if err := a.bootable(ctx, types); err != nil {
		return err
	}
	if err := a.outlasts(c.Places); err != nil {
		return err
	}
	if a.Record != "" {
		if err := c.write(a.Record); err != nil {
			return err
		}
	}
	// From here on the file is complete, as its name says.
	if err := c.settle(); err != nil {
		if a.Record != "" {
			err = errors.Join(err, os.Remove(a.Record))
		}
		return err
	}
	return nil
}

// place chooses where the memory is kept.
func (a *Adoption) place(c *custody, disks []foreign.Disk) (err error) {
	if a.Memory != "" {
		a.Memory, err = filepath.Abs(a.Memory)
		return err
	}
	dir := cmp.Or(a.Work, c.beside(disks), a.Room)
	if dir == "" {
		return hint.New(fmt.Sprintf("keep the memory of process %d", c.PID), errors.New("all its disks are block devices, with no directory beside them"), "Name a file with --memory, on a disk with room for it.")
	}
	a.Memory, err = filepath.Abs(filepath.Join(dir, fmt.Sprintf("qemu-%d.memory", c.PID)))
	return err
}

// bootable checks that a guest can be made for each type of file system that is written to in
// a guest: once the process has ended, it is too late to find out.
func (a *Adoption) bootable(ctx context.Context, types []string) (err error) {
	dir, err := os.MkdirTemp("", "understudy-guest-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, t := range slices.Compact(slices.Sorted(slices.Values(types))) {
		if a.Guest == "" && strings.HasPrefix(t, "ext") {
			continue
		}
		g, err := newGuest(ctx, a.Guest, t)
		if err == nil {
			err = errors.Join(partition.Installed(), g.Image(filepath.Join(dir, t)))
		}
		if err != nil {
			return fmt.Errorf("make a guest that can mount %s (nothing was touched): %w", t, err)
		}
	}
	return nil
}

// beside returns the directory of the largest file with a file system or, if there is none, of the
// largest file: QEMU also writes to files that are not disks. Empty means that there are only devices.
func (c *custody) beside(disks []foreign.Disk) (dir string) {
	most := int64(-1)
	for _, d := range disks {
		st, err := os.Stat(d.Path)
		if err != nil || strings.HasPrefix(d.Path, "/dev/") {
			continue
		}
		size := st.Size()
		if found, _, err := c.places(d.Path); err == nil && len(found) > 0 {
			size += 1 << 62
		}
		if size > most {
			dir, most = filepath.Dir(d.Path), size
		}
	}
	return dir
}

// find finds the file systems, on the machine's disks, that the dead kernel had mounted, and
// returns their types.
func (a *Adoption) find(image string, disks []foreign.Disk, c *custody) (types []string, err error) {
	memory, err := inventory.Open(image, morgue.Builds()...)
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	if _, panicked, err := memory.Kernel.PanicCPU(); (err != nil || !panicked) && !a.Hung {
		return nil, hint.New("salvage a running machine", errRuns, "Nothing was touched, and it goes on. If it hangs and will not come back, say so with --hung.")
	}
	if c.Quit {
		if err := stopped(memory.Kernel); err != nil {
			return nil, err
		}
	}
	// If Absent fails, we go on: a dead machine's data is not to be lost because this could not be found out.
	if absent, _ := memory.Kernel.Absent(); len(absent) > 0 {
		return nil, hint.New("copy a machine's memory", fmt.Errorf("its kernel has hotplugged memory, which the file would lack: %v", absent),
			"Nothing was touched. Have QEMU dump all of it (dump-guest-memory, or virsh dump --memory-only), and use that file.")
	}
	all, _, err := memory.FileSystems()
	if err != nil {
		return nil, err
	}
	on, unusable, err := c.identified(disks)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		if !f.HasDevice() {
			continue
		}
		place, ok := on[f.Super.UUID]
		if !ok && slices.Contains(inventory.OfUUID(all, f.Super.MountUUID), f) {
			place, ok = on[f.Super.MountUUID]
		}
		why := stacked(f.Device)
		if ok && why == "" {
			c.Places, types = append(c.Places, place), append(types, f.Super.Type)
			continue
		}
		if !f.Super.HasBuffers() && f.Super.Type != "xfs" && f.Super.Type != "btrfs" && idle(f) {
			continue // a CD, or a disk of the firmware
		}
		if strings.HasPrefix(f.Device, "dm-") {
			for _, u := range unusable {
				why += "; " + u.Error()
			}
		}
		c.Missing = append(c.Missing, fmt.Sprintf("%s %s, %s%s", f.Super.Type, f.Super.UUID, f.Device, why))
	}
	if len(c.Places) == 0 {
		return nil, hint.New("find the dead machine's disks", ErrNotMounted, fmt.Sprintf("It had %v mounted. Its process has %v open for writing.", c.Missing, disks))
	}
	return types, nil
}

// stopped checks that a kernel does not go on if its QEMU does, for the moment that it takes QEMU to end in good order: it is in
// panic, and has stopped its other CPUs.
func stopped(k *kernel.Kernel) error {
	_, panicked, err := k.PanicCPU()
	online := 0
	if err == nil && panicked {
		online, err = k.OnlineCPUs()
	}
	switch {
	case err == nil && !panicked:
		err = errRuns
	case err == nil && online != 1:
		err = fmt.Errorf("its kernel is in panic, but %d of its CPUs have not stopped", online)
	}
	if err != nil {
		return hint.New("end a machine with a qcow2 image", err, "Nothing was touched. QEMU has a part of such an image in its own memory, which it writes when it ends; and what the machine itself wrote meanwhile would be newer than its memory. "+
			"If the kernel has only just panicked, try again. Otherwise save its memory (understudy salvage save), end QEMU in good order (quit, in its monitor), and apply the memory to the image.")
	}
	return nil
}

// idle reports whether nothing of a file system waits to be written.
func idle(f *inventory.FileSystem) bool {
	found := f.Find(inventory.Query{Accept: func(string) bool { return true }})
	return len(found.Files)+len(found.Refused)+len(found.Faults) == 0
}

// stacked says why a file system on a device of the dead machine must not be written to as one on a disk or a volume, even if
// it looks like one there: the device keeps copies of it. It is empty if nothing speaks against it.
func stacked(device string) string {
	for prefix, what := range map[string]string{"md": "an array of md", "drbd": "a resource of DRBD", "bcache": "a device of bcache"} {
		if strings.HasPrefix(device, prefix) {
			return ", which is " + what
		}
	}
	return ""
}

// identified returns where the file systems of the disks are, by UUID, and what of LVM there is besides. It fails if two
// have the same UUID, since they cannot be told apart.
func (c *custody) identified(disks []foreign.Disk) (map[pagecache.UUID]Place, []disk.Unusable, error) {
	on, usable := make(map[pagecache.UUID]Place), make(map[disk.Where]bool)
	var unusable []disk.Unusable
	for _, d := range disks {
		if is, err := c.source(d.Path).shows(d.Path); err != nil {
			return nil, nil, err
		} else if d.Format != "raw" && !is {
			return nil, nil, hint.New("open disk "+d.Path, fmt.Errorf("it is a %s image", d.Format),
				"Only raw and qcow2 images and block devices can be written to. Save its memory (understudy salvage save), end QEMU in good order (quit, in its monitor), convert the image (qemu-img convert -O raw), and apply the memory to that.")
		}
		found, not, err := c.places(d.Path)
		if err != nil {
			return nil, nil, err
		}
		unusable = append(unusable, not...)
		for p, id := range found {
			if other, taken := on[id]; taken {
				return nil, nil, hint.New("find the dead machine's disks", fmt.Errorf("%v and %v have file system %v both", other, p, id),
					"Save its memory (understudy salvage save), end QEMU, and apply the memory to the one that was mounted.")
			}
			on[id], usable[p.Where] = p, true
		}
	}
	// A volume of a group on several disks is usable on at most one of them.
	unusable = slices.DeleteFunc(unusable, func(u disk.Unusable) bool { return u.Volume != "" && usable[u.Where] })
	return on, unusable, nil
}

// onDisk is what Source.places returns.
type onDisk struct {
	found    map[Place]pagecache.UUID
	unusable []disk.Unusable
	err      error
}

// places is Source.places for a disk of the machine, which stands still: each disk is looked at once.
func (c *custody) places(path string) (map[Place]pagecache.UUID, []disk.Unusable, error) {
	l, known := c.looked[path]
	if !known {
		l.found, l.unusable, l.err = c.source(path).places(path)
		if c.looked == nil {
			c.looked = make(map[string]onDisk)
		}
		c.looked[path] = l
	}
	return l.found, l.unusable, l.err
}

// places finds the file systems on a disk: one on the whole disk, or those of its partitions and linear logical volumes. It
// also returns what of LVM there is besides.
func (s Source) places(path string) (map[Place]pagecache.UUID, []disk.Unusable, error) {
	f, err := s.Look(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	found := make(map[Place]pagecache.UUID)
	areas, unusable, damaged := f.Areas()
	for _, a := range areas {
		p := Place{path, a.Where}
		fs, err := salvage.Identify(f.On(a))
		switch {
		case errors.Is(err, salvage.ErrNoFileSystem):
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("open disk %v: %w", p, err)
		}
		if found[p] = fs.UUID; a.Whole() {
			return found, nil, nil
		}
	}
	if damaged != nil {
		return nil, nil, fmt.Errorf("open disk %s: %w", path, damaged)
	}
	return found, unusable, nil
}
