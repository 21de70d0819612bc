package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy.dev/understudy/internal/live/dirs"
)

// Accel is what runs a partition's instructions.
type Accel string

// The accelerators that a partition can have.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// probeLimit is how long a kernel may take to the end of its boot when probed.
// On hardware that takes well under a second, under emulation about 1.5.
const probeLimit = 6 * time.Second

// probeProof is what a kernel without a root file system says last, having
// come through all of its own initialisation (init/do_mounts.c).
var probeProof = []byte("Unable to mount root fs")

// errSlow is why a probe did not end in time: its kernel hangs on the accelerator, or
// this machine was busy.
var errSlow = errors.New("the kernel did not boot in time")

// FindAccel is the accelerator for a kernel, the path of a bzImage: KVM if the kernel
// really boots on it, else TCG. The answer is kept in the cache until this machine boots
// again, unless it is only that the probe took too long, which a busy machine may be
// the reason of.
func FindAccel(ctx context.Context, kernel string) (Accel, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	answer, err := answerFile(kernel)
	if err != nil {
		return "", err
	}
	if b, err := os.ReadFile(answer); err == nil {
		return Accel(strings.TrimSpace(string(b))), nil
	}
	runs, err := probe(ctx, KVM, kernel)
	switch {
	case errors.Is(err, errSlow):
		return TCG, nil
	case err != nil:
		return "", err
	}
	accel := TCG
	if runs {
		accel = KVM
	}
	return accel, errors.Join(os.MkdirAll(filepath.Dir(answer), 0o755), os.WriteFile(answer, []byte(accel), 0o644))
}

// answerFile names the answer for a kernel on this boot of this machine.
func answerFile(kernel string) (string, error) {
	dir, err := dirs.Cache()
	if err != nil {
		return "", err
	}
	st, err := os.Stat(kernel)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %s", kernel, st.Size(), st.ModTime().UnixNano(), boot))
	return filepath.Join(dir, "accel", fmt.Sprintf("%x", h[:8])), nil
}

// probe says whether a kernel really runs on an accelerator. That /dev/kvm
// exists and answers proves nothing, so the kernel is booted, with no root file
// system: it must get as far as to miss that.
func probe(ctx context.Context, a Accel, kernel string) (bool, error) {
	dir, err := os.MkdirTemp("", "understudy-probe-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "console.log")
	ctx, cancel := context.WithTimeoutCause(ctx, probeLimit, errSlow)
	defer cancel()
	args := slices.Concat(headless, a.args(), []string{"-machine", "q35", "-m", "256",
		"-kernel", kernel, "-append", "console=ttyS0 quiet panic=-1", "-serial", "file:" + log, "-no-reboot"})
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	if ctx.Err() != nil {
		return false, context.Cause(ctx) // errSlow if it hangs, or is too slow to be hardware
	}
	if err != nil {
		// An accelerator that QEMU refuses is an answer too; no QEMU is not.
		if _, ended := err.(*exec.ExitError); ended {
			return false, nil
		}
		return false, fmt.Errorf("probe %s: %w", a, err)
	}
	console, err := os.ReadFile(log)
	if err != nil {
		return false, fmt.Errorf("probe %s: %w", a, err)
	}
	return bytes.Contains(console, probeProof), nil
}
