package metal

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// TSC is the frequency of the time stamp counter in kHz, as the running kernel found it:
// its tsc_khz (arch/x86/kernel/tsc.c), read through /proc/kcore.
func TSC() (uint64, error) {
	khz, err := Host{}.Word("tsc_khz")
	if err != nil {
		return 0, fmt.Errorf("find the TSC's frequency: %w", err)
	}
	if khz < 1e5 || khz > 1e8 {
		return 0, fmt.Errorf("find the TSC's frequency: %d kHz make no sense", khz)
	}
	return uint64(khz), nil
}

// wanted are the variables of the running kernel that are read.
var wanted = []string{"tsc_khz", "x2apic_mode", "irq_remapping_enabled", "sme_me_mask", "cc_mask"}

// symbols returns the addresses of those of the wanted variables that exist. The list is long: it is read once.
var symbols = sync.OnceValues(func() (map[string]uint64, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSymbols(f, wanted)
})

// parseSymbols takes the addresses of some symbols out of a list like /proc/kallsyms (kernel/kallsyms.c,
// s_show).
func parseSymbols(r io.Reader, names []string) (map[string]uint64, error) {
	found := make(map[string]uint64)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) < 20 || !slices.ContainsFunc(names, func(n string) bool { return string(line[19:]) == n }) {
			continue
		}
		at, err := strconv.ParseUint(string(line[:16]), 16, 64)
		if err == nil && at == 0 {
			err = errors.New("the kernel hides addresses (kernel.kptr_restrict)")
		}
		if err != nil {
			return nil, err
		}
		found[string(line[19:])] = at
	}
	return found, lines.Err()
}

// variable reads one of the wanted variables of the running kernel, of n bytes.
func variable(name string, n uint64) ([]byte, error) {
	all, err := symbols()
	if err != nil {
		return nil, err
	}
	at, ok := all[name]
	if !ok {
		return nil, fmt.Errorf("the kernel has no symbol %s", name)
	}
	f, err := elf.Open("/proc/kcore")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || at < p.Vaddr || at-p.Vaddr+n > p.Memsz {
			continue
		}
		b := make([]byte, n)
		if _, err := p.ReadAt(b, int64(at-p.Vaddr)); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("%s at %#x is not in /proc/kcore", name, at)
}

// tsc checks the time stamp counter, which is the understudy's only clock, on its own CPUs and on those that it
// takes over. A kernel that found it to be unstable does not offer it (kernel/time/clocksource.c,
// available_clocksource_show). In a virtual machine the flags of its CPUs say nothing.
func (c *checker) tsc() {
	const clocks = "sys/devices/system/clocksource/clocksource0/available_clocksource"
	cpus, err := fs.ReadFile(c.root, "proc/cpuinfo")
	flags := strings.Fields(string(cpus))
	b, err2 := fs.ReadFile(c.root, clocks)
	virtual := err == nil && slices.Contains(flags, "hypervisor")
	steady := slices.Contains(flags, "constant_tsc") && slices.Contains(flags, "nonstop_tsc") && err2 == nil && slices.Contains(strings.Fields(string(b)), "tsc")
	c.add("TSC", steady || virtual, "An understudy needs CPUs whose time stamp counters run evenly, all alike: see dmesg for why this kernel does not use them.",
		"%s", pick(steady, "counts time", pick(virtual, "is as the hypervisor has it", "is no clock on this machine, and the understudy has no other")))
}
