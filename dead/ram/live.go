package ram

import (
	"path/filepath"
)

// kcorePath is the memory of the machine that this program runs on, as an ELF core
// (fs/proc/kcore.c). It cannot be mapped, memory that is offline reads as zeros, and it changes
// while it is read.
const kcorePath = "/proc/kcore"

// isKcore reports whether a path names kcorePath.
func isKcore(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && real == kcorePath
}

// openLive opens an ELF core of a running machine.
func openLive(in input) (Memory, error) {
	// The file is as large as the kernel's address space. It is not mapped, but read piece by piece.
	m, err := openELF(behind{in, 0})
	if err != nil {
		return nil, err
	}
	m.(interface{ describe(func(*Info)) }).describe(func(i *Info) { i.Live = true })
	return m, nil
}
