package metal

import (
	"fmt"
	"io/fs"
	"maps"
	"os/exec"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"understudy.dev/understudy/internal/lab/lvmdisk"
	"understudy.dev/understudy/internal/live/wire"
)

// TestGRUB reads the file as update-grub does, and reads the line that update-grub writes as GRUB
// does: both as a shell would. The recovery entries, which have GRUB_CMDLINE_LINUX only, stay as they are.
func TestGRUB(t *testing.T) {
	r, err := ParseReservation(reserved)
	if err != nil {
		t.Fatal(err)
	}
	want := "quiet " + strings.Join(r.Parameters(2), " ")
	sh := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-c", script).Output()
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return strings.TrimSuffix(string(out), "\n")
	}
	const before = "GRUB_CMDLINE_LINUX=always\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\n"
	if got := sh(before + GRUB(r.Parameters(2)) + `printf '%s\n' "$GRUB_CMDLINE_LINUX"`); got != "always" {
		t.Errorf("the recovery entries have %s", got)
	}
	line := sh(before + GRUB(r.Parameters(2)) + `printf '%s\n' "$GRUB_CMDLINE_LINUX_DEFAULT"`)
	if got := sh("printf '%s\\n' \"" + line + "\""); got != want {
		t.Errorf("the kernel is booted with\n%s, not\n%s", got, want)
	}
}

