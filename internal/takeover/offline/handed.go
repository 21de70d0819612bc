package offline

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/hint"
)

// handOver says that a takeover has carried out the last commit of a disk and handed the disk to
// another kernel, which died before any service ran. The disk is then not as Image left it. A handOver
// says instead what shows that nobody else has written to it.
type handOver struct {
	// super is the fingerprint of the disk after the memory of the other kernel was applied.
	super string
	// died is used if that kernel had not mounted the disk, and says when it died; zero if that is not known. Until
	// then the disk may have been checked.
	died time.Time
}

// clockSlack is how much later than the last tick of a kernel, by that kernel's clock, the host may have
// checked a disk: a guest reads its clock at its boot in whole seconds, and it drifts.
const clockSlack = 5 * time.Second

// check checks that nobody else has written to the disk.
func (h *handOver) check(disk io.ReaderAt, on *salvage.OnDisk) error {
	if h.died.IsZero() {
		now, err := fingerprint(disk)
		if err == nil && now != h.super {
			err = fmt.Errorf("%w: it was written to since the understudy's memory was applied", salvage.ErrDiskChanged)
		}
		return err
	}
	if on.Family != "ext" { // nothing writes to it before the mount
		return fmt.Errorf("%w: it was written to, although the understudy had not mounted it", salvage.ErrDiskChanged)
	}
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	s, err := ext4.ParseSuper(b)
	if err != nil {
		return err
	}
	if last := time.Unix(int64(max(s.MountTime, s.WriteTime)), 0); last.After(h.died.Add(clockSlack)) {
		return fmt.Errorf("%w: its superblock was written at %s, and the understudy died at %s", salvage.ErrDiskChanged, last.UTC().Format(time.DateTime), h.died.UTC().Format(time.DateTime))
	}
	return nil
}

// unproven adds to an error what to do about a disk that somebody else may have written to.
func (a *application) unproven(err error) error {
	if !errors.Is(err, salvage.ErrDiskChanged) {
		return err
	}
	return hint.New("check disk", err,
		"Somebody else may have used it since, so that what memory has of its files may be older: nothing was written. Take the files out of memory, and compare them: understudy salvage extract "+a.Image+" -o DIR. If the disk has what is needed, understudy down --discard gives up the memory.")
}

// fingerprint returns a hash of what a kernel changes on a disk when it mounts its file system for
// writing, or unmounts it: the superblock and, since a mount leaves that of XFS as it is, the log of XFS.
func fingerprint(disk io.ReaderAt) (string, error) {
	on, err := salvage.Identify(disk)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, s := range append(on.Super, on.Log) {
		if _, err := io.Copy(sum, io.NewSectionReader(disk, s.Off, s.Len())); err != nil {
			return "", fmt.Errorf("read superblock: %w", err)
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
