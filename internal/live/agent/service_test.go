package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// TestEndServices: what a service began ends with it, also if it outlives the command, does not
// heed SIGTERM, or belongs to a command that was done long ago.
func TestEndServices(t *testing.T) {
	for name, command := range map[string]string{
		"the command goes first": `sh -c 'trap "" TERM; echo $$ > "$0"; while :; do sleep 1; done' "$0" & exec sleep 1000`,
		"the command is done":    `sh -c 'trap "" TERM; echo $$ > "$0"; while :; do sleep 1; done' "$0" &`,
		"nobody heeds SIGTERM":   `trap "" TERM; echo $$ > "$0"; while :; do sleep 1; done`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pid")
			a := New(nil)
			if err := a.startService(wire.Service{Name: "web", Command: []string{"sh", "-c", command, file}}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.EndServices)
			var pid int
			if err := poll(t.Context(), time.Minute, func() (bool, error) {
				b, _ := os.ReadFile(file)
				pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
				return pid > 0, nil
			}); err != nil {
				t.Fatal(err)
			}
			a.EndServices()
			if runs(pid) {
				t.Errorf("process %d of the service runs on", pid)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		})
	}
}

// runs says whether there is such a process, and it has not ended (proc(5), stat).
func runs(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// TestHides: a file that the guest's own mounts would cover cannot be in its image.
func TestHides(t *testing.T) {
	for path, want := range map[string]bool{
		"/tmp/web": true, "/run/web/key": true, "/dev/web": true, "/tmp": true,
		"/opt/web": false, "/tmpfiles/web": false, "/var/tmp/web": false,
	} {
		if got := Hides(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
