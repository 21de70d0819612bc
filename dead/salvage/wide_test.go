package salvage_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
)

var wideTable = flag.String("salvage.wide", "", "the file that TestMatrixWide writes its results to (make matrix-wide)")

// wide are the names in scripts/kernels.sh of kernels from Debian's other suites, whose versions
// change.
var wide = []string{"trixie-cloud", "trixie-backports-cloud", "experimental-cloud"}

const wideTitle = "\n## Other kernels\n"

// TestMatrixWide checks one crash of each kernel that no other test here uses.
func TestMatrixWide(t *testing.T) {
	if *wideTable == "" {
		t.Skip("make matrix-wide fetches the kernels")
	}
	var out strings.Builder
	out.WriteString(wideTitle)
	fmt.Fprintf(&out, "\nOf Debian's other suites on %s, by `make matrix-wide`, which also finishes the last\ncommit of ext2, ext3 and ext4 in a copy that e2fsck then checks, and plans what the logs of XFS and btrfs lack.\n\n", time.Now().UTC().Format("2006-01-02"))
	columnHeads(&out)
	for _, name := range wide {
		t.Run(name, func(t *testing.T) {
			spec := fixture.Everything(name)
			r := row{kernel: name, crash: "basic", cells: make(map[string]cell)}
			for _, fs := range spec.FS {
				r.cells[fs] = cell{failed: true}
			}
			image := fixture.Get(t, spec)
			r.kernel = image.Release
			checkImage(t, image, spec, r.cells)
			fmt.Fprintf(&out, "| %s (%s) | %s |%s\n", r.kernel, strings.TrimSuffix(name, "-cloud"), r.crash, r.line())
		})
	}
	if err := replaceSection(*wideTable, wideTitle, out.String()); err != nil {
		t.Error(err)
	}
}
