package inventory_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// TestCutWithoutKernel checks that if no kernel is found in a dump that is cut off, the error says
// that it is: the kernel's own tables may have been in the missing part.
func TestCutWithoutKernel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dump")
	if err := ramtest.Create(path, ramtest.ELF{}, []ramtest.Piece{ramtest.Bytes(0, make([]byte, 1<<20))}); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []bool{false, true} {
		if cut {
			if err := os.Truncate(path, 1<<19); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := inventory.Open(path); !errors.Is(err, kernel.ErrNoKernel) || strings.Contains(err.Error(), "cut off") != cut {
			t.Errorf("cut: %v: %v", cut, err)
		}
	}
}
