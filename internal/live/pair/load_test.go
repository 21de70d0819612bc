package pair

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/events"
)

// example is the file of the package comment, with every key.
const example = `name: demo
partitions:
  left:
    cpus: "0"
    memory: 768MiB
    kernel: vmlinuz
    initramfs: guest.cpio
    append: "quiet"
    accel: tcg
  right: {cpus: "1,4-5", vcpus: 6, memory: 1GiB, kernel: /boot/vmlinuz, root: root.img}
disks:
  - name: data
    image: data.img
    partition: 3
    mirror: other.img
    luks: /etc/key
    lvm: data/srv
    type: ext3
    mount: /srv
    options: noatime
nics:
  - name: lan
    mac: 52:54:00:00:00:02
    address: 10.77.0.2/24
    gateway: 10.77.0.1
    address6: fd00::2/64
    gateway6: fe80::1
    routes:
      - {to: 10.0.0.0/8, via: 10.77.0.9}
      - {to: fd01::/48, via: fd00::9}
    bridge: br0
services:
  - name: web
    command: [busybox, httpd, -f, -p, 80]
    ready: 80
    stop: 1m30s
heartbeat: {period: 10ms, limit: 200ms, cpu: 2s, disk: off}
takeover: {salvage: false, sync: before, refused: stop, degraded: takeover, notify: [2049, 80], notify_rate: 500}
hooks:
  - {command: [/usr/local/bin/page, on call], on: [took-over, failed]}
  - {command: [/bin/log]}
metrics: 127.0.0.1:9752
`

