// Package systems runs pairs whose partitions are a distribution with programs that keep
// data: their kernel is killed, and the programs' own checks say what is left.
package systems

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/lab/barelab"
)

// Root is a root disk that can be copied, with what it boots beside it.
type Root struct{ Image, Kernel, Initramfs string }

// Nested are kernel parameters of an emulated machine that has guests. QEMU emulates SVM for it, so
// that its guests have KVM: with nested page tables some of the guests reset themselves (QEMU 7.2).
const Nested = "kvm_amd.npt=0 kvm_amd.vgif=0"

// Find returns the root disk that scripts/systems.sh makes for a name that it knows, a
// Debian suite or host. The script makes it the first time. The disk must not be changed.
func Find(ctx context.Context, name string) (r Root, err error) {
	top, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return r, fmt.Errorf("find scripts: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(strings.TrimSpace(string(top)), "scripts", "systems.sh"), name)
	var said bytes.Buffer
	cmd.Stderr = &said
	path, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", cmd, err, &said)
	}
	r.Image = strings.TrimSpace(string(path))
	r.Kernel, r.Initramfs = r.Image+".vmlinuz", r.Image+".initrd"
	return r, nil
}

// Prepare makes a copy of the root disk for each side of a pair, left.img and right.img
// in a directory, with the program understudy as the agent in it, and units that start by
// role. parameters are for append: of a pair.yaml.
func (r Root) Prepare(ctx context.Context, dir, understudy string, units ...string) (parameters string, err error) {
	if err := r.Copy(ctx, filepath.Join(dir, "left.img")); err != nil {
		return "", err
	}
	return r.PrepareLeft(ctx, dir, understudy, units...)
}

// Copy makes a copy of the root disk, whose units have no time limits.
func (r Root) Copy(ctx context.Context, to string) error {
	if err := run(ctx, "cp", "--sparse=always", r.Image, to); err != nil {
		return err
	}
	return patient(to)
}

// PrepareLeft is Prepare with left.img as it is there: with what a Copy has.
func (r Root) PrepareLeft(ctx context.Context, dir, understudy string, units ...string) (parameters string, err error) {
	left, right := filepath.Join(dir, "left.img"), filepath.Join(dir, "right.img")
	args := []string{"image", "prepare", left}
	for _, u := range units {
		args = append(args, "--unit", u)
	}
	out, err := exec.CommandContext(ctx, understudy, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("image prepare: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "append: "); ok {
			parameters = rest
		}
	}
	if parameters == "" {
		return "", fmt.Errorf("image prepare says nothing for append: %s", out)
	}
	for _, extra := range []string{left + ".vmlinuz", left + ".initrd"} { // the same as those of r
		if err := os.Remove(extra); err != nil {
			return "", err
		}
	}
	return parameters + booted, run(ctx, "cp", "--sparse=always", left, right)
}

// patient removes systemd's time limits for units to start and to show that they are alive,
// and for devices to appear (systemd-system.conf(5); systemd.unit(5) on service.d, for
// services that set others): on a busy machine they end units that only wait for their turn.
func patient(image string) error {
	var files []barelab.File
	for name, text := range map[string]string{
		"system.conf.d":    "[Manager]\nDefaultTimeoutStartSec=infinity\nDefaultDeviceTimeoutSec=infinity\n",
		"system/service.d": "[Service]\nTimeoutStartSec=infinity\nWatchdogSec=0\n",
	} {
		source := image + "." + path.Base(name)
		defer os.Remove(source)
		if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
			return err
		}
		files = append(files, barelab.File{Path: "/etc/systemd/" + name + "/patient.conf", Source: source})
	}
	return barelab.PutAt(image, 0, files)
}

// booted are further kernel parameters. There is no getty on the console, which is for what a test
// prints: a getty first hangs up for the processes that have it open (vhangup(2), TTYVHangup= of
// systemd.exec(5)). And udev may take long over a device (systemd-udevd.service(8)).
const booted = " systemd.mask=serial-getty@ttyS0.service udev.event_timeout=3600"

// Take copies a directory of the root disk into a directory of this machine, with owners
// and permissions.
func (r Root) Take(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "debugfs", "-R", "rdump "+from+" "+to, r.Image).CombinedOutput()
	if err != nil || strings.Contains(string(out), "while ") || strings.Contains(string(out), "not found") {
		return fmt.Errorf("take %s out of %s: %w: %s", from, r.Image, err, out)
	}
	return nil
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
