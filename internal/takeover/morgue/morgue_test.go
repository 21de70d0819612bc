package morgue

import (
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// memory is a ram.Memory that is gone once it is closed. Nobody may be reading it then.
type memory struct {
	ram.Memory
	morgue *Morgue
	gone   bool
	t      *testing.T
}

func (m *memory) View(pa addr.Phys, n int) ([]byte, error) { return nil, errors.New("absent") }

func (m *memory) Ranges() []addr.PhysRange {
	if m.gone {
		m.t.Error("memory was read after it was closed")
	}
	return nil
}

func (m *memory) Close() error {
	if m.morgue.mu.TryLock() {
		m.morgue.mu.Unlock()
		m.t.Error("memory was closed, and somebody may be reading it")
	}
	m.gone = true
	return nil
}

// TestClose: vitals may be asked for at any time, and are never read from memory that is
// unmapped.
func TestClose(t *testing.T) {
	mem := &memory{t: t}
	m := New(mem)
	mem.morgue = m
	if err := m.Prepare(t.Context()); err == nil {
		t.Error("a kernel was found in no memory")
	}
	if err := m.Close(); err != nil || !mem.gone {
		t.Errorf("%v, gone: %v", err, mem.gone)
	}
	if bytes, known := m.Unsaved(); known {
		t.Errorf("%d bytes are unsaved in memory that is closed", bytes)
	}
	if cpu, panicked := m.Panicked(); panicked {
		t.Errorf("CPU %d panicked in memory that is closed", cpu)
	}
	if err := m.Prepare(t.Context()); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}
