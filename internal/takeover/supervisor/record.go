package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/takeover"
)

// recordName is the file of a run directory that has its Record.
const recordName = "record.json"

// Record says whose memory in a run directory may hold the last copy of some data, and of
// which. It is written before each step that changes that.
type Record struct {
	Version int    `json:"version"`
	Pair    string `json:"pair"`
	// Active is the partition that has the disks mounted, or had when it died; empty while the pair boots.
	Active string `json:"active"`
	// Heir is the partition that takes over from Active; empty if none does.
	Heir  string       `json:"heir,omitempty"`
	Disks []RecordDisk `json:"disks"`
	// Sides are the guests, if they outlive their supervisor. Understudy is the one that is
	// ready; empty if none is. Up says that the pair was up.
	Sides      []RecordSide `json:"sides,omitempty"`
	Understudy string       `json:"understudy,omitempty"`
	Up         bool         `json:"up,omitempty"`
	// Stopping says that Active was asked to stop its services, and has neither stopped all of
	// them nor gone back to its work.
	Stopping bool `json:"stopping,omitempty"`
	// Frozen is the active side, if that is dead and stopped until there is an understudy.
	Frozen string `json:"frozen,omitempty"`
	// Dead is a side that was taken over from, until its partition is cleared. It is nil if
	// nothing needs the memory of such a side.
	Dead *DeadSide `json:"dead,omitempty"`
	// Kept is the memory of sides that died before, whose partitions run again; and, once Saved, the memory
	// of systems that may have what their root disks lack, until they are powered off.
	Kept []KeptMemory `json:"kept,omitempty"`
	// Roots are the partitions whose own root disks were brought up to date after the pair had ended. Partly are those
	// where something was refused: a second try would not miss it.
	Roots  []string `json:"roots,omitempty"`
	Partly []string `json:"partly,omitempty"`
	// Saved says that everything that was in the memory of Active and Heir is on the shared disks.
	Saved bool `json:"saved"`
	// Why says what has ended the pair, for people; empty while a supervisor lives.
	Why string `json:"why,omitempty"`
}

// RecordDisk says how far a takeover by Heir has come with a disk.
type RecordDisk struct {
	Name  string `json:"name"`
	Image string `json:"image"`
	Part  int    `json:"part,omitempty"` // the partition of Image that has the file system
	// UUID is that of the file system; empty if it is not known: older programs did not record it.
	UUID string `json:"uuid,omitempty"`
	// Layers are the layers between that and the file system; empty if there are none.
	Layers []string `json:"layers,omitempty"`
	// Volume is the logical volume, GROUP/NAME, if that is the only layer.
	Volume   string            `json:"lvm,omitempty"`
	Progress takeover.Progress `json:"progress,omitempty"`
	// Super is a fingerprint of the disk, if recover has applied the understudy's memory to it, and is still to apply
	// the dead side's. It is empty if an older program did that.
	Super string `json:"super,omitempty"`
	// Refused says whether the memory has data that could not be brought to the disk. It is nil if
	// that is not known: older programs did not record it.
	Refused *bool `json:"refused,omitempty"`
}

// Lacks reports whether memory may have data that could not be brought to the disk.
func (d *RecordDisk) Lacks() bool { return d.Refused == nil || *d.Refused }

// DeadSide is a side whose memory may have the only copy of some data, although another side serves.
type DeadSide struct {
	Name string `json:"name"`
	Root string `json:"root,omitempty"` // its own root disk, still to be brought up to date; empty if there is none, or that is done
	Why  string `json:"why,omitempty"`  // why its memory is to be kept; empty if the shared disks have all of it
}

// because adds a reason to Why.
func (d *DeadSide) because(why string) {
	if d.Why != "" {
		d.Why += "; "
	}
	d.Why += why
}

// kept returns why the memory is still needed.
func (d *DeadSide) kept() string {
	if d.Why == "" {
		return fmt.Sprintf("its unsaved data may not be on its root disk, %s: understudy recover writes it there", d.Root)
	}
	return d.Why
}

// KeptMemory is the memory of a dead side that has data which could not be brought to the
// disks.
type KeptMemory struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

// Only a record with Dead has version 2, which older programs refuse: they would remove the memory
// of the dead side. They can read any other record.
const (
	recordVersion = 1
	deadVersion   = 2
)

// version returns the version of the format that the record needs.
func (r *Record) version() int {
	if r.Dead != nil {
		return deadVersion
	}
	return recordVersion
}

// RunDir is the run directory of a pair. It is ours: no other supervisor of the pair lives.
type RunDir struct {
	Path   string
	Record *Record  // nil if nothing was ever at stake
	lock   *os.File // the directory itself, locked
}

// ErrRunning means that a run directory is not ours: its supervisor lives.
var ErrRunning = errors.New("the pair is up")

