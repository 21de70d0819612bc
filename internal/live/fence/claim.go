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
)

// Claim is a disk of a machine that is dead for long: nobody here uses it, and
// until the claim is dropped, nobody can who respects its lock.
type Claim struct {
	*os.File       // for reading and writing
	Size     int64 // bytes
	Device   bool  // it is a block device
}

// ErrInUse is wrapped when a disk is mounted, or has another user in the host's
// kernel.
var ErrInUse = errors.New("in use by this machine's kernel")

// claimLimit is how long a claim waits for a lock: whoever was just killed may
// not be gone yet.
const claimLimit = 2 * time.Second

// Take claims an image file or a block device. A QEMU that has it open, a mount,
// a loop device on it or any other user of a block device is an *Error.
func Take(path string) (*Claim, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, &Error{What: "disk " + path, Err: err, Hint: "Name an image file or a block device."}
	}
	c := &Claim{Device: st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0}
	if !c.Device && !st.Mode().IsRegular() {
		return nil, &Error{What: "disk " + path, Err: errors.New("it is neither a file nor a block device"), Hint: "Name an image file or a block device."}
	}
	if err := unused(path, st, c.Device); err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if c.Device {
		// As a mount does it: either fails while the other holds (open(2)).
		flags |= unix.O_EXCL
	}
	if c.File, err = os.OpenFile(path, flags, 0); err != nil {
		hint := "The disk must be there and writable; nothing was touched."
		if errors.Is(err, unix.EBUSY) {
			err, hint = ErrInUse, "It is mounted somewhere, or part of a RAID, a volume group or a mapping: end that first."
		}
		return nil, &Error{What: "disk " + path, Err: err, Hint: hint}
	}
	if err = take(c.File, path, claimLimit, "try again"); err == nil {
		c.Size, err = c.Seek(0, io.SeekEnd)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// unused says whether no mount and no loop device has the disk.
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

func inUse(path, how, hint string) error {
	return &Error{What: "disk " + path, Err: fmt.Errorf("%w: %s", ErrInUse, how), Hint: hint}
}

// mountedOn is where the device of a number is mounted, or empty
// (proc(5), mountinfo).
func mountedOn(number string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[2] == number {
			return f[4]
		}
	}
	return ""
}