func TestParseExample(t *testing.T) {
	p, err := parse("pair.yaml", "/etc/understudy", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	want := &Pair{
		Name: "demo",
		Partitions: [2]Partition{
			{Name: "left", CPUs: []int{0}, VCPUs: 1, Memory: 768 << 20, Kernel: "/etc/understudy/vmlinuz",
				Initramfs: "/etc/understudy/guest.cpio", Append: "quiet", Accel: AccelTCG},
			{Name: "right", CPUs: []int{1, 4, 5}, VCPUs: 6, Memory: 1 << 30, Kernel: "/boot/vmlinuz",
				Root: "/etc/understudy/root.img", Accel: AccelAuto},
		},
		Disks: []Disk{{Name: "data", Image: "/etc/understudy/data.img", Part: 3, Mirror: "/etc/understudy/other.img", LUKS: "/etc/key", LVM: "data/srv", Type: Ext3, Mount: "/srv", Options: "noatime"}},
		NICs: []NIC{{
			Name: "lan", MAC: []byte{0x52, 0x54, 0, 0, 0, 2}, Bridge: "br0",
			Address: netip.MustParsePrefix("10.77.0.2/24"), Gateway: netip.MustParseAddr("10.77.0.1"),
			Address6: netip.MustParsePrefix("fd00::2/64"), Gateway6: netip.MustParseAddr("fe80::1"),
			Routes: []Route{
				{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("10.77.0.9")},
				{netip.MustParsePrefix("fd01::/48"), netip.MustParseAddr("fd00::9")},
			},
		}},
		Services:  []Service{{Name: "web", Command: []string{"busybox", "httpd", "-f", "-p", "80"}, Ready: 80, Rehearse: true, Stop: 90 * time.Second}},
		Heartbeat: Heartbeat{10 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second, 30 * time.Second, 0},
		Takeover:  Takeover{Sync: SyncBefore, Rehearse: true, Refused: RefusedStop, Degraded: DegradedTakeOver, Notify: Notify{Ports: []int{80, 2049}}, NotifyRate: 500},
		Hooks:     []events.Hook{{Command: []string{"/usr/local/bin/page", "on call"}, On: []events.Kind{events.TookOver, events.Failed}}, {Command: []string{"/bin/log"}}},
		Metrics:   netip.MustParseAddrPort("127.0.0.1:9752"),
	}
	if got := plain(p); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for key, line := range map[string]int{"partitions.left.memory": 5, "partitions.right.root": 10, "disks.0.image": 13,
		"nics.0.mac": 23, "nics.0.routes.1.via": 30, "services.0.command.2": 34, "takeover.none": 38, "none": 0} {
		if got := p.line(key); got != line {
			t.Errorf("Line(%q) = %d, want %d", key, got, line)
		}
	}
}

// smallest is a valid file with nothing that can be left out.
const smallest = `name: x
partitions:
  a: {cpus: "0", memory: 128MiB, kernel: k, initramfs: i}
  b: {cpus: "1", memory: 128MiB, kernel: k, initramfs: i}
`

// units is a valid file whose services are systemd units.
const units = `name: x
partitions:
  a: {cpus: "0", memory: 128MiB, kernel: k, initramfs: i, root: a.img}
  b: {cpus: "1", memory: 128MiB, kernel: k, initramfs: i, root: b.img}
services:
  - {name: db, unit: postgresql@15-main.service, ready: 5432, rehearse: false}
  - {name: web, unit: nginx.service}
`

func TestParseUnits(t *testing.T) {
	p, err := parse("pair.yaml", "/", []byte(units))
	if err != nil {
		t.Fatal(err)
	}
	want := []Service{{Name: "db", Unit: "postgresql@15-main.service", Ready: 5432}, {Name: "web", Unit: "nginx.service", Rehearse: true}}
	if !reflect.DeepEqual(p.Services, want) {
		t.Errorf("got %+v", p.Services)
	}
}

func TestParseDefaults(t *testing.T) {
	p, err := parse("pair.yaml", "/", []byte(smallest+"disks: [{name: d, image: i, mount: /m}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	takeover := Takeover{Salvage: true, Sync: SyncAfter, Rehearse: true, Refused: RefusedServe, Degraded: DegradedReport, Notify: Notify{All: true}, NotifyRate: 2000}
	if p.Heartbeat != (Heartbeat{20 * time.Millisecond, 300 * time.Millisecond, 10 * time.Second, 30 * time.Second, 30 * time.Second}) || !reflect.DeepEqual(p.Takeover, takeover) ||
		p.Partitions[1].Accel != AccelAuto || p.Disks[0].Type != Ext4 {
		t.Errorf("defaults: %+v", p)
	}
}

func TestNameIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pair.yaml")
	for text, want := range map[string]string{example: "demo", "name: web\npartitions: 7\n": "web", "name: ../x\n": "", "name: [x": "", "": "", "name: web\nname: web\n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := NameIn(file); got != want {
			t.Errorf("%q has the name %q, not %q", text, got, want)
		}
	}
	if got := NameIn(file + "-none"); got != "" {
		t.Error(got)
	}
}

func TestParseRefuses(t *testing.T) {
	const nic = "nics: [{name: n, mac: '52:54:00:00:00:02', address: 10.0.0.2/24, bridge: br0}]\n"
	const disk = "disks: [{name: d, image: d.img, mount: /srv}]\n"
	tests := []struct {
		name     string
		old, new string // a change to the valid file smallest + nic + disk
		want     string // the whole message
	}{
		{"unknown key", "name: x", "name: x\nextra: 1",
			"pair.yaml:2: unknown key \"extra\"; known here: name, partitions, disks, nics, services, nfs, heartbeat, takeover, hooks, metrics"},
		{"misspelt key", "memory: 128MiB, kernel: k, initramfs: i}\n  b", "memroy: 128MiB, kernel: k, initramfs: i}\n  b",
			"pair.yaml:3: partitions.a: unknown key \"memroy\"; did you mean \"memory\"?\n" +
				"pair.yaml:3: partitions.a: key \"memory\" is missing; add it"},
		{"key twice", "name: x", "name: x\nname: y", "pair.yaml:2: name: given again; first on line 1; remove one of the two"},
		{"no name", "name: x\n", "", "pair.yaml:1: key \"name\" is missing; add it"},
		{"bad name", "name: x", "name: ../x",
			"pair.yaml:1: name: \"../x\" is not a valid name; use a-z, 0-9 and -, at most 32 characters, not beginning with -"},
		{"empty value", "name: x", "name:", "pair.yaml:1: name: has no value; give one, or remove the key"},
		{"control character", "name: x", `name: "a\0"`, `pair.yaml:1: name: has a control character in "a\x00"; remove it`},
		{"list for mapping", "name: x", "name: x\nheartbeat: [20ms]",
			"pair.yaml:2: heartbeat: this is a list, and must be a mapping (key: value); see the example in the README"},
		{"alias", "name: x", "name: &n x\ntakeover: *n", "pair.yaml:2: takeover: aliases are not supported; write the value out"},
		{"syntax", "name: x", "name: [x", "pair.yaml:1: is not YAML: did not find expected ',' or ']'; correct the YAML there or just above"},
		{"two documents", nic, nic + "---\nname: y\n", "pair.yaml:6: a second document begins; keep one pair in a file"},
		{"three partitions", "  b:", "  c: {}\n  b:",
			"pair.yaml:3: partitions: has 3 partitions, and must have exactly 2; describe the two that share the machine"},
		{"same partition", "  b:", "  a:", "pair.yaml:4: partitions.a: given again; give each a name of its own"},
		{"CPU list", `cpus: "1"`, `cpus: "2-1"`,
			"pair.yaml:4: partitions.b.cpus: \"2-1\" is not a list of CPUs; write e.g. \"0\", \"0-3\" or \"0,2-3\""},
		{"CPU twice", `cpus: "1"`, `cpus: "1,1-2"`,
			"pair.yaml:4: partitions.b.cpus: \"1,1-2\" names CPUs twice; write e.g. \"0\", \"0-3\" or \"0,2-3\""},
		{"CPU flood", `cpus: "1"`, `cpus: "0-8191,0-8191,0-8191"`,
			"pair.yaml:4: partitions.b.cpus: \"0-8191,0-8191,0-8191\" names CPUs twice; write e.g. \"0\", \"0-3\" or \"0,2-3\""},
		{"memory unit", "memory: 128MiB, kernel: k, initramfs: i}\n  b", "memory: 128MB, kernel: k, initramfs: i}\n  b",
			"pair.yaml:3: partitions.a.memory: \"128MB\" is not a memory size; write e.g. 768MiB or 2GiB"},
		{"memory overflow", "memory: 128MiB, kernel: k, initramfs: i}\n  b", "memory: 99999999TiB, kernel: k, initramfs: i}\n  b",
			"pair.yaml:3: partitions.a.memory: \"99999999TiB\" is not a memory size; write e.g. 768MiB or 2GiB"},
		{"memory small", "memory: 128MiB, kernel: k, initramfs: i}\n  b", "memory: 64MiB, kernel: k, initramfs: i}\n  b",
			"pair.yaml:3: partitions.a.memory: \"64MiB\" is less than 128 MiB or no multiple of 1 MiB; write e.g. 768MiB or 2GiB"},
		{"nothing to boot", ", initramfs: i}\n  b", "}\n  b",
			"pair.yaml:3: partitions.a: has nothing to boot from; add initramfs: or root:"},
		{"accel", "initramfs: i}\n  b", "initramfs: i, accel: xen}\n  b",
			"pair.yaml:3: partitions.a.accel: \"xen\" is not known; use one of [auto kvm tcg]"},
		{"root twice", "initramfs: i}\n  b: {", "root: r}\n  b: {root: r, ",
			"pair.yaml:4: partitions.b.root: is the root disk of a too (line 3); give each partition a copy"},
		{"root is disk", "initramfs: i}\n  b: {", "root: ./d.img}\n  b: {",
			"pair.yaml:3: partitions.a.root: is shared disk d too (line 6); use two images"},
		{"file system", "mount: /srv", "type: vfat, mount: /srv", "pair.yaml:6: disks.0.type: \"vfat\" is not known; use one of [ext4 ext3 xfs btrfs]"},
		{"partition", "mount: /srv", "partition: 0, mount: /srv", "pair.yaml:6: disks.0.partition: \"0\" is not the number of a partition; write the number that Linux gives the partition"},
		{"key", "mount: /srv", "luks: key, mount: /srv", "pair.yaml:6: disks.0.luks: \"key\" is not the absolute path of a file; name a file with the key that both guests have"},
		{"volume", "mount: /srv", "lvm: data, mount: /srv", "pair.yaml:6: disks.0.lvm: \"data\" is not the name of a logical volume; write GROUP/NAME"},
		{"xfs on luks", "mount: /srv", "luks: /key, lvm: a/b, type: xfs, mount: /srv", "pair.yaml:6: disks.0.type: xfs on LUKS and LVM is not supported: its takeover is not shown, and that of XFS takes minutes; put it on the disk itself, in a partition or in a linear logical volume, or use ext4"},
		{"volume with a path", "mount: /srv", "lvm: ../data, mount: /srv", "pair.yaml:6: disks.0.lvm: \"../data\" is not the name of a logical volume; write GROUP/NAME"},
		{"mount relative", "mount: /srv", "mount: srv", "pair.yaml:6: disks.0.mount: \"srv\" is not a clean absolute path below /; write e.g. /srv"},
		{"mount system", "mount: /srv", "mount: /proc/x", "pair.yaml:6: disks.0.mount: /proc/x belongs to the system; write e.g. /srv"},
		{"mount twice", "/srv}", "/srv}, {name: e, image: e, mount: /srv}",
			"pair.yaml:6: disks.1.mount: /srv is taken (line 6); give each its own"},
		{"mount hides", "/srv}", "/srv/a}, {name: e, image: e, mount: /srv}",
			"pair.yaml:6: disks.1.mount: hides /srv/a, mounted before (line 6); list this disk first"},
		{"image twice", "/srv}", "/srv}, {name: e, image: x/../d.img, mount: /b}",
			"pair.yaml:6: disks.1.image: /etc/d.img is taken (line 6); give each its own"},
		{"disk twice", "/srv}", "/srv}, {name: d, image: e, mount: /b}", "pair.yaml:6: disks.1.name: d is taken (line 6); give each its own"},
		{"no barriers", "mount: /srv", "mount: /srv, options: 'noatime,nobarrier'",
			"pair.yaml:6: disks.0.options: option nobarrier breaks what a takeover relies on; remove that option"},
		{"no barriers by number", "mount: /srv", "mount: /srv, options: barrier=00",
			"pair.yaml:6: disks.0.options: option barrier=00 breaks what a takeover relies on; remove that option"},
		{"no replay of the log", "mount: /srv", "mount: /srv, options: 'rescue=nologreplay'",
			"pair.yaml:6: disks.0.options: option rescue=nologreplay breaks what a takeover relies on; remove that option"},
		{"another superblock", "mount: /srv", "mount: /srv, options: 'barrier=1,sb=32768'",
			"pair.yaml:6: disks.0.options: option sb=32768 breaks what a takeover relies on; remove that option"},
		{"journal elsewhere", "mount: /srv", "mount: /srv, options: journal_path=/dev/vdb",
			"pair.yaml:6: disks.0.options: option journal_path=/dev/vdb has a part of the file system on a device that does not follow the role; remove that option"},
		{"option of fstab", "mount: /srv", "mount: /srv, options: 'noatime,nofail'",
			"pair.yaml:6: disks.0.options: option nofail is for mount(8) and /etc/fstab, which are not asked; remove that option"},
		{"option of systemd's", "mount: /srv", "mount: /srv, options: x-systemd.automount",
			"pair.yaml:6: disks.0.options: option x-systemd.automount is for mount(8) and /etc/fstab, which are not asked; remove that option"},
		{"no mount of its own", "mount: /srv", "mount: /srv, options: bind",
			"pair.yaml:6: disks.0.options: option bind is for something else than to mount a disk; remove that option"},
		{"mount hides the guest", "mount: /srv", "mount: /usr",
			"pair.yaml:6: disks.0.mount: hides what the small guest has in /usr; choose a directory of its own, e.g. /srv"},
		{"MAC", "'52:54:00:00:00:02'", "52:54:00", "pair.yaml:5: nics.0.mac: \"52:54:00\" is not a MAC address; write e.g. \"52:54:00:00:00:02\""},
		{"MAC multicast", "'52:", "'53:",
			"pair.yaml:5: nics.0.mac: 53:54:00:00:00:02 is a multicast address (its first byte is odd); write e.g. \"52:54:00:00:00:02\""},
		{"MAC twice", "br0}", "br0}, {name: m, mac: '52:54:00:00:00:02', address: 10.0.0.3/24, bridge: br0}",
			"pair.yaml:5: nics.1.mac: 52:54:00:00:00:02 is taken (line 5); give each its own"},
		{"no prefix", "10.0.0.2/24", "10.0.0.2", "pair.yaml:5: nics.0.address: \"10.0.0.2\" is not an address with a prefix length; write e.g. 10.77.0.2/24"},
		{"broadcast", "10.0.0.2/24", "10.0.0.255/24",
			"pair.yaml:5: nics.0.address: 10.0.0.255 is the network's own or broadcast address; write e.g. 10.77.0.2/24"},
		{"gateway outside", "bridge: br0", "gateway: 10.0.1.1, bridge: br0",
			"pair.yaml:5: nics.0.gateway: 10.0.1.1 is not in 10.0.0.0/24; correct the gateway or the prefix length"},
		{"gateway itself", "bridge: br0", "gateway: 10.0.0.2, bridge: br0",
			"pair.yaml:5: nics.0.gateway: is the address itself; name the router, or remove the key"},
		{"bridge", "bridge: br0", "bridge: a/b", "pair.yaml:5: nics.0.bridge: \"a/b\" is not an interface name; name a bridge of this machine, at most 15 characters"},
		{"no command", "name: x", "name: x\nservices: [{name: s, command: []}]",
			"pair.yaml:2: services.0.command: names no program; write e.g. [busybox, httpd, -f]"},
		{"command and unit", "name: x", "name: x\nservices: [{name: s, command: [a], unit: a.service}]",
			"pair.yaml:2: services.0: needs exactly one of the keys \"command\" and \"unit\"; write command: with a program, or unit: with a service of systemd's\n" +
				"pair.yaml:2: services.0.unit: there is no systemd in the small guest; give both partitions root:, or write command:"},
		{"neither command nor unit", "name: x", "name: x\nservices: [{name: s}]",
			"pair.yaml:2: services.0: needs exactly one of the keys \"command\" and \"unit\"; write command: with a program, or unit: with a service of systemd's"},
		{"unit with the limit of a command", "name: x", "name: x\nservices: [{name: s, unit: nginx.service, stop: 5s}]",
			"pair.yaml:2: services.0: key \"stop\" is for a command; set TimeoutStopSec= of the unit\n" +
				"pair.yaml:2: services.0.unit: there is no systemd in the small guest; give both partitions root:, or write command:"},
		{"too short a time to stop", "name: x", "name: x\nservices: [{name: s, command: [a], stop: 10ms}]",
			"pair.yaml:2: services.0.stop: 10ms is not from 1s to 1h; write e.g. 30s, from 1s to 1h"},
		{"unit", "name: x", "name: x\nservices: [{name: s, unit: a/b.service}]",
			"pair.yaml:2: services.0.unit: \"a/b.service\" is not the name of a service of systemd's; write e.g. nginx.service"},
		{"unit in the small guest", "name: x", "name: x\nservices: [{name: s, unit: nginx.service}]",
			"pair.yaml:2: services.0.unit: there is no systemd in the small guest; give both partitions root:, or write command:"},
		{"limit", "name: x", "name: x\nheartbeat: {period: 100ms, limit: 299ms}",
			"pair.yaml:2: heartbeat.limit: 299ms is less than 3 periods of 100ms; use a limit of at least 3 periods: one late beat is not a death"},
		{"period", "name: x", "name: x\nheartbeat: {period: 20}", "pair.yaml:2: heartbeat.period: \"20\" is not a duration; write e.g. 20ms"},
		{"pulse", "name: x", "name: x\nheartbeat: {cpu: 100ms}", "pair.yaml:2: heartbeat.cpu: 100ms is shorter than 1s; write e.g. 10s, or off"},
		{"salvage", "name: x", "name: x\ntakeover: {salvage: maybe}",
			"pair.yaml:2: takeover.salvage: \"maybe\" is neither true nor false; write true or false"},
		{"all at once", "name: x", "name: X\ntakeover: {sync: never}",
			"pair.yaml:1: name: \"X\" is not a valid name; use a-z, 0-9 and -, at most 32 characters, not beginning with -\n" +
				"pair.yaml:2: takeover.sync: \"never\" is not known; use one of [before after]"},
	}
	valid := smallest + nic + disk
	if _, err := parse("pair.yaml", "/etc", []byte(valid)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(valid, tt.old) != 1 {
				t.Fatalf("%q occurs %d times", tt.old, strings.Count(valid, tt.old))
			}
			_, err := parse("pair.yaml", "/etc", []byte(strings.Replace(valid, tt.old, tt.new, 1)))
			if err == nil {
				t.Fatal("accepted")
			}
			if err.Error() != tt.want {
				t.Errorf("got:\n%v\nwant:\n%s", err, tt.want)
			}
		})
	}
}

