package fence

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/mounts"
)

// Hold keeps a disk ours for as long as the Hold is open, whether or not a guest of ours has
// the disk: no other supervisor and no other run of ours gets it, and a block device cannot be
// mounted or become part of another device. It does not lock the bytes that QEMU locks.
type Hold struct {
	*os.File       // for reading and writing
	Size     int64 // bytes
	Device   bool  // it is a block device
}

// ErrReplaced says that a path is no longer that of the disk that is held.
var ErrReplaced = errors.New("another file, or none, has this path now: the disk that the pair has was renamed or replaced")

// Named checks that the path of the disk still leads to the file or device that we hold.
func (h *Hold) Named() error {
	at, err := os.Stat(h.Name())
	if err == nil && !h.is(at) {
		err = ErrReplaced
	}
	if errors.Is(err, os.ErrNotExist) {
		err = ErrReplaced
	}
	if err != nil {
		return hint.New("disk "+h.Name(), err, "Give it its path back (the supervisor has it open: ls -l /proc/PID/fd).")
	}
	return nil
}

// OpenIn reports whether a process has the disk open.
func (h *Hold) OpenIn(pid int) bool {
	for range open(fmt.Sprint(pid), h.is) {
		return true
	}
	return false
}

// is reports whether st is that of the disk. A block device may have several names.
func (h *Hold) is(st os.FileInfo) bool {
	ours, err := h.Stat()
	if err != nil {
		return false
	}
	if h.Device {
		return st.Mode()&os.ModeDevice != 0 && st.Sys().(*syscall.Stat_t).Rdev == ours.Sys().(*syscall.Stat_t).Rdev
	}
	return os.SameFile(st, ours)
}

// holdByte is the byte of an image that a Hold locks. It is beyond the bytes that QEMU locks,
// however many those become (block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE).
const holdByte = 1000

// Claim is a disk that nobody else uses: we hold it, and have the locks that QEMU
// takes, so that no guest can write to it either.
type Claim struct{ *Hold }

// errInUse says why a disk cannot be ours: this machine's own kernel uses it.
var errInUse = errors.New("in use by this machine's kernel")

// claimLimit is how long a lock may take to be free: a process that has just been
// killed may still hold it.
const claimLimit = 2 * time.Second

// Keep holds a disk, a raw image or a block device. It fails if this machine's kernel
// has it mounted, or uses it as a loop device or as a part of something; if another
// Hold has it; or if a guest that is not ours does.
func Keep(path string) (*Hold, error) {
	h, err := keep(path)
	if err != nil {
		return nil, err
	}
	// QEMU's locks are taken and released again, for the guest that is to have the disk.
	if err := lockRange(h.File, path, lockStart, lockLen, claimLimit, "try again"); err != nil {
		h.Close()
		return nil, err
	}
	l := unix.Flock_t{Type: unix.F_UNLCK, Start: lockStart, Len: lockLen}
	if err := unix.FcntlFlock(h.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		h.Close()
		return nil, fmt.Errorf("unlock %s: %w", path, err)
	}
	return h, nil
}

// Rekeep holds a disk that a guest of ours has already: a supervisor that has ended held it
// before.
func Rekeep(path string) (*Hold, error) { return keep(path) }

func keep(path string) (*Hold, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, hint.New("open disk "+path, err, "Name an image file or a block device.")
	}
	h := &Hold{Device: st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0}
	if !h.Device && !st.Mode().IsRegular() {
		return nil, hint.New("open disk "+path, errors.New("it is neither a file nor a block device"), "Name an image file or a block device.")
	}
	if err := unused(path, st, h.Device); err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if h.Device {
		// As a mount does it: each of the two fails while the other has the device (open(2)).
		flags |= unix.O_EXCL
	}
	if h.File, err = os.OpenFile(path, flags, 0); err != nil {
		advice := "The disk must be there and writable; nothing was touched."
		if errors.Is(err, unix.EBUSY) {
			err, advice = errInUse, "It is mounted somewhere, or part of a RAID, a volume group or a mapping: end that first."
		}
		return nil, hint.New("open disk "+path, err, advice)
	}
	if err = lockRange(h.File, path, holdByte, 1, claimLimit, "try again"); err == nil {
		h.Size, err = h.Seek(0, io.SeekEnd)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Take claims a disk. It fails where Keep does, and also if any guest has the disk.
func Take(path string) (*Claim, error) {
	h, err := keep(path)
	if err != nil {
		return nil, err
	}
	if err := lockRange(h.File, path, lockStart, lockLen, claimLimit, "try again"); err != nil {
		h.Close()
		return nil, err
	}
	return &Claim{h}, nil
}

// Share returns another Claim of the same disk. The disk stays claimed until both are closed (fcntl(2):
// the locks belong to the open file).
func (c *Claim) Share() (*Claim, error) {
	fd, err := unix.FcntlInt(c.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", c.Name(), err)
	}
	return &Claim{&Hold{File: os.NewFile(uintptr(fd), c.Name()), Size: c.Size, Device: c.Device}}, nil
}

// unused checks that the disk is neither mounted nor used by a loop device.
func unused(path string, st os.FileInfo, device bool) error {
	if device {
		rdev := st.Sys().(*syscall.Stat_t).Rdev
		if at := mountedOn(fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))); at != "" {
			return inUse(path, "mounted on "+at, "Unmount it: umount "+at)
		}
		return nil
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is well-formed
	for _, l := range loops {
		file, err := os.ReadFile(l)
		if err != nil {
			continue // it was just detached
		}
		behind, err := os.Stat(strings.TrimSpace(string(file)))
		if err != nil || !os.SameFile(behind, st) {
			continue
		}
		block := filepath.Dir(filepath.Dir(l))
		name := "/dev/" + filepath.Base(block)
		number, err := os.ReadFile(filepath.Join(block, "dev"))
		if at := mountedOn(strings.TrimSpace(string(number))); err == nil && at != "" {
			return inUse(path, "mounted on "+at+" through "+name, "Unmount it: umount "+at)
		}
		return inUse(path, "attached to "+name, "Detach it: losetup -d "+name)
	}
	return nil
}

func inUse(path, how, advice string) error {
	return hint.New("claim disk "+path, fmt.Errorf("%w: %s", errInUse, how), advice)
}

// mountedOn is where the device with that number is mounted, or empty.
func mountedOn(number string) string {
	for m := range mounts.Here() {
		if m.Device == number {
			return m.Dir
		}
	}
	return ""
}
