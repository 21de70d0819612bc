// Package offline brings a disk to the state that a dead kernel had in memory, without the
// machine's own kernel ever mounting it: a small guest works on a copy-on-write overlay, and
// only complete work is committed.
//
// # Caveats
//
// Until the commit the disk stays unchanged to the byte, except for blocks that no file has,
// neither before nor after: data for these is written there at once. An interrupted commit
// leaves the disk in between; the overlay and a record of the commit stay, and the next run
// that opens the disk must finish it. The overlay is valid only if nobody else writes to the
// disk meanwhile: the claim on the disk ensures that while we run, and a look at its superblock
// afterwards.
package offline

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/takeover"
)

// Identity says what a disk is brought up to date from.
type Identity struct {
	Image  string `json:"image"`  // path of the memory, as it was given
	Kernel string `json:"kernel"` // release
	UUID   string `json:"uuid"`   // of the file system
	// Sum differs between any two deaths and any two file systems.
	Sum string `json:"sum"`
}

// Disk is a disk that we have claimed, with what an earlier run may have left of its work.
type Disk struct {
	*hold
	Size int64     // of the selected part, in bytes
	area disk.Area // the selected part
	path string    // absolute
	work string    // directory, absolute
	left *record
	// forget is Options.Forget
	forget bool
}

// Open claims a disk and looks for what an earlier run left. where selects a part of the disk, and offsets are
// relative to the start of that. work is the directory for the overlay; empty means beside the disk. Nothing is
// created or changed.
func (s Source) Open(path string, where disk.Where, work string) (*Disk, error) {
	return s.open(path, where, work, nil)
}

// open is Open for a disk that may be claimed already.
func (s Source) open(path string, where disk.Where, work string, held *hold) (*Disk, error) {
	d := &Disk{}
	var err error
	if d.path, err = filepath.Abs(path); err == nil {
		// The work directory must not depend on the name by which the disk was given.
		d.path, err = filepath.EvalSymlinks(d.path)
	}
	if err != nil {
		return nil, fmt.Errorf("find disk: %w", err)
	}
	if held != nil {
		d.hold, err = held.share()
	} else {
		d.hold, err = s.take(d.path)
	}
	if err != nil {
		return nil, err
	}
	if d.area, err = disk.At(d.Claim, d.Claim.Size, where); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", d.path, err), d.Close())
	}
	d.Size = d.area.Len()
	if err := d.open(work); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// section returns the selected part of the disk.
func (d *Disk) section() device.Section {
	return device.On(d.File, d.area)
}

// ReadAt reads from the selected part of the disk.
func (d *Disk) ReadAt(b []byte, off int64) (int, error) { return d.section().ReadAt(b, off) }

// WriteAt writes to the selected part of the disk.
func (d *Disk) WriteAt(b []byte, off int64) (int, error) { return d.section().WriteAt(b, off) }

// Seek is only for finding out the size of the selected part.
func (d *Disk) Seek(off int64, whence int) (int64, error) { return d.section().Seek(off, whence) }

// sector is the unit of a disk, in bytes.
const sector = 512

func (d *Disk) open(work string) error {
	if d.Size == 0 || d.Size%sector != 0 {
		return hint.New("disk "+d.path, fmt.Errorf("%d bytes are not whole sectors", d.Size), "It must be a raw image, or a block device.")
	}
	if work == "" && d.Device {
		return hint.New("disk "+d.path, errors.New("it is a block device, with no directory for the work files beside it"),
			"Name a directory on another disk with --work: it must have room for what is written, and outlast a power loss.")
	}
	if work == "" {
		work = filepath.Dir(d.path)
	}
	work, err := filepath.Abs(work)
	if err != nil {
		return fmt.Errorf("find work directory: %w", err)
	}
	d.work = d.workIn(work)
	if err = d.find(); errors.Is(err, takeover.ErrInBetween) && d.findElsewhere() {
		return nil
	}
	return err
}

// workIn returns the work directory of this disk in a directory. Elsewhere than beside the disk, its name has a
// hash of where the disk is: disks in other places may have the same name.
func (d *Disk) workIn(dir string) string {
	name, home := filepath.Base(d.path), filepath.Dir(d.path)
	switch w := d.area.Where; {
	case w.Part != 0:
		name += fmt.Sprintf("-part%d", w.Part)
	case w.Volume != "":
		name += "-" + w.Mapper()
	}
	plain := filepath.Join(dir, name+workSuffix)
	if dir == home {
		return plain
	}
	if l, err := readRecord(plain); err == nil && l.Disk == d.path { // of an older program, which left the hash out
		return plain
	}
	sum := sha256.Sum256([]byte(home))
	return filepath.Join(dir, fmt.Sprintf("%s-%x%s", name, sum[:6], workSuffix))
}

// find looks for what an earlier run left of this disk.
func (d *Disk) find() (err error) {
	d.left, err = readRecord(d.work)
	if errors.Is(err, fs.ErrNotExist) {
		return d.unveiled()
	}
	if err != nil {
		return errors.Join(err, d.unveiled())
	}
	return d.judge()
}

