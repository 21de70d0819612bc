package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/barelab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/netns"
)

// ownKernel makes GRUB boot the running kernel: by default it boots the newest in /boot, which may be the understudy's.
const ownKernel = `
  echo 'GRUB_DISABLE_SUBMENU=true' >> /etc/default/grub
  echo "GRUB_DEFAULT='GNU/Linux, with Linux $(uname -r)'" >> /etc/default/grub
`

// debianStart begins each script of these machines. On a busy machine systemd gives up a disk that comes late.
const debianStart = barelab.Drain + `
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
until mountpoint -q /srv; do mount /srv; sleep 0.5; done
`

// debianFirst installs an understudy with OPTIONS at the first boot, and boots again.
const debianFirst = `
if ! grep -q understudy.metal /proc/cmdline; then
  n=0
  until ip -4 addr show dev eth0 | grep -q inet; do
    sleep 0.5
    n=$((n + 1))
    [ $n -lt 2400 ] || { ip addr; journalctl -u systemd-networkd -u systemd-udevd; echo FAILED address; break; }
  done
  sed -i 's/nofail/nofail,x-systemd.device-timeout=1h/' /etc/fstab
` + ownKernel + `
  understudy metal install OPTIONS || echo FAILED install
  cat /var/lib/understudy/metal/role.json
  echo INSTALLED
  systemctl reboot
  exit
fi
`

// debianProtected waits until the kernel is protected.
const debianProtected = `
n=0
until understudy metal status | grep -q '^protected'; do
  sleep 0.5
  n=$((n + 1))
  [ $n -lt 2400 ] || { journalctl -u understudy-metal; understudy metal status -v; echo FAILED protected; systemctl poweroff; }
done
`

// debianHold makes everything that follows stay in memory.
const debianHold = `
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000 vm/dirty_background_bytes=900000000 vm/dirty_bytes=1000000000; do
  echo ${s#*=} > /proc/sys/${s%=*}
done
mount -o remount,commit=86400 / && mount -o remount,commit=86400 /srv || echo FAILED remount
systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald
sync
`

const debianOptions = "--mount / --mount /srv --interface eth0 --limit 3s --cpu-limit 2m --unit lighttpd.service=80 --nfs"

// debianInstall is what the administrator does at the first boot; the rest is what the
// machine does at the second boot, once it is protected. Some of what it leaves in memory
// only is on the root file system: the configuration of its web server, and a report whose
// name was another file's before.
const debianInstall = debianStart + nfsStart + debianFirst + `
[ ! -e /serve ] || systemctl start lighttpd
` + debianProtected + `
echo PROTECTED
[ ! -e /serve ] || exit
understudy metal check
` + debianHold + `
cat > /etc/lighttpd/lighttpd.conf.new <<END
server.document-root = "/"
server.pid-file = "/run/lighttpd.pid"
server.modules = ( "mod_cgi" )
cgi.assign = ( "/cgi-bin/return" => "" )
server.port = 80
END
mv /etc/lighttpd/lighttpd.conf.new /etc/lighttpd/lighttpd.conf
systemctl start lighttpd || echo FAILED lighttpd
cd /
mkdir srv/new var/lib/new
for n in 1 2 3 4 5 6 7 8 9 10; do
  head -c $((n * 7919)) /dev/urandom > srv/new/file$n
  head -c $((n * 5003)) /dev/urandom > var/lib/new/file$n
done
head -c 20000000 /dev/urandom > srv/new/large
mv srv/old1 srv/new/renamed
mv var/lib/new/file3 var/lib/moved
mv srv/new/file3 srv/old2
rm srv/old3 etc/motd
for f in srv/new/* srv/old2 var/lib/new/* var/lib/moved etc/lighttpd/lighttpd.conf; do
  echo "SUM $(sha256sum $f)"
done
echo yes > /run/serving
echo SERVING
until [ -e srv/files/die ] || [ -e home/files/die ]; do sleep 0.1; done
echo DYING
drain
. /die
`

// debianCase is a machine with Debian: the suite, its kernel, and the kernel beside it, by their names in
// scripts/kernels.sh.
type debianCase struct {
	suite          string
	active, beside string
	devices        metalDevices
	volume         bool // /srv is in a logical volume
}

const bookworm, trixie = "bookworm", "trixie" // Debian 12, 13

