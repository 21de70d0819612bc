package salvage_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
)

var arm64Table = flag.String("salvage.arm64", "", "the file that TestMatrixARM64 writes its results to (make matrix-arm64)")

const arm64Title = "\n## arm64\n"

const arm64Text = `
Kernels for arm64, with pages of 4 and of 16 KiB: ` + "`inspect`, `salvage list`, `extract` and `apply`" + `. The same as above of Debian's, under
QEMU's virt machine with all that its emulation has ("max": addresses of 52 bits, signed pointers), and with CPUs that
can do less, on %s, by ` + "`make matrix-arm64`" + `. TestARM64 has inspect, list and extract from the
RAM file, an ELF core and a kdump-compressed file (whose blocks have 64 KiB) by QEMU; TestApplyARM64 has apply, from the RAM file: to
ext4 and ext3 without a guest.

A kernel without CONFIG_KALLSYMS_ALL (Debian's 6.1 for arm64) names no variables; they are found otherwise. Of such a one, ` + "`inspect`" + ` does
not know the CPU that panicked, nor the command line.

Debian's 5.10.0-30-cloud-arm64 was tried once, by hand, on 2026-11-28: ext4, ext4-1k, ext3, ext2 and tmpfs were exact.

- Pages of 64 KiB: read, and tried only in tests of the page tables and of structures made up for them: Debian has no such kernel.
- Read, and not tried: RAM files of Cloud Hypervisor and Firecracker; what makedumpfile writes on arm64 (only a file by hand that says so);
  39 bits of address but in tests of the page tables; connections (` + "`understudy sockets`" + `).
- Not understood: KASAN by tags in pointers (CONFIG_KASAN_SW_TAGS, _HW_TAGS), which Debian's kernels have not.
- x86-64 only: pairs, ` + "`metal`" + `, and the machine that the work is done on, with its guests.

`

// TestMatrixARM64 checks for arm64 kernels what TestMatrix checks.
func TestMatrixARM64(t *testing.T) {
	var out strings.Builder
	fmt.Fprintf(&out, arm64Title+arm64Text, time.Now().UTC().Format("2006-01-02"))
	columnHeads(&out)
	specs := slices.Clone(fixture.ARM64CPUs)
	for n, name := range fixture.ARM64Kernels {
		specs = slices.Insert(specs, n, fixture.ARM64(name))
	}
	for _, spec := range specs {
		t.Run(strings.TrimSpace(spec.Kernel+" "+spec.CPU), func(t *testing.T) {
			r := row{crash: "basic", cells: make(map[string]cell)}
			if spec.CPU != "" {
				r.crash += ", " + spec.CPU
			}
			image := fixture.Get(t, spec)
			r.kernel = image.Release
			checkImage(t, image, spec, r.cells)
			fmt.Fprintf(&out, "| %s | %s |%s\n", r.kernel, r.crash, r.line())
		})
	}
	if *arm64Table == "" {
		return
	}
	if err := replaceSection(*arm64Table, arm64Title, out.String()); err != nil {
		t.Error(err)
	}
}
