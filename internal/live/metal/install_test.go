package metal

import (
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// TestGRUB reads the file as update-grub does, and what that writes as GRUB does: both as
// a shell would.
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
	line := sh("GRUB_CMDLINE_LINUX=quiet\n" + GRUB(r.Parameters(2)) + `printf '%s\n' "$GRUB_CMDLINE_LINUX"`)
	if got := sh("printf '%s\\n' \"" + line + "\""); got != want {
		t.Errorf("the kernel is booted with\n%s, not\n%s", got, want)
	}
}

func TestUnit(t *testing.T) {
	text := UnitText("/usr/local/bin/understudy")
	for _, line := range []string{
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

// sysfs is a machine with a virtio disk, an NVMe disk with partitions, and a volume.
func sysfs(mountinfo string) fstest.MapFS {
	link := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	return fstest.MapFS{
		"proc/self/mountinfo":                                           text(mountinfo),
		"sys/dev/block/254:0":                                           link("../../devices/pci0000:00/virtio1/block/vda"),
		"sys/dev/block/259:2":                                           link("../../devices/pci0000:00/nvme/nvme0/nvme0n1/nvme0n1p2"),
		"sys/dev/block/253:0":                                           link("../../devices/virtual/block/dm-0"),
		"sys/dev/block/8:0":                                             link("../../devices/pci0000:00/block/sda"),
		"sys/devices/virtual/block/dm-0/dm/name":                        text("vg-srv\n"),
		"sys/devices/pci0000:00/virtio1/block/vda/serial":               text("data\n"),
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/device/serial":       text("S4EWNX0R   \n"),
		"sys/devices/pci0000:00/nvme/nvme0/nvme0n1/nvme0n1p2/partition": text("2\n"),
		"sys/devices/pci0000:00/block/sda/size":                         text("8\n"),
		"sys/dev/block/8:17":                                            link("../../devices/pci0000:00/block/sdb/sdb1"),
		"sys/devices/pci0000:00/block/sdb/device/vpd_pg80":              text("\x00\x80\x00\x08    WD-1"),
		"sys/devices/pci0000:00/block/sdb/sdb1/partition":               text("1\n"),
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
		{"SATA", line("8:17", "/srv", "ext4"), "/srv", wire.Disk{Name: "WD-1-part1", Type: "ext4", Mount: "/srv"}},
		{"a space", line("254:0", `/my\040files`, "ext4"), "/my files", wire.Disk{Name: "data", Type: "ext4", Mount: "/my files"}},
		{"a directory", strings.Replace(line("254:0", "/srv", "ext4"), " / ", " /sub ", 1), "/srv", wire.Disk{}},
		{"under a directory", line("254:0", "/srv", "ext4") + strings.Replace(line("8:17", "/srv", "ext4"), " / ", " /sub ", 1), "/srv", wire.Disk{}},
		{"mounted over", line("8:0", "/srv", "xfs") + line("254:0", "/srv", "ext4"), "/srv", wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}},
		{"volume", line("253:0", "/srv", "ext4"), "/srv", wire.Disk{}},
		{"no serial number", line("8:0", "/srv", "ext4"), "/srv", wire.Disk{}},
		{"another type", line("254:0", "/srv", "xfs"), "/srv", wire.Disk{}},
		{"root", line("254:0", "/", "ext4"), "/", wire.Disk{Name: "data", Type: "ext4", Mount: "/"}},
		{"not mounted", line("254:0", "/srv", "ext4"), "/home", wire.Disk{}},
		{"unknown device", line("7:7", "/srv", "ext4"), "/srv", wire.Disk{}},
	} {
		got, err := DiskOf(sysfs(c.info), c.mount)
		if got != c.want || (err == nil) != (c.want.Name != "") {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// TestLeft: what is mounted from a device, and is none of the role's, is told once.
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
	files := sysfs("36 25 259:2 / /srv rw - ext4 /dev/x rw\n")
	link := func(at, to string) { files[at] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777} }
	link("sys/class/net/eth0", "../../devices/pci0000:00/0000:00:03.0/net/eth0")
	link("sys/devices/pci0000:00/0000:00:03.0/driver/module", "../../../../module/e1000e")
	link("sys/devices/pci0000:00/nvme/driver/module", "../../../module/nvme")
	got, err := DriversOf(files, []string{"eth0"}, []string{"/srv"})
	if err != nil || !slices.Equal(got, []string{"e1000e|", "nvme|"}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := DriversOf(files, []string{"eth1"}, nil); err == nil {
		t.Errorf("an interface that is not there has drivers %v", got)
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

func TestCheckRole(t *testing.T) {
	files := fstest.MapFS{
		"proc/self/mountinfo":                 &fstest.MapFile{},
		"usr/lib/systemd/system/web.service":  &fstest.MapFile{Data: []byte("[Service]\nExecStart=/bin/web\nPrivateTmp=yes\n")},
		"usr/lib/systemd/system/fork.service": &fstest.MapFile{Data: []byte("[Service]\nType=forking\nExecStart=/bin/web\n")},
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
		{"forking", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "fork.service"}}}, "Type=forking"},
		{"absent", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "none.service"}}}, "no such unit"},
		{"both", wire.Config{Disks: rooted, Services: []wire.Service{{Name: "web", Unit: "web.service", Command: []string{"web"}}}}, "give one of them"},
		{"NFS", wire.Config{Disks: rooted[:1], NFS: nfs(nil)}, ""},
		{"NFS and root", wire.Config{Disks: rooted, NFS: nfs(nil)}, "root file system"},
		{"NFS elsewhere", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.State = "/srvs/.nfs" })}, "on none of the disks"},
		{"NFS of another disk", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/home *(rw,fsid=1)" })}, "/home is on none"},
		{"NFS without fsid", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/srv/files *(rw)" })}, "fsid"},
		{"NFS over its state", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Exports[0] = "/srv *(rw,fsid=1)" })}, "clients could change"},
		{"NFS with a short lease", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Lease = time.Second })}, "lease"},
		{"NFS without threads", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Threads = 0 })}, "threads"},
		{"NFS of nobody", wire.Config{Disks: rooted[:1], NFS: nfs(func(n *wire.NFS) { n.Host = "" })}, "host"},
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
// below one that services have need of must be taken over too.
func TestCheckMounts(t *testing.T) {
	line := func(device, root, dir, kind, source string) string {
		return "36 25 " + device + " " + root + " " + dir + " rw,relatime shared:1 - " + kind + " " + source + " rw\n"
	}
	root := line("259:2", "/", "/", "ext4", "/dev/nvme0n1p2")
	data := line("254:0", "/", "/srv", "ext4", "/dev/vda")
	onRoot := wire.Disk{Name: "S4EWNX0R-part2", Type: "ext4", Mount: "/"}
	onSrv := wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}
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
