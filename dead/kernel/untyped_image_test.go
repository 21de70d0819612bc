package kernel

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestUntypedImage checks that a kernel that others built, from upstream's source and without types, is
// refused, and that the error says what to do.
func TestUntypedImage(t *testing.T) {
	image := fixture.Get(t, fixture.Spec{Kernel: "gokrazy", Workload: "writeback", FS: []string{"ext4"}})
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	_, err = Find(mem)
	if err == nil || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF=y") {
		t.Errorf("found with %v", err)
	}
	t.Log(err)
}
