package bare

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/live/metal"
)

// leftover says whether the dead kernel's memory may be the only place that has some of the unsaved data.
// While a dump is being made, callers of any wait.
type leftover struct {
	mu  sync.Mutex
	yes bool
}

func (l *leftover) set(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.yes = yes
}

func (l *leftover) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.yes
}

// dump saves that memory to a disk, after which it is not the only place any more.
func (l *leftover) dump(m *machine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.role.Dump == "" {
		return errors.New("the role names no disk for a dump")
	}
	err := m.dump()
	l.yes = err != nil
	return err
}

// dump saves the dead kernel's memory as an ELF core on the role's disk for that. It does not overwrite what
// is on that disk already, except a swap area.
func (m *machine) dump() error {
	took, err := m.writeDump()
	if err != nil {
		return fmt.Errorf("keep the dead kernel's memory on disk %s: %w", m.role.Dump, err)
	}
	say("the dead kernel's memory is kept on disk %s (%v)", m.role.Dump, took.Round(time.Millisecond))
	return nil
}

func (m *machine) writeDump() (took time.Duration, err error) {
	f, err := openDisk(m.role.Dump, unix.O_EXCL)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	room, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if err := metal.Vacant(f, room); err != nil {
		return 0, err
	}
	if size := ram.CoreSize(m.memory.Ranges()); room < size {
		return 0, fmt.Errorf("it has %d MiB, and a dump takes %d", room>>20, (size+1<<20-1)>>20)
	}
	start := time.Now()
	err = ram.WriteCore(f, m.memory)
	return time.Since(start), err
}
