package metal

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// pci checks that every function that may write to memory is where the fence of a takeover looks for
// it.
func (c *checker) pci() {
	const advice = "Turn off in the firmware what makes such a domain or bridge (VMD, for one). A machine that needs it can have no understudy."
	bridges, err := c.machine.bridges()
	if err != nil {
		c.add("PCI", false, advice, "%v", err)
		return
	}
	all, _ := fs.ReadDir(c.root, "sys/bus/pci/devices") // none: nothing is missed
	for _, e := range all {
		if err := reached(c.root, e.Name(), bridges); err != nil {
			c.add("PCI", false, advice, "%v", err)
			return
		}
	}
	c.add("PCI", true, "", "all of %d functions can be fenced, behind %d host bridges", len(all), len(bridges))
}

// rootBus matches the name that sysfs gives to the bus of a host bridge (drivers/pci/probe.c,
// pci_register_host_bridge).
var rootBus = regexp.MustCompile(`/pci([0-9a-f]{4,8}):([0-9a-f]{2})/`)

// reached returns an error unless a PCI function, given by its name in sysfs, is behind one of these
// host bridges of an understudy.
func reached(root fs.FS, name string, bridges []bridge) error {
	target, err := fs.ReadLink(root, "sys/bus/pci/devices/"+name)
	at := rootBus.FindAllStringSubmatch(target, -1)
	part := strings.Split(name, ":")
	if err != nil || at == nil || len(part) != 3 {
		return fmt.Errorf("PCI function %s is on no bus of a host bridge", name)
	}
	host := at[len(at)-1] // the last: a domain made by a driver is itself attached to a function
	group, err := strconv.ParseUint(host[1], 16, 16)
	if err != nil {
		return fmt.Errorf("PCI function %s is in a domain made by a driver (VMD), where it cannot be fenced", name)
	}
	first, err := strconv.ParseUint(host[2], 16, 8)
	if err != nil {
		return err
	}
	bus, err := strconv.ParseUint(part[1], 16, 8)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(bridges, func(b bridge) bool { return b.Group == uint16(group) && b.FirstBus == uint8(first) })
	switch {
	case i < 0 && idle(root, name): // functions of the CPU itself, on buses of their own
		return nil
	case i < 0:
		return fmt.Errorf("PCI function %s is behind a host bridge that has no memory in /proc/iomem, where it would not be fenced", name)
	case uint8(bus) < bridges[i].FirstBus || uint8(bus) > bridges[i].LastBus:
		return fmt.Errorf("PCI function %s is on a bus that the configuration space of its host bridge, of buses %02x to %02x, does not have", name, bridges[i].FirstBus, bridges[i].LastBus)
	}
	return nil
}

// idle says whether a function has neither memory nor ports. Without these, nothing can make it write
// anywhere (Documentation/PCI/sysfs-pci.rst, resource).
func idle(root fs.FS, name string) bool {
	b, err := fs.ReadFile(root, "sys/bus/pci/devices/"+name+"/resource")
	return err == nil && strings.Trim(string(b), "0x \n") == ""
}
