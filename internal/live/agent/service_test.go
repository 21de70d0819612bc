package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// TestEndServices: the processes that a service started end with it, even if they outlive the command,
// ignore SIGTERM, or belong to a command that was done long ago.
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

// TestStartFails: a command that is not there for a moment, as in an upgrade, is started when it is there again.
func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"web":      "#!/bin/sh\nmv \"$0\" \"$0.old\"\nexit 1\n",
		"web.next": "#!/bin/sh\ntouch \"$0.runs\"\nexec sleep 1000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := New(nil)
	if err := a.startService(wire.Service{Name: "web", Command: []string{filepath.Join(dir, "web")}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.EndServices)
	await := func(name string) {
		t.Helper()
		if err := poll(t.Context(), time.Minute, func() (bool, error) {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil, nil
		}); err != nil {
			t.Fatal(name, err)
		}
	}
	await("web.old")
	time.Sleep(3 * restartPause) // it was tried once
	if err := os.Rename(filepath.Join(dir, "web.next"), filepath.Join(dir, "web")); err != nil {
		t.Fatal(err)
	}
	await("web.runs")
}

// TestAgain: the pause before a service is started again grows while it fails often, and only then.
func TestAgain(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		ago   []time.Duration
		pause time.Duration
		often int
	}{
		"once":         {[]time.Duration{0}, restartPause, 1},
		"twice":        {[]time.Duration{time.Second, 0}, 5 * restartPause, 2},
		"three times":  {[]time.Duration{9 * time.Second, time.Second, 0}, 25 * restartPause, 3},
		"every day":    {[]time.Duration{72 * time.Hour, 48 * time.Hour, 24 * time.Hour, 0}, restartPause, 1},
		"as of late":   {[]time.Duration{72 * time.Hour, 48 * time.Hour, time.Second, 0}, 5 * restartPause, 2},
		"a minute ago": {[]time.Duration{failuresIn, time.Second, 0}, 5 * restartPause, 2},
		"too often":    {[]time.Duration{9 * time.Second, 8 * time.Second, time.Second, 0}, 125 * restartPause, failures + 1},
	} {
		var failed []time.Time
		for _, d := range tt.ago {
			failed = append(failed, now.Add(-d))
		}
		if pause, often := again(failed); pause != tt.pause || often != tt.often {
			t.Errorf("%s: %v, %d times", name, pause, often)
		}
	}
}

// TestEndSlowly: a service that ends slowly, but within its limit, can finish its work.
func TestEndSlowly(t *testing.T) {
	for name, stop := range map[string]time.Duration{"in time": time.Minute, "too late": time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			command := `trap 'sleep 4; touch saved; exit' TERM; touch runs; while :; do sleep 0.1; done`
			a := New(nil)
			if err := a.startService(wire.Service{Name: "db", Command: []string{"sh", "-c", "cd " + dir + "; " + command}, Stop: stop}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.EndServices)
			there := func(file string) bool {
				_, err := os.Stat(filepath.Join(dir, file))
				return err == nil
			}
			if err := poll(t.Context(), time.Minute, func() (bool, error) { return there("runs"), nil }); err != nil {
				t.Fatal(err)
			}
			a.EndServices()
			if saved := there("saved"); saved != (name == "in time") {
				t.Errorf("saved: %v", saved)
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

// TestStartWithin: in a takeover, a service that does not come up is reported with the reason, and
// the services after it are started.
func TestStartWithin(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := taken.Addr().(*net.TCPAddr).Port
	taken.Close()
	file := filepath.Join(t.TempDir(), "started")
	services := []wire.Service{
		{Name: "late", Command: []string{"sleep", "1000"}, Ready: port},
		{Name: "absent", Command: []string{"/nothing/here"}},
		{Name: "web", Command: []string{"sh", "-c", `touch "$0"; exec sleep 1000`, file}},
	}
	a := New(nil)
	t.Cleanup(a.EndServices)
	a.config.Services = services[1:]
	if _, err := a.start(t.Context(), wire.StartRequest{}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("each must be ready, and it started: %v", err)
	}
	a.config.Services = services
	r, err := a.start(t.Context(), wire.StartRequest{Within: 2 * time.Second})
	if err != nil || len(r.Unready) != 2 || r.Unready[0].Service != "late" || r.Unready[1].Service != "absent" {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := poll(t.Context(), time.Minute, func() (bool, error) {
		_, err := os.Stat(file)
		return err == nil, nil
	}); err != nil {
		t.Errorf("the service after them: %v", err)
	}
	if !a.isStarted(services[0]) || a.isStarted(services[1]) {
		t.Error("what may come yet, and what may not, were taken for each other")
	}
}

// TestNFSLast: the NFS server starts after the other services, whether they start or not: the grace of its clients runs
// from then on. If it is not to start, it counts as not ready, and the others serve.
func TestNFSLast(t *testing.T) {
	a := New(nil)
	a.nfs = new(nfsd.Server)
	a.RefuseNFS(errors.New("no records"))
	a.config.Services = []wire.Service{{Name: "none"}, {Name: "web", Command: []string{"sleep", "1000"}}}
	t.Cleanup(a.EndServices)
	result, err := a.start(t.Context(), wire.StartRequest{Within: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	var unready []string
	for _, u := range result.Unready {
		unready = append(unready, u.Service)
	}
	if !slices.Equal(unready, []string{"none", "NFS"}) || len(a.services) != 1 {
		t.Errorf("not ready: %v, services: %v", result.Unready, a.services)
	}
	a.EndServices()
	a.config.Services = a.config.Services[1:]
	if _, err := a.start(t.Context(), wire.StartRequest{}); err == nil || !strings.Contains(err.Error(), "no records") || len(a.services) != 1 {
		t.Errorf("%v, services: %v", err, a.services)
	}
}