func TestUnit(t *testing.T) {
	text := UnitText("/usr/local/bin/understudy")
	for _, line := range []string{
		" kdump-tools.service kdump.service\n",
		"ConditionKernelCommandLine=understudy.metal\n",
		"ExecStart=/usr/local/bin/understudy metal run --kernel /var/lib/understudy/metal/vmlinuz --image /var/lib/understudy/metal/understudy.cpio --role /var/lib/understudy/metal/role.json\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
}

func TestUnitOptions(t *testing.T) {
	if text := UnitText("/bin/understudy", "--limit", "5s"); !strings.Contains(text, "metal/role.json --limit 5s\n") {
		t.Errorf("the options are not in\n%s", text)
	}
}

// sysfs is a machine with disks of all kinds: virtio, an NVMe disk with partitions, another that has
// two paths, one with two namespaces and one behind VMD, SATA, iSCSI, a card at the chipset, and a
// volume.
func sysfs(mountinfo string) fstest.MapFS {
	files := fstest.MapFS{
		"proc/self/mountinfo":                    file(mountinfo),
		"sys/dev/block/253:0":                    link("../../devices/virtual/block/dm-0"),
		"sys/devices/virtual/block/dm-0/dm/name": file("vg-srv\n"),
	}
	const pci, subsystem, nvme = "pci0000:00/", "virtual/nvme-subsystem/nvme-subsys1/", "0000:00:05.0/nvme/nvme1/"
	for _, d := range []struct{ number, dir, file, serial, part string }{
		{"254:0", pci + "0000:00:02.0/virtio1/block/vda", "serial", "data\n", ""},
		{"259:2", pci + "0000:00:04.0/nvme/nvme0/nvme0n1", "device/serial", "S4EWNX0R   \n", "nvme0n1p2"},
		{"259:3", subsystem + "nvme1n1", "device/serial", "PM9A3", "nvme1n1p3"},
		{"", pci + nvme + "nvme1c1n1", "device/serial", "PM9A3", ""},
		{"259:4", pci + "0000:00:06.0/nvme/nvme2/nvme2n1", "device/serial", "TWICE", ""},
		{"259:5", pci + "0000:00:06.0/nvme/nvme2/nvme2n2", "device/serial", "TWICE", ""},
		{"259:6", pci + "0000:00:0e.0/pci10000:e0/10000:e1:00.0/nvme/nvme3/nvme3n1", "device/serial", "VMD", ""},
		{"259:7", "virtual/nvme-fabrics/ctl/nvme4/nvme4n1", "device/serial", "fabric", ""},
		{"8:0", pci + "0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", "size", "8", ""},
		{"8:17", pci + "0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sdb", "device/vpd_pg80", "\x00\x80\x00\x08    WD-1", "sdb1"},
		{"8:32", "platform/host3/session1/target3:0:0/3:0:0:0/block/sdc", "device/vpd_pg80", "\x00\x80\x00\x04SAN1", ""},
		{"8:48", pci + "0000:00:07.0/host4/session2/target4:0:0/4:0:0:0/block/sdd", "device/vpd_pg80", "\x00\x80\x00\x04SAN2", ""},
		{"179:0", pci + "80860F14:00/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "device/serial", "0x1234\n", ""},
	} {
		at := "sys/devices/" + d.dir
		files["sys/block/"+path.Base(at)] = link("../devices/" + d.dir)
		files[at+"/"+d.file] = file(d.serial)
		if d.number == "" {
			files[at+"/hidden"] = file("1\n")
			continue
		}
		files[at+"/hidden"] = file("0\n")
		node := d.dir
		if d.part != "" {
			node += "/" + d.part
			files[at+"/"+d.part+"/partition"] = file(d.part[len(d.part)-1:] + "\n")
		}
		files["sys/dev/block/"+d.number] = link("../../devices/" + node)
		files["sys/class/block/"+path.Base(node)+"/dev"] = file(d.number + "\n")
	}
	files["sys/devices/"+subsystem+"nvme1"] = link("../../../" + pci + nvme)
	return files
}

const volumeDir = "sys/devices/virtual/block/dm-1"

// withVolume adds logical volume vg0/a-srv to a machine, on sdb1.
func withVolume(files fstest.MapFS) fstest.MapFS {
	const below = "pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sdb/sdb1"
	files["sys/dev/block/253:1"] = link("../../devices/virtual/block/dm-1")
	files["sys/class/block/dm-1/dev"] = file("253:1\n")
	files["dev/mapper/vg0-a--srv"] = link("../dm-1")
	files[volumeDir+"/dm/name"] = file("vg0-a--srv\n")
	files[volumeDir+"/dm/uuid"] = file("LVM-x\n")
	files[volumeDir+"/slaves/sdb1"] = link("../../../../" + below)
	files["sys/devices/"+below+"/dev"] = file("8:17\n")
	b := physicalVolume("striped")
	files["sys/devices/"+below+"/size"] = file(fmt.Sprintln(len(b) / sector))
	files["dev/sdb1"] = file(string(b))
	return files
}

// physicalVolume is one with logical volume vg0/a-srv of that type.
func physicalVolume(kind string) []byte {
	b := make([]byte, 1<<20)
	s := lvmdisk.Linear(0, 2)
	s.Is = strings.Replace(s.Is, "striped", kind, 1)
	lvmdisk.Write(b, lvmdisk.UUID, lvmdisk.Group(int64(len(b)), "", lvmdisk.Volume("a-srv", lvmdisk.Visible, s)), lvmdisk.Header)
	return b
}

func link(to string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

// subvolume is the line of a mount of btrfs in mountinfo.
func subvolume(source, root, of, dir string) string {
	return "36 25 0:40 " + root + " " + dir + " rw,relatime shared:1 - btrfs " + source + " rw,space_cache=v2,subvolid=257,subvol=" + of + "\n"
}

// TestJoin checks that directories with subvolumes of one file system become one disk, whatever order they are given in.
func TestJoin(t *testing.T) {
	point := func(name, dir string) wire.Disk {
		return wire.Disk{Name: name, Type: "btrfs", Mount: dir, Options: "subvol=/@" + dir[1:]}
	}
	var disks []wire.Disk
	for _, d := range []wire.Disk{point("a", "/home"), point("b", "/srv"), point("a", "/var/log"), point("a", "/")} {
		disks = Join(disks, d)
	}
	want := []wire.Disk{
		{Name: "a", Type: "btrfs", Mount: "/", Options: "subvol=/@", Also: []wire.MountPoint{{Dir: "/home", Options: "subvol=/@home"}, {Dir: "/var/log", Options: "subvol=/@var/log"}}},
		point("b", "/srv"),
	}
	if !reflect.DeepEqual(disks, want) {
		t.Errorf("%+v", disks)
	}
}

func TestDiskOf(t *testing.T) {
	line := func(device, dir, kind string) string {
		return "36 25 " + device + " / " + dir + " rw,relatime shared:1 - " + kind + " /dev/x rw\n"
	}
	for _, c := range []struct {
		name, info, mount string
		want              wire.Disk // zero: refused
	}{
		{"virtio", line("254:0", "/srv", "ext4"), "/srv", wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}},
		{"partition", line("259:2", "/srv", "ext3"), "/srv", wire.Disk{Name: "S4EWNX0R-part2", Type: "ext3", Mount: "/srv"}},
		{"two paths", line("259:3", "/srv", "ext4"), "/srv", wire.Disk{Name: "PM9A3-part3", Type: "ext4", Mount: "/srv"}},
		{"SATA", line("8:17", "/srv", "ext4"), "/srv", wire.Disk{Name: "WD-1-part1", Type: "ext4", Mount: "/srv"}},
		{"a space", line("254:0", `/my\040files`, "ext4"), "/my files", wire.Disk{Name: "data", Type: "ext4", Mount: "/my files"}},
		{"a directory", strings.Replace(line("254:0", "/srv", "ext4"), " / ", " /sub ", 1), "/srv", wire.Disk{}},
		{"under a directory", line("254:0", "/srv", "ext4") + strings.Replace(line("8:17", "/srv", "ext4"), " / ", " /sub ", 1), "/srv", wire.Disk{}},
		{"mounted over", line("8:0", "/srv", "xfs") + line("254:0", "/srv", "ext4"), "/srv", wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}},
		{"volume", line("253:0", "/srv", "ext4"), "/srv", wire.Disk{}},
		{"no serial number", line("8:0", "/srv", "ext4"), "/srv", wire.Disk{}},
		{"XFS", line("254:0", "/srv", "xfs"), "/srv", wire.Disk{Name: "data", Type: "xfs", Mount: "/srv"}},
		{"btrfs", subvolume("/dev/sdb1", "/", "/", "/srv"), "/srv", wire.Disk{Name: "WD-1-part1", Type: "btrfs", Mount: "/srv", Options: "subvol=/"}},
		{"a subvolume", subvolume("/dev/sdb1", `/a\040b`, `/a\040b`, "/srv"), "/srv", wire.Disk{Name: "WD-1-part1", Type: "btrfs", Mount: "/srv", Options: "subvol=/a b"}},
		{"a directory of a subvolume", subvolume("/dev/sdb1", "/@/dir", "/@", "/srv"), "/srv", wire.Disk{}},
		{"btrfs on an unknown device", subvolume("/dev/sdz", "/", "/", "/srv"), "/srv", wire.Disk{}},
		{"another type", line("254:0", "/srv", "f2fs"), "/srv", wire.Disk{}},
		{"root", line("254:0", "/", "ext4"), "/", wire.Disk{Name: "data", Type: "ext4", Mount: "/"}},
		{"not mounted", line("254:0", "/srv", "ext4"), "/home", wire.Disk{}},
		{"unknown device", line("7:7", "/srv", "ext4"), "/srv", wire.Disk{}},
	} {
		got, err := DiskOf(sysfs(c.info), c.mount)
		if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.want.Name != "") {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	// A linear logical volume is found by what it lies on.
	for name, c := range map[string]struct {
		change func(fstest.MapFS)
		err    string // empty: it is found
	}{
		"linear": {func(fstest.MapFS) {}, ""},
		"on two disks": {func(f fstest.MapFS) {
			f[volumeDir+"/slaves/vda"] = link("../../../../" + "pci0000:00/0000:00:02.0/virtio1/block/vda")
		}, "lies on 2 devices"},
		"thin":            {func(f fstest.MapFS) { f["dev/sdb1"] = file(string(physicalVolume("thin"))) }, "it is not linear"},
		"of another name": {func(f fstest.MapFS) { f[volumeDir+"/dm/name"] = file("vg0-other\n") }, "no logical volume vg0/other"},
		"LUKS":            {func(f fstest.MapFS) { f[volumeDir+"/dm/uuid"] = file("CRYPT-LUKS2-x\n") }, "lies on dm-1 (dm)"},
	} {
		files := withVolume(sysfs(line("253:1", "/srv", "ext4")))
		c.change(files)
		got, err := DiskOf(files, "/srv")
		want := wire.Disk{Name: "WD-1-part1-lvm-vg0-a--srv", Volume: "vg0/a-srv", Type: "ext4", Mount: "/srv"}
		if c.err == "" && (!reflect.DeepEqual(got, want) || err != nil) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("a volume, %s: %+v, %v", name, got, err)
		}
	}
	inVolume, err := DiskOf(withVolume(sysfs(subvolume("/dev/mapper/vg0-a--srv", "/@", "/@", "/srv"))), "/srv")
	if want := (wire.Disk{Name: "WD-1-part1-lvm-vg0-a--srv", Volume: "vg0/a-srv", Type: "btrfs", Mount: "/srv", Options: "subvol=/@"}); !reflect.DeepEqual(inVolume, want) || err != nil {
		t.Errorf("btrfs in a volume: %+v, %v", inVolume, err)
	}
	// Disks that an understudy does not find, or could take for others.
	for device, wrong := range map[string]string{
		"259:4": "2 disks have", "259:5": "2 disks have", "259:6": "VMD", "259:7": "no PCI device",
		"8:32": "iSCSI", "8:48": "iSCSI", "179:0": "no PCI device", "8:17": "0000:00:1f.2, which it is attached to, has no MSI",
	} {
		files := sysfs(line(device, "/srv", "ext4"))
		files["sys/devices/pci0000:00/0000:00:1f.2/config"] = file(string(configuration(false, 0x01))) // a controller in IDE mode
		if got, err := DiskOf(files, "/srv"); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: %+v, %v", device, got, err)
		}
	}
}

