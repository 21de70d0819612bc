package foreign

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// region is memory of a process without a gap, and with one file, or none, behind it.
type region struct {
	start, end uint64 // virtual addresses
	off        uint64 // in the file
	file       string // device and inode; empty for private memory without a file
	shared     bool
	path       string
	guarded    bool // the memory that follows cannot be accessed at all
}

func (r region) size() int64 { return int64(r.end - r.start) }

// maxRegions bounds the lines of a process's map. It is as high as vm.max_map_count is ever set.
const maxRegions = 1 << 20

// parseMaps reads the map of a process (proc(5), maps) and joins regions that continue each other.
// Memory that cannot be both read and written, or that QEMU itself can execute, is not a guest's.
func parseMaps(in io.Reader) ([]region, error) {
	var out []region
	lines := bufio.NewScanner(in)
	for n := 0; lines.Scan(); n++ {
		if n == maxRegions {
			return nil, errors.New("read map: it has too many lines")
		}
		r, access, err := parseRegion(lines.Text())
		if err != nil {
			return nil, err
		}
		last := len(out) - 1
		if !strings.HasPrefix(access, "rw-") || r.end>>63 != 0 {
			if last >= 0 && out[last].end == r.start && strings.HasPrefix(access, "---") {
				out[last].guarded = true
			}
			continue
		}
		if last >= 0 && out[last].continues(r) {
			out[last].end = r.end
			continue
		}
		out = append(out, r)
	}
	return out, lines.Err()
}

func (r region) continues(next region) bool {
	return r.end == next.start && r.file == next.file && r.shared == next.shared && r.path == next.path &&
		(r.file == "" || r.off+uint64(r.size()) == next.off)
}

// parseRegion reads a line: START-END ACCESS OFFSET DEVICE INODE PATH.
func parseRegion(line string) (r region, access string, err error) {
	bad := fmt.Errorf("read map: not understood: %q", line)
	fields := strings.Fields(line)
	if len(fields) < 5 || len(fields[1]) != 4 {
		return r, "", bad
	}
	from, to, ok := strings.Cut(fields[0], "-")
	var errs [3]error
	r.start, errs[0] = strconv.ParseUint(from, 16, 64)
	r.end, errs[1] = strconv.ParseUint(to, 16, 64)
	r.off, errs[2] = strconv.ParseUint(fields[2], 16, 64)
	if !ok || errors.Join(errs[:]...) != nil || r.end < r.start {
		return r, "", bad
	}
	r.shared = fields[1][3] == 's'
	if fields[4] != "0" {
		r.file = fields[3] + " " + fields[4]
	}
	if len(fields) > 5 {
		at := strings.Index(line, fields[5])
		r.path = line[at:]
	}
	return r, fields[1], nil
}

var errNoMemory = errors.New("the memory of its machine was not found as one piece")

// memoryAlign is the alignment that QEMU gives to memory without a file, for huge pages, in bytes
// (include/qemu/osdep.h, QEMU_VMALLOC_ALIGN).
const memoryAlign = 2 << 20

// leastModule is the smallest piece of memory that can be plugged into Linux, in bytes: one of its
// sections, 128 MiB (arch/x86/include/asm/sparsemem.h, arch/arm64/include/asm/sparsemem.h with pages
// of 4 KiB).
const leastModule = 128 << 20

// machineMemory finds a machine's memory among a process's regions. QEMU aligns it,
// and maps a page behind it that cannot be accessed, so that nothing is joined to its end
// (util/mmap-alloc.c, qemu_ram_mmap). Memory in front of it may be joined to it. If more memory
// may be plugged in, every other region that could be a module is taken for one.
func machineMemory(all []region, given memory) (region, error) {
	var found, modules []region
	for _, r := range all {
		if r.file == "" && !r.guarded {
			continue
		}
		base := r
		base.start = r.end - uint64(given.size)
		whole := r.size() == given.size && r.off == 0
		switch {
		case whole && r.file != "", r.size() >= given.size && r.file == "" && base.start%memoryAlign == 0:
			found = append(found, base)
		case given.most > given.size && r.size() >= leastModule:
			modules = append(modules, r)
		}
	}
	if len(found) == 1 && len(modules) > 0 {
		return region{}, fmt.Errorf("%w: it may have hotplugged memory (maxmem), since there is a mapping of %d bytes besides that of %d", errNoMemory, modules[0].size(), given.size)
	}
	if len(found) == 1 {
		return found[0], nil
	}
	all = slices.SortedFunc(slices.Values(all), func(a, b region) int { return cmp.Compare(b.size(), a.size()) })
	var sizes []int64
	for _, r := range all[:min(3, len(all))] {
		sizes = append(sizes, r.size())
	}
	return region{}, fmt.Errorf("%w: its command line says %d bytes; its largest pieces have %d", errNoMemory, given.size, sizes)
}

// defaultMemory is the memory of a machine without -m, in bytes (qemu(1)).
const defaultMemory = 128 << 20

// memory is what a command line gives a machine, in bytes.
type memory struct {
	size int64
	most int64 // with all that may be plugged in; 0 if nothing may
}

// memoryOf reads -m of a command line: -m 512, -m 2G, -m size=1048576k,slots=16,maxmem=8G
// (qemu(1); without a unit it is MiB).
func memoryOf(args []string) (memory, error) {
	given := memory{size: defaultMemory}
	for i, a := range args[:max(0, len(args)-1)] {
		if a != "-m" && a != "--m" {
			continue
		}
		for n, o := range strings.Split(args[i+1], ",") {
			key, value, named := strings.Cut(o, "=")
			if !named && n == 0 {
				key, value = "size", o
			}
			to := map[string]*int64{"size": &given.size, "maxmem": &given.most}[key]
			if to == nil {
				continue
			}
			var err error
			if *to, err = parseSize(value); err != nil {
				return memory{}, fmt.Errorf("read -m %s: %w", args[i+1], err)
			}
		}
	}
	return given, nil
}

// parseSize reads a size with QEMU's units, which are powers of 1024 (util/cutils.c,
// qemu_strtosz_MiB).
func parseSize(s string) (int64, error) {
	number, unit := s, "M"
	if n := len(s) - 1; n >= 0 && (s[n] < '0' || s[n] > '9') {
		number, unit = s[:n], strings.ToUpper(s[n:])
	}
	v, err := strconv.ParseFloat(number, 64)
	i := strings.Index("BKMGTPE", unit)
	if err != nil || i < 0 || !(v > 0) || v >= 1<<62 {
		return 0, fmt.Errorf("%q is no size", s)
	}
	if v *= float64(int64(1) << (10 * i)); v >= 1<<46 {
		return 0, fmt.Errorf("%q is more than a machine has", s)
	}
	return int64(v), nil
}
