package metal

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"understudy.dev/understudy/internal/live/wire"
)

// TestDrivers: a disk and an interface are found by their names in the role, and need the
// drivers of all that they are attached to. What is absent is reported.
func TestDrivers(t *testing.T) {
	const port = "sys/devices/pci0000:00/0000:00:01.0"
	files := fstest.MapFS{
		"sys/block/vda":                                                link("../devices/pci0000:00/0000:00:02.0/virtio1/block/vda"),
		"sys/block/sda":                                                link("../devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"),
		"sys/block/loop0":                                              link("../devices/virtual/block/loop0"),
		"sys/class/net/eth0":                                           link("../../devices/pci0000:00/0000:00:01.0/0000:01:00.0/net/eth0"),
		"sys/class/net/br0":                                            link("../../devices/virtual/net/br0"),
		"sys/class/net/bonding_masters":                                file("\n"),
		"sys/devices/virtual/block/loop0/size":                         file("0\n"),
		"sys/devices/virtual/net/br0/address":                          file("52:54:00:00:00:02\n"),
		port + "/driver":                                               link("../../../bus/pci/drivers/pcieport"),
		port + "/class":                                                file("0x060400\n"),
		port + "/0000:01:00.0/class":                                   file("0x020000\n"),
		port + "/0000:01:00.0/driver":                                  link("../../../../bus/pci/drivers/e1000e"),
		port + "/0000:01:00.0/net/eth0/phydev":                         link("../../mdio_bus/e/e:00"),
		port + "/0000:01:00.0/mdio_bus/e/e:00/driver":                  link("../../../../../../../bus/mdio_bus/drivers/E Gigabit"),
		port + "/0000:01:00.0/net/eth0/device":                         link("../../../0000:01:00.0"),
		port + "/0000:01:00.0/net/eth0/address":                        file("52:54:00:00:00:02\n"),
		"sys/devices/pci0000:00/0000:00:02.0/driver":                   link("../../../bus/pci/drivers/virtio-pci"),
		"sys/devices/pci0000:00/0000:00:1f.2/driver":                   link("../../../bus/pci/drivers/ahci"),
		"sys/devices/pci0000:00/0000:00:02.0/virtio1/driver":           link("../../../../bus/virtio/drivers/virtio_blk"),
		"sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/serial": file("data\n"),
		"sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/driver":                    link("../../../../../../../bus/scsi/drivers/sd"),
		"sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/device/vpd_pg80": file("\x00\x80\x00\x04WD-1"),
	}
	role := wire.Config{
		Disks: []wire.Disk{{Name: "data"}, {Name: "WD-1-part2"}, {Name: "gone"}},
		NICs:  []wire.NIC{{MAC: "52:54:00:00:00:02"}, {MAC: "52:54:00:00:00:03"}},
	}
	got, absent, err := Drivers(files, role)
	want := []Driver{{"virtio", "virtio_blk"}, {"pci", "virtio-pci"}, {"scsi", "sd"}, {"pci", "ahci"}, {"mdio_bus", "E Gigabit"}, {"pci", "e1000e"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if want := []string{"disk gone", "interface 52:54:00:00:00:03"}; !slices.Equal(absent, want) {
		t.Errorf("absent are %q", absent)
	}
	for _, c := range []struct{ disk, wrong string }{{"TWICE", "2 devices"}, {"VMD", "VMD"}, {"SAN1", "iSCSI"}, {"0x1234", "no PCI device"}} {
		files := sysfs("")
		files["sys/class/net/bonding_masters"] = file("\n")
		if got, _, err := Drivers(files, wire.Config{Disks: []wire.Disk{{Name: c.disk}}}); err == nil || !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("disk %s: %v, %v", c.disk, got, err)
		}
	}
	other := fstest.MapFS{
		"proc/filesystems":                       file("nodev\ttmpfs\n\text4\n"),
		"sys/bus/pci/drivers/virtio-pci/bind":    file(""),
		"sys/bus/virtio/drivers/virtio_blk/bind": file(""),
		"sys/bus/scsi/drivers/sd/bind":           file(""),
		"sys/bus/platform/drivers/e1000e/unbind": file(""),
	}
	lacks := Lacking(other, got, []wire.Disk{{Type: "ext4"}, {Type: "ext3"}, {Type: "ext3"}})
	if want := []string{"driver ahci (pci)", "driver E Gigabit (mdio_bus)", "driver e1000e (pci)", "file system ext3"}; !slices.Equal(lacks, want) {
		t.Errorf("it lacks %q", lacks)
	}
}