// TestLeft: a file system that is mounted from a device, and is not in the role, is reported once.
func TestLeft(t *testing.T) {
	info := `21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 21 0:20 / /proc rw - proc proc rw
23 21 254:16 / /srv rw,noatime - ext4 /dev/vdb rw
24 21 254:32 / /home\040dir rw - xfs /dev/vdc rw
25 21 254:32 /sub /mnt rw - xfs /dev/vdc rw
26 21 7:0 / /snap ro - squashfs /dev/loop0 ro
27 21 0:40 / /data rw - btrfs /dev/vde rw
29 21 0:41 / /pool rw - zfs pool rw
28 21 254:16 /sub /srv2 rw - ext4 /dev/vdb rw
short
`
	files := fstest.MapFS{"proc/self/mountinfo": &fstest.MapFile{Data: []byte(info)}}
	left, err := Left(files, wire.Config{Disks: []wire.Disk{{Mount: "/"}, {Mount: "/srv"}}})
	if want := []string{"/home dir (xfs on /dev/vdc)", "/data (btrfs on /dev/vde)", "/pool (zfs on pool)"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("%q, %v", left, err)
	}
	if _, err := Left(fstest.MapFS{}, wire.Config{}); err == nil {
		t.Error("nothing is mounted anywhere")
	}
}

