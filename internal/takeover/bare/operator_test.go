package bare

import (
	"strings"
	"testing"
)

// TestReturnKeeps: the machine is not given back while the dead kernel's memory may be the only place that has
// some data, except with discard.
func TestReturnKeeps(t *testing.T) {
	m := new(machine)
	m.leftover.set(true)
	if _, err := m.order(t.Context(), orderReturn, []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "--discard") {
		t.Errorf("it returns %v", err)
	}
	if err := m.leftover.dump(m); err == nil || !m.leftover.any() {
		t.Errorf("without a disk for it there is a dump: %v", err)
	}
	if _, err := m.order(t.Context(), "other", nil); err == nil {
		t.Error("it takes any order")
	}
}
