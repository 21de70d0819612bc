//go:build linux

package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/oracle/script"
)

func (t *worker) path(at string) string {
	if at == "" {
		return t.root
	}
	return t.root + "/" + at
}

// do carries out one operation: besides opening and closing, one system call.
func (t *worker) do(op script.Op) error {
	at := t.path(op.On.Path)
	switch op.Kind {
	case script.Create:
		fd, err := unix.Open(at, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, op.Mode)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	case script.Mkdir:
		return unix.Mkdir(at, op.Mode)
	case script.Symlink:
		return unix.Symlink(op.To, at)
	case script.Link:
		return unix.Link(at, t.path(op.To))
	case script.Unlink:
		return unix.Unlink(at)
	case script.Rmdir:
		return unix.Rmdir(at)
	case script.Rename:
		return unix.Rename(at, t.path(op.To))
	case script.Chmod:
		return unix.Chmod(at, op.Mode)
	case script.Chown:
		return unix.Lchown(at, int(op.UID), int(op.GID))
	case script.Utimes:
		omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
		times := []unix.Timespec{omit, {Sec: op.Sec, Nsec: op.Nsec}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, at, times, unix.AT_SYMLINK_NOFOLLOW)
	case script.SetXattr:
		return unix.Setxattr(at, op.Name, []byte(op.Value), 0)
	case script.RemoveXattr:
		return unix.Removexattr(at, op.Name)
	case script.Open:
		fd, err := unix.Open(at, unix.O_RDWR|unix.O_CLOEXEC, 0)
		t.slots[op.Slot] = fd
		return err
	case script.Close:
		fd := t.slots[op.Slot]
		t.slots[op.Slot] = 0 // another file may get that number
		return unix.Close(fd)
	}
	return t.inside(op)
}

// inside carries out an operation on an open file or directory.
func (t *worker) inside(op script.Op) (err error) {
	var fd int
	if op.On.Slot != script.NoSlot {
		fd = t.slots[op.On.Slot]
	} else {
		fd, err = unix.Open(t.path(op.On.Path), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EISDIR) {
			fd, err = unix.Open(t.path(op.On.Path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	switch op.Kind {
	case script.Write:
		n, err := unix.Pwrite(fd, t.content(op), op.Off)
		if err == nil && int64(n) != op.Len {
			err = fmt.Errorf("%d bytes written: %w", n, unix.ENOSPC)
		}
		return err
	case script.Store:
		return t.store(fd, op)
	case script.Truncate:
		return unix.Ftruncate(fd, op.Off)
	case script.Fallocate:
		return unix.Fallocate(fd, op.Mode, op.Off, op.Len)
	case script.Fsync:
		return unix.Fsync(fd)
	case script.SetFlags:
		return setFlags(fd, op.Mode != 0)
	}
	return errors.New("nobody knows how")
}

// content returns what an operation writes. It is valid until the next call.
func (t *worker) content(op script.Op) []byte {
	if int64(cap(t.buf)) < op.Len {
		t.buf = make([]byte, op.Len)
	}
	b := t.buf[:op.Len]
	t.script.Fill(b, op, 0)
	return b
}

// store writes through a mapping of just the pages concerned. SIGBUS for a page means that there is no room for it.
func (t *worker) store(fd int, op script.Op) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v: %w", r, unix.ENOSPC)
		}
	}()
	b := t.content(op)
	start := op.Off &^ (script.PageSize - 1)
	mapping, err := unix.Mmap(fd, start, int(op.Off-start+op.Len), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	to := mapping[op.Off-start:]
	//lint:ignore S1001 copy stores the first bytes last, and what a crash leaves is compared as a first part
	for i, v := range b {
		to[i] = v
	}
	return unix.Munmap(mapping)
}

// stat reports on a file.
func (t *worker) stat(ref script.Ref) (script.Stat, error) {
	var st unix.Statx_t
	var err, noCap error
	if ref.Slot != script.NoSlot {
		fd := t.slots[ref.Slot]
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st)
		_, noCap = unix.Fgetxattr(fd, script.Capability, nil)
	} else {
		at := t.path(ref.Path)
		err = unix.Statx(unix.AT_FDCWD, at, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
		noCap = unix.ENODATA
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			_, noCap = unix.Lgetxattr(at, script.Capability, nil)
		}
	}
	if err != nil || noCap != nil && !errors.Is(noCap, unix.ENODATA) {
		return script.Stat{}, errors.Join(err, noCap)
	}
	return script.Stat{
		Ino: st.Ino, Sec: st.Mtime.Sec, Nsec: st.Mtime.Nsec, Mode: uint32(st.Mode), Size: int64(st.Size), Nlink: st.Nlink,
		UID: st.Uid, GID: st.Gid, Cap: noCap == nil, NoDump: st.Attributes&unix.STATX_ATTR_NODUMP != 0,
	}, nil
}

// setFlags changes the flag FS_XFLAG_NODUMP by FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR; the flags are the first field of their struct
// fsxattr (include/uapi/linux/fs.h).
func setFlags(fd int, on bool) error {
	var attr [28]byte
	call := func(request uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&attr))); errno != 0 {
			return errno
		}
		return nil
	}
	if err := call(0x801c581f); err != nil {
		return err
	}
	if attr[0] &^= 0x80; on {
		attr[0] |= 0x80
	}
	return call(0x401c5820)
}
