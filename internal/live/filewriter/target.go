package filewriter

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// extentsFlag is FS_EXTENT_FL: the inode's blocks are mapped by extents.
const extentsFlag = 0x80000

// capabilityName is the extended attribute that a write removes from a
// file, as a security measure against other writers than us
// (security/commoncap.c, cap_inode_killpriv).
const capabilityName = "security.capability"

// target is a file that is being brought up to date. It is opened for direct
// writing by its first piece and closed after its last. It saves what the
// writing itself would change and must not.
type target struct {
	file     wire.File
	left     atomic.Int32 // pieces not yet written
	kind     string       // type of the file system; empty for the ext family
	root     uint64       // subvolume of btrfs
	unlogged *unlogged    // what else is to be done; nil if nothing is

	mu         sync.Mutex
	opened     bool
	fd         int      // for direct writing
	plain      int      // for writing through the page cache; 0 if not open
	size       int64    // of the file when it was opened, bytes
	mapped     bool     // its blocks are mapped by extents, and not by block maps
	settings   settings // to be put back if locked
	locked     bool     // a flag that forbids writing was cleared
	capability []byte
	written    int64 // bytes
	err        error
	lacks      error // what could not be written of a file that was written otherwise
}

// report adds the outcome for the file to a result.
func (t *target) report(r *wire.ApplyResult) {
	r.Bytes += t.written
	if t.err == nil {
		r.Files++
	}
	if err := errors.Join(t.err, t.lacks); err != nil {
		r.Failures = append(r.Failures, wire.Failure{Inode: t.file.Inode, Generation: t.file.Generation, Reason: err.Error()})
	}
}

func (t *target) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = errors.Join(t.err, err)
}

// open opens the file once; later calls return the error of that attempt, if any.
func (t *target) open(mount int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.opened && t.err == nil {
		t.opened, t.err = true, t.openByHandle(mount)
	}
	return t.err
}

// openByHandle opens the inode by number and generation. If the number was
// given to another inode since, the generation is another one, and the kernel
// answers ESTALE.
func (t *target) openByHandle(mount int) error {
	t.fd = -1
	fh, err := t.handle()
	if err != nil {
		return err
	}
	const writing = unix.O_RDWR | unix.O_DIRECT | unix.O_NOATIME | unix.O_CLOEXEC
	fd, err := unix.OpenByHandleAt(mount, fh, writing)
	if errors.Is(err, unix.EPERM) {
		if err = t.unlock(mount, fh); err == nil {
			fd, err = unix.OpenByHandleAt(mount, fh, writing)
		}
	}
	if errors.Is(err, unix.ESTALE) {
		return errors.New("not on the disk: its creation was not committed")
	}
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	t.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	t.size = st.Size
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("get inode flags: %w", err)
	}
	t.mapped = flags&extentsFlag != 0
	if t.capability, err = readCapability(fd); err != nil || t.unlogged == nil {
		return err
	}
	return t.unlogged.prepare(t)
}

// handle is the handle of the file, or of the one that was created in its place.
func (t *target) handle() (unix.FileHandle, error) {
	if t.unlogged != nil && t.unlogged.made != nil {
		return *t.unlogged.made, nil
	}
	return handleOf(t.kind, &t.file, t.root)
}

