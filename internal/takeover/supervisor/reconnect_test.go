package supervisor

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
)

// stopped starts a process, and stops it.
func stopped(t *testing.T) (*exec.Cmd, partition.Identity) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	started, err := partition.StartOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(cmd.Process.Pid, nil, unix.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	return cmd, partition.Identity{PID: cmd.Process.Pid, Started: started}
}

// TestReconnectFrozen checks that a side that one supervisor has found dead and stopped is dead to the
// next supervisor, which leaves it as it is, and that a side that somebody else has stopped is not.
func TestReconnectFrozen(t *testing.T) {
	for name, frozen := range map[string]bool{"frozen": true, "stopped by somebody": false} {
		t.Run(name, func(t *testing.T) {
			s := graveyard(t)
			s.Pair.Heartbeat = pair.Heartbeat{Period: time.Millisecond, Limit: time.Second}
			cmd, id := stopped(t)
			before := &Supervisor{
				Pair: s.Pair, options: s.options, dir: s.dir,
				active: &side{name: "left", process: &partition.Process{Spec: s.spec(0, "")}},
			}
			if frozen {
				before.Freeze()
			}
			spec := s.spec(0, "")
			for path, n := range map[string]int{spec.BeatPath(): liveness.PageBytes, spec.RAMPath(): 4 << 20} {
				if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			sd, err := s.reconnectSide(t.Context(), 0, RecordSide{Name: "left", Identity: id})
			if !frozen {
				if !errors.Is(err, partition.ErrStopped) || sd.died != nil {
					t.Errorf("%v", err)
				}
				return
			}
			if err == nil || errors.Is(err, partition.ErrStopped) || sd.died == nil {
				t.Fatalf("%v, %+v", err, sd.died)
			}
			s.active = sd
			if v, err := s.watcherOf(sd).watch(t.Context()); err != nil || v.Cause != liveness.Silence || !strings.Contains(v.Detail, "left") || v.At.IsZero() {
				t.Errorf("%+v, %v", v, err)
			}
			if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
				t.Errorf("it was ended: %v", err)
			}
			if err := sd.end(); err != nil {
				t.Error(err)
			}
		})
	}
}
