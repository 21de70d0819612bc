package bare

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/unit"
)

// asUnit is the environment variable with the unit that this program becomes, in a process of its own.
const asUnit = "UNDERSTUDY_TEST_UNIT"

func TestMain(m *testing.M) {
	text := os.Getenv(asUnit)
	if text == "" {
		os.Exit(m.Run())
	}
	var u unit.Unit
	err := json.Unmarshal([]byte(text), &u)
	if err == nil {
		err = become(&u)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// become becomes a unit of the root file system of this machine.
func become(u *unit.Unit) error {
	runtime.LockOSThread() // as Enter does: a mount namespace is of a thread
	who, env, err := prepare(u, os.DirFS("/"))
	if err != nil {
		return err
	}
	return who.start(u, env)
}

// unitProcess returns the command whose process becomes a unit.
func unitProcess(t *testing.T, u unit.Unit) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else: run this as root")
	}
	text, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asUnit+"="+string(text))
	return cmd
}

// shell returns a script as a unit's command, in which $$ is a dollar sign.
func shell(script string, args ...string) unit.Command {
	return unit.Command{Words: append([]string{"/bin/sh", "-c", strings.ReplaceAll(script, "$$", "$$$$"), "sh"}, args...)}
}

// awaitPID waits until a file has the number of a process, and returns it.
func awaitPID(t *testing.T, path string) (pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); pid == 0; time.Sleep(5 * time.Millisecond) {
		if pid = readPID(path); time.Now().After(end) {
			t.Fatalf("%s has no number", path)
		}
	}
	return pid
}

func running(pid int) bool { return unix.Kill(pid, 0) == nil }

// TestForking: what a command leaves running is the service. It is ended by the unit's own command, by a
// signal, or by force; when it ends by itself, the unit has failed. In no case is a process of it left.
func TestForking(t *testing.T) {
	const leaves = `setsid sh -c 'trap "" HUP; sleep 1000 & echo $! > "$2"; echo $$ > "$1.new"; mv "$1.new" "$1"; wait' sh "$1" "$2" > /dev/null 2>&1 &`
	const stays = `setsid sh -c 'trap "" TERM; echo $$ > "$2"; cp "$2" "$1.new"; mv "$1.new" "$1"; while :; do sleep 1; done' sh "$1" "$2" > /dev/null 2>&1 &`
	for _, c := range []struct {
		name, script, stop string
		file               bool // it has a PID file
		dies               bool
	}{
		{"by its command", leaves, `echo $1 > "$2.stopped"; kill $1`, true, false},
		{"by a signal", leaves, "", true, false},
		{"without a file", leaves, "", false, false},
		{"by force", stays, "", true, false},
		{"by itself", leaves, "", true, true},
		{"by itself, without a file", leaves, "", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			main, other := filepath.Join(dir, "main"), filepath.Join(dir, "other")
			u := unit.Unit{Name: "a.service", Forks: true, Umask: 0o022, Main: shell(c.script, main, other)}
			if c.file {
				u.PIDFile = main
			}
			if c.stop != "" {
				u.Stop = []unit.Command{shell(c.stop, "$MAINPID", main)}
			}
			cmd := unitProcess(t, u)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			service, child := awaitPID(t, main), awaitPID(t, other)
			time.Sleep(300 * time.Millisecond) // it is attended to
			if c.dies {
				_ = unix.Kill(service, unix.SIGKILL)
				if !c.file {
					_ = unix.Kill(child, unix.SIGKILL)
				}
			} else {
				_ = cmd.Process.Signal(unix.SIGTERM)
			}
			if err := cmd.Wait(); (err != nil) != c.dies {
				t.Errorf("it ended with %v", err)
			}
			for end := time.Now().Add(10 * time.Second); running(service) || running(child); time.Sleep(5 * time.Millisecond) { // PID 1 inherits what has ended
				if time.Now().After(end) {
					t.Fatal("something runs on")
				}
			}
			if _, err := os.Stat(main + ".stopped"); c.stop != "" && err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSuccessor: a service that forks may replace its process by another one.
func TestSuccessor(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "main"), filepath.Join(dir, "second")
	const script = `setsid sh -c 'echo $$ > "$1.new"; mv "$1.new" "$1"; until [ -e "$2.go" ]; do sleep 0.05; done
		sleep 1000 & echo $! > "$1.new"; cp "$1.new" "$2"; mv "$1.new" "$1"' sh "$1" "$2" > /dev/null 2>&1 &`
	cmd := unitProcess(t, unit.Unit{Name: "a.service", Forks: true, PIDFile: first, Umask: 0o022, Main: shell(script, first, second)})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	before := awaitPID(t, first)
	if err := os.WriteFile(second+".go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	after := awaitPID(t, second)
	time.Sleep(500 * time.Millisecond) // it is looked at
	if !running(after) || before == after {
		t.Errorf("process %d runs no more, after %d", after, before)
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestAmbient: a user that is not root has the capabilities that the unit gives, and no others, in the commands
// before the main one too.
func TestAmbient(t *testing.T) {
	const show = `grep CapEff /proc/self/status; id -u`
	u := unit.Unit{Name: "a.service", User: "nobody", Ambient: []int{10, 39}, Umask: 0o022, Before: []unit.Command{shell(show)}, Main: shell(show)}
	out, err := unitProcess(t, u).CombinedOutput()
	want := "CapEff:\t0000008000000400\n65534\n"
	if err != nil || string(out) != want+want {
		t.Errorf("%v:\n%s", err, out)
	}
	u.Ambient = nil
	if out, err := unitProcess(t, u).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "CapEff:\t0000000000000000\n") {
		t.Errorf("without: %v:\n%s", err, out)
	}
}

// TestBinds: a unit sees its bind mounts, and nobody else does. A bind mount whose source is missing is left
// out.
func TestBinds(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("file"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u := unit.Unit{
		Name: "a.service", Umask: 0o022, Main: shell(`cat "$1"/seen/file; ls "$1/whole"; echo no > "$1/seen/file"`, dir),
		Binds: []unit.Bind{{From: in("file"), To: in("seen/file"), ReadOnly: true}, {From: dir, To: in("whole")}, {From: in("none"), To: in("other")}, {From: in("none"), To: in("other"), Optional: true}},
	}
	out, err := unitProcess(t, u).CombinedOutput()
	text := string(out)
	if err == nil || !strings.Contains(text, "text\nfile\nseen\nwhole\n") || !strings.Contains(text, "Read-only file system") || strings.Count(text, "is not there") != 1 {
		t.Errorf("%v:\n%s", err, out)
	}
	if left, err := os.ReadFile(in("seen/file")); err != nil || len(left) > 0 {
		t.Errorf("others see %q, %v", left, err)
	}
}

// TestCondition: a unit whose condition fails does not run.
func TestCondition(t *testing.T) {
	u := unit.Unit{Name: "a.service", Umask: 0o022, Conditions: []unit.Command{shell("exit 3")}, Main: shell("echo runs")}
	if out, err := unitProcess(t, u).CombinedOutput(); err == nil || !strings.Contains(string(out), "skipped, as its ExecCondition") {
		t.Errorf("%v: %s", err, out)
	}
	u.Conditions = []unit.Command{shell("true")}
	if out, err := unitProcess(t, u).CombinedOutput(); err != nil || string(out) != "runs\n" {
		t.Errorf("%v: %s", err, out)
	}
}
