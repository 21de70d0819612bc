// Package fence proves that a partition cannot write any more: its process is
// reaped, and the locks of its disk images are ours.
package fence

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
)

// Process is what is to be fenced: a child process that runs a partition.
type Process interface {
	PID() int
	Kill()
	Ended() <-chan struct{}
}

// Proof is a fenced partition. It holds the image locks until they are
// released, one by one, to the side that takes over.
type Proof struct {
	locks map[string]*os.File
}

// ErrLocked is wrapped when an image stays locked by somebody else.
var ErrLocked = errors.New("still locked")

// Raise kills the process, waits for it to be reaped and takes the lock of every image that we
// hold, each within limit. It locks the file that is held, whatever the image's path leads to by
// now. If it fails, it has not touched any image.
func Raise(p Process, images []*Hold, limit time.Duration) (*Proof, error) {
	p.Kill()
	select {
	case <-p.Ended():
	case <-time.After(limit):
		return nil, hint.New(fmt.Sprintf("fence process %d", p.PID()), fmt.Errorf("it has not ended %v after SIGKILL", limit),
			"It may hang in the machine's kernel (state D in ps). Its disks are left as they are: take over by hand once it is gone.")
	}
	proof := &Proof{locks: make(map[string]*os.File)}
	for _, h := range images {
		f, err := lock(fmt.Sprintf("/proc/self/fd/%d", h.Fd()), h.Name(), limit)
		if err != nil {
			proof.Drop()
			return nil, err
		}
		proof.locks[h.Name()] = f
	}
	return proof, nil
}

// Free checks that no process holds the lock of an image; the error names those that do.
func Free(image string) error {
	f, err := lock(image, image, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Image returns the locked image, open for reading and writing.
func (p *Proof) Image(path string) *os.File { return p.locks[path] }

// Release gives up the lock of one image, to hand it over.
func (p *Proof) Release(image string) error {
	f := p.locks[image]
	if f == nil {
		return fmt.Errorf("release %s: not locked by this fence", image)
	}
	delete(p.locks, image)
	return f.Close()
}

// Drop gives up all locks.
func (p *Proof) Drop() {
	for image := range p.locks {
		_ = p.Release(image)
	}
}

// QEMU locks single bytes of an image: from 100 on, one for each permission that it uses,
// and from 200 on, one for each permission that it does not share (block/file-posix.c,
// RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE). A write lock over all of them excludes, and
// is excluded by, any QEMU.
const lockStart, lockLen = 100, 200

// lock locks the file of an image, which is found at path. image is its name in errors.
func lock(path, image string, limit time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, hint.New("open image "+image, err, "The image must be there and writable; nothing was touched.")
	}
	if err := lockRange(f, image, lockStart, lockLen, limit, "take over by hand"); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockRange takes a write lock on bytes of an image. Like QEMU's locks, it belongs to the open
// file (fcntl(2), open file description locks).
func lockRange(f *os.File, image string, start, length int64, limit time.Duration, next string) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: length}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return hint.New("lock image "+image, err, "The image's file system must support locks; nothing was touched.")
		}
		if time.Now().After(deadline) {
			return hint.New("lock image "+image, fmt.Errorf("%w by %s", ErrLocked, holders(f)),
				"That process may still write it, so it was not touched. End the process, then "+next+".")
		}
	}
}

// holders names the processes that hold a lock on an open image. Locks like QEMU's
// belong to an open file, not to a process, but the kernel lists them with each
// descriptor of that file (proc(5), fdinfo).
func holders(image *os.File) string {
	want, err := image.Stat()
	if err != nil {
		return "an unknown process"
	}
	var names []string
	for fd := range open("[0-9]*", func(st os.FileInfo) bool { return os.SameFile(st, want) }) {
		part := strings.Split(fd, "/") // "", proc, pid, fd, number
		info, err := os.ReadFile(filepath.Join("/proc", part[2], "fdinfo", part[4]))
		if err != nil || !strings.Contains(string(info), "\nlock:") {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", part[2], "comm")) // it may just have ended
		name := fmt.Sprintf("process %s (%s)", part[2], strings.TrimSpace(string(comm)))
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "an unknown process"
	}
	return strings.Join(names, ", ")
}

// open yields the descriptors, as paths in /proc, by which processes have a file open. pids is a
// pattern of filepath.Match for the numbers of the processes.
func open(pids string, is func(os.FileInfo) bool) iter.Seq[string] {
	return func(yield func(string) bool) {
		fds, _ := filepath.Glob(filepath.Join("/proc", pids, "fd", "*")) // the pattern is well-formed
		for _, fd := range fds {
			if st, err := os.Stat(fd); err == nil && is(st) && !yield(fd) {
				return
			}
		}
	}
}
