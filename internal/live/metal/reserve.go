package metal

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Reservation is the memory that the active kernel leaves alone.
type Reservation struct {
	Low, Mid, High Range
}

// Sizes and alignments of what is reserved, in bytes. A kernel is loaded at multiples of 2 MiB (its
// kernel_alignment).
const (
	lowSize  = 128 << 10 // half of it is for the kernel's own real-mode code: 24 KiB in 6.1
	lowFirst = 0x20000   // kernels leave the first 64 KiB alone, and put their own real-mode code high
	lowLast  = 0x90000
	midSize  = 64 << 20
	huge     = 2 << 20
	fourGiB  = 1 << 32
	highLast = 1 << 52 // no processor addresses more memory (MAXPHYADDR, Intel SDM vol. 3)
	// MinHigh is the least that a Debian kernel, its image and a takeover need.
	MinHigh = 512 << 20
)

// Reserve chooses what to reserve on a machine with these resources; high is the size of
// the understudy's memory, in bytes.
func Reserve(resources []Resource, high uint64) (Reservation, error) {
	return reserveOf(firmwareMemory(resources), high)
}

// reserveOf is Reserve for a list of memory ranges.
func reserveOf(memory []Range, high uint64) (r Reservation, err error) {
	if high < MinHigh || high%huge != 0 {
		return r, fmt.Errorf("%d bytes for the understudy are not a multiple of 2 MiB, or are less than %d MiB", high, MinHigh>>20)
	}
	for at := uint64(lowFirst); at+lowSize <= lowLast; at += 4096 {
		want := Range{at, at + lowSize}
		if slices.ContainsFunc(memory, func(m Range) bool { return m.Contains(want) }) {
			r.Low = want
			break
		}
	}
	if r.Low.End == 0 {
		return r, fmt.Errorf("no %d KiB of memory between %#x and %#x", lowSize>>10, lowFirst, lowLast)
	}
	var ok bool
	if r.Mid, ok = top(memory, midSize, fourGiB); !ok {
		return r, fmt.Errorf("no %d MiB of memory below 4 GiB", midSize>>20)
	}
	// Above 4 GiB if there is memory: memory below is scarce.
	if r.High, ok = top(memory, high, highLast); ok && !r.High.overlaps(r.Mid) {
		return r, nil
	}
	if r.High, ok = top(memory, high, r.Mid.Start); !ok {
		return r, fmt.Errorf("no %d MiB of memory in one piece", high>>20)
	}
	return r, nil
}

// top returns the highest range of that size that ends at or below limit.
func top(memory []Range, size, limit uint64) (Range, bool) {
	for _, m := range slices.Backward(memory) {
		end := min(m.End, limit) &^ (huge - 1)
		if end >= size && (end-size)&^(huge-1) >= m.Start {
			start := (end - size) &^ (huge - 1)
			return Range{start, start + size}, true
		}
	}
	return Range{}, false
}

// Parameter is the kernel parameter that names a reservation. The kernel itself does not know it.
const Parameter = "understudy.metal="

// UnderstudyParameter is on the command line of an understudy's kernel.
const UnderstudyParameter = "understudy.beside"

// Parameters returns the kernel parameters that make the active kernel leave the reservation alone, be a
// good neighbour, and let us access its local APIC (Documentation/admin-guide/kernel-parameters.txt). cpus
// is how many CPUs it keeps.
func (r Reservation) Parameters(cpus int) []string {
	var words []string
	for _, m := range []Range{r.Low, r.Mid, r.High} {
		words = append(words, fmt.Sprintf("memmap=%dK$%#x", m.Len()>>10, m.Start))
	}
	return append(words,
		// More than 8 possible CPUs make the kernel use physical APIC destinations. Logical ones are the
		// same for both kernels (arch/x86/kernel/apic/apic_flat_64.c, physflat_probe).
		"possible_cpus="+strconv.Itoa(max(9, cpus)),
		"maxcpus="+strconv.Itoa(cpus),
		"no_ipi_broadcast=1", // or a panic stops the other kernel's CPUs too
		"iomem=relaxed",      // or /dev/mem does not show the local APIC
		"oops=panic",         // an oops is a death too: what it holds locked is lost
		"panic=0",            // a dead kernel leaves the machine to the understudy
		Parameter+r.String(),
	)
}

// String returns the reservation in the form that follows Parameter.
func (r Reservation) String() string {
	return fmt.Sprintf("%#x+%#x,%#x+%#x,%#x+%#x", r.Low.Start, r.Low.Len(), r.Mid.Start, r.Mid.Len(), r.High.Start, r.High.Len())
}

var errNotReserved = errors.New("this kernel was booted without " + Parameter + ": run understudy metal install, and boot again")

