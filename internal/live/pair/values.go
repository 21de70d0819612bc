package pair

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/unit"
)

// How to write each kind of value.
const (
	memoryHint   = "write e.g. 768MiB or 2GiB"
	cpusHint     = `write e.g. "0", "0-3" or "0,2-3"`
	vcpusHint    = "write a number from 1 to 255"
	macHint      = `write e.g. "52:54:00:00:00:02"`
	addressHint  = "write e.g. 10.77.0.2/24"
	gatewayHint  = "write e.g. 10.77.0.1"
	durationHint = "write e.g. 20ms"
	pulseHint    = "write e.g. 10s, or off"
	stopHint     = "write e.g. 30s, from 1s to 1h"
	bridgeHint   = "name a bridge of this machine, at most 15 characters"
	mountHint    = "write e.g. /srv"
)

// parseMemory reads a size like 768MiB, in bytes. Powers of 1000 are refused:
// QEMU, the kernel and people differ on them.
func parseMemory(s string) (uint64, error) {
	shifts := []struct {
		unit  string
		shift uint
	}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}
	for _, u := range shifts {
		digits, ok := strings.CutSuffix(s, u.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
		if err != nil || n > maxMemory>>u.shift {
			return 0, fmt.Errorf("%q is not a memory size", s)
		}
		n <<= u.shift
		if n < minMemory || n%(1<<20) != 0 {
			return 0, fmt.Errorf("%q is less than %d MiB or no multiple of 1 MiB", s, minMemory>>20)
		}
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a memory size", s)
}

// formatMemory is the inverse of parseMemory.
func formatMemory(n uint64) string { return fmt.Sprintf("%dMiB", n>>20) }

// parseCPUs reads a list of processors in the kernel's format
// (Documentation/admin-guide/kernel-parameters.rst, cpu lists) without strides.
func parseCPUs(s string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := parseCPU(from)
		if err != nil {
			return nil, fmt.Errorf("%q is not a list of CPUs", s)
		}
		last := first
		if ranged {
			if last, err = parseCPU(to); err != nil || last < first {
				return nil, fmt.Errorf("%q is not a list of CPUs", s)
			}
		}
		if len(cpus)+last-first > maxCPU {
			return nil, fmt.Errorf("%q names CPUs twice", s)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	slices.Sort(cpus)
	if n := len(cpus); len(slices.Compact(slices.Clone(cpus))) != n {
		return nil, fmt.Errorf("%q names CPUs twice", s)
	}
	return cpus, nil
}

func parseCPU(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > maxCPU {
		return 0, fmt.Errorf("%q is not a CPU", s)
	}
	return int(n), nil
}

// formatCPUs is the inverse of parseCPUs, with ranges where it can.
func formatCPUs(cpus []int) string {
	var b strings.Builder
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(cpus[i]))
		if j > i {
			fmt.Fprintf(&b, "-%d", cpus[j])
		}
		i = j + 1
	}
	return b.String()
}

func parseVCPUs(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxVCPUs {
		return 0, fmt.Errorf("%q is not a number of virtual CPUs", s)
	}
	return n, nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is not a TCP port", s)
	}
	return n, nil
}

func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return nil, fmt.Errorf("%q is not a MAC address", s)
	case mac[0]&1 != 0: // the group bit, IEEE 802
		return nil, fmt.Errorf("%s is a multicast address (its first byte is odd)", mac)
	case slices.Max(mac) == 0:
		return nil, fmt.Errorf("%s is not an address", mac)
	}
	return mac, nil
}

// parseAddress reads an interface's address with the length of its prefix.
func parseAddress(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address with a prefix length", s)
	}
	a := p.Addr()
	if a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Prefix{}, fmt.Errorf("%s cannot be an interface's address", a)
	}
	if a.Is4() && p.Bits() < 31 && (a == p.Masked().Addr() || a == broadcast(p)) {
		return netip.Prefix{}, fmt.Errorf("%s is the network's own or broadcast address", a)
	}
	return p, nil
}

// broadcast returns the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

func parseGateway(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%q is not an address", s)
	}
	return a, nil
}

// parseBridge applies the kernel's rules for names (net/core/dev.c,
// dev_valid_name).
func parseBridge(s string) (string, error) {
	if s == "" || s == "." || s == ".." || len(s) > maxIfName || strings.ContainsAny(s, "/: \t\n") {
		return "", fmt.Errorf("%q is not an interface name", s)
	}
	return s, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	return d, nil
}

