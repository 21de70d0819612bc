package kernel

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestRandstructImage checks that a kernel that gcc built with CONFIG_RANDSTRUCT is refused for that reason.
func TestRandstructImage(t *testing.T) {
	if _, err := fixture.Kernel("built-randstruct"); err != nil {
		t.Skip(err) // building one takes many minutes: make matrix-built
	}
	spec := fixture.Built("built-randstruct")
	spec.FS = []string{"ext4"}
	image := fixture.Get(t, spec)
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if _, err := Find(mem); err == nil || !strings.Contains(err.Error(), "CONFIG_RANDSTRUCT") {
		t.Errorf("found with %v", err)
	}
}
