// Package barelab runs a QEMU guest that stands for a bare machine: its Linux boots from
// an image with the test's script, and nothing outside helps it.
package barelab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy.dev/understudy/internal/live/initramfs"
)

// busybox is the static BusyBox of this machine, and applets are its commands that scripts use.
const busybox = "/bin/busybox"

var applets = []string{
	"sh", "insmod", "mount", "umount", "cat", "echo", "ls", "dmesg", "sleep", "sync", "sysctl", "sha256sum", "dd", "seq",
	"mkdir", "cp", "ip", "poweroff", "grep", "head", "tail", "mv", "rm", "wc", "httpd", "arping", "find", "sort", "taskset", "chmod", "touch", "nproc", "devmem", "timeout", "stty",
}

// Image is the initramfs of the machine's own Linux.
type Image struct {
	Program string            // this product; /bin/understudy there
	Modules string            // lib/modules/RELEASE of its kernel
	Drivers []string          // further modules
	Script  string            // for sh: it runs at boot, once modules are loaded
	Copies  map[string]string // files of this machine, by their path in the image
	Texts   map[string]string // contents of further files, by their path in the image
	// Programs are programs of this machine, copied to the same paths with their libraries.
	Programs []string
}

// modules are the kernel modules that the machine's devices need.
var modules = []string{"virtio_pci", "virtio_blk", "virtio_net", "nvme|", "crc32c_generic|crc32c|", "ext4"}

// Drain is a function of sh for the scripts of machines: it returns once the console has put out all that was said
// before. A kernel that panics or powers off discards what it has not.
const Drain = `
drain() { stty -F /dev/console opost; }
`

const prologue = `#!/bin/sh
export PATH=/bin:/sbin
` + Drain + `
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /lib/modules/order); do insmod /lib/modules/$m; done
ip link set lo up
`

// WriteFile writes the image.
func (i Image) WriteFile(path string) error {
	files := []initramfs.File{
		initramfs.Copy("/bin/understudy", i.Program, 0o755),
		initramfs.Copy("/bin/busybox", busybox, 0o755),
		initramfs.Text("/etc/inittab", "::sysinit:/etc/rc\n", 0o644),
		initramfs.Text("/etc/rc", prologue+i.Script, 0o755),
	}
	for _, a := range applets {
		files = append(files, initramfs.Link("/bin/"+a, "busybox"))
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/srv"} {
		files = append(files, initramfs.File{Path: dir, Mode: os.ModeDir | 0o755})
	}
	for at, source := range i.Copies {
		files = append(files, initramfs.Copy(at, source, 0o644))
	}
	for at, text := range i.Texts {
		files = append(files, initramfs.Text(at, text, 0o644))
	}
	programs, err := initramfs.Programs("", i.Programs...)
	if err != nil {
		return err
	}
	files = append(files, programs...)
	return initramfs.WriteFile(path, initramfs.Spec{Init: busybox, ModulesDir: i.Modules, Modules: slices.Concat(modules, i.Drivers), Files: files})
}

// Machine is one run of the machine. Without a kernel it boots from its first disk.
type Machine struct {
	Kernel, Image string
	Append        string   // further kernel parameters
	Dir           string   // for its consoles
	CPUs          int      // 0 means 4
	Devices       []string // further arguments of QEMU
	Files         []*os.File
}

// parameters are the kernel parameters of every boot under emulation (package partition
// says why).
const parameters = "console=ttyS0 quiet panic=0 tsc=reliable clocksource=tsc no_timer_check random.trust_cpu=on GODEBUG=cpu.avx2=off"

// console returns the path of the file with the output of a serial port: 0 is that of the machine's
// own Linux (Console), 1 that of another (Second), which only a kernel being debugged writes to.
func (m *Machine) console(n int) string { return filepath.Join(m.Dir, fmt.Sprintf("console%d", n)) }

// Running is a machine that runs.
type Running struct {
	*Machine
	cmd   *exec.Cmd
	said  bytes.Buffer // the output of QEMU
	ended chan struct{}
	err   error

	Started time.Time // when it was turned on
}

// Start turns the machine on.
func (m *Machine) Start(ctx context.Context) (*Running, error) {
	cpus := m.CPUs
	if cpus == 0 {
		cpus = 4
	}
	args := slices.Concat([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "4G", "-smp", fmt.Sprint(cpus),
		"-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off,cx16=off", "-no-reboot",
		"-serial", "file:" + m.console(0), "-serial", "file:" + m.console(1),
	}, m.Devices)
	if m.Kernel != "" {
		args = append(args, "-kernel", m.Kernel, "-initrd", m.Image, "-append", strings.TrimSpace(parameters+" "+m.Append))
	}
	for n := range 2 { // remove the output of an earlier run
		if err := os.Remove(m.console(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	r := &Running{Machine: m, ended: make(chan struct{}), Started: time.Now()}
	r.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.ExtraFiles = &r.said, &r.said, m.Files
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	return r, nil
}

// Console returns what the machine's own Linux has printed so far.
func (r *Running) Console() string { return read(r.console(0)) }

// Second returns what was printed on the second serial port so far.
func (r *Running) Second() string { return read(r.console(1)) }

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Wait waits until the machine turns itself off.
func (r *Running) Wait() error {
	<-r.ended
	if r.err != nil {
		return fmt.Errorf("run machine: %w: %s", r.err, r.said.String())
	}
	return nil
}

// ErrPanic means that the machine's own Linux has panicked, and will print nothing more.
var ErrPanic = errors.New("its kernel has panicked")

// panicEnd is the last that a kernel says in its panic (kernel/panic.c).
const panicEnd = "end Kernel panic"

// Stillborn reports whether the machine's own Linux panicked at a breakpoint before it had loaded a module. Under
// QEMU's emulation some kernels do so now and then, when they change their own text while other CPUs run it (seen
// with 6.12 and 7.2).
func (r *Running) Stillborn() bool {
	said := strings.ReplaceAll(r.Console(), "\r", "")
	_, modules, ok := strings.Cut(said, "Modules linked in:")
	first, _, _ := strings.Cut(modules, "\n")
	return strings.Contains(said, panicEnd) && ok && strings.TrimSpace(first) == "" && strings.Contains(said, "Oops: int3")
}

// WaitUnlessPanic is Wait for a machine that must not die: if its kernel panics, it turns the machine off
// and returns ErrPanic.
func (r *Running) WaitUnlessPanic() error {
	for {
		select {
		case <-r.ended:
			return r.Wait()
		case <-time.After(time.Second):
		}
		if strings.Contains(r.Console(), panicEnd) {
			return errors.Join(ErrPanic, r.Stop())
		}
	}
}

// Await waits until the machine's own Linux has printed text on its console.
func (r *Running) Await(ctx context.Context, text string) error {
	for {
		said := r.Console()
		switch {
		case strings.Contains(said, text):
			return nil
		case strings.Contains(said, panicEnd):
			return fmt.Errorf("wait for %q: %w", text, ErrPanic)
		}
		select {
		case <-r.ended:
			return fmt.Errorf("the machine ended before it said %q: %w: %s", text, r.Wait(), r.said.String())
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w", text, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop turns the machine off, and waits until it is.
func (r *Running) Stop() error {
	err := r.cmd.Process.Kill()
	<-r.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
