package main

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// TestMetalReboots checks that a reboot of the machine's own kernel is not a death, whether the understudy
// is told of it or not: nothing is taken over, and everything that was saved is on the disk.
func TestMetalReboots(t *testing.T) {
	tier.Full(t, "a machine that boots again with an understudy beside its kernel")
	for name, script := range map[string]string{
		"told":   "kill $RUN\nwait $RUN\necho STOPPED $?\ncd /\numount /srv\ndrain\nbusybox reboot -f\n",
		"untold": "sync\ndrain\nbusybox reboot -f\n",
	} {
		t.Run(name, func(t *testing.T) {
			m := bareMachine{script: metalStart + metalWork + script}.make(t)
			ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
			defer cancel()
			m.Append = parameters(t, ctx, m)
			disk := filepath.Join(m.Dir, "data.img")
			makeData(t, disk)
			virtio.attach(t, m, disk)
			console := bootToEnd(t, ctx, m) // if the understudy took over, the machine would not end
			if strings.Contains(console, "STOPPED 0") != (name == "told") || !strings.Contains(console, "PROTECTED") {
				t.Errorf("it said:\n%s", console)
			}
			replay(t, disk)
			left := lookInto(t, disk)
			checkFiles(t, console, func(path string) []byte {
				return readLeft(t, left+path)
			})
		})
	}
}

// replay replays the journal of a file system that was not unmounted.
func replay(t *testing.T, disk string) {
	t.Helper()
	var left *exec.ExitError
	out, err := exec.Command("e2fsck", "-p", disk).CombinedOutput()
	if err != nil && (!errors.As(err, &left) || left.ExitCode() != 1) { // 1: a journal was replayed
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}
