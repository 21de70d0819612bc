package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/link"
)

// StagingDisk is the serial number of the disk that salvaged data comes on.
const StagingDisk = "staging"

// appliers is how many files are written at once. The data is moved by the
// disks' DMA, not by this CPU: several requests under way keep them busy.
const appliers = 4

// chunk is the size of one request, in bytes: one huge page's half, so that a
// buffer is physically contiguous and a request is one segment.
const chunk = 1 << 20

// apply brings the files of a plan to the state the dead kernel had in memory.
// A file that cannot be is reported and left as it was before it.
func (a *Agent) apply(_ context.Context, r link.ApplyRequest) (link.ApplyResult, error) {
	begin := time.Now()
	a.mu.Lock()
	dir, ok := a.mounts[r.Disk]
	a.mu.Unlock()
	if !ok {
		return link.ApplyResult{}, fmt.Errorf("disk %q is not mounted here", r.Disk)
	}
	staging, err := openStaging()
	if err != nil {
		return link.ApplyResult{}, err
	}
	defer staging.Close()
	files, err := readPlan(staging, r)
	if err != nil {
		return link.ApplyResult{}, err
	}
	mount, err := os.Open(dir)
	if err != nil {
		return link.ApplyResult{}, fmt.Errorf("open mount: %w", err)
	}
	defer mount.Close()

	result := link.ApplyResult{Phases: []link.PhaseTime{{Name: "read plan", Took: time.Since(begin)}}}
	begin = time.Now()
	if err := applyFiles(int(mount.Fd()), int(staging.Fd()), files, &result); err != nil {
		return result, err
	}
	result.Phases = append(result.Phases, link.PhaseTime{Name: "write files", Took: time.Since(begin)})
	return result, nil
}

func openStaging() (*os.File, error) {
	path, err := diskPath(StagingDisk)
	if err != nil {
		return nil, err
	}
	if err := flushBuffers(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("open staging disk: %w", err)
	}
	return f, nil
}

func readPlan(staging *os.File, r link.ApplyRequest) ([]link.File, error) {
	size, err := staging.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size staging disk: %w", err)
	}
	if r.Plan < 0 || r.Len <= 0 || r.Plan%512 != 0 || r.Plan > size || r.Len > size-r.Plan {
		return nil, fmt.Errorf("plan at %d of %d bytes is not on the staging disk of %d", r.Plan, r.Len, size)
	}
	raw, err := unix.Mmap(-1, 0, int(r.Len+directAlign-1)&^(directAlign-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map buffer for a plan of %d bytes: %w", r.Len, err)
	}
	defer unix.Munmap(raw)
	if err := readFull(int(staging.Fd()), raw, r.Plan); err != nil {
		return nil, fmt.Errorf("read plan: %w", err)
	}
	return link.DecodePlan(raw[:r.Len])
}

func applyFiles(mount, staging int, files []link.File, result *link.ApplyResult) error {
	var (
		next atomic.Int64
		mu   sync.Mutex
		wg   sync.WaitGroup
	)
	bufs, free, err := buffers(appliers)
	if err != nil {
		return err
	}
	defer free()
	for _, b := range bufs {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(files)) {
					return
				}
				n, err := applyFile(mount, staging, files[i], b)
				mu.Lock()
				result.Bytes += n
				if err == nil {
					result.Files++
				} else {
					result.Failures = append(result.Failures, link.Failure{
						Inode: files[i].Inode, Generation: files[i].Generation, Reason: err.Error(),
					})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
}

// applyFile writes one file and returns how many bytes of it.
func applyFile(mount, staging int, f link.File, buf []byte) (written int64, err error) {
	t, err := openTarget(mount, f.Inode, f.Generation)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.close(f)) }()
	for _, r := range f.Runs {
		n, err := copyRun(t.fd, staging, r, buf)
		written += min(n, max(f.Size-r.Off, 0)) // the rest is cut off again
		if err != nil {
			return written, fmt.Errorf("write %d bytes at %d: %w", r.Len, r.Off, err)
		}
	}
	return written, t.resize(f.Size)
}

// copyRun moves one run from the staging disk into the file. Both are opened
// for direct I/O, so the last piece is rounded up to the sector; the file's
// size is set afterwards and cuts that off.
func copyRun(fd, staging int, r link.Run, buf []byte) (int64, error) {
	var done int64
	for done < r.Len {
		n := min(r.Len-done, int64(len(buf)))
		b := buf[:(n+directAlign-1)&^(directAlign-1)]
		if err := readFull(staging, b, r.Staged+done); err != nil {
			return done, fmt.Errorf("read staging disk: %w", err)
		}
		if err := writeFull(fd, b, r.Off+done); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// directAlign is what direct writes are rounded up to, in bytes. Runs are
// pages, or blocks of a file system with smaller ones: 512 divides both.
const directAlign = 512

func readFull(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, off)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func writeFull(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// buffers maps count direct I/O buffers of a chunk each, on huge pages where
// the kernel has them to give, and a function that unmaps them.
func buffers(count int) ([][]byte, func(), error) {
	const huge = 2 << 20
	arena, err := unix.Mmap(-1, 0, count*chunk+huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("map %d buffers: %w", count, err)
	}
	// Only a hint: without it the buffers are scattered pages, and slower.
	_ = unix.Madvise(arena, unix.MADV_HUGEPAGE)
	start := -uintptr(unsafe.Pointer(&arena[0])) % huge
	all := make([][]byte, count)
	for i := range all {
		from := int(start) + i*chunk
		all[i] = arena[from : from+chunk : from+chunk]
	}
	return all, func() { _ = unix.Munmap(arena) }, nil
}
