package metal

import (
	"bytes"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

func TestCheckDump(t *testing.T) {
	const nvme, sata = "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1", "sys/devices/pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sdb"
	const mib = 1 << 20
	srv := []wire.Disk{{Name: "data", Type: "ext4", Mount: "/srv"}}
	for _, c := range []struct {
		name, dump, info string
		more             string // a further file that exists
		size             int64
		wrong            string // empty: it is right
	}{
		{name: "none", size: 1 << 60},
		{name: "partition", dump: "S4EWNX0R-part2", size: 64 * mib},
		{name: "a sector too small", dump: "S4EWNX0R-part2", size: 64*mib + 1, wrong: "it has 64 MiB, and a dump of this machine's memory takes 65"},
		{name: "disk with partitions", dump: "S4EWNX0R", size: mib, wrong: "it has partitions"},
		{name: "no such partition", dump: "S4EWNX0R-part3", size: mib, wrong: "nvme0n1 has no partition 3"},
		{name: "no such disk", dump: "other", size: mib, wrong: "0 disks"},
		{name: "two of them", dump: "TWICE", size: mib, wrong: "2 disks"},
		{name: "mounted", dump: "S4EWNX0R-part2", info: "36 25 259:2 / /home rw - xfs /dev/x rw\n", size: mib, wrong: "mounted on /home"},
		{name: "a volume on it", dump: "WD-1-part1", more: sata + "/sdb1/holders/dm-0", size: mib, wrong: "dm-0 lies on it"},
		{name: "of the role", dump: "data", size: mib, wrong: "the file system of /srv"},
	} {
		files := sysfs(c.info)
		for at, device := range map[string]string{nvme + "/nvme0n1p2": "259:2", nvme: "259:0", sata + "/sdb1": "8:17", "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda": "254:0"} {
			files[at+"/size"], files[at+"/dev"] = file("131072\n"), file(device+"\n")
		}
		if c.more != "" {
			files[c.more] = link("../../../dm-0")
		}
		err := CheckDump(files, wire.Config{Disks: srv, Dump: c.dump}, c.size)
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if got, err := DumpOf(sysfs(""), "259:2"); err != nil || got != "S4EWNX0R-part2" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := DumpOf(sysfs(""), "253:0"); err == nil {
		t.Errorf("a volume is %q", got)
	}
}

func TestVacant(t *testing.T) {
	for _, c := range []struct {
		name, text string
		at         int
		wrong      string // empty: it is vacant
	}{
		{"nothing", "", 0, ""},
		{"in the midst", "x", 200 << 10, ""},
		{"swap", "SWAPSPACE2", 4086, ""},
		{"ext4", "\x53\xef", 1024 + 56, "are not zeros"},
		{"btrfs", "_BHRfS_M", 64<<10 + 64, "are not zeros"},
		{"md 1.0", "\xfc\x4e\x2b\xa9", 1<<20 - 8<<10, "are not zeros"},
		{"dump", "\x7fELF", 0, "a dump already"},
	} {
		disk := make([]byte, 1<<20)
		copy(disk[c.at:], c.text)
		err := Vacant(bytes.NewReader(disk), int64(len(disk)))
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := Vacant(bytes.NewReader(make([]byte, 512)), 4096); err == nil {
		t.Error("a disk that ends early is vacant")
	}
}