func TestDriversOf(t *testing.T) {
	files := sysfs("36 25 259:2 / /srv rw - ext4 /dev/x rw\n36 25 259:3 / /home rw - ext4 /dev/x rw\n36 25 259:6 / /vmd rw - ext4 /dev/x rw\n")
	const pci = "sys/devices/pci0000:00/"
	files["sys/class/net/eth0"] = link("../../devices/pci0000:00/0000:00:03.0/net/eth0")
	files["sys/class/net/eth2"] = link("../../devices/pci0000:00/0000:00:08.0/net/eth2")
	files[pci+"0000:00:08.0/net/eth2/phydev"] = link("../../mdio_bus/r8169-0-800/r8169-0-800:00")
	files[pci+"0000:00:08.0/mdio_bus/r8169-0-800/r8169-0-800:00/driver/module"] = link("../../../../module/realtek")
	files[pci+"0000:00:08.0/driver/module"] = link("../../../../module/r8169")
	files["sys/class/net/br0"] = link("../../devices/virtual/net/br0")
	files[pci+"0000:00:03.0/driver/module"] = link("../../../../module/e1000e")
	files[pci+"0000:00:04.0/driver/module"] = link("../../../module/nvme")
	files[pci+"0000:00:05.0/driver/module"] = link("../../../module/other")
	got, err := DriversOf(files, []string{"eth0"}, []string{"/srv", "/home"}, "")
	if err != nil || !slices.Equal(got, []string{"e1000e|", "nvme|", "other|"}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := DriversOf(files, []string{"eth2"}, nil, ""); err != nil || !slices.Equal(got, []string{"realtek|", "r8169|"}) {
		t.Errorf("with a transceiver: %v, %v", got, err)
	}
	if got, err := DriversOf(files, nil, nil, "S4EWNX0R-part1"); err != nil || !slices.Equal(got, []string{"nvme|"}) {
		t.Errorf("with a dump: %v, %v", got, err)
	}
	for _, c := range []struct{ interfaces, mounts []string }{{[]string{"eth1"}, nil}, {[]string{"br0"}, nil}, {nil, []string{"/vmd"}}} {
		if got, err := DriversOf(files, c.interfaces, c.mounts, ""); err == nil {
			t.Errorf("%v have drivers %v", c, got)
		}
	}
}

// nfs is an NFS server of a role, with a change.
func nfs(change func(*wire.NFS)) *wire.NFS {
	n := &wire.NFS{Host: "files", Exports: []string{"/srv/files *(rw,fsid=1)"}, State: "/srv/.nfs", Lease: 10 * time.Second, Grace: 10 * time.Second, Threads: 8}
	if change != nil {
		change(n)
	}
	return n
}

// TestNFSOf: the configuration of a machine's NFS server becomes that of a role.
func TestNFSOf(t *testing.T) {
	files := fstest.MapFS{
		"etc/exports":                 file("# files\n/srv/files *(rw,\\\n  fsid=1) # for all\n\n"),
		"etc/exports.d/home.exports":  file("/home 10.0.0.0/8(rw,fsid=2)"),
		"etc/exports.d/other":         file("/other *(rw)"),
		"proc/sys/kernel/hostname":    file("files\n"),
		"proc/fs/nfsd/threads":        file("16\n"),
		"proc/fs/nfsd/portlist":       file("rdma 20049\nudp 2049\ntcp 2049\n"),
		"proc/fs/nfsd/nfsv4leasetime": file("90\n"),
		"proc/fs/nfsd/nfsv4gracetime": file("60\n"),
		"var/lib/nfs/sm/10.0.0.9":     file(""),
	}
	disks := []wire.Disk{{Mount: "/srv"}, {Mount: "/"}}
	got, err := NFSOf(files, disks)
	want := wire.NFS{Host: "files", Exports: []string{"/srv/files *(rw,   fsid=1)", "/home 10.0.0.0/8(rw,fsid=2)"}, State: "/var/lib/understudy/nfs", Monitor: "/var/lib/nfs", Lease: 90 * time.Second, Grace: 90 * time.Second, Threads: 16, UDP: true}
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := NFSOf(files, disks[:1]); err != nil || got.State != "/srv/.understudy-nfs" {
		t.Errorf("without a root file system: %+v, %v", got, err)
	}
	for name, wrong := range map[string]string{"proc/fs/nfsd/threads": "must run", "proc/fs/nfsd/nfsv4leasetime": "must run", "etc": "exports nothing"} {
		less := maps.Clone(files)
		maps.DeleteFunc(less, func(at string, _ *fstest.MapFile) bool { return within(at, name) })
		if _, err := NFSOf(less, disks); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestCheckRole(t *testing.T) {
	files := fstest.MapFS{
		"proc/self/mountinfo":                 &fstest.MapFile{},
		"usr/lib/systemd/system/web.service":  &fstest.MapFile{Data: []byte("[Service]\nExecStart=/bin/web\nPrivateTmp=yes\n")},
		"linked":                              link("srv"),
		"usr/lib/systemd/system/once.service": &fstest.MapFile{Data: []byte("[Service]\nType=oneshot\nExecStart=/bin/web\n")},
	}
	rooted := []wire.Disk{{Name: "a", Type: "ext4", Mount: "/srv"}, {Name: "b", Type: "ext4", Mount: "/"}}
	for _, c := range []struct {
		name  string
		role  wire.Config
		wrong string // empty: it is right
	}{
		{"command", wire.Config{Services: []wire.Service{{Name: "web", Command: []string{"web"}}}}, ""},
		{"unit", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "web.service"}}}, ""},
		{"no root", wire.Config{Disks: rooted[:1], Services: []wire.Service{{Name: "web", Unit: "web.service"}}}, "have / among the disks"},
		{"done once", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "once.service"}}}, "Type=oneshot"},
		{"absent", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "none.service"}}}, "no such unit"},
		{"both", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "web.service", Command: []string{"web"}}}}, "give one of them"},
		{"NFS", wire.Config{Disks: rooted[:1], NFS: nfs(nil)}, ""},
		{"NFS and root", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.State = "/var/lib/understudy/nfs" })}, ""},
		{"NFS of the root", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/ *(rw,fsid=1)" })}, "files of its own"},
		{"NFS of /usr", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/usr/local/files *(rw,fsid=1)" })}, "files of its own"},
		{"NFS of /var", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/var *(rw,fsid=1)" })}, "files of its own"},
		{"NFS of /var/www", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/var/www *(rw,fsid=1)" })}, ""},
		{"NFS behind a link", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/linked/files *(rw,fsid=1)" })}, "goes through /linked, a symbolic link"},
		{"NFS with dots", wire.Config{Disks: rooted, NFS: nfs(func(n *wire.NFS) { n.State = "/srv/../etc" })}, "no clean absolute path"},
		{"NFS elsewhere", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.State = "/srvs/.nfs" })}, "on none of the disks"},
		{"NFS of another disk", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/home *(rw,fsid=1)" })}, "/home is on none"},
		{"NFS without fsid", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/srv/files *(rw)" })}, "fsid"},
		{"NFS over its state", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/srv *(rw,fsid=1)" })}, "clients could change"},
		{"NFS with a short lease", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Lease = time.Second })}, "lease"},
		{"NFS without threads", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Threads = 0 })}, "threads"},
		{"NFS of nobody", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Host = "" })}, "host"},
		{"NFS of XFS", wire.Config{Disks: []wire.Disk{{Name: "a", Type: "xfs", Mount: "/srv"}}, NFS: nfs(nil)}, "other file handles"},
		{"NFS with btrfs below", wire.Config{Disks: append([]wire.Disk{{Name: "c", Type: "btrfs", Mount: "/home", Also: []wire.MountPoint{{Dir: "/srv/files/more"}}}}, rooted...), NFS: nfs(nil)}, "other file handles"},
		{"NFS beside XFS", wire.Config{Disks: []wire.Disk{{Name: "a", Type: "xfs", Mount: "/"}, rooted[0]}, NFS: nfs(nil)}, ""},
		{"subvolumes out of order", wire.Config{Disks: []wire.Disk{{Name: "a", Type: "btrfs", Mount: "/srv", Also: []wire.MountPoint{{Dir: "/home"}}}}}, "/home comes after /srv"},
		{"a relative subvolume", wire.Config{Disks: []wire.Disk{{Name: "a", Type: "btrfs", Mount: "/srv", Also: []wire.MountPoint{{Dir: "home"}}}}}, "no clean absolute path"},
		{"a hidden subvolume", wire.Config{Disks: []wire.Disk{{Name: "c", Type: "btrfs", Mount: "/", Also: []wire.MountPoint{{Dir: "/srv/a"}}}, rooted[0]}}, "/srv/a of disk c would be hidden by disk a"},
		{"one directory", wire.Config{Disks: []wire.Disk{{Name: "c", Type: "ext4", Mount: "/srv"}, rooted[0]}}, "/srv of disk c would be hidden by disk a, which is mounted after it on /srv"},
		{"neither", wire.Config{Services: []wire.Service{{Name: "web"}}}, "neither"},
	} {
		omitted, err := CheckRole(files, c.role)
		switch {
		case c.wrong == "" && err != nil, c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %v", c.name, err)
		case c.name == "unit" && (len(omitted) != 1 || !strings.Contains(omitted[0], "PrivateTmp")):
			t.Errorf("%s: omitted are %q", c.name, omitted)
		}
	}
}