// unlock clears the flags that make an inode refuse writers.
func (t *target) unlock(mount int, fh unix.FileHandle) error {
	fd, err := unix.OpenByHandleAt(mount, fh, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if t.settings, err = readSettings(fd); err != nil {
		return err
	}
	t.locked = true
	return t.settings.unlocked().setTo(fd, t.settings)
}

func readCapability(fd int) ([]byte, error) {
	b := make([]byte, 64) // a vfs_ns_cap_data has 24 bytes (include/uapi/linux/capability.h)
	n, err := unix.Fgetxattr(fd, capabilityName, b)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	return b[:n], nil
}

// write writes the first n bytes of data at off.
// Two things go through the page cache, the rest directly: what is beyond the
// end of a file without extents, since ext4 has no direct writes into holes
// there, and falls back to synchronous ones (fs/ext4/inode.c,
// ext4_iomap_alloc); and a part of a page at the end, since a device's sectors may be as
// large as a page, and writing whole sectors would extend the file beyond its end: truncating
// it again costs more.
func (t *target) write(mount int, data []byte, off, n int64) {
	if t.open(mount) != nil {
		return
	}
	n = min(n, t.file.Size-off)
	if n <= 0 {
		return
	}
	direct := max((off+n)&^(page-1)-off, 0)
	if !t.mapped {
		direct = min(direct, max(t.size&^(page-1)-off, 0))
	}
	err := writeFull(t.fd, data[:direct], off)
	if err == nil && direct < n {
		err = t.writePlain(data[direct:n], off+direct)
	}
	if err != nil {
		t.fail(fmt.Errorf("write %d bytes at %d: %w", n, off, err))
		return
	}
	t.mu.Lock()
	t.written += n
	t.mu.Unlock()
}

// writePlain writes through the page cache.
func (t *target) writePlain(data []byte, off int64) error {
	t.mu.Lock()
	if t.plain == 0 {
		fd, err := unix.Open(procPath(t.fd), unix.O_RDWR|unix.O_NOATIME|unix.O_CLOEXEC, 0)
		if err != nil {
			t.mu.Unlock()
			return fmt.Errorf("open without O_DIRECT: %w", err)
		}
		t.plain = fd
	}
	t.mu.Unlock()
	return writeFull(t.plain, data, off)
}

// finish comes after the last piece: it sets the size, and leaves the file with
// the times, capabilities and flags that the dead kernel had for it. Only ctime
// is that of the writing: no system call sets it.
func (t *target) finish(mount int) {
	if t.open(mount) == nil {
		if err := t.complete(); err != nil {
			t.fail(err)
		}
	}
	if err := t.protect(mount); err != nil {
		t.fail(err)
	}
	for _, fd := range []int{t.fd, t.plain} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// complete sets size, holes, metadata and times.
func (t *target) complete() error {
	if err := t.resize(); err != nil {
		return err
	}
	for _, h := range t.file.Holes {
		if err := punch(t.fd, h, t.file.Size); err != nil {
			return err
		}
	}
	if t.unlogged != nil {
		if err := t.unlogged.own(t); err != nil {
			return err
		}
	}
	if err := setTimes(t.fd, timesOf(&t.file)); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// protect puts back the file's capabilities, which writing removes, and the flags that forbid writing, which
// were cleared for it. It does so even if the writing failed.
func (t *target) protect(mount int) error {
	if t.capability != nil {
		if err := unix.Fsetxattr(t.fd, capabilityName, t.capability, 0); err != nil {
			return fmt.Errorf("put capabilities back: %w", err)
		}
	}
	if !t.locked {
		return nil
	}
	if t.fd >= 0 {
		return t.settings.setTo(t.fd, t.settings.unlocked())
	}
	fh, err := t.handle()
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(mount, fh, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("put inode flags back: %w", err)
	}
	defer unix.Close(fd)
	return t.settings.setTo(fd, t.settings.unlocked())
}

// resize sets the file's size if it is another one, or if the file is to be cut: setting the
// same size again frees the blocks beyond it (fs/ext4/inode.c, ext4_setattr).
func (t *target) resize() error {
	var st unix.Stat_t
	if err := unix.Fstat(t.fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Size == t.file.Size && !t.file.Cut {
		return nil
	}
	if err := unix.Ftruncate(t.fd, t.file.Size); err != nil {
		return fmt.Errorf("set size %d: %w", t.file.Size, err)
	}
	return nil
}

// punch makes a hole of a range of a file, as far as the range is within size.
func punch(fd int, r wire.Range, size int64) error {
	n := min(r.Len, size-r.Off)
	if n <= 0 {
		return nil
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, n); err != nil {
		return fmt.Errorf("make %d bytes at %d a hole: %w", n, r.Off, err)
	}
	return nil
}

// setTimes is futimens(3): utimensat(2) without a path. x/sys has only the
// form with a path.
func setTimes(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
