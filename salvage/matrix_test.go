package salvage_test

import (
	"os"
	"strings"
	"testing"

	"understudy/internal/fixture"
)

// TestProbe is for trying.
func TestProbe(t *testing.T) {
	name := os.Getenv("PROBE")
	if name == "" {
		t.Skip("no PROBE")
	}
	fs := strings.Fields(os.Getenv("PROBE_FS"))
	image := fixture.Get(t, fixture.Spec{Kernel: name, Workload: "basic", FS: fs, Memory: 384 << 20})
	t.Log(image.Dir)
	k := openKernel(t, image)
	for _, disk := range image.Disks {
		t.Run(disk.Name, func(t *testing.T) { checkPlan(t, k, disk, image.Files(disk.Name)) })
	}
}
