package metal

import (
	"fmt"
	"io/fs"
	"net"
	"path"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/wire"
)

// Driver is one of a bus, by its names in /sys/bus/BUS/drivers/NAME, which are the same in
// kernels of any version.
type Driver struct {
	Bus  string `json:"bus"`
	Name string `json:"name"`
}

func (d Driver) String() string { return d.Name + " (" + d.Bus + ")" }

// Drivers are those that drive the disks and interfaces of a role on this machine, and the
// controllers that they hang on. absent are what of the role is not here now: what drives it is
// not known. root is os.DirFS("/").
func Drivers(root fs.FS, role wire.Config) (drivers []Driver, absent []string, err error) {
	disks, err := bySerial(root)
	if err != nil {
		return nil, nil, err
	}
	interfaces, err := byMAC(root)
	if err != nil {
		return nil, nil, err
	}
	add := func(what, dir string) {
		if dir == "" {
			absent = append(absent, what)
			return
		}
		for _, d := range driversAbove(root, dir) {
			if !slices.Contains(drivers, d) {
				drivers = append(drivers, d)
			}
		}
	}
	for _, d := range role.Disks {
		serial, _, _ := strings.Cut(d.Name, "-part")
		dir := disks[d.Name]
		if dir == "" {
			dir = disks[serial]
		}
		add("disk "+d.Name, dir)
	}
	for _, n := range role.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return nil, nil, err
		}
		add("interface "+n.MAC, interfaces[mac.String()])
	}
	return drivers, absent, nil
}

// bySerial has the directories in sysfs of all disks that have a serial number.
func bySerial(root fs.FS) (map[string]string, error) {
	return devices(root, "sys/block", func(at string) string { return disk.Serial(root, at) })
}

// byMAC has those of all interfaces. One that is on top of others may have the MAC of one of them.
func byMAC(root fs.FS) (map[string]string, error) {
	return devices(root, "sys/class/net", func(at string) string {
		if _, err := fs.ReadLink(root, at+"/device"); err != nil {
			return ""
		}
		b, _ := fs.ReadFile(root, at+"/address") // none: no name
		return strings.TrimSpace(string(b))
	})
}

// devices are the directories of the links in one, by a name that each has; none: it is left out.
func devices(root fs.FS, dir string, name func(at string) string) (map[string]string, error) {
	all, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	found := make(map[string]string)
	for _, e := range all {
		target, err := fs.ReadLink(root, path.Join(dir, e.Name()))
		if err != nil {
			continue // bonding_masters, which is a file
		}
		at := path.Join(dir, target)
		if n := name(at); n != "" {
			found[n] = at
		}
	}
	return found, nil
}

// pciBridge begins the class of a bridge from PCI to PCI, which works without a driver (PCI Code
// and ID Assignment 1.11, 1.7).
const pciBridge = "0x0604"

// driversAbove are the drivers of a device and of what it hangs on.
func driversAbove(root fs.FS, at string) (all []Driver) {
	for ; at != "." && at != "sys/devices"; at = path.Dir(at) {
		target, err := fs.ReadLink(root, at+"/driver")
		class, _ := fs.ReadFile(root, at+"/class") // none: no device of PCI's
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

// Lacking are the drivers that a kernel does not have, and the types of the disks' file systems
// that it cannot mount. root is os.DirFS("/").
func Lacking(root fs.FS, drivers []Driver, disks []wire.Disk) (lacks []string) {
	for _, d := range drivers {
		if _, err := fs.Stat(root, path.Join("sys/bus", d.Bus, "drivers", d.Name)); err != nil {
			lacks = append(lacks, "driver "+d.String())
		}
	}
	b, _ := fs.ReadFile(root, "proc/filesystems") // none: it mounts nothing
	for _, d := range disks {
		if what := "file system " + d.Type; !slices.Contains(strings.Fields(string(b)), d.Type) && !slices.Contains(lacks, what) {
			lacks = append(lacks, what)
		}
	}
	return lacks
}
