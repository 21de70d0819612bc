package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
)

// cacheDir holds what can be made again: kernels, guest images, the answers of
// probes.
func cacheDir() (string, error) {
	if dir := os.Getenv("UNDERSTUDY_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w (set UNDERSTUDY_CACHE)", err)
	}
	return filepath.Join(base, "understudy"), nil
}

// knownBuilds has what is learned of a kernel kept for the next time. Without a
// cache directory, it is learned each time.
func knownBuilds() []kernel.Option {
	dir, err := cacheDir()
	if err != nil {
		return nil
	}
	return []kernel.Option{kernel.KeepIn(filepath.Join(dir, "builds"))}
}

// runDir is where a running pair of that name keeps its files.
func runDir(name string) string {
	base := os.Getenv("UNDERSTUDY_RUN")
	if base == "" {
		base = "/dev/shm"
	}
	return filepath.Join(base, "understudy-"+name)
}

// chooseAccel is what a partition runs on. For auto, its kernel is booted on
// KVM once per boot of the machine, and the answer kept.
func chooseAccel(ctx context.Context, p pair.Partition) (partition.Accel, error) {
	switch p.Accel {
	case pair.AccelKVM:
		return partition.KVM, nil
	case pair.AccelTCG:
		return partition.TCG, nil
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return partition.TCG, nil
	} else if err := f.Close(); err != nil {
		return "", err
	}
	answer, err := probeFile(p.Kernel)
	if err != nil {
		return "", err
	}
	if b, err := os.ReadFile(answer); err == nil {
		return partition.Accel(strings.TrimSpace(string(b))), nil
	}
	accel := partition.TCG
	runs, err := partition.Probe(ctx, partition.KVM, p.Kernel)
	if err != nil {
		return "", err
	}
	if runs {
		accel = partition.KVM
	}
	if err := ctx.Err(); err != nil {
		return "", err // cut short: no answer
	}
	err = errors.Join(os.MkdirAll(filepath.Dir(answer), 0o755), os.WriteFile(answer, []byte(accel), 0o644))
	return accel, err
}

// probeFile names the answer for a kernel on this boot of this machine.
func probeFile(kernel string) (string, error) {
	dir, err := cacheDir()
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
