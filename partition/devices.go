package partition

import (
	"fmt"
	"net"
	"os"
)

// Disk is a virtio disk on a raw image or a block device. Its serial number,
// by which the guest knows it, is its name. Flushes and barriers of the guest
// reach the image.
type Disk struct {
	Name  string
	Image string
	// ReadOnly keeps the guest from writing, and leaves the image's lock alone.
	ReadOnly bool
	// Snapshot has the guest's writes go to a temporary file.
	Snapshot bool
}

func (d Disk) add(c *command) {
	if d.Snapshot {
		// The old -drive option: it is the one that makes the overlay itself.
		c.opt("-drive", "if=none", "id="+d.node(), "format=raw", "snapshot=on", "file="+d.Image)
	} else {
		c.opt("-blockdev", d.blockdev()...)
	}
	d.addFrontend(c, d.node())
}

func (d Disk) node() string { return "image-" + d.Name }

// QDev is the name of the guest's end of the disk in QEMU's device tree.
func (d Disk) QDev() string { return "disk-" + d.Name }

// Node is the name of the image's end in QEMU's block graph. The node stands
// directly on the file, without a format above it: such a node takes the
// image's lock only when a device uses it, so it can be opened ahead.
func (d Disk) Node() string { return d.node() }

func (d Disk) blockdev() []string {
	driver := "file"
	if st, err := os.Stat(d.Image); err == nil && st.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	p := []string{"driver=" + driver, "node-name=" + d.node(), "filename=" + d.Image, "locking=on", "discard=unmap"}
	if d.ReadOnly {
		p[3] = "locking=off"
		p = append(p, "read-only=on")
	}
	return p
}

func (d Disk) addFrontend(c *command, drive string) {
	c.opt("-device", "virtio-blk-pci", "id="+d.QDev(), "drive="+drive, "serial="+d.Name)
}

// Vacancy is a disk that is not there yet: the guest has its drive, of the
// same size and empty, and the image is open beside it, unused and unlocked,
// until QMP sets it in.
type Vacancy struct {
	Disk
	Size int64 // bytes
}

func (v Vacancy) add(c *command) {
	c.opt("-blockdev", v.blockdev()...)
	empty := "vacant-" + v.Name
	c.opt("-blockdev", "driver=null-co", "node-name="+empty, fmt.Sprintf("size=%d", v.Size), "read-zeroes=on")
	v.addFrontend(c, empty)
}

// NIC is a virtio network interface on a tap that the caller opened.
type NIC struct {
	Name string
	MAC  net.HardwareAddr
	Tap  *os.File
}

func (n NIC) add(c *command) {
	c.opt("-netdev", "tap", "id=tap-"+n.Name, fmt.Sprintf("fd=%d", c.file(n.Tap)))
	c.opt("-device", "virtio-net-pci", "id=nic-"+n.Name, "netdev=tap-"+n.Name, "mac="+n.MAC.String(), "romfile=")
}
