// Package workload leaves a known amount of file data unsaved, and can tell afterwards, byte for byte, what became of
// it.
//
// A Plan follows from a seed alone. Prepare makes the base tree and says beforehand, as hashes, what every file will
// hold in the end; the caller sends these records (Truth) to where the crash does not reach, and syncs. Run then
// changes the tree quickly and syncs nothing but a class of files of its own. After the crash, Digest reads what is
// there and Compare judges it.
package workload

import "fmt"

// PageSize is the unit of the checksums and of the accounting, in bytes.
const PageSize = 4096

// ProbePath is a small text file whose final content is the last thing that Run writes.
const ProbePath = "probe.txt"

// Spec is what a Plan follows from.
type Spec struct {
	Seed         uint64
	Files        int   // files that get unsaved data, the probe file not counted
	UnsavedBytes int64 // at least so many bytes are unsaved after Run, in whole pages
}

// DefaultSpec is the demo's workload: somewhat above the 96 MiB in 200 files that it promises.
func DefaultSpec(seed uint64) Spec {
	return Spec{Seed: seed, Files: 220, UnsavedBytes: 100 << 20}
}

// maxMean bounds the unsaved bytes per file, so that a file's model fits in a small guest's memory.
const maxMean = 8 << 20

func (s Spec) check() error {
	switch {
	case s.Files < 1:
		return fmt.Errorf("plan workload: %d files, need at least 1", s.Files)
	case s.UnsavedBytes < int64(s.Files):
		return fmt.Errorf("plan workload: %d bytes for %d files, need at least one each", s.UnsavedBytes, s.Files)
	case s.UnsavedBytes/int64(s.Files) > maxMean:
		return fmt.Errorf("plan workload: over %d bytes per file, use more files", maxMean)
	}
	return nil
}
