package metal

import (
	"fmt"
	"io/fs"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/wire"
)

// Driver is a driver of a bus, named as in /sys/bus/BUS/drivers/NAME. The names are the same in kernels of
// any version.
type Driver struct {
	Bus  string `json:"bus"`
	Name string `json:"name"`
}

func (d Driver) String() string { return d.Name + " (" + d.Bus + ")" }

// Drivers returns the drivers of a role's disks and interfaces on this machine, and of the controllers that
// they are attached to. absent names the disks and interfaces of the role that are not here now: their
// drivers are not known. root is os.DirFS("/").
func Drivers(root fs.FS, role wire.Config) (drivers []Driver, absent []string, err error) {
	disks, err := bySerial(root)
	if err != nil {
		return nil, nil, err
	}
	interfaces, err := byMAC(root)
	if err != nil {
		return nil, nil, err
	}
	add := func(what string, dirs []string, hangsOn func(fs.FS, string) ([]string, error)) error {
		if len(dirs) == 0 {
			absent = append(absent, what)
			return nil
		}
		more, err := driversOf(root, dirs, hangsOn)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		for _, d := range more {
			if !slices.Contains(drivers, d) {
				drivers = append(drivers, d)
			}
		}
		return nil
	}
	for _, name := range diskNames(role) {
		if err := add("disk "+name, named(disks, name), onPCI); err != nil {
			return nil, nil, err
		}
	}
	for _, n := range role.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return nil, nil, err
		}
		if err := add("interface "+n.MAC, interfaces[mac.String()], cardOf); err != nil {
			return nil, nil, err
		}
	}
	return drivers, absent, nil
}

// diskNames returns the names of a role's disks, with that of the one for a dump.
func diskNames(role wire.Config) (all []string) {
	for _, d := range role.Disks {
		all = append(all, d.Name)
	}
	if role.Dump != "" {
		all = append(all, role.Dump)
	}
	return all
}

// named returns the directories of the disks with a name. disks has directories by serial number, and the
// name is a serial number, with -partN behind it for a partition, and -lvm-NAME for a logical volume.
func named(disks map[string][]string, name string) []string {
	name, _, _ = strings.Cut(name, volumeSuffix)
	if dirs := disks[name]; len(dirs) > 0 {
		return dirs
	}
	serial, _, _ := strings.Cut(name, "-part")
	return disks[serial]
}

// driversOf returns the drivers of the device at dirs, and fails if several devices have its name.
func driversOf(root fs.FS, dirs []string, hangsOn func(fs.FS, string) ([]string, error)) (all []Driver, err error) {
	if len(dirs) > 1 {
		return nil, fmt.Errorf("%d devices have this name, and cannot be told apart: %s", len(dirs), strings.Join(dirs, ", "))
	}
	attached, err := hangsOn(root, dirs[0])
	for _, at := range attached {
		all = append(all, driversAbove(root, at)...)
	}
	return all, err
}

