// Package morgue is where a takeover, and the salvage of a disk, meet what a dead
// kernel's memory says: it gives them the plan of a file system's unsaved files, the
// last commit, and the kernel's peers, in their own terms.
package morgue

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover"
)

// Morgue is the memory of a dead machine, or of one that lives, as a takeover sees it.
type Morgue struct {
	memory ram.Memory

	mu     sync.Mutex     // of what follows; its holder may be reading memory
	kernel *kernel.Kernel // nil until it is found
	closed bool           // nobody may read memory any more
}

// Open opens the RAM file of a partition, or a dump.
func Open(path string) (*Morgue, error) {
	m, err := ram.OpenFile(path)
	if err != nil {
		return nil, err
	}
	return &Morgue{memory: m}, nil
}

// New returns the Morgue of memory that is open. Close closes that memory.
func New(m ram.Memory) *Morgue { return &Morgue{memory: m} }

// Symbol returns the virtual address of a symbol of the kernel, and its physical address.
func (m *Morgue) Symbol(name string) (virtual, physical uint64, err error) {
	k, err := m.known()
	if err != nil {
		return 0, 0, err
	}
	va, err := k.Symbol(name)
	if err != nil {
		return 0, 0, err
	}
	pa, err := k.Physical(va)
	return uint64(va), uint64(pa), err
}

// Close releases the memory. Its vitals may be asked for at any time, but are not known any more.
func (m *Morgue) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernel != nil {
		_ = m.kernel.Keep() // or else it is learned again
	}
	m.kernel, m.closed = nil, true
	return m.memory.Close()
}

var errClosed = errors.New("memory is closed")

// Prepare finds the kernel, unless the one found before is still there.
func (m *Morgue) Prepare(context.Context) error {
	_, err := m.known()
	return err
}

// known returns the kernel, which it finds if need be. Peers are read concurrently with file
// systems.
func (m *Morgue) known() (*kernel.Kernel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	if m.kernel != nil && m.kernel.StillThere() == nil {
		return m.kernel, nil
	}
	k, err := kernel.Find(m.memory, Builds()...)
	m.kernel = k
	return k, err
}

// Hostname returns the host name of the dead kernel; empty if it is not known.
func (m *Morgue) Hostname() string {
	k, err := m.known()
	if err != nil {
		return ""
	}
	return k.Hostname()
}

// Panicked says whether a CPU of a kernel that was found is in panic(). It reads one word.
func (m *Morgue) Panicked() (cpu int, panicked bool) {
	if !m.mu.TryLock() { // the kernel is being looked for
		return 0, false
	}
	defer m.mu.Unlock()
	if m.kernel == nil {
		return 0, false
	}
	cpu, panicked, err := m.kernel.PanicCPU()
	return cpu, panicked && err == nil
}

// Ticks returns how many timer ticks a living kernel has counted (jiffies_64). It finds the kernel first, if need be.
func (m *Morgue) Ticks() (uint64, error) {
	k, err := m.known()
	if err != nil {
		return 0, err
	}
	at, err := k.Symbol("jiffies_64")
	if err != nil {
		return 0, err
	}
	return k.U64(at)
}

// Unsaved returns how many bytes the kernel counts as not on their disks. known is false if this
// cannot be read, or the kernel has not been found yet.
func (m *Morgue) Unsaved() (bytes uint64, known bool) {
	if !m.mu.TryLock() {
		return 0, false
	}
	defer m.mu.Unlock()
	if m.kernel == nil {
		return 0, false
	}
	bytes, err := m.kernel.Unsaved()
	return bytes, err == nil
}

// Examine finds the file system of the image among the dead kernel's mounts.
func (m *Morgue) Examine(image takeover.Image) (takeover.Remains, error) {
	k, err := m.known()
	if err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	on, err := salvage.Identify(image)
	if err != nil {
		return nil, err
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return nil, err
	}
	s, err := c.Superblock(on.UUID)
	if errors.Is(err, pagecache.ErrNotMounted) {
		why := wasUnmounted(c, on, image)
		if why == nil {
			return unmounted{on.Family}, nil
		}
		err = fmt.Errorf("%w; %w", err, why)
	}
	if err != nil {
		return nil, err
	}
	r := &Remains{Cache: c, Super: s}
	if r.Plan, err = salvage.ForDisk(c, s, false); err != nil {
		return nil, err
	}
	return r, r.Plan.Check(image)
}

// Builds returns the options that keep what is learned of a kernel in the cache for the next time.
// Without a cache directory, it is learned each time.
func Builds() []kernel.Option {
	dir, err := dirs.Cache()
	if err != nil {
		return nil
	}
	return []kernel.Option{kernel.KeepIn(filepath.Join(dir, "builds"))}
}
