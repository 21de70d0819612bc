package metal

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// TSC is the frequency of the time stamp counter in kHz, as the running kernel found it:
// its tsc_khz (arch/x86/kernel/tsc.c), read through /proc/kcore.
func TSC() (uint64, error) {
	khz, err := kernelWord("tsc_khz")
	if err != nil {
		return 0, fmt.Errorf("find the TSC's frequency: %w", err)
	}
	if khz < 1e5 || khz > 1e8 {
		return 0, fmt.Errorf("find the TSC's frequency: %d kHz make no sense", khz)
	}
	return uint64(khz), nil
}

// kernelWord reads a 32-bit variable of the running kernel.
func kernelWord(name string) (uint32, error) {
	at, err := kernelSymbol(name)
	if err != nil {
		return 0, err
	}
	f, err := elf.Open("/proc/kcore")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || at < p.Vaddr || at-p.Vaddr+4 > p.Memsz {
			continue
		}
		var b [4]byte
		if _, err := p.ReadAt(b[:], int64(at-p.Vaddr)); err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		return binary.LittleEndian.Uint32(b[:]), nil
	}
	return 0, fmt.Errorf("%s at %#x is not in /proc/kcore", name, at)
}

// kernelSymbol is the address of a variable in /proc/kallsyms.
func kernelSymbol(name string) (uint64, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[2] != name {
			continue
		}
		at, err := strconv.ParseUint(fields[0], 16, 64)
		if err == nil && at == 0 {
			err = fmt.Errorf("the kernel hides addresses (kernel.kptr_restrict)")
		}
		return at, err
	}
	return 0, fmt.Errorf("the kernel has no symbol %s", name)
}
