package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"understudy.dev/understudy/internal/lab/libvirtlab"
	"understudy.dev/understudy/internal/lab/tier"
)

// cluster runs the resource agent as Pacemaker does, with the functions of Debian's package laid
// over /usr in a mount namespace.
type cluster struct {
	t        *testing.T
	packages string
	top      string
	config   string
}

// clusterScript lays $1 over /usr, with $2 to write to, and runs the rest.
const clusterScript = `set -e
mount --make-rprivate /
mount -t tmpfs none "$2"
mkdir "$2/new" "$2/work"
mount -t overlay -o "lowerdir=$1/usr:/usr,upperdir=$2/new,workdir=$2/work" none /usr
shift 2
exec "$@"
`

// run runs a command in that namespace, and returns its exit status and its output.
func (c *cluster) run(args ...string) (int, string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), "/bin/sh", append([]string{"-c", clusterScript, "cluster", c.packages, c.top}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), "OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=web", "OCF_RESKEY_pair=test",
		"OCF_RESKEY_config="+c.config, "OCF_RESKEY_binary="+program(c.t), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "HA_LOGFACILITY=none")
	out, err := cmd.CombinedOutput()
	c.t.Logf("%s: %v\n%s", strings.Join(args, " "), err, out)
	if cmd.ProcessState == nil {
		c.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func agentPath(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../packaging/ocf/understudy")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// action runs one action of the agent, and checks that it ends with one of these codes.
func (c *cluster) action(name string, want ...int) string {
	c.t.Helper()
	code, out := c.run(agentPath(c.t), name)
	for _, w := range want {
		if code == w {
			return out
		}
	}
	c.t.Errorf("%s ends with %d, and not %v", name, code, want)
	return out
}

// TestResourceAgent checks that the agent does what the guide for resource agents asks for, with that guide's
// own tester and a real pair, and that what is left of a pair that ended badly does not count as a stopped pair.
func TestResourceAgent(t *testing.T) {
	tier.Full(t, "Pacemaker's resource agents, from Debian's packages")
	vm(t)
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	mkfs(t, image)
	device := loopDevice(t, image) // like DRBD's
	c := &cluster{t: t, packages: libvirtlab.Packages(t), top: t.TempDir(), config: pairFile(t, "image: data.img", "image: "+device)}
	t.Cleanup(func() { _, _ = understudy(t, "down", "--force", "--discard", "test") })
	if code, out := c.run("ocf-tester", "-n", "web", "-o", "pair=test", "-o", "config="+c.config, "-o", "binary="+program(t), agentPath(t)); code != 0 || !strings.Contains(out, "passed all tests") {
		t.Fatalf("ocf-tester ends with %d", code)
	}

	// The supervisor was killed: the guests still have the disks, so that the pair is not stopped.
	c.action("start", 0)
	dir := filepath.Join(os.Getenv("UNDERSTUDY_RUN"), "understudy-test")
	c.kill("up", c.config)
	c.action("monitor", 1)
	c.action("start", 0)
	c.action("monitor", 0)

	// Everything was killed: the stop brings to the disk what only memory has.
	if _, err := understudy(t, "crash", "test"); err != nil {
		t.Fatal(err)
	}
	c.kill("up", c.config)
	c.kill(dir)
	c.action("monitor", 1)
	c.action("stop", 0)
	c.action("monitor", 7)
	if left, err := os.ReadDir(dir); err == nil {
		t.Errorf("left %v", left)
	}

	if err := os.WriteFile(c.config, []byte("name: test\nno such key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.action("validate-all", 6)
	c.action("start", 6)
	c.config += ".away"
	c.action("validate-all", 5)
	c.action("monitor", 5, 7) // 7 for a probe
}

// kill kills the processes whose command line has all of these words, and waits for
// their end.
func (c *cluster) kill(words ...string) {
	c.t.Helper()
	find := func() (pids []int) {
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			c.t.Fatal(err)
		}
	next:
		for _, path := range lines {
			b, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			for _, w := range words {
				if !strings.Contains(string(b), w) {
					continue next
				}
			}
			pid, err := strconv.Atoi(strings.Split(path, "/")[2])
			if err == nil {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	for _, pid := range find() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	await(c.t, "end of "+strings.Join(words, " "), programLimit, func() bool { return len(find()) == 0 })
}
