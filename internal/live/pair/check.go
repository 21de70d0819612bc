package pair

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what a pair needs to know of the machine it is to run on.
type Machine struct {
	CPUs         []int  // processors that are online and that we may use
	MemAvailable uint64 // bytes that can be had without swapping
}

// reserve is what must be left for the machine itself, and overhead what we
// allow a QEMU process beside its guest's memory (its translation buffer with
// emulation, mostly), in bytes. Both are allowances.
const (
	reserve  = 256 << 20
	overhead = 128 << 20
)

// CheckBridges checks that the bridges of the pair's interfaces exist, and that none keeps a
// port that joins it from forwarding for a while, since each takeover makes a port join. bridges has
// that delay by the name of the bridge. The error joins one *Problem for each thing wrong.
func (p *Pair) CheckBridges(bridges map[string]time.Duration) error {
	var errs []error
	for i, n := range p.NICs {
		key := fmt.Sprintf("nics.%d.bridge", i)
		delay, ok := bridges[n.Bridge]
		switch {
		case !ok:
			has := "none"
			if len(bridges) > 0 {
				has = strings.Join(slices.Sorted(maps.Keys(bridges)), ", ")
			}
			errs = append(errs, p.problem(key, fmt.Sprintf("make it: ip link add %s type bridge; ip link set %s up", n.Bridge, n.Bridge),
				"this machine has no bridge %s (bridges: %s)", n.Bridge, has))
		case delay > 0:
			errs = append(errs, p.problem(key, fmt.Sprintf("turn that off: ip link set %s type bridge stp_state 0; of NetworkManager's: nmcli connection modify %s bridge.stp no, and nmcli connection up %s", n.Bridge, n.Bridge, n.Bridge),
				"bridge %s has the spanning tree protocol on: the service would not be reached for %v after each takeover", n.Bridge, delay))
		}
	}
	return errors.Join(errs...)
}

// Check checks the pair against the machine: its processors, its memory, and
// the files and images that the pair names. The error joins one *Problem for
// each thing wrong.
func (p *Pair) Check(m Machine) error {
	errs := p.checkCPUs(m)
	errs = append(errs, p.checkMemory(m)...)
	for _, part := range p.Partitions {
		key := "partitions." + part.Name
		errs = append(errs, p.checkFile(key+".kernel", part.Kernel), p.checkFile(key+".initramfs", part.Initramfs),
			p.checkImage(key+".root", part.Root))
	}
	for i, d := range p.Disks {
		errs = append(errs, p.checkImage(fmt.Sprintf("disks.%d.image", i), d.Image), p.checkImage(fmt.Sprintf("disks.%d.mirror", i), d.Mirror))
	}
	errs = append(errs, p.checkDistinct()...)
	for i, h := range p.Hooks {
		key := fmt.Sprintf("hooks.%d.command", i)
		if err := unix.Access(h.Command[0], unix.X_OK); err != nil {
			errs = append(errs, p.problem(key, "correct the path, or install the program", "%s: %v", h.Command[0], err))
		}
	}
	return errors.Join(errs...)
}

// checkDistinct checks that no two images are the same file by two names.
func (p *Pair) checkDistinct() (errs []error) {
	type image struct {
		key, path string
		is        os.FileInfo
	}
	var seen []image
	check := func(key, path string) {
		st, err := os.Stat(path)
		if err != nil {
			return // there is no such image, or that has been reported
		}
		for _, s := range seen {
			if s.path != path && os.SameFile(s.is, st) { // the same path has been reported
				errs = append(errs, p.problem(key, "give each its own", "%s is the same file as %s (line %d)", path, s.path, p.line(s.key)))
			}
		}
		seen = append(seen, image{key, path, st})
	}
	for _, part := range p.Partitions {
		check("partitions."+part.Name+".root", part.Root)
	}
	for i, d := range p.Disks {
		check(fmt.Sprintf("disks.%d.image", i), d.Image)
		check(fmt.Sprintf("disks.%d.mirror", i), d.Mirror)
	}
	return errs
}

func (p *Pair) checkCPUs(m Machine) (errs []error) {
	for _, part := range p.Partitions {
		var absent []int
		for _, cpu := range part.CPUs {
			if !slices.Contains(m.CPUs, cpu) {
				absent = append(absent, cpu)
			}
		}
		if len(absent) > 0 {
			errs = append(errs, p.problem("partitions."+part.Name+".cpus", "choose among those",
				"this machine lets us use CPUs %s, and not %s", formatCPUs(m.CPUs), formatCPUs(absent)))
		}
	}
	return errs
}

func (p *Pair) checkMemory(m Machine) []error {
	need := uint64(reserve)
	for _, part := range p.Partitions {
		need += part.Memory + overhead
	}
	if need <= m.MemAvailable {
		return nil
	}
	key := "partitions." + p.Partitions[1].Name + ".memory"
	return []error{p.problem(key, "give the partitions less, or stop something",
		"%s and %s for the partitions, with %s for QEMU and %s for this machine, are %s, and %s are available",
		formatMemory(p.Partitions[0].Memory), formatMemory(p.Partitions[1].Memory),
		formatMemory(2*overhead), formatMemory(reserve), formatMemory(need), formatMemory(m.MemAvailable))}
}

// checkFile checks that a path is a regular file that can be read. An empty path is fine.
func (p *Pair) checkFile(key, path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return p.problem(key, "correct the path, or make the file", "%v", err)
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return p.problem(key, "correct the path", "%s is empty or no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return p.problem(key, "make it readable", "%v", err)
	}
	f.Close()
	return nil
}

// checkImage checks that a path is a raw image or a block device that can be read and
// written. An empty path is fine.
func (p *Pair) checkImage(key, path string) error {
	if path == "" {
		return nil
	}
	format, err := imageFormat(path)
	if ofGuests(key, format) {
		format = ""
	}
	switch {
	case errors.Is(err, errNoImage):
		return p.problem(key, "name a raw image or a block device", "%v", err)
	case err != nil:
		return p.problem(key, "correct the path, or make the image", "%v", err)
	case format != "":
		return p.formatProblem(key, path, format)
	}
	if err := unix.Access(path, unix.W_OK); err != nil {
		return p.problem(key, "make it writable", "%s: %v", path, err)
	}
	return nil
}

// checkFormats returns a problem for each image that exists and is not raw.
func (p *Pair) checkFormats() (errs []error) {
	check := func(key, path string) {
		if path == "" {
			return
		}
		if format, err := imageFormat(path); err == nil && format != "" && !ofGuests(key, format) {
			errs = append(errs, p.formatProblem(key, path, format))
		}
	}
	for _, part := range p.Partitions {
		check("partitions."+part.Name+".root", part.Root)
	}
	for i, d := range p.Disks {
		check(fmt.Sprintf("disks.%d.image", i), d.Image)
		check(fmt.Sprintf("disks.%d.mirror", i), d.Mirror)
	}
	return errs
}

// ofGuests reports whether a format is one that only the guests look into: LUKS on a shared disk.
func ofGuests(key, format string) bool {
	return format == formatLUKS && strings.HasPrefix(key, "disks.")
}

func (p *Pair) formatProblem(key, path, format string) error {
	hint := fmt.Sprintf("convert it: qemu-img convert -O raw %s NEW", path)
	if format == formatLUKS {
		hint = "use a disk that is not encrypted"
	}
	return p.problem(key, hint, "%s is in %s format, and only raw images and block devices can be taken over", path, format)
}
