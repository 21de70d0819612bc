package main

import (
	"io"
	"path/filepath"

	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/live/initramfs"
)

// nfsPlace fills in where an NFS lab finds what setup has fetched. program is the
// build of this program that its guests run, and dir has their kernel, of the
// cache's default if it is empty.
func nfsPlace(o *nfslab.Options, program, dir string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	kernel, modules, err := guestKernel(dir)
	if err != nil {
		return err
	}
	o.Kernel = kernel
	o.GuestImage = func(path string, client bool, add ...initramfs.File) error {
		wanted, files, err := nfsContent(!client, client)
		if err != nil {
			return err
		}
		return programImage(program, path, modules, append(wanted, guestModules...), append(files, add...))
	}
	o.WorkDir, o.RunDir, o.Open, o.Accel = filepath.Join(cache, "runs"), runDir, openMorgue, chooseAccel
	o.Log = io.Discard
	return nil
}