func TestParseEmpty(t *testing.T) {
	for _, text := range []string{"", "\n# nothing\n", "---\n", "null"} {
		_, err := parse("p.yaml", "/", []byte(text))
		if p, ok := errors.AsType[*Problem](err); !ok || p.What != "is empty" {
			t.Errorf("%q: %v, want that it is empty", text, err)
		}
	}
}

func TestLoadRefusesFormats(t *testing.T) {
	dir := t.TempDir()
	vdi := append(make([]byte, 64), "\x7f\x10\xda\xbe"...)
	for name, head := range map[string]string{"root": "QFI\xfb\x00", "d0": string(vdi), "d1": "KDMV", "d2": "\x00raw"} {
		os.WriteFile(filepath.Join(dir, name), []byte(head), 0o600)
	}
	path := filepath.Join(dir, "pair.yaml")
	text := strings.Replace(smallest, "initramfs: i}", "root: root}", 1) +
		"disks:\n- {name: a, image: d0, mount: /a}\n- {name: b, image: d1, mount: /b}\n" +
		"- {name: c, image: d2, mount: /c}\n- {name: d, image: none, mount: /d}\n"
	os.WriteFile(path, []byte(text), 0o600)
	_, err := Load(path)
	if err == nil {
		t.Fatal("accepted")
	}
	got := strings.Split(strings.ReplaceAll(err.Error(), dir+"/", ""), "\n")
	want := []string{
		"pair.yaml:3: partitions.a.root: root is in qcow2 format, and only raw images and block devices can be taken over; convert it: qemu-img convert -O raw root NEW",
		"pair.yaml:6: disks.0.image: d0 is in vdi format, and only raw images and block devices can be taken over; convert it: qemu-img convert -O raw d0 NEW",
		"pair.yaml:7: disks.1.image: d1 is in vmdk format, and only raw images and block devices can be taken over; convert it: qemu-img convert -O raw d1 NEW",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// FuzzParse checks that no text makes parse panic, and that every refusal is a list of Problems.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(smallest))
	f.Add([]byte(smallest + nfsDisk + nfs))
	f.Add([]byte("name: [x"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := parse("f", "/d", text)
		if err != nil {
			if _, ok := errors.AsType[*Problem](err); !ok {
				t.Fatalf("refused with %T: %v", err, err)
			}
			return
		}
	})
}

// plain is a pair without the file that it came from.
func plain(p *Pair) *Pair {
	q := *p
	q.file, q.lines = "", nil
	return &q
}