// findElsewhere looks in the parent of the work directory for the work directory of the commit whose veil this disk
// has, and uses that one: a device may have another name after a reboot, and an image may have been moved.
func (d *Disk) findElsewhere() bool {
	beside, _ := os.ReadDir(filepath.Dir(d.work)) // empty if it does not exist or cannot be read
	for _, e := range beside {
		dir := filepath.Join(filepath.Dir(d.work), e.Name())
		if !strings.Contains(e.Name(), workSuffix) { // an older program set one aside as NAME.understudy-NUMBER
			continue
		}
		l, err := readRecord(dir)
		if err != nil || l.Veil == "" || l.Size != d.Size {
			continue
		}
		if now, err := d.read(l.Before); err == nil && veiled(now, l.veil()) {
			l.began = true
			d.work, d.left = dir, l
			return true
		}
	}
	return false
}

// workSuffix is the suffix of a work directory's name.
const workSuffix = ".understudy"

// judge finds out from the record and the disk how far the recorded commit came. A commit that had begun
// was to another disk if this one's superblock is neither the veil, nor the old one, nor the new one.
func (d *Disk) judge() error {
	l := d.left
	if l.Step == stepCommit || l.Step == stepVeiled {
		now, err := d.read(l.Before)
		if err != nil {
			return inBetween{fmt.Errorf("disk %s: a commit to it may have been broken off: %w", d.path, err)}
		}
		veils := l.veil()
		l.began = l.Step == stepVeiled || veiled(now, veils) // the disk is veiled before the record says so
		l.other = l.began && !veiled(now, veils) && known(now, veils, l) != nil
	}
	if l.began && !l.other {
		return nil
	}
	err := d.unveiled()
	if err != nil && l.other {
		err = inBetween{err}
	}
	return err
}

// Unfinished returns the identity of the interrupted commit to this disk, if there was one.
// The disk is then in between, unless Other, and nothing may be done to it but Finish.
func (d *Disk) Unfinished() (Identity, bool) {
	if d.left == nil || !d.left.began {
		return Identity{}, false
	}
	return d.left.Identity, true
}

// Other reports whether the commit that Unfinished returns was to another disk that had this one's name, which
// may change in a reboot, or to this disk before it was restored. Nothing of that commit is on this disk.
func (d *Disk) Other() bool { return d.left != nil && d.left.other }

// disown sets aside the work directory of a commit to another disk, so that it does not concern
// this one. Its record may be all that can finish the other disk.
func (d *Disk) disown() error {
	aside, err := os.MkdirTemp(filepath.Dir(d.work), strings.TrimSuffix(filepath.Base(d.work), workSuffix)+"-*"+workSuffix)
	if err == nil {
		err = unix.Rename(d.work, aside) // rename(2) replaces an empty directory
	}
	if err != nil {
		return fmt.Errorf("set aside what a commit to another disk has left: %w", err)
	}
	d.left = nil
	return syncDir(filepath.Dir(d.work))
}

// Work is the directory of the overlay and the record.
func (d *Disk) Work() string { return d.work }

// clear makes an empty work directory. What an earlier run left there is removed if that run had
// the same Identity, or had nothing left to do, and is set aside if it was to another disk.
func (d *Disk) clear(id Identity) error {
	if err := outlasts(filepath.Dir(d.work), d.path); err != nil {
		return err
	}
	if d.Other() {
		if err := d.disown(); err != nil {
			return err
		}
	}
	if l := d.left; l != nil && l.Step != stepDone && l.Identity.Sum != id.Sum && !d.forget {
		return hint.New("work directory "+d.work,
			fmt.Errorf("it is of an unfinished run for another image: %s, Linux %s", l.Identity.Image, l.Identity.Kernel),
			"No file of the disk has anything of that run. If it is not wanted any more, remove the directory.")
	}
	if d.left == nil {
		if left, err := os.ReadDir(d.work); err == nil && len(left) > 0 && !ours(left) {
			return hint.New("work directory "+d.work, errors.New("it has other files in it"), "Move it away, or name another place with --work.")
		}
	}
	if err := d.remove(); err != nil {
		return err
	}
	if err := os.Mkdir(d.work, 0o700); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	return syncDir(filepath.Dir(d.work))
}

// The files of a work directory.
const (
	recordName  = "record.json"
	overlayName = "overlay.qcow2"
	stagingName = "staging"
	extentsName = "extents.vmdk"
	extentsLink = extentsName + partition.ImageLink
)

// ours reports whether a directory without a record has only files that a run leaves behind
// if it is killed at its very beginning or end.
func ours(entries []fs.DirEntry) bool {
	for _, e := range entries {
		switch e.Name() {
		case recordName + ".new", overlayName, redoName, stagingName, extentsName, extentsLink:
		default:
			return false
		}
	}
	return true
}

// remove removes the work directory. The record goes last, since it says what the other
// files are.
func (d *Disk) remove() error {
	for _, name := range []string{overlayName, redoName, stagingName, extentsName, extentsLink, recordName + ".new", recordName, ""} {
		if err := os.Remove(filepath.Join(d.work, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clear work directory: %w", err)
		}
	}
	d.left = nil
	return nil
}

func (d *Disk) overlay() string { return filepath.Join(d.work, overlayName) }

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}
