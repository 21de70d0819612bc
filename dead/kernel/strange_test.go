package kernel_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestStrange checks that memory without a Linux kernel is called what it is, if that can be found out.
func TestStrange(t *testing.T) {
	noise := func(m *kerneltest.Machine, share float64) {
		rng := rand.New(rand.NewPCG(5, 5))
		for i := range m.Mem {
			if float64(i%65536) < share*65536 {
				m.Mem[i] = byte(rng.Uint32())
			} else {
				m.Mem[i] = byte(i / 7 % 100)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		fill  func(*kerneltest.Machine)
		want  string
		plain bool // nothing more is said
	}{
		{"zeros", func(*kerneltest.Machine) {}, "there is no VMCOREINFO note", true},
		{"windows", func(m *kerneltest.Machine) {
			copy(m.Mem[0x123456:], "RSDS0123456789abcdef\x01\x00\x00\x00ntkrnlmp.pdb\x00")
		}, "memory of Windows", false},
		{"a name alone", func(m *kerneltest.Machine) { copy(m.Mem[0x123456:], "RSDS ntkrnlmp.pdb\x00") }, "there is no VMCOREINFO note", true},
		{"encrypted", func(m *kerneltest.Machine) { noise(m, 1) }, "it is encrypted", false},
		{"encrypted, with shared pages", func(m *kerneltest.Machine) { noise(m, 0.95) }, "it is encrypted", false},
		{"compressed files in it", func(m *kerneltest.Machine) { noise(m, 0.6) }, "there is no VMCOREINFO note", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := kerneltest.New(t)
			tc.fill(m)
			_, err := kernel.Find(m)
			if !errors.Is(err, kernel.ErrNoKernel) || !strings.Contains(err.Error(), tc.want) || tc.plain != !strings.Contains(err.Error(), "note: ") {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
