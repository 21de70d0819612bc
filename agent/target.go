package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/link"
)

// handleInode32 is the type of a file handle that holds a 32-bit inode number
// and its generation (FILEID_INO32_GEN, include/linux/exportfs.h).
const handleInode32 = 1

// Inode flags that forbid writing: FS_IMMUTABLE_FL and FS_APPEND_FL
// (include/uapi/linux/fs.h).
const lockingFlags = 0x10 | 0x20

// capabilityName is the attribute that a write takes off a file, as a
// security measure against others than us (security/commoncap.c,
// cap_inode_killpriv).
const capabilityName = "security.capability"

// target is a file being brought up to date, opened for direct writing, with
// what the writing itself would change and must not.
type target struct {
	fd         int
	flags      int  // inode flags, to be put back if locked
	locked     bool // a flag that forbids writing was taken off
	capability []byte
}

// openTarget opens an inode by number and generation. A number that was given
// to another inode since has another generation: the kernel answers ESTALE.
func openTarget(mount int, inode uint64, generation uint32) (*target, error) {
	if inode > 1<<32-1 {
		return nil, fmt.Errorf("inode number %d does not fit in the file handle of ext4", inode)
	}
	handle := binary.NativeEndian.AppendUint32(nil, uint32(inode))
	handle = binary.NativeEndian.AppendUint32(handle, generation)
	fh := unix.NewFileHandle(handleInode32, handle)

	const writing = unix.O_RDWR | unix.O_DIRECT | unix.O_NOATIME | unix.O_CLOEXEC
	t := &target{}
	var err error
	t.fd, err = unix.OpenByHandleAt(mount, fh, writing)
	if errors.Is(err, unix.EPERM) {
		if err = t.unlock(mount, fh); err == nil {
			t.fd, err = unix.OpenByHandleAt(mount, fh, writing)
		}
	}
	if errors.Is(err, unix.ESTALE) {
		return nil, errors.New("not on the disk: its creation was not committed")
	}
	if err != nil {
		return nil, fmt.Errorf("open by handle: %w", err)
	}
	if t.capability, err = readCapability(t.fd); err != nil {
		unix.Close(t.fd)
		return nil, err
	}
	return t, nil
}

// unlock takes off the flags that make an inode refuse writers.
func (t *target) unlock(mount int, fh unix.FileHandle) error {
	fd, err := unix.OpenByHandleAt(mount, fh, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	t.flags, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("get inode flags: %w", err)
	}
	t.locked = true
	return setFlags(fd, t.flags&^lockingFlags)
}

func setFlags(fd, flags int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags); err != nil {
		return fmt.Errorf("set inode flags %#x: %w", flags, err)
	}
	return nil
}

func readCapability(fd int) ([]byte, error) {
	b := make([]byte, 64) // a vfs_ns_cap_data has 24 (include/uapi/linux/capability.h)
	n, err := unix.Fgetxattr(fd, capabilityName, b)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	return b[:n], nil
}

// resize sets the file's size, in bytes, if it is another one.
func (t *target) resize(size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(t.fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Size == size {
		return nil
	}
	if err := unix.Ftruncate(t.fd, size); err != nil {
		return fmt.Errorf("set size %d: %w", size, err)
	}
	return nil
}

// close leaves the file with the times, capabilities and flags that the dead
// kernel had for it. Only ctime is the writing's own: no call sets it.
func (t *target) close(f link.File) error {
	defer unix.Close(t.fd)
	if t.capability != nil {
		if err := unix.Fsetxattr(t.fd, capabilityName, t.capability, 0); err != nil {
			return fmt.Errorf("put capabilities back: %w", err)
		}
	}
	times := []unix.Timespec{
		{Sec: f.Atime.Sec, Nsec: int64(f.Atime.Nsec)},
		{Sec: f.Mtime.Sec, Nsec: int64(f.Mtime.Nsec)},
	}
	if err := setTimes(t.fd, times); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	if t.locked {
		return setFlags(t.fd, t.flags)
	}
	return nil
}

// setTimes is futimens(3): utimensat(2) without a path. x/sys has only the
// form with one.
func setTimes(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
