package kernel

import (
	"bytes"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// noNotes is errNoNotes, with what the memory seems to be instead of Linux.
type noNotes struct{ what string }

func (n *noNotes) Error() string { return fmt.Sprintf("there is no VMCOREINFO note: %s", n.what) }

func (n *noNotes) Unwrap() error { return errNoNotes }

// strange says what memory without a note seems to be.
func strange(mem ram.Memory) error {
	switch {
	case len(scan(mem, windowsKernels)) > 0:
		return &noNotes{"this is the memory of Windows, and only Linux is understood"}
	case encrypted(mem):
		return &noNotes{"its pages look like noise: it is encrypted (AMD SEV, Intel TDX), which cannot be read from outside of the guest"}
	}
	return errNoNotes
}

// windowsSymbols are in the debug directory of every Windows kernel for x86-64: the magic of a
// PDB 7.0 record, a GUID and an age, and the name of the file with its symbols (LLVM, "The PDB
// Info Stream" and llvm/DebugInfo/CodeView/CVRecord; "CV_INFO_PDB70").
var windowsSymbols = []string{"ntkrnlmp.pdb\x00", "ntoskrnl.pdb\x00"}

const (
	pdbMagic = "RSDS"
	pdbName  = 4 + 16 + 4 // offset of the name
)

// windowsKernels finds the debug records of Windows kernels.
func windowsKernels(chunk []byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		for at := 0; ; at++ {
			next := bytes.Index(chunk[at:], []byte(pdbMagic))
			if next < 0 {
				return
			}
			at += next
			name := chunk[min(len(chunk), at+pdbName):]
			for _, symbols := range windowsSymbols {
				if bytes.HasPrefix(name, []byte(symbols)) && !yield(at) {
					return
				}
			}
		}
	}
}

// Bounds for what counts as noise: how many pages are looked at, how many nonzero pages there must be, and
// how many of the 256 byte values may be missing from a page. From 4096 random bytes, one value is missing
// with probability 3e-5.
const (
	noisePages   = 4096
	noiseAtLeast = 256
	noiseMissing = 2
)

// encrypted reports whether nearly all of the nonzero pages of memory look random.
func encrypted(mem ram.Memory) bool {
	var total uint64
	for r := range chunks(mem) {
		total += r.Len()
	}
	step := max(1, total/addr.PageSize/noisePages)
	seen, noise, n := 0, 0, uint64(0)
	for r := range chunks(mem) {
		for pa := r.Start; pa < r.End; pa += addr.PageSize {
			if n++; n%step != 0 {
				continue
			}
			page, err := mem.View(pa, addr.PageSize)
			if err != nil || len(bytes.Trim(page, "\x00")) == 0 {
				continue
			}
			seen++
			if random(page) {
				noise++
			}
		}
	}
	return seen >= noiseAtLeast && noise > seen/10*9
}

func random(page []byte) bool {
	var counts [256]int
	for _, b := range page {
		counts[b]++
	}
	missing := 0
	for _, n := range counts {
		if n == 0 {
			missing++
		}
	}
	return missing <= noiseMissing
}
