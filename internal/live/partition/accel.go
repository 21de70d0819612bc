package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
)

// Accel is what runs a partition's instructions.
type Accel string

// The accelerators that a partition can have.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// probeLimit is how long a probed kernel may take until the end of its boot. On hardware that
// takes well under a second, under emulation about 1.5 s, and minutes if this machine is itself
// emulated.
const probeLimit = 10 * time.Minute

// aloneLimit is how long the probe of KVM may go on at most once that of TCG has ended.
const aloneLimit = time.Minute

// probeProof is what a kernel without a root file system says last, having
// come through all of its own initialisation (init/do_mounts.c).
var probeProof = []byte("Unable to mount root fs")

// errSlow is why a probe did not end in time.
var errSlow = errors.New("the kernel did not boot in time")

// FindAccel returns the accelerator for a kernel, the path of a bzImage: KVM if the kernel
// really boots on it, and sooner than under TCG, else TCG. So a KVM on which it hangs is not used, and the
// KVM of a machine that is itself emulated is, however slow both are there. The answer is kept in
// the cache, if there is one, until this machine boots again, unless KVM was only somewhat slower: a busy
// machine may be the reason for that.
func FindAccel(ctx context.Context, kernel string) (Accel, error) {
	if openKVM() != nil {
		return TCG, nil
	}
	return find(ctx, kernel, func(ctx context.Context, a Accel) (bool, error) { return probe(ctx, a, kernel) })
}

// kvmPath is the device of KVM.
var kvmPath = "/dev/kvm"

func openKVM() error {
	f, err := os.OpenFile(kvmPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Withheld returns why KVM is not used although this machine has it: it cannot be opened. Otherwise it is nil.
func Withheld() error {
	err := openKVM()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) { // no module, or none for this processor
		return nil
	}
	return err
}

// find is FindAccel on a machine with KVM. Without a cache directory it probes each time.
func find(ctx context.Context, kernel string, probe func(context.Context, Accel) (bool, error)) (Accel, error) {
	name, err := answerName(kernel)
	if err != nil {
		return "", err
	}
	dir, uncached := dirs.Cache()
	file := filepath.Join(dir, "accel", name)
	// Both partitions of a pair ask for the same kernel at the same time.
	got, err, _ := probes.Do(name, func() (any, error) {
		if b, err := os.ReadFile(file); uncached == nil && err == nil && (string(b) == string(KVM) || string(b) == string(TCG)) {
			return Accel(b), nil
		}
		accel, err := sooner(ctx, probe)
		if errors.Is(err, errSlow) {
			return TCG, nil
		}
		if err == nil && uncached == nil {
			_ = keep(file, accel) // if that fails, the next call probes again
		}
		return accel, err
	})
	if err != nil {
		return "", err
	}
	return got.(Accel), nil
}

// probes are the probes in flight, by the names of their answers.
var probes singleflight.Group

// keep writes an answer atomically: a reader gets all of it, or nothing.
func keep(file string, a Accel) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone if all went well
	_, err = f.WriteString(string(a))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// answer is the result of a probe of KVM or TCG.
type answer struct {
	runs bool
	err  error
}

// accel returns the accelerator to use after a probe of KVM with that answer.
func (a answer) accel() (Accel, error) {
	if a.err != nil {
		return "", a.err
	}
	if a.runs {
		return KVM, nil
	}
	return TCG, nil
}

// sooner probes both accelerators at once. It returns KVM if that runs the kernel, and TCG has not done so
// before; TCG if KVM does not run it, or has not after twice the time that TCG took beside it, which is fair even on a
// busy machine; and errSlow if KVM was only slower, or if that cannot be decided.
func sooner(ctx context.Context, probe func(context.Context, Accel) (bool, error)) (Accel, error) {
	ctx, cancel := context.WithCancel(ctx)
	kvm, tcg := make(chan answer, 1), make(chan answer, 1)
	var wg sync.WaitGroup
	for a, to := range map[Accel]chan answer{KVM: kvm, TCG: tcg} {
		wg.Go(func() {
			runs, err := probe(ctx, a)
			to <- answer{runs, err}
		})
	}
	defer wg.Wait() // no QEMU is left behind
	defer cancel()
	began, alone := time.Now(), aloneLimit
	var compared bool
	select {
	case got := <-kvm:
		return got.accel()
	case got := <-tcg:
		if compared = got.runs; compared {
			alone = min(aloneLimit, time.Since(began))
		}
	}
	select {
	case got := <-kvm:
		if compared && got.runs {
			return "", errSlow
		}
		return got.accel()
	case <-time.After(alone):
	}
	if compared && alone < aloneLimit {
		return TCG, nil
	}
	return "", errSlow
}

// answerName names the answer for a kernel in this QEMU on this boot of this machine.
func answerName(kernel string) (string, error) {
	st, err := os.Stat(kernel)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	program, _ := exec.LookPath(qemu) // if there is none, the probe reports it
	version, _ := os.Stat(program)
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d %s", kernel, st.Size(), st.ModTime().UnixNano(), boot)
	if version != nil {
		fmt.Fprintf(h, " %s %d %d", program, version.Size(), version.ModTime().UnixNano())
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// probe reports whether a kernel really runs on an accelerator. That /dev/kvm
// exists and answers proves nothing, so the kernel is booted without a root file
// system: it must get as far as reporting that it has none.
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
		"-kernel", kernel, "-append", strings.Join(append(a.kernelParameters(), "panic=-1"), " "), "-serial", "file:" + log, "-no-reboot"})
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
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