// TestCheckMounts: what is mounted on a directory of the role must be its disk, and what is mounted
// below a directory that services need must be taken over too.
func TestCheckMounts(t *testing.T) {
	line := func(device, root, dir, kind, source string) string {
		return "36 25 " + device + " " + root + " " + dir + " rw,relatime shared:1 - " + kind + " " + source + " rw\n"
	}
	root := line("259:2", "/", "/", "ext4", "/dev/nvme0n1p2")
	data := line("254:0", "/", "/srv", "ext4", "/dev/vda")
	onRoot := wire.Disk{Name: "S4EWNX0R-part2", Type: "ext4", Mount: "/"}
	onSrv := wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}
	split := wire.Disk{Name: "WD-1-part1", Type: "btrfs", Mount: "/", Options: "subvol=/@", Also: []wire.MountPoint{{Dir: "/home", Options: "subvol=/@home"}}}
	serving := []wire.Service{{Name: "web", Command: []string{"web"}}}
	for _, c := range []struct {
		name, info string
		role       wire.Config
		wrong      string // empty: it is right
	}{
		{"right", data, wire.Config{Disks: []wire.Disk{onSrv}, Services: serving}, ""},
		{"unmounted", root, wire.Config{Disks: []wire.Disk{onSrv}, Services: serving}, ""},
		{"another disk", line("8:17", "/", "/srv", "ext4", "/dev/sdb1"), wire.Config{Disks: []wire.Disk{onSrv}}, "disk WD-1-part1 (ext4) is now"},
		{"another type", line("254:0", "/", "/srv", "ext3", "/dev/vda"), wire.Config{Disks: []wire.Disk{onSrv}}, "disk data (ext3) is now"},
		{"a volume", line("253:0", "/", "/srv", "ext4", "/dev/mapper/vg-srv"), wire.Config{Disks: []wire.Disk{onSrv}}, "disk data: /srv: it lies on dm-0"},
		{"below the root", root + line("253:0", "/", "/data", "xfs", "/dev/mapper/vg-srv"), wire.Config{Disks: []wire.Disk{onRoot}, Services: serving}, "/data (xfs on /dev/mapper/vg-srv)"},
		{"below a disk", data + line("0:40", "/", "/srv/pool", "zfs", "pool"), wire.Config{Disks: []wire.Disk{onSrv}, Services: serving}, "/srv/pool (zfs on pool)"},
		{"beside a disk", data + line("8:17", "/", "/srv2", "xfs", "/dev/sdb1"), wire.Config{Disks: []wire.Disk{onSrv}, Services: serving}, ""},
		{"a directory elsewhere", root + line("259:2", "/srv/www", "/var/www", "ext4", "/dev/nvme0n1p2"), wire.Config{Disks: []wire.Disk{onRoot}, Services: serving}, "/var/www (ext4 on /dev/nvme0n1p2)"},
		{"nobody serves", root + data, wire.Config{Disks: []wire.Disk{onRoot}}, ""},
		{"taken over", root + data, wire.Config{Disks: []wire.Disk{onRoot, onSrv}, Services: serving}, ""},
		{"subvolumes", subvolume("/dev/sdb1", "/@", "/@", "/") + subvolume("/dev/sdb1", "/@home", "/@home", "/home"), wire.Config{Disks: []wire.Disk{split}, Services: serving}, ""},
		{"another subvolume", subvolume("/dev/sdb1", "/@", "/@", "/") + subvolume("/dev/sdb1", "/@old", "/@old", "/home"), wire.Config{Disks: []wire.Disk{split}, Services: serving}, `with "subvol=/@old" now`},
		{"a subvolume too many", subvolume("/dev/sdb1", "/@", "/@", "/") + subvolume("/dev/sdb1", "/@opt", "/@opt", "/opt"), wire.Config{Disks: []wire.Disk{split}, Services: serving}, "/opt (btrfs on /dev/sdb1)"},
		{"no content", root + line("0:20", "/", "/run", "tmpfs", "tmpfs"), wire.Config{Disks: []wire.Disk{onRoot}, Services: serving}, ""},
		{"no need", root + line("8:17", "/", "/boot/efi", "vfat", "/dev/sdb1"), wire.Config{Disks: []wire.Disk{onRoot}, Services: serving, Without: []string{"/boot"}}, ""},
		{"no need of another", root + line("8:17", "/", "/boots", "vfat", "/dev/sdb1"), wire.Config{Disks: []wire.Disk{onRoot}, Services: serving, Without: []string{"/boot"}}, "/boots (vfat"},
	} {
		_, err := CheckRole(sysfs(c.info), c.role)
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
