package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// maxInFlight bounds the operations in flight: a thread has a few at most, and there are no more threads (PID_MAX_LIMIT,
// include/linux/threads.h).
const maxInFlight = 1 << 24

// InFlight returns how many operations were in the middle of changing a file system: those that must end before it could be frozen, which are
// system calls, page faults, and evictions of inodes (include/linux/fs.h, sb_start_write, sb_start_pagefault, sb_start_intwrite), each at its
// own level of s_writers.rw_sem. An operation may count more than once; writeback does not count.
func (c *Cache) InFlight(s *Superblock) (int, error) {
	sb, sem := c.k.Types().Layout("super_block"), c.k.Types().Layout("percpu_rw_semaphore")
	levels, count := sb.Field("s_writers.rw_sem"), sem.Field("read_count", 8)
	err := errors.Join(sb.Err(), sem.Err())
	if err == nil && (levels.Size == 0 || sem.Size == 0 || levels.Size%sem.Size != 0) {
		err = fmt.Errorf("s_writers.rw_sem has %d bytes", levels.Size)
	}
	if err != nil {
		return 0, fmt.Errorf("operations in flight on %s: %w", s.ID, err)
	}
	all := 0
	for at := 0; at < levels.Size; at += sem.Size {
		n, err := c.readers(count.In(levels.In(s.Addr) + addr.Virt(at)))
		if err != nil {
			return 0, fmt.Errorf("operations in flight on %s: %w", s.ID, err)
		}
		all += n
	}
	return all, nil
}

// readers returns how many readers a percpu_rw_semaphore has, whose member read_count is at that address. A reader may have begun on one CPU and
// ended on another: only the sum counts (kernel/locking/percpu-rwsem.c, per_cpu_sum).
func (c *Cache) readers(at addr.Virt) (int, error) {
	counter, err := c.k.Pointer(at)
	if err != nil {
		return 0, err
	}
	sum := uint32(0)
	for at, err := range c.k.PerCPU(counter) {
		if err != nil {
			return 0, err
		}
		n, err := c.k.U32(at)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	if sum > maxInFlight {
		return 0, fmt.Errorf("a percpu_rw_semaphore has %d readers", sum)
	}
	return int(sum), nil
}
