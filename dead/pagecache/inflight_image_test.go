package pagecache_test

import (
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
)

// TestInFlight: a kernel that panics in a write to /proc/sysrq-trigger has one operation in flight on proc, and none on the file systems
// that nothing was done with.
func TestInFlight(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		t.Run(kernel, func(t *testing.T) {
			c, _ := openImage(t, fixture.Everything(kernel))
			found := 0
			for s, err := range c.Superblocks() {
				if err != nil {
					t.Fatal(err)
				}
				n, err := c.InFlight(s)
				want := 0
				if s.Type == "proc" {
					want, found = 1, found+1
				}
				if err != nil || n != want {
					t.Errorf("%s %s: %d, %v, want %d", s.Type, s.ID, n, err, want)
				}
			}
			if found == 0 {
				t.Error("proc is not mounted")
			}
		})
	}
}