// parsePulse reads the limit of a pulse; "off" is 0, no limit.
func parsePulse(s string) (time.Duration, error) {
	if s == "off" {
		return 0, nil
	}
	d, err := parseDuration(s)
	if err == nil && d < minPulse {
		err = fmt.Errorf("%v is shorter than %v", d, minPulse)
	}
	return d, err
}

// defaultStop is as long as Docker waits (docker-stop(1), --time).
const defaultStop = 10 * time.Second

// parseStop reads how long a service may take to end.
func parseStop(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && (d < time.Second || d > time.Hour) {
		err = fmt.Errorf("%v is not from 1s to 1h", d)
	}
	return d, err
}

// guestDirs are where the small guest has its programs, their libraries and its modules.
var guestDirs = []string{"/bin", "/etc", "/init", "/lib", "/lib64", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin"}

// parseMount reads a mount point in the guest. It must not cover what PID 1
// mounts itself.
func parseMount(s string) (string, error) {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" {
		return "", fmt.Errorf("%q is not a clean absolute path below /", s)
	}
	for _, own := range []string{"/proc", "/sys", "/dev", "/run"} {
		if s == own || below(s, own) {
			return "", fmt.Errorf("%s belongs to the system", s)
		}
	}
	return s, nil
}

// below reports whether path a lies inside directory b.
func below(a, b string) bool { return strings.HasPrefix(a, b+"/") }

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// refusedOptions says why a mount option is refused. An option with a value is looked up by the
// part before the equals sign; for barrier the value decides.
var refusedOptions = map[string]string{
	// A flush proves nothing without barriers, and a file system without its log, or
	// read-only, cannot be taken over (Documentation/admin-guide/ext4.rst, xfs.rst; btrfs(5)).
	"ro": relied, "nobarrier": relied, "barrier": relied, "noload": relied, "norecovery": relied, "nologreplay": relied, "rescue": relied,
	// A takeover looks at the first superblock.
	"sb": relied,
	// What is on another device does not follow the role.
	"journal_dev": elsewhere, "journal_path": elsewhere, "logdev": elsewhere, "rtdev": elsewhere, "device": elsewhere,
	"remount": another, "bind": another, "rbind": another, "move": another, "loop": another, "abort": another,
	// mount(8), file-system-independent options: those that the kernel never sees.
	"auto": forMount, "noauto": forMount, "nofail": forMount, "_netdev": forMount, "user": forMount, "users": forMount,
	"nouser": forMount, "owner": forMount, "group": forMount, "comment": forMount,
}

const (
	relied    = "breaks what a takeover relies on"
	elsewhere = "has a part of the file system on a device that does not follow the role"
	another   = "is for something else than to mount a disk"
	forMount  = "is for mount(8) and /etc/fstab, which are not asked"
)

// parseOptions reads mount options. It refuses those that would make the disk less safe than a
// takeover promises, and those that a kernel would refuse later, once the guests have booted.
func parseOptions(s string) (string, error) {
	if strings.ContainsAny(s, " \t") {
		return "", fmt.Errorf("%q has a space; options are separated by commas", s)
	}
	for option := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(option, "=")
		why := refusedOptions[name]
		if strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") {
			why = forMount
		}
		if n, err := strconv.ParseUint(value, 0, 32); name == "barrier" && (value == "" || err == nil && n != 0) {
			why = ""
		}
		if why != "" {
			return "", fmt.Errorf("option %s %s", option, why)
		}
	}
	return s, nil
}

func parseUnit(s string) (string, error) { return s, unit.CheckName(s) }

const partHint = "write the number that Linux gives the partition"

// maxPart is the highest number of a partition (include/linux/genhd.h, DISK_MAX_PARTS).
const maxPart = 256

func parsePart(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxPart {
		return 0, fmt.Errorf("%q is not the number of a partition", s)
	}
	return n, nil
}

// parseKey reads the path of a key file, which is in the guests and not on this machine.
func parseKey(s string) (string, error) {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" {
		return "", fmt.Errorf("%q is not the absolute path of a file", s)
	}
	return s, nil
}

// volumePattern matches what LVM accepts as the name of a group or a volume (lvm(8), valid names).
var volumePattern = regexp.MustCompile(`^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$`)

// parseVolume reads the name of a logical volume.
func parseVolume(s string) (string, error) {
	group, name, ok := strings.Cut(s, "/")
	for _, n := range []string{group, name} {
		if !ok || len(n) > 127 || n == "." || n == ".." || !volumePattern.MatchString(n) {
			return "", fmt.Errorf("%q is not the name of a logical volume", s)
		}
	}
	return s, nil
}