// TestMetalDebian checks that metal install and one more boot are all that it takes to protect a machine with Debian.
// After the kernel's death the understudy has its root file system and its data, its web server runs from there, with a
// configuration that was in memory only, and clients of its NFS server, over TCP and UDP, go on with their handles.
// When the machine is given back, its own kernel serves all of it, and is protected again.
func TestMetalDebian(t *testing.T) {
	tier.Full(t, "a machine with Debian and systemd, installed and booted by GRUB")
	for _, c := range []struct {
		name string
		debianCase
		ways []string
	}{
		{"virtio", debianCase{bookworm, "default", "default", virtio, false}, []string{"panic"}},
		{"volume", debianCase{bookworm, "default", "default", virtio, true}, []string{"panic"}},
		{"nvme", debianCase{bookworm, "6.12-cloud", "default", nvme, false}, []string{"oops-irq", "hang-all"}},
		{"13", debianCase{trixie, "6.12-cloud", "6.12-cloud", virtio, false}, []string{"panic", "hang-all"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm(t)
			d := c.install(t, debianInstall, debianOptions)
			for _, way := range c.ways {
				t.Run(way, func(t *testing.T) {
					d.dies(t, way)
					d.reboots(t)
				})
			}
		})
	}
}

// debian is a machine with Debian on which an understudy is installed.
type debian struct {
	debianCase
	*barelab.Machine
	network *netns.Namespace
}

// debianDisks are the machine's disks.
var debianDisks = []string{"root.img", "data.img"}

func (d *debian) path(name string) string { return filepath.Join(d.Dir, name) }

