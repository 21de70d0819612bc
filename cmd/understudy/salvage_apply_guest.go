package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover/offline"
)

// fsModules are what a kernel may have as modules for the file system of a type,
// beside ext4, and what that asks for by name.
var fsModules = map[string][]string{
	"xfs":   {"libcrc32c|", "xfs"},
	"btrfs": {"libcrc32c|", "xxhash_generic|", "blake2b_generic|", "sha256_generic|", "btrfs"},
}

// mountOptions are with what a guest mounts a file system of a type: a path of
// btrfs begins at its top, whatever subvolume is the default.
var mountOptions = map[string]string{"xfs": "noatime", "btrfs": "noatime,subvolid=5"}

// appliance is the guest that the work is done in.
func (a *application) appliance(ctx context.Context) (offline.Guest, error) {
	kernel, modules, err := guestKernel(a.guest)
	if err != nil {
		return offline.Guest{}, err
	}
	machine, err := pair.ThisMachine()
	if err != nil {
		return offline.Guest{}, err
	}
	accel, err := chooseAccel(ctx, pair.Partition{Kernel: kernel})
	if err != nil {
		return offline.Guest{}, err
	}
	var add []initramfs.File
	if a.on.Family == "ext" {
		if add, err = initramfs.Program(agent.Checker); err != nil {
			return offline.Guest{}, err
		}
	}
	wanted := slices.Concat(guestModules, fsModules[a.fsys.Super.Type])
	// The claim on the disk makes the directory ours.
	where := sha256.Sum256([]byte(a.target.Work()))
	return offline.Guest{
		Kernel: kernel, Accel: accel, CPUs: machine.CPUs, Dir: runDir(fmt.Sprintf("apply-%x", where[:6])),
		Image: func(path string) error { return guestImage(path, modules, wanted, add) },
	}, nil
}

// guestKernel finds the kernel and the modules of small guests: in a directory,
// or in what setup has fetched.
func guestKernel(dir string) (kernel, modules string, err error) {
	if dir == "" {
		cache, err := cacheDir()
		if err != nil {
			return "", "", err
		}
		dir = filepath.Join(cache, "kernels", "default")
	}
	kernel = filepath.Join(dir, "boot", "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		return "", "", fmt.Errorf("%w (scripts/setup.sh fetches the kernel)", err)
	}
	trees, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil {
		return "", "", err
	}
	if len(trees) != 1 {
		return "", "", fmt.Errorf("no modules in %s (scripts/setup.sh fetches them)", dir)
	}
	return kernel, trees[0], nil
}
