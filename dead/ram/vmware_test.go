package ram_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// writeVMware writes the files of a suspended machine, and returns the directory.
func writeVMware(t testing.TB, m *model, embedded bool) string {
	t.Helper()
	dir := t.TempDir()
	state, memory, err := ramtest.VMware(m.pieces, embedded)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "vm-1.vmss"), state, 0o600)
	}
	if err == nil && !embedded {
		err = os.WriteFile(filepath.Join(dir, "vm-1.vmem"), memory, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestVMware checks that the memory is arranged as the state file says, whichever of the two files is named.
func TestVMware(t *testing.T) {
	for _, tc := range []struct {
		name     string
		embedded bool
	}{{"vm-1.vmss", false}, {"vm-1.vmem", false}, {"vm-1.vmss", true}} {
		model := newModel(31)
		mem, err := ram.OpenFile(filepath.Join(writeVMware(t, model, tc.embedded), tc.name))
		if err != nil {
			t.Fatal(err)
		}
		model.checkDescription(t, mem, ram.Info{Format: "VMware memory"})
		model.checkTouched(t, mem)
		model.checkViews(t, mem, 2)
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestVMwareAlone: memory without a state file, or with one that has no regions, is arranged as
// the kernel in it says; a state file without its memory is refused, and so is half of it.
func TestVMwareAlone(t *testing.T) {
	dir := writeVMware(t, newModel(31), false)
	state, memory := filepath.Join(dir, "vm-1.vmss"), filepath.Join(dir, "vm-1.vmem")
	if err := os.Truncate(memory, 4096*100); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{state, memory} {
		if _, err := ram.OpenFile(path); !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), "truncated") {
			t.Error(err)
		}
	}
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "regionsCount") + len("regionsCount")
	patch(t, state, int64(at), "\x00")
	for _, path := range []string{state, memory} {
		mem, err := ram.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if raw, ok := mem.(ram.Unarranged); !ok || raw.Bytes() != 4096*100 {
			t.Errorf("%s: %T", path, mem)
		}
		mem.Close()
	}
	patch(t, state, int64(at), "\x7f")
	if err := os.Truncate(memory, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := ram.OpenFile(memory); !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), "not plausible") {
		t.Error(err)
	}
	if err := os.Remove(memory); err != nil {
		t.Fatal(err)
	}
	if _, err := ram.OpenFile(state); !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), "copy the .vmem file") {
		t.Error(err)
	}
}