// install makes the machine as it is before its second boot, with a script like debianInstall, and options for metal
// install. It keeps copies of the disks in this state.
func (c debianCase) install(t *testing.T, script, options string) *debian {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	option := ""
	var other []barelab.File
	if c.beside != c.active {
		release, files, err := barelab.Kernel(c.beside)
		if err != nil {
			tier.Lacks(t, err)
		}
		option, other = " --release "+release, files
	}
	d := &debian{debianCase: c}
	d.Machine, d.network = debianMachine(t, c, strings.Replace(script, "OPTIONS", options+option, 1), "{}", other...)
	installDebian(t, ctx, d.Machine)
	for _, disk := range debianDisks {
		copyFile(t, d.path(disk), d.path(disk+".kept"))
	}
	return d
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// put puts a text into a file of the machine's root file system.
func (d *debian) put(t *testing.T, path, text string, copies ...string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	files := []barelab.File{{Path: path, Source: source}}
	for _, c := range copies {
		files = append(files, barelab.File{Path: "/" + filepath.Base(c), Source: c})
	}
	if err := barelab.Put(d.path("root.img"), files); err != nil {
		t.Fatal(err)
	}
}

// dies lets the machine, with its disks as they were after the installation, die in a given way
// once it is protected, and fails the test unless everything is there afterwards.
func (d *debian) dies(t *testing.T, way string) (seen metalTakeover) {
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	for _, disk := range debianDisks {
		copyFile(t, d.path(disk+".kept"), d.path(disk))
	}
	death, copies := metalDeath(t, way, d.active)
	d.put(t, "/die", death.script, copies...)
	r, end := startMetal(t, ctx, d.Machine)
	defer end()
	if err := r.Await(ctx, "SERVING"); err != nil {
		t.Fatal(err)
	}
	client, fetch := metalClient(t, ctx, d.network)
	checkDebian(t, r.Console(), fetch)
	nfs := metalNFSClients(t, ctx, d.network, "/srv/files", "/home/files")
	nfs[0].die(t, ctx)
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	died := time.Now().Add(death.delay)
	nfsServed := make(chan map[string]time.Time, 1)
	go func() { nfsServed <- awaitNFS(ctx, nfs) }()
	for fetch("/run/serving") != nil { // the dying kernel still answers
		time.Sleep(5 * time.Millisecond)
	}
	seen.served = time.Since(died)
	by := <-nfsServed
	seen.tcp, seen.udp = by["tcp"].Sub(died), by["udp"].Sub(died)
	t.Logf("served again after %v, NFS over TCP after %v, over UDP after %v", seen.served, seen.tcp, seen.udp)
	checkDebian(t, r.Console(), fetch)
	for _, c := range nfs {
		c.check(t, ctx)
	}
	checkMAC(t, d.network)
	seen.report = metalReport(t, fetch, "/run/understudy/takeover.json")
	report := &seen.report
	if !strings.HasPrefix(report.Verdict, death.cause) || len(report.Refused) > 0 || len(report.Commits) != 2 || !report.Durable {
		t.Errorf("the report is %s: %+v", report.Verdict, report.Report)
	}
	givesBack(t, client, r, "/srv/cgi-bin/return")
	at := d.checkDisks(t, r.Console())
	for _, c := range nfs {
		c.left(t, at)
	}
	return seen
}

// reboots turns on a machine that was given back, and returns how long it takes until it serves:
// firmware, GRUB, its kernel, systemd, the web server. The machine is protected again when it returns.
func (d *debian) reboots(t *testing.T) time.Duration {
	t.Helper()
	d.put(t, "/serve", "")
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	r, end := startMetal(t, ctx, d.Machine)
	defer end()
	_, fetch := metalClient(t, ctx, d.network)
	fetch("/srv/old2")
	took := time.Since(r.Started)
	if err := r.Await(ctx, "PROTECTED"); err != nil {
		t.Error(err)
	}
	return took
}

// checkDisks checks that the disks of a machine that was given back have everything that the dead
// kernel had. It returns a function that finds a path of the machine among the files from the disks.
func (d *debian) checkDisks(t *testing.T, console string) (at func(path string) string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := barelab.Root(d.path("root.img"), root); err != nil {
		t.Fatal(err)
	}
	data := d.path("data.img")
	if d.volume {
		data = filepath.Join(t.TempDir(), "data")
		outOfVolume(t, d.path("data.img"), "a-group/srv", data)
	}
	left := []string{lookInto(t, data), lookInto(t, root)}
	at = func(path string) string {
		if rest, ok := strings.CutPrefix(path, "/srv/"); ok {
			return filepath.Join(left[0], rest)
		}
		return filepath.Join(left[1], path)
	}
	checkDebian(t, console, func(path string) []byte {
		return readLeft(t, at(path))
	})
	return at
}

// lookInto checks an unmounted file system, and extracts its files.
func lookInto(t *testing.T, disk string) (dir string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	dir = t.TempDir()
	if out, err := exec.Command("debugfs", "-R", "rdump / "+dir, disk).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	return dir
}

// readLeft returns the content of a file that was extracted by lookInto, or is mounted: nil if there is none.
func readLeft(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return b
}

// checkDebian compares what is served with what the dead kernel reported, which it had in
// memory only.
func checkDebian(t *testing.T, console string, fetch func(path string) []byte) {
	t.Helper()
	checkTold(t, console, 23, []string{"/srv/old1", "/srv/old3", "/srv/new/file3", "/var/lib/new/file3", "/etc/motd"}, fetch)
}

// debianMachine makes a machine with Debian that runs a script at each boot, and has a role
// in /role.json, and other files.
func debianMachine(t *testing.T, c debianCase, script, role string, other ...barelab.File) (*barelab.Machine, *netns.Namespace) {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"lab": "echo " + booted + "\n" + script, "role": role} {
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := barelab.Debian(in("root.img"), c.suite, c.active, append([]barelab.File{
		{Path: "/usr/local/bin/understudy", Source: binary, Executable: true},
		{Path: "/lab", Source: in("lab")}, {Path: "/role.json", Source: in("role")},
	}, other...)); err != nil {
		t.Fatal(err)
	}
	if c.volume {
		volumesOf(t, dir, in("data.img"))
	} else {
		makeData(t, in("data.img"))
	}
	m := &barelab.Machine{Dir: dir}
	ns := c.devices.attach(t, m, in("data.img"))
	m.Devices = append(m.Devices, "-drive", "if=none,id=root,format=raw,file="+in("root.img"), "-device", c.devices.disk+",drive=root,serial=root,bootindex=0")
	return m, ns
}

// installDebian boots the machine for the first time, until it boots again.
func installDebian(t *testing.T, ctx context.Context, m *barelab.Machine) {
	t.Helper()
	console := firstBoot(t, ctx, m)
	t.Logf("at the first boot:\n%s", console)
	if !strings.Contains(console, "INSTALLED") || strings.Contains(console, "FAILED") {
		t.Fatal("it is not installed")
	}
}
