package children

import (
	"os/exec"
	"testing"
)

// TestChildren: Wait returns how a process ended, and then forgets the process.
func TestChildren(t *testing.T) {
	c := New()
	cmd := exec.Command("true")
	if err := c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(cmd); err != nil || len(c.waited) != 0 {
		t.Errorf("%v, %v left", err, c.waited)
	}
}
