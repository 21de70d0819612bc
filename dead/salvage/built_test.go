package salvage_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
)

var builtTable = flag.String("salvage.built", "", "the file that TestMatrixBuilt writes its results to (make matrix-built)")

const builtTitle = "\n## Kernels of other configurations\n"

const builtText = `
Built of the source of Debian's 6.1 by scripts/built.sh. Those that have a row here were tried on %s, by ` + "`make matrix-built`" + `. There are:
with one processor and the least of everything (small: SLAB, no KASLR, no control groups, no quotas, no VMEMMAP); with lock debugging, DEBUG_LIST, DEBUG_OBJECTS, DEBUG_VM and PAGE_OWNER
(lockdep); the same without SMP, with DEBUG_PAGEALLOC (debug). The fragments are in scripts/configs.

`

// TestMatrixBuilt checks one crash of each kernel that is built with a configuration that Debian
// does not have.
func TestMatrixBuilt(t *testing.T) {
	var out strings.Builder
	fmt.Fprintf(&out, builtTitle+builtText, time.Now().UTC().Format("2006-01-02"))
	columnHeads(&out)
	for _, name := range fixture.BuiltKernels {
		t.Run(name, func(t *testing.T) {
			if _, err := fixture.Kernel(name); err != nil && *builtTable == "" {
				t.Skip(err) // to build one takes many minutes: make matrix-built
			}
			spec := fixture.Built(name)
			r := row{kernel: name, crash: "basic", cells: make(map[string]cell)}
			for _, fs := range spec.FS {
				r.cells[fs] = cell{failed: true}
			}
			defer func() {
				if !t.Skipped() {
					fmt.Fprintf(&out, "| %s | %s |%s\n", r.kernel, r.crash, r.line())
				}
			}()
			image := fixture.Get(t, spec)
			r.kernel = image.Release
			checkImage(t, image, spec, r.cells)
		})
	}
	if *builtTable == "" {
		return
	}
	if err := replaceSection(*builtTable, builtTitle, out.String()); err != nil {
		t.Error(err)
	}
}
