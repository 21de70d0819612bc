package ram

import (
	"path/filepath"
)

// kcorePath is the memory of the very machine that this program runs on, as an ELF core
// (fs/proc/kcore.c). It cannot be mapped, and what is offline in it reads as zeros. It changes
// while it is read.
const kcorePath = "/proc/kcore"

// isKcore reports whether a path names it.
func isKcore(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && real == kcorePath
}

// openLive opens an ELF core of a machine that goes on.
func openLive(in input) (Memory, error) {
	// Its size is that of the kernel's address space, and one piece after the other is read.
	m, err := openELF(behind{in, 0})
	if err != nil {
		return nil, err
	}
	m.(interface{ describe(func(*Info)) }).describe(func(i *Info) { i.Live = true })
	return m, nil
}
