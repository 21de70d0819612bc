package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/wire"
)

// diskPulse reads a mounted disk at intervals, bypassing the page cache, and counts the reads.
type diskPulse struct {
	counters counters
	offset   int
	device   *os.File
	at       int64 // where it reads, in bytes from the start of the device

	mu    sync.Mutex
	ended bool
}

// directRead is the size of a direct read, and its alignment, in bytes: no block device of a
// guest requires more.
const directRead = 4096

// watchDisk starts the pulse of a disk that has just been mounted, and returns the function
// that ends it. path is the device that was mounted. If a disk cannot be watched, it is served
// nevertheless.
func (a *Agent) watchDisk(d wire.Disk, path string) func() {
	end := func() {}
	i := slices.IndexFunc(a.config.Disks, func(c wire.Disk) bool { return c.Name == d.Name })
	pulses := liveness.DiskPulses(make([]string, len(a.config.Disks)))
	if a.counters == nil || i < 0 || i >= len(pulses) {
		return end
	}
	if limit := a.config.Beat.Disk; limit > 0 {
		p, err := openPulse(d)
		if err != nil {
			fmt.Fprintf(os.Stderr, "understudy: disk %s is not watched: %v\n", d.Name, err)
			return end
		}
		p.counters, p.offset = a.counters, pulses[i].Offset
		go p.run(limit / liveness.PulsesPerLimit)
		end = p.end
	}
	if readOnly(d.Options) {
		return end
	}
	w := writable{a: a, health: health{d, path}, done: make(chan struct{})}
	go w.run()
	return func() {
		close(w.done)
		end()
	}
}

// openPulse opens the disk itself for reading, and not a layer above it: the layers must be
// free to be ended once the file system is unmounted.
func openPulse(d wire.Disk) (*diskPulse, error) {
	below, err := bottom(d)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(below[0], os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The last block: a direct read first writes back the pages of its range that are dirty
	// in the device's own page cache, and a superblock would be.
	return &diskPulse{device: f, at: max(0, size-directRead) &^ (directRead - 1)}, nil
}

func (p *diskPulse) run(period time.Duration) {
	runtime.LockOSThread()
	defer p.device.Close()
	fd := int(p.device.Fd())
	block, err := unix.Mmap(-1, 0, directRead, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return // without a count, the disk is not judged
	}
	defer func() { _ = unix.Munmap(block) }()
	for {
		_, _ = unix.Pread(fd, block, p.at) // an error is an answer, too
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return
		}
		p.counters.at(p.offset).Add(1)
		p.mu.Unlock()
		sleep(period)
	}
}

// end sets the count to zero, so that the disk is not judged any more.
func (p *diskPulse) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.counters.at(p.offset).Store(0)
}

// writable watches whether a file system finds itself damaged, which makes it read-only if
// its mount options say so.
type writable struct {
	a *Agent
	health
	done chan struct{}
}

// writableEvery is how often it looks.
const writableEvery = time.Second

func (w *writable) run() {
	before := w.errors()
	for {
		select {
		case <-w.done:
			return
		case <-time.After(writableEvery):
		}
		now := w.errors()
		if now == "" || now == before { // empty: it has just been unmounted
			continue
		}
		before = now
		w.a.trouble("disk %s: its file system has found itself damaged (%s)%s: the guest's kernel says why in its log", w.disk.Name, now, w.refuses())
	}
}

// health asks after the file system of a mounted disk.
type health struct {
	disk wire.Disk
	path string // of the device that is mounted
}

// refuses says, as text for a message, whether the file system takes no writes any more.
func (h health) refuses() string {
	if err := h.write(); err != nil {
		return fmt.Sprintf(", and takes no writes any more (%v)", err)
	}
	return ""
}

// write makes a file without a name, which is gone at once. The flags of a file system do not show whether it takes
// writes: ext4 does not set SB_RDONLY after an error since 6.11, nor in the stable kernels that have "ext4: don't set
// SB_RDONLY after filesystem errors".
func (h health) write() error {
	fd, err := unix.Open(h.disk.Mount, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd) // nothing was written
}

// errors is what the kernel says of errors in the file system: for ext4, how many it has counted
// (Documentation/ABI/testing/sysfs-fs-ext4); for XFS, whether it is shut down, in which case opens
// fail (fs/xfs/xfs_file.c, xfs_file_open); for btrfs, whether it has made itself read-only
// (fs/btrfs/super.c, or messages.c since 6.2, __btrfs_handle_fs_error). Empty means not known.
func (h health) errors() string {
	switch h.disk.Type {
	case "xfs":
		fd, err := unix.Open(h.disk.Mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EIO) {
			return "it is shut down"
		}
		_ = unix.Close(fd) // only opened
		return "none"
	case "btrfs":
		var st unix.Statfs_t
		if unix.Statfs(h.disk.Mount, &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
			return "it is read-only"
		}
		return "none"
	}
	b, err := os.ReadFile("/sys/fs/ext4/" + strings.TrimPrefix(h.path, "/dev/") + "/errors_count")
	if err != nil {
		return ""
	}
	return "errors_count " + strings.TrimSpace(string(b))
}

// trouble tells the supervisor, and the console, what does not work.
func (a *Agent) trouble(format string, args ...any) {
	a.notify(wire.TroubleNotice{What: fmt.Sprintf(format, args...)})
}

func (a *Agent) notify(t wire.TroubleNotice) {
	if conn := a.conn.Load(); conn != nil {
		_ = conn.Notify(wire.Trouble, t) // the console has it
	}
	fmt.Fprintln(os.Stderr, "understudy:", t.What) // last: the reader of this may hang, as the disk does
}