// pciFunction matches the name of a PCI function in sysfs.
var pciFunction = regexp.MustCompile(`^([0-9a-f]{4,8}):[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// iscsiSession matches a directory that sysfs has above a disk which a program has logged in to.
var iscsiSession = regexp.MustCompile(`^session[0-9]+$`)

// onPCI returns the directories of sysfs by which a device is attached to PCI: its own, or, for an NVMe disk
// with several paths, which itself is attached to nothing (drivers/nvme/host/multipath.c), those of its
// controllers. It fails if an understudy, which has PCI and nothing else, would not find the device.
func onPCI(root fs.FS, at string) (dirs []string, err error) {
	const subsystems = "sys/devices/virtual/nvme-subsystem/"
	if rest, ok := strings.CutPrefix(at, subsystems); ok {
		name, _, _ := strings.Cut(rest, "/")
		subsystem := subsystems + name
		controllers, err := fs.Glob(root, subsystem+"/nvme*")
		if err != nil {
			return nil, err
		}
		for _, c := range controllers {
			if target, err := fs.ReadLink(root, c); err == nil { // an entry that is no link is a disk
				dirs = append(dirs, path.Join(subsystem, target))
			}
		}
	} else {
		dirs = []string{at}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s has no controller", path.Base(at))
	}
	for _, d := range dirs {
		if err := belowPCI(d); err != nil {
			return nil, err
		}
		if err := interrupts(root, d); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// interrupts returns an error if the function that a device is attached to could not interrupt an
// understudy, which has no I/O APIC, and gets message-signaled interrupts only. A function whose
// configuration space cannot be read passes.
func interrupts(root fs.FS, at string) error {
	for !pciFunction.MatchString(path.Base(at)) {
		if at = path.Dir(at); at == "." {
			return nil
		}
	}
	if b, err := fs.ReadFile(root, at+"/config"); err != nil || len(b) < pciConfigSize || messages(b) {
		return nil
	}
	return fmt.Errorf("%s, which it is attached to, has no MSI or MSI-X, and an understudy can use no other interrupts: use another controller, or another mode of it (AHCI in the place of IDE)", path.Base(at))
}

// cardOf is onPCI for an interface. If the interface's transceiver has a driver of its own
// (drivers/net/phy/phy_device.c, phy_attach_direct), the transceiver comes first: the drivers of some cards
// fail without it (r8169).
func cardOf(root fs.FS, at string) (dirs []string, err error) {
	if target, err := fs.ReadLink(root, at+"/phydev"); err == nil {
		dirs = append(dirs, path.Join(at, target))
	}
	card, err := onPCI(root, at)
	return append(dirs, card...), err
}

// belowPCI returns an error unless a directory of sysfs is that of a device which is attached to PCI, and to
// nothing that a program has set up. A domain above ffff is made by the driver of Intel's VMD
// (drivers/pci/controller/vmd.c), from a device that an understudy would have to drive first.
func belowPCI(at string) error {
	found := false
	for dir := range strings.SplitSeq(at, "/") {
		m := pciFunction.FindStringSubmatch(dir)
		switch {
		case m != nil && len(m[1]) > 4:
			return fmt.Errorf("%s is attached to %s, in a PCI domain made by a driver (VMD), where an understudy does not find it: turn VMD off in the firmware", path.Base(at), dir)
		case m != nil:
			found = true
		case iscsiSession.MatchString(dir):
			return fmt.Errorf("%s is reached by iSCSI, which an understudy does not log in to", path.Base(at))
		}
	}
	if !found {
		return fmt.Errorf("%s is attached to no PCI device (/%s), and an understudy finds no other devices", path.Base(at), at)
	}
	return nil
}

// bySerial returns the directories in sysfs of all disks that have a serial number, by that number. It
// leaves out the single paths to a disk with several: these are hidden, and have no device node.
func bySerial(root fs.FS) (map[string][]string, error) {
	return devices(root, "sys/block", func(at string) string {
		if disk.Hidden(root, at) {
			return ""
		}
		return disk.Serial(root, at)
	})
}

// byMAC returns the directories in sysfs of all network cards, by MAC. It leaves out interfaces on top of
// others, which may have the MAC of one of these.
func byMAC(root fs.FS) (map[string][]string, error) {
	return devices(root, "sys/class/net", func(at string) string {
		if _, err := fs.ReadLink(root, at+"/device"); err != nil {
			return ""
		}
		b, _ := fs.ReadFile(root, at+"/address") // without the file, it has no name
		return strings.TrimSpace(string(b))
	})
}

// devices returns the directories that the links in dir lead to, by the name of each. It leaves out those
// without a name.
func devices(root fs.FS, dir string, name func(at string) string) (map[string][]string, error) {
	all, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	found := make(map[string][]string)
	for _, e := range all {
		target, err := fs.ReadLink(root, path.Join(dir, e.Name()))
		if err != nil {
			continue // bonding_masters, which is a file
		}
		at := path.Join(dir, target)
		if n := name(at); n != "" {
			found[n] = append(found[n], at)
		}
	}
	return found, nil
}

// pciBridge begins the class of a bridge from PCI to PCI, which works without a driver (PCI Code
// and ID Assignment 1.11, 1.7).
const pciBridge = "0x0604"

// driversAbove returns the drivers of a device and of all that it is attached to.
func driversAbove(root fs.FS, at string) (all []Driver) {
	for ; at != "." && at != "sys/devices"; at = path.Dir(at) {
		target, err := fs.ReadLink(root, at+"/driver")
		class, _ := fs.ReadFile(root, at+"/class") // without the file, it is no PCI device
		if err != nil || strings.HasPrefix(string(class), pciBridge) {
			continue
		}
		_, rest, _ := strings.Cut(target, "bus/")
		if bus, name, ok := strings.Cut(rest, "/drivers/"); ok {
			all = append(all, Driver{bus, name})
		}
	}
	return all
}

// Lacking returns those of the drivers that the running kernel does not have, and the types of the disks'
// file systems that it cannot mount. root is os.DirFS("/").
func Lacking(root fs.FS, drivers []Driver, disks []wire.Disk) (lacks []string) {
	for _, d := range drivers {
		if _, err := fs.Stat(root, path.Join("sys/bus", d.Bus, "drivers", d.Name)); err != nil {
			lacks = append(lacks, "driver "+d.String())
		}
	}
	b, _ := fs.ReadFile(root, "proc/filesystems") // without the file, it mounts nothing
	if slices.ContainsFunc(disks, func(d wire.Disk) bool { return d.Volume != "" }) {
		for _, need := range []string{"sbin/lvm", "dev/mapper/control"} {
			if _, err := fs.Stat(root, need); err != nil {
				lacks = append(lacks, "/"+need+" for logical volumes")
			}
		}
	}
	for _, d := range disks {
		if what := "file system " + d.Type; !slices.Contains(strings.Fields(string(b)), d.Type) && !slices.Contains(lacks, what) {
			lacks = append(lacks, what)
		}
	}
	return lacks
}
