// Package libvirtlab runs a libvirt host, with Debian's own libvirtd, in its own
// namespaces: nothing of it is installed on this machine, or left behind, and nobody
// outside can reach it.
package libvirtlab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// Host is a libvirt host. It ends with the test.
type Host struct {
	Dir string // for images and consoles: libvirt's user for QEMU may enter it

	t   testing.TB
	top string // its own directory tree
	pid int    // its first process, in our PID namespace
}

// hostScript lays the packages over this machine's tree, and starts libvirtd as its unit does.
//
//go:embed host.sh
var hostScript string

// hostLimit is how long libvirtd may take to answer.
const hostLimit = 2 * time.Minute

// Packages runs scripts/libvirt.sh, which unpacks libvirt if need be, and returns where that is.
func Packages(t testing.TB) string {
	t.Helper()
	cache, err := dirs.Cache()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "../../scripts/libvirt.sh").CombinedOutput(); err != nil {
		tier.Lacks(t, fmt.Sprintf("scripts/libvirt.sh: %v: %s", err, out))
	}
	return filepath.Join(cache, "libvirt")
}

// Start starts a host.
func Start(t testing.TB) *Host {
	t.Helper()
	packages := Packages(t)
	base, err := os.MkdirTemp("", "us-libvirt-") // t.TempDir is for its owner alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	h := &Host{t: t, Dir: filepath.Join(base, "images"), top: filepath.Join(base, "top")}
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(h.Dir, 0o755), os.Mkdir(h.top, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"/usr/", "/etc/", "/var/", "/run/"} {
		if strings.HasPrefix(h.Dir, own) {
			t.Fatalf("%s is the host's own: set TMPDIR to a directory elsewhere", own)
		}
	}
	for dir := h.Dir; dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err != nil || st.Mode()&1 == 0 {
			t.Fatalf("other users cannot enter %s, so that libvirt's QEMU cannot, either: set TMPDIR (%v)", dir, err)
		}
	}
	cmd := exec.Command("/bin/bash", "-c", hostScript, "host", packages, h.top)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL, // and with it every process of the namespace
	}
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.pid = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("libvirtd's log:\n%s", h.Read("/var/log/libvirt/libvirtd.log"))
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the host said:\n%s", log)
		}
	})
	h.Await("libvirtd", hostLimit, func() bool { _, err := h.virsh("version"); return err == nil })
	return h
}

// Await waits until is returns true.
func (h *Host) Await(what string, limit time.Duration, is func() bool) {
	h.t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("no %s after %v", what, limit)
		}
	}
}

// Command returns a command to run on the host.
func (h *Host) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	inside := []string{"-t", strconv.Itoa(h.pid), "--mount", "--net", "--pid", "--ipc", "--", program}
	cmd := exec.CommandContext(ctx, "nsenter", append(inside, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run runs a command, and returns what it says.
func (h *Host) Run(program string, args ...string) (string, error) {
	h.t.Helper()
	out, err := h.Command(h.t.Context(), program, args...).CombinedOutput()
	h.t.Logf("%s %s\n%s", filepath.Base(program), strings.Join(args, " "), out)
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Virsh runs a command of virsh(1) that must succeed, and returns what it says.
func (h *Host) Virsh(args ...string) string {
	h.t.Helper()
	out, err := h.virsh(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *Host) virsh(args ...string) (string, error) {
	cmd := h.Command(h.t.Context(), "virsh", append([]string{"-q"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return string(out), err
}

// State returns a domain's state with its reason, such as "crashed (panicked)". It is empty if
// there is no such domain.
func (h *Host) State(domain string) string {
	out, err := h.virsh("domstate", "--reason", domain)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// Read reads a file of the host.
func (h *Host) Read(path string) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(h.pid), "root", path))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// RestartLibvirtd ends libvirtd with a signal and starts it again. Its domains go on running.
func (h *Host) RestartLibvirtd(signal syscall.Signal) {
	h.t.Helper()
	pid := strings.TrimSpace(h.Read("/run/libvirtd.pid"))
	if _, err := h.Run("kill", "-"+strconv.Itoa(int(signal)), pid); err != nil {
		h.t.Fatal(err)
	}
	h.Await("end of libvirtd", hostLimit, func() bool {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(h.pid), "root/proc", pid))
		return errors.Is(err, os.ErrNotExist)
	})
	if out, err := h.Run("libvirtd", "-d"); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	h.Await("libvirtd", hostLimit, func() bool { _, err := h.virsh("version"); return err == nil })
}
