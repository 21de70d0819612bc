package salvage_test

import (
	"os"
	"strings"
	"testing"
)

// supportFormats is the part of docs/SUPPORT.md about files of memory.
const supportFormats = `
## Files of memory

Kernels for x86-64 are understood, and for arm64 (below); of another architecture, memory is refused by name.

What a kernel has to be built with: CONFIG_KALLSYMS, CONFIG_DEBUG_INFO_BTF, CONFIG_PROC_KCORE or what kdump takes (its note,
VMCOREINFO). One that lacks any of these is refused, and it is said what it lacks. How its
structures are laid out is asked of the kernel itself: TestConfigurations has a compiler lay out those of Debian's 6.1 with lock
debugging, without SMP, and with the least of everything (scripts/configs, scripts/layouts.sh), and all that is read
is found in each. scripts/built.sh builds kernels of three of these, which make matrix-built boots and reads (at the end).
A kernel with CONFIG_RANDSTRUCT that gcc built is refused by name: its BTF, which it has only with COMPILE_TEST, does not tell
the order that its structures have (TestRandstructImage).

A file that its own program made is compared with the RAM file of the same crash: all bytes, and the plan. "By hand" are files that
the tests write by the published layout of the format: that the program in question writes the same has not been tried here.

| file | made by, in the tests | tests |
|---|---|---|
| RAM file (memory-backend-file, share=on) of q35 and i440fx | QEMU 7.2 | all; TestArrangements |
| RAM file of arm64's virt; ELF core and kdump-compressed file (zlib) of it | QEMU 7.2 | TestSameARM64, TestMatrixARM64, TestARM64 |
| ELF core of dump-guest-memory, virsh dump --memory-only | QEMU 7.2 | TestSameFromEveryFormat |
| /proc/vmcore, copied by a kdump kernel | Linux 6.1 | TestVmcore |
| ELF of makedumpfile -E; kdump-compressed: plain, zlib, lzo, snappy, zstd, each if makedumpfile has it; flattened (-F) | makedumpfile 1.7.2 | TestSameFromEveryFormat |
| kdump-compressed by QEMU: zlib; lzo and snappy, if QEMU has them (Debian's 7.2 does not) | QEMU 7.2 | TestSameFromEveryFormat |
| kdump in several files (makedumpfile --split), all of them named | makedumpfile 1.7.2 | TestSameFromEveryFormat, TestSplit |
| kdump or ELF marked incomplete, or cut off: read as far as it goes, and told | by hand | TestLost, TestCut |
| LiME | LiME, built for Linux 6.1 | TestLiME |
| AVML, both versions | by hand | TestFormats |
| QEMU migration stream (migrate "exec:cat > FILE"); refused by name: cut, xbzrle, compress, multifd, mapped-ram, x-ignore-shared, hot-plugged memory | QEMU 7.2; what is refused: by hand | TestSameFromEveryFormat, TestStream, TestStreamCut |
| virsh save: raw, gzip, bzip2, xz, zstd; refused by name: lzop, sparse, not finished | header by hand | TestStreamSaved |
| VMware .vmss and .vmsn, with .vmem beside, or the memory in it | by hand | TestVMware |
| any of these compressed: .gz, .xz, .zst, .lz4, .bz2 | gzip, xz, zstd, lz4, bzip2 | TestPacked |
| /proc/kcore: inspect and list only | Linux 6.1, once, by hand; in the tests by hand | TestLive |
| encrypted memory, Windows, hibernation image, disk images, diskdump, old VMware state files: refused by name | by hand | TestStrange, TestRefused |
`

// TestSupport: the document has that part.
func TestSupport(t *testing.T) {
	b, err := os.ReadFile("../../docs/SUPPORT.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), supportFormats) {
		t.Error("docs/SUPPORT.md has no such part, or another: make matrix writes it")
	}
}