// ParseReservation finds the reservation in a kernel's command line.
func ParseReservation(cmdline string) (r Reservation, err error) {
	text := ""
	for word := range strings.FieldsSeq(cmdline) {
		if t, ok := strings.CutPrefix(word, Parameter); ok {
			text = t
		}
	}
	if text == "" {
		return r, errNotReserved
	}
	parts := strings.Split(text, ",")
	ranges := []*Range{&r.Low, &r.Mid, &r.High}
	if len(parts) != len(ranges) {
		return r, fmt.Errorf("%s%s does not have %d ranges", Parameter, text, len(ranges))
	}
	for i, p := range parts {
		if *ranges[i], err = parseRange(p); err != nil {
			return r, fmt.Errorf("%s%s: %w", Parameter, text, err)
		}
	}
	return r, r.check()
}

func parseRange(text string) (Range, error) {
	first, length, ok := strings.Cut(text, "+")
	if !ok {
		return Range{}, fmt.Errorf("%q is not START+LENGTH", text)
	}
	start, err := strconv.ParseUint(first, 0, 64)
	if err != nil {
		return Range{}, err
	}
	n, err := strconv.ParseUint(length, 0, 64)
	if err != nil {
		return Range{}, err
	}
	if n == 0 || start+n < start {
		return Range{}, fmt.Errorf("%q is no range", text)
	}
	return Range{start, start + n}, nil
}

// check says whether the three ranges are where they must be.
func (r Reservation) check() error {
	switch {
	case r.Low.Start%4096 != 0 || r.Low.Start == 0 || r.Low.End > lowLast || r.Low.Len() < lowSize:
		return fmt.Errorf("low memory %v is not page-aligned, at least %d KiB long and below %#x", r.Low, lowSize>>10, lowLast)
	case r.Mid.Start%huge != 0 || r.Mid.End > fourGiB || r.Mid.Len() < midSize:
		return fmt.Errorf("memory %v is not 2 MiB-aligned, at least %d MiB long and below 4 GiB", r.Mid, midSize>>20)
	case r.High.Start%huge != 0 || r.High.Len() < MinHigh || r.High.End > highLast:
		return fmt.Errorf("memory %v is not 2 MiB-aligned, at least %d MiB long and below 2^52", r.High, MinHigh>>20)
	case r.Mid.overlaps(r.High) || r.Low.overlaps(r.Mid) || r.Low.overlaps(r.High):
		return errors.New("its ranges overlap")
	}
	return nil
}

// Left returns an error unless the running kernel leaves the reservation alone, and uses none of it as
// memory.
func (r Reservation) Left(resources []Resource) error {
	for _, want := range []Range{r.Low, r.Mid, r.High} {
		for _, m := range Memory(resources) {
			if m.overlaps(want) {
				return fmt.Errorf("the running kernel uses %v, which overlaps the reserved %v: is its memmap= still on the command line?", m, want)
			}
		}
		in := func(res Resource) bool { return res.Depth == 0 && res.Name == "Reserved" && res.Contains(want) }
		if !slices.ContainsFunc(resources, in) {
			return fmt.Errorf("%v is not reserved in /proc/iomem", want)
		}
	}
	return nil
}

// given returns an error unless the firmware still gives all of the reserved memory to kernels, and has
// nothing of its own there. With other settings or modules that memory may lie elsewhere, while memmap=
// stays what it was (Documentation/ABI/testing/sysfs-firmware-memmap). A kernel that does not show the
// firmware's map passes.
func (r Reservation) given(root fs.FS) error {
	const dir = "sys/firmware/memmap/"
	all, _ := fs.ReadDir(root, dir[:len(dir)-1]) // none: a kernel without CONFIG_FIRMWARE_MEMMAP
	var memory []Range
	for _, e := range all {
		kind, err := fs.ReadFile(root, dir+e.Name()+"/type")
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(kind)) != SystemRAM {
			continue
		}
		var ends [2]uint64
		for i, name := range []string{"/start", "/end"} {
			b, err := fs.ReadFile(root, dir+e.Name()+name)
			if err == nil {
				ends[i], err = strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
			}
			if err != nil {
				return err
			}
		}
		memory = append(memory, Range{ends[0], ends[1] + 1})
	}
	memory = union(memory)
	for _, want := range []Range{r.Low, r.Mid, r.High} {
		if len(all) > 0 && !slices.ContainsFunc(memory, func(m Range) bool { return m.Contains(want) }) {
			return fmt.Errorf("%v, which is reserved for the understudy, is no longer all System RAM in the firmware's memory map, which has changed since metal install: run understudy metal remove, reboot, and install again", want)
		}
	}
	return nil
}
