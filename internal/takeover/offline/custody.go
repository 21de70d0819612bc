package offline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/takeover"
)

// Place is where a file system is: a disk, or a part of it.
type Place struct {
	Path string `json:"path"`
	disk.Where
}

func (p Place) String() string {
	if p.Whole() {
		return p.Path
	}
	return p.Path + ", " + p.Name()
}

// argument returns the place as it follows --disk on the command line of salvage apply.
func (p Place) argument() string {
	switch {
	case p.Volume != "":
		return fmt.Sprintf("%s --lvm %s", p.Path, p.Volume)
	case p.Part != 0:
		return fmt.Sprintf("%s --partition %d", p.Path, p.Part)
	}
	return p.Path
}

// custody is the record of a dead machine's memory that we keep in a file, and of the disks that it belongs to.
type custody struct {
	Version int             `json:"version"`
	Name    string          `json:"name"`           // of the machine
	PID     int             `json:"pid"`            // of its process, which may have ended
	Started uint64          `json:"started"`        // foreign.Machine.Started of that process
	Quit    bool            `json:"quit,omitempty"` // the process must end in good order, as it has a part of its disks in its own memory
	Boot    string          `json:"boot"`           // this machine's boot_id (random(4)): PID and Started are of that boot
	Memory  string          `json:"memory"`
	Places  []Place         `json:"disks"`
	Raw     []string        `json:"raw,omitempty"`     // those of the disks that are raw, whatever is in them
	Backing []string        `json:"backing,omitempty"` // files that the others may refer to: the machine had them open
	Done    []doneDisk      `json:"done,omitempty"`    // those that are up to date
	Missing []string        `json:"missing"`
	Note    json.RawMessage `json:"note,omitempty"` // Adoption.Note

	changed bool              // each disk that is not done has changed since its kernel died
	looked  map[string]onDisk // what places has found, by the path of the disk
}

// doneDisk is a disk that was brought up to date.
type doneDisk struct {
	Place
	Complete bool `json:"complete"` // nothing was refused
}

const custodyVersion = 1

// source says how a disk of the machine is to be read.
func (c *custody) source(path string) Source {
	return Source{Raw: slices.Contains(c.Raw, path), Backing: c.Backing}
}

// done returns the disk at a place, if it is up to date.
func (c *custody) done(p Place) (doneDisk, bool) {
	i := slices.IndexFunc(c.Done, func(d doneDisk) bool { return d.Place == p })
	if i < 0 {
		return doneDisk{}, false
	}
	return c.Done[i], true
}

// report returns the report of a disk that an earlier run has brought up to date.
func (c *custody) report(d doneDisk) *Report {
	r := &Report{Image: c.Memory, Disk: d.Path, Where: d.Where, Resumed: true, Refused: []takeover.Refusal{}, Complete: true, Stages: []StageTime{}}
	if !d.Complete {
		r.refuse(takeover.Refusal{Reason: d.String() + " was brought up to date by an earlier run, which had refused some of it: that is in memory only, and `salvage list` and `salvage extract` have it"})
	}
	return r
}

// partial is the suffix of the name of a memory file that is not complete yet.
const partial = ".partial"

// newMemory opens an empty file for a machine's memory. The file gets its final name when it is complete.
// What a killed run has left is overwritten; a run that is still at work holds a lock on the file.
func newMemory(path string) (*os.File, error) {
	op := "save memory to " + path
	if _, err := os.Lstat(path); err == nil {
		return nil, hint.New(op, os.ErrExist, "It may be all that is left of another machine: move it away, or name another file.")
	}
	f, err := os.OpenFile(path+partial, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("save memory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(hint.New(op, err, "Another run of this program is at that. Nothing was touched by this one."), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("save memory: %w", err), f.Close())
	}
	return f, nil
}

// settle gives the complete memory file its final name.
func (c *custody) settle() error {
	err := unix.Renameat2(unix.AT_FDCWD, c.Memory+partial, unix.AT_FDCWD, c.Memory, unix.RENAME_NOREPLACE)
	if err != nil {
		return fmt.Errorf("save memory to %s: %w", c.Memory, err)
	}
	return syncDir(filepath.Dir(c.Memory))
}

func (c *custody) adopted() *Adopted {
	return &Adopted{Memory: c.Memory, Reports: []*Report{}, Missing: append([]string{}, c.Missing...)}
}

// bootID returns this machine's boot_id.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(b), err
}

// write makes the record durable.
func (c *custody) write(path string) error {
	c.Version = custodyVersion
	return writeJSON(path, c)
}

func parseCustody(b []byte) (*custody, error) {
	c := &custody{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, err
	}
	if c.Version != custodyVersion {
		return nil, fmt.Errorf("version %d", c.Version)
	}
	if !filepath.IsAbs(c.Memory) || len(c.Places) == 0 || c.PID <= 0 {
		return nil, errors.New("it names no memory, no disk or no process")
	}
	for _, p := range c.Places {
		if !filepath.IsAbs(p.Path) || p.Part < 0 {
			return nil, fmt.Errorf("it names disk %q, %s", p.Path, p.Name())
		}
	}
	return c, nil
}

// Resume continues a Run with this Record that was interrupted because the process was killed or
// the machine went down. It ends the QEMU process, if that still exists, and brings its disks up
// to date, except for those that it has brought up to date already. If all others have changed since, it
// removes the record and keeps the memory.
func (a Adoption) Resume(ctx context.Context) (note json.RawMessage, _ *Adopted, err error) {
	c, err := readJSON(a.Record, parseCustody)
	if err != nil {
		return nil, nil, err
	}
	a.Memory = c.Memory
	if _, err := os.Lstat(c.Memory); errors.Is(err, os.ErrNotExist) && len(c.Done) < len(c.Places) {
		if err := c.settle(); err != nil {
			return c.Note, nil, hint.New("go on with "+a.Record, err, "The memory of its machine is gone. If it is not wanted any more, remove that record.")
		}
	}
	if err := c.end(); err != nil {
		return c.Note, c.adopted(), err
	}
	out, err := a.finish(ctx, c)
	if c.changed {
		err = errors.Join(err, os.Remove(a.Record))
	}
	return c.Note, out, err
}

// end ends the machine's process, if PID still is that process.
func (c *custody) end() error {
	if boot, err := bootID(); err != nil || boot != c.Boot {
		return err
	}
	m, err := foreign.Open(c.PID)
	if err != nil {
		return nil // it has ended; a disk that another process uses is not claimed later
	}
	defer m.Close()
	if started, err := m.Started(); err != nil || started != c.Started {
		return nil // likewise: PID is another process by now
	}
	return c.endOf(m)
}

// endOf ends the machine.
func (c *custody) endOf(m *foreign.Machine) error {
	if c.Quit {
		return m.Quit(quitLimit)
	}
	return m.End(endLimit)
}
