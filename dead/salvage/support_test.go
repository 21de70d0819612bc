package salvage_test

import (
	"os"
	"strings"
	"testing"
)

// supportFormats is the part of docs/SUPPORT.md about memory files.
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

// supportHosts is the part about the machine that pairs, and guests of salvage apply, run on.
const supportHosts = `
## The machine

Everything in these documents was measured on Debian 12, with QEMU 7.2. What QEMU has is asked of it: check and up refuse one that
lacks a device that is needed, and name that. 6.2 is the oldest that has all of them in a distribution that was looked at.

With the user space of other distributions in a directory of its own (mmdebstrap, chroot), on Debian 12's machine, on 2026-11-29:

| user space | QEMU | e2fsprogs | needed devices | user of QEMU | salvage apply without a guest, to ext4 and, checked, to ext2 | pairs |
|---|---|---|---|---|---|---|
| Debian 11 | 5.2 | | no pvpanic-pci: refused | -runas | | |
| Ubuntu 22.04 | 6.2 | 1.46.5 | all | -runas | done | demo, TestUpCrashDown |
| Ubuntu 24.04 | 8.2 | 1.47.0 | all | -runas | done | demo, TestUpCrashDown |
| Debian 13 | 10.0 | 1.47.2 | all | -run-with | done | demo, TestUpCrashDown |
| Debian sid | 11.1 | 1.47.4 | all | -run-with | done | demo |

"Done" is that apply said so, of all files that it had planned; what a mounted disk has afterwards was not compared there. On Debian 13
scripts/setup.sh was gone through, and on it and sid TestRehearsalIsAlike, since their mkfs make other file systems by themselves.
With each QEMU but 5.2 TestSameFromEveryFormat/qemu: ELF core, kdump-compressed file (zlib) and migration stream; with 10.0 and 11.1 also
TestAdopt/memfd and /private (--pid).

- RHEL's qemu-kvm, and that of what is made of RHEL, is built without ivshmem-plain and pvpanic-pci, by its published configuration:
  pairs do not run on it, nor guests of salvage apply. Memory of a machine that runs on it (--pid, --libvirt) and its dumps are read; that was not tried.
- Of Fedora, Arch and NixOS only the names are known that QEMU, kernels and busybox have there.
- A shared disk with features that this machine's mkfs does not know (orphan_file and e2fsprogs 1.46) is refused by up, unless
  rehearse is false; its check in a takeover is left to the guest then.
`

// TestSupport checks that docs/SUPPORT.md has these parts.
func TestSupport(t *testing.T) {
	b, err := os.ReadFile("../../docs/SUPPORT.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), supportFormats+supportHosts) {
		t.Error("docs/SUPPORT.md has no such parts, or others: make matrix writes them")
	}
}
