package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
)

// pairFile writes a pair.yaml with a disk, and a service that leaves a mark on
// it, and returns its path.
func pairFile(t *testing.T, edit ...string) string {
	t.Helper()
	dir := t.TempDir()
	kernel, modules, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	cpus := thisMachine(t).Two()
	image := filepath.Join(dir, "data.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	mkfs(t, image)
	if _, err := understudy(t, "initramfs", "-o", filepath.Join(dir, "guest.cpio"), "--modules", modules); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`name: test
partitions:
  left: {cpus: "%[2]d", memory: 256MiB, kernel: %[1]s, initramfs: guest.cpio}
  right: {cpus: "%[3]d", memory: 256MiB, kernel: %[1]s, initramfs: guest.cpio}
disks:
  - {name: data, image: data.img, mount: /srv}
services:
  - {name: mark, command: [sh, -c, "echo started >> /srv/mark; sleep 1000000"]}
`, kernel, cpus[0], cpus[1])
	text = strings.NewReplacer(edit...).Replace(text)
	file := filepath.Join(dir, "pair.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func thisMachine(t *testing.T) pair.Machine {
	t.Helper()
	m, err := pair.ThisMachine()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// onTheseCPUs returns a pair.yaml that names CPU 0 (and 1) with CPUs that this process may use in their place.
func onTheseCPUs(t *testing.T, text string) string {
	t.Helper()
	cpus := thisMachine(t).Two()
	return strings.NewReplacer(`cpus: "0"`, fmt.Sprintf(`cpus: "%d"`, cpus[0]), `cpus: "1"`, fmt.Sprintf(`cpus: "%d"`, cpus[1])).Replace(text)
}

func pairStatus(t *testing.T) status {
	t.Helper()
	out, err := understudy(t, "status", "--json")
	st, err := said(out, err)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// said returns the status that the program printed, and checks that its exit status matches
// that.
func said(out string, err error) (st status, _ error) {
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	if code < exitUnprotected && err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, err
	}
	want := 0
	if err := st.alarm(); err != nil {
		want = exitCode(err)
	}
	if code != want {
		return st, fmt.Errorf("exit status %d, and not %d, of %s", code, want, out)
	}
	return st, nil
}

func TestUpCrashDown(t *testing.T) {
	vm(t)
	o := operate(t)
	if _, err := understudy(t, "up", "-d", "-f", pairFile(t, "services:", o.keys())); err != nil {
		t.Fatal(err)
	}
	down := func() error {
		_, err := understudy(t, "down")
		return err
	}
	t.Cleanup(func() { _ = down() })
	o.protected()
	o.watched()

	if st := pairStatus(t); st.State != "protected" || st.Active != "left" || st.Understudy != "right" {
		t.Errorf("status at the start: %+v", st)
	}
	checkConsole(t)
	checkUnprivileged(t, "left")
	checkUnprivileged(t, "right")
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	st := awaitTakeover(t)
	if st.Active != "right" || st.Takeover == nil {
		t.Fatalf("status after the takeover: %+v", st)
	}
	o.tookOver(st)
	if _, err := understudy(t, "status"); err != nil && !strings.Contains(err.Error(), "exit status 4") {
		t.Error(err)
	}
	if err := down(); err != nil {
		t.Error(err)
	}
	o.down()
	if _, err := understudy(t, "status"); err == nil || !strings.Contains(err.Error(), "understudy up") {
		t.Errorf("status of no pair: %v", err)
	}
}

// checkUnprivileged checks that QEMU is an unprivileged user, and that its system calls are
// filtered (proc(5), status: Seccomp is 2).
func checkUnprivileged(t *testing.T, side string) {
	t.Helper()
	status := readFile(t, fmt.Sprintf("/proc/%d/status", processWith(filepath.Join(dirs.Run("test"), side+".ram"))))
	for _, line := range []string{"\nUid:\t0\t", "\nCapEff:\t000001ffffffffff", "\nSeccomp:\t0"} {
		if bytes.Contains(status, []byte(line)) {
			t.Errorf("the QEMU of %s has %q", side, line)
		}
	}
}

// awaitTakeover waits until the understudy has taken over.
func awaitTakeover(t *testing.T) (st status) {
	t.Helper()
	await(t, "takeover", programLimit, func() bool {
		st = pairStatus(t)
		return st.Takeovers >= 1 && st.State != "taking over"
	})
	return st
}

// TestHangOnOneCPU checks that an understudy that shares the CPU of the active side takes
// over if all virtual CPUs of that spin.
func TestHangOnOneCPU(t *testing.T) {
	tier.Full(t, "a hang on a CPU that both sides share")
	vm(t)
	cpus := thisMachine(t).Two()
	second, first := fmt.Sprintf(`right: {cpus: "%d"`, cpus[1]), fmt.Sprintf(`right: {cpus: "%d"`, cpus[0])
	if _, err := understudy(t, "up", "-d", "-f", pairFile(t, second, first)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the test's context has ended by then
		if out, err := exec.Command(binary, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	if _, err := understudy(t, "crash", "--hang"); err != nil {
		t.Fatal(err)
	}
	if st := awaitTakeover(t); st.Active != "right" || st.Takeover == nil || !strings.HasPrefix(st.Takeover.Verdict, "heartbeat") || len(st.Takeover.Refused) != 0 {
		t.Errorf("status after the takeover: %+v", st)
	}
}

// checkConsole types a command into the active side's console, as its user would, and reads
// the answer.
func checkConsole(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "console", "left")
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said lockedBuffer
	cmd.Stdout = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(said.String(), "mark=started") && ctx.Err() == nil {
		fmt.Fprint(keys, "echo mark=$(cat /srv/mark)\r")
		time.Sleep(200 * time.Millisecond)
	}
	keys.Write([]byte{leave})
	if err := cmd.Wait(); err != nil {
		t.Errorf("console: %v: %s", err, said.String())
	}
}

// lockedBuffer may be read while a command writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestUpRefuses checks that what cannot work is refused with the line of the file, and that
// nothing is left behind.
func TestUpRefuses(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"unknown key", "mount: /srv", "mountpoint: /srv", "pair.yaml:6"},
		{"same name", "right: {", "left: {", "pair.yaml:4"},
		{"no such CPU", "right: {cpus: \"", "right: {cpus: \"999,", "pair.yaml:4"},
		{"too much memory", "memory: 256MiB", "memory: 4TiB", "pair.yaml"},
		{"missing image", "image: data.img", "image: nothing.img", "pair.yaml:6"},
		{"kernel that does not boot", "initramfs: guest.cpio}\n  right", "initramfs: guest.cpio, append: \"panic=-1 rdinit=/nothing\"}\n  right", "left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vm(t)
			_, err := understudy(t, "up", "-d", "-f", pairFile(t, tt.old, tt.new))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not name %s", err, tt.want)
			}
		})
	}
}

// TestUpRefusesAnImageInUse checks that a disk that another process has open for writing is
// not shared.
func TestUpRefusesAnImageInUse(t *testing.T) {
	vm(t)
	file := pairFile(t)
	image := filepath.Join(filepath.Dir(file), "data.img")
	holder := exec.Command("qemu-system-x86_64", "-machine", "q35", "-nodefaults", "-display", "none", "-S",
		"-blockdev", "driver=file,node-name=disk,filename="+image, "-device", "virtio-blk-pci,drive=disk")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		holder.Process.Kill()
		holder.Wait()
	}()
	await(t, "lock of the image", programLimit, func() bool { return fence.Free(image) != nil })
	if _, err := understudy(t, "up", "-d", "-f", file); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("up on a locked image: %v", err)
	}
}