// OpenRunDir takes the run directory of a pair whose supervisor has ended. It fails with
// fs.ErrNotExist if there is none, and with ErrRunning if the supervisor lives.
func OpenRunDir(path string) (*RunDir, error) {
	d := &RunDir{Path: path}
	if err := d.take(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(path, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err == nil {
		d.Record = &Record{}
		err = json.Unmarshal(b, d.Record)
	}
	if err == nil && d.Record.Active == "" { // the pair was booting: nobody had mounted a shared disk
		d.Record.Disks = nil
	}
	if err == nil && d.Record.Version != recordVersion && d.Record.Version != deadVersion {
		err = fmt.Errorf("it has version %d, and this program knows %d and %d: use the one that wrote it", d.Record.Version, recordVersion, deadVersion)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read record in %s: %w", path, err), d.Close())
	}
	return d, nil
}

// take locks the run directory, for as long as this process lives. It opens the directory
// without following a link, and checks that it belongs to this user: it is in a place where
// others may create names, too.
func (d *RunDir) take() error {
	fd, err := unix.Open(d.Path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open run directory", Path: d.Path, Err: err}
	}
	d.lock = os.NewFile(uintptr(fd), d.Path)
	if err := d.mine(fd); err != nil {
		d.lock.Close()
		return err
	}
	return nil
}

func (d *RunDir) mine(fd int) error {
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock run directory %s: %w", d.Path, ErrRunning)
	} else if err != nil {
		return fmt.Errorf("lock run directory %s: %w", d.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("open run directory %s: %w", d.Path, err)
	}
	if st.Nlink == 0 { // it was removed just now
		return &fs.PathError{Op: "open run directory", Path: d.Path, Err: fs.ErrNotExist}
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("open run directory %s: it belongs to user %d: remove it, or set UNDERSTUDY_RUN", d.Path, st.Uid)
	}
	return nil
}

// makeRunDir makes the run directory of a pair that is to come up. The directory of an
// earlier pair is removed if nothing is at stake in it.
func makeRunDir(path string) (*RunDir, error) {
	old, err := OpenRunDir(path)
	switch {
	case err == nil && old.HasGuests():
		return nil, errors.Join(fmt.Errorf("the guests of the pair in %s run, without a supervisor", path), old.Close())
	case err == nil && old.AtStake():
		return nil, errors.Join(&Unsaved{Dir: path, Record: old.Record}, old.Close())
	case err == nil:
		if err := errors.Join(old.EndGuests(), old.Remove()); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	d := &RunDir{Path: path}
	return d, d.take()
}

// Unsaved says that a run directory has memory with data that is nowhere else.
type Unsaved struct {
	Dir    string
	Record *Record
}

func (u *Unsaved) Error() string {
	if u.Record.Saved {
		var b strings.Builder
		kept := slices.Clone(u.Record.Kept)
		if dead := u.Record.Dead; dead != nil {
			kept = append(kept, KeptMemory{File: filepath.Join(u.Dir, dead.Name+".ram"), Why: dead.kept()})
		}
		for _, k := range kept {
			fmt.Fprintf(&b, "%s is kept: %s\n", k.File, k.Why)
		}
		return fmt.Sprintf("%s  See what it has: understudy salvage list FILE. To give it up: understudy down --discard %s.", b.String(), u.Record.Pair)
	}
	why := u.Record.Why
	if why == "" {
		why = "its supervisor ended without a word"
	}
	return fmt.Sprintf("the memory in %s may have data that is not on the disks of pair %s: %s\n  Bring it there: understudy recover %s. Or give it up: understudy down --discard %s.",
		u.Dir, u.Record.Pair, why, u.Record.Pair, u.Record.Pair)
}

// AtStake reports whether the memory files may have data that is nowhere else. They may if that is not known.
func (d *RunDir) AtStake() bool {
	r := d.Record
	if r == nil {
		return false
	}
	lacking, err := d.LackingRoots()
	return !r.Saved && len(r.Disks) > 0 || len(r.Kept) > 0 || r.Dead != nil || len(lacking) > 0 || err != nil
}

// Write makes a record durable.
func (d *RunDir) Write(r *Record) error {
	r.Version = r.version()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	path := filepath.Join(d.Path, recordName)
	err = writeDurably(path, b)
	if errors.Is(err, unix.ENOSPC) {
		if err := os.Remove(filepath.Join(d.Path, spareName)); err != nil {
			return fmt.Errorf("write record: %w", err)
		}
		err = writeDurably(path, b)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	d.keepSpare()
	d.Record = r
	return nil
}

// spareBytes is the room that is kept for the record: a full run directory must not end a takeover.
const spareBytes = 256 << 10

const spareName = "record.spare"

// keepSpare reserves that room, if there is any.
func (d *RunDir) keepSpare() {
	f, err := os.OpenFile(filepath.Join(d.Path, spareName), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	_ = unix.Fallocate(int(f.Fd()), 0, 0, spareBytes) // it is tried again the next time
	_ = f.Close()
}

// writeDurably replaces a file atomically.
func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// RAM returns the path of a partition's memory file.
func (d *RunDir) RAM(partition string) string { return filepath.Join(d.Path, partition+".ram") }

// Close releases the run directory, and leaves it as it is.
func (d *RunDir) Close() error { return d.lock.Close() }

// Remove removes the run directory with everything in it.
func (d *RunDir) Remove() error { return errors.Join(os.RemoveAll(d.Path), d.Close()) }
