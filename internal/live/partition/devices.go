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
	// Snapshot makes the guest's writes go to a temporary file.
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
// image's lock only when a device uses it, so it can be opened in advance.
func (d Disk) Node() string { return d.node() }

// fileDriver is QEMU's driver for a file or a block device.
func fileDriver(path string) string {
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeDevice != 0 {
		return "host_device"
	}
	return "file"
}

func (d Disk) blockdev() []string {
	p := []string{"driver=" + fileDriver(d.Image), "node-name=" + d.node(), "filename=" + d.Image, "locking=on", "discard=unmap"}
	if d.ReadOnly {
		p[3] = "locking=off"
		p = append(p, "read-only=on")
	}
	return p
}

func (d Disk) addFrontend(c *command, drive string) {
	c.opt("-device", "virtio-blk-pci", "id="+d.QDev(), "drive="+drive, "serial="+d.Name)
}

// Overlay is a virtio disk whose content is that of Backing, and whose writes go to a qcow2 file. A write that fails, most
// likely for lack of space, is reported to the guest.
type Overlay struct {
	Name    string // as of a Disk
	File    string // the qcow2 file
	Backing Backing
}

func (o Overlay) add(c *command) {
	d := Disk{Name: o.Name}
	// The old -drive option, because -blockdev has no options for the files that a vmdk consists of.
	c.opt("-drive", append([]string{"if=none", "id=" + d.node()}, o.Options()...)...)
	c.opt("-device", "virtio-blk-pci", "id="+d.QDev(), "drive="+d.node(), "serial="+o.Name, "werror=report", "rerror=report")
}

// Options are QEMU's options for the overlay as a disk.
func (o Overlay) Options() []string {
	options := []string{"driver=qcow2", "discard=unmap", "file.driver=file", "file.filename=" + o.File, "file.locking=on"}
	for _, b := range o.Backing.options() {
		options = append(options, "backing."+b)
	}
	return options
}

// Vacancy is a disk that is not there yet: the guest has its drive, of the
// same size and empty, and the image is open beside it, unused and unlocked,
// until it is put into the drive over QMP.
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

// Memory is a file that the guest sees as memory, and the host maps: the region
// behind BAR 2 of an ivshmem device (QEMU, docs/specs/ivshmem-spec.txt). What
// the guest stores there outlives the guest.
type Memory struct {
	Name string
	Path string
	Size int64 // bytes; a power of two, as a PCI region is
}

func (m Memory) add(c *command) {
	c.opt("-object", "memory-backend-file", "id=memory-"+m.Name, fmt.Sprintf("size=%d", m.Size), "mem-path="+m.Path, "share=on")
	c.opt("-device", "ivshmem-plain", "memdev=memory-"+m.Name)
}
