package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/systems"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/dirs"
)

const guestsPair = `name: guests
partitions:
  left: {cpus: "%[1]d", memory: 640MiB, kernel: %[3]s, initramfs: %[4]s, root: left.img, append: "%[5]s"}
  right: {cpus: "%[2]d", memory: 640MiB, kernel: %[3]s, initramfs: %[4]s, root: right.img, append: "%[5]s"}
disks:
  - {name: data, image: data.img, type: %[6]s, mount: /var/www}
nics:
  - {name: lan, mac: "52:54:00:00:00:02", address: 10.77.0.2/24, gateway: 10.77.0.1, bridge: br0}
services:
  - {name: web, unit: nginx.service, ready: 80}
  - {name: work, command: [sh, -c, ". /var/www/work"], rehearse: false}
`

// guestsWork is what the active side does once somebody has asked for /go: it leaves files in
// memory only, on the shared disk and on its own root disk, and restarts its agent. Its output
// goes to the console, which outlives it.
const guestsWork = `
exec > /dev/ttyS0 2>&1
[ -e /var/www/html/new ] && exec sleep 1000000
until grep -q 'GET /go' /var/log/nginx/access.log; do sleep 0.2; done
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000 vm/dirty_background_ratio=89 vm/dirty_ratio=90; do
  echo ${s#*=} > /proc/sys/${s%=*}
done
mount -o remount,commit=86400 /var/www
case $(stat -f -c %T /) in
xfs) echo 720000 > /proc/sys/fs/xfs/xfssyncd_centisecs ;;
*) mount -o remount,commit=86400 / ;;
esac
sync
beat=$(pgrep -f ^understudy-beat)
agent=$(systemctl show -P MainPID understudy-agent)
systemctl restart understudy-agent
echo AGENT $agent $(systemctl show -P MainPID understudy-agent) BEAT $beat $(pgrep -f ^understudy-beat)
for i in /sys/class/net/e*; do echo MANAGED $(udevadm info --query=property $i | grep NM_UNMANAGED); done
cd /var/www/html
mkdir new
for n in 1 2 3 4 5 6 7 8; do
  head -c $((n * 70919)) /dev/urandom > new/file$n
done
mv old1 new/renamed
rm old2
head -c 300000 /dev/urandom > /var/lib/own
for f in new/* /var/lib/own; do
  echo SUM $(sha256sum $f)
done
[ -e /sys/fs/selinux/enforce ] && echo ENFORCED $(cat /sys/fs/selinux/enforce) $(cat /proc/self/attr/current)
echo UNSAVED
exec sleep 1000000
`

// guestRoot is where the root file system of a partition is.
type guestRoot struct {
	// place makes left.img in a directory of plain, an image that has nothing but that file system, of ext4.
	place func(t *testing.T, plain, dir string)
	// out is the way back, from an image in that directory; nil if there is nothing to do.
	out   func(t *testing.T, image, plain string)
	check []string // a program that checks the file system, and its options
	mount string   // options with which mount(8) shows it

	selinux bool // the system enforces SELinux
}

// guestRoots have each an image, a linear logical volume on one, and another type of file system.
var guestRoots = map[string]guestRoot{
	"image": {place: func(t *testing.T, plain, dir string) { renamed(t, plain, filepath.Join(dir, "left.img")) }, check: []string{"e2fsck", "-fn"}},
	"volume": {
		place: placeInVolume,
		out:   func(t *testing.T, image, plain string) { outOfVolume(t, image, "a-group/root", plain) },
		check: []string{"e2fsck", "-fn"},
	},
	"xfs":     {place: placeOn("xfs"), check: []string{"xfs_repair", "-n"}},
	"btrfs":   {place: placeOn("btrfs"), check: []string{"btrfs", "check"}, mount: "subvol=@rootfs"},
	"selinux": {place: placeOn("xfs"), check: []string{"xfs_repair", "-n"}, selinux: true}, // as RHEL has it
}

// system is the name of the system there, and parameters are further ones of its kernel.
func (r *guestRoot) system() (name, parameters string) {
	if r.selinux {
		return "selinux", " security=selinux"
	}
	return "bookworm", ""
}

func placeInVolume(t *testing.T, plain, dir string) {
	guest := lvmGuest(t, dir)
	st, err := os.Stat(plain)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`D=/dev/vda; %slvm lvcreate --config "$L" -qqy -Wn -Zn -L %db -n root a-group; %s`, makeGroup, st.Size(), endVolume)
	madeBy(t, dir, script, st.Size()+64<<20, "left.img")
	if err := os.Remove(guest); err != nil {
		t.Fatal(err)
	}
	onVolume(t, filepath.Join(dir, "left.img"), "a-group/root", func(v device.Section) {
		from, err := os.Open(plain)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		copyData(t, v, from)
	})
}

func placeOn(kind string) func(t *testing.T, plain, dir string) {
	return func(t *testing.T, plain, dir string) {
		checked(t, "unshare", "-m", "bash", "-c", guestOn, "bash", plain, filepath.Join(dir, "left.img"), kind, t.TempDir())
	}
}

// guestOn makes an image with another type of file system of one with ext4. The root is in subvolume @rootfs of btrfs, as Debian's
// installer does it.
const guestOn = `
set -euo pipefail
from=$1 to=$2 kind=$3 old=$4/old new=$4/new options=noatime
mkdir "$old" "$new"
mount -o loop,ro "$from" "$old"
truncate -s 3584M "$to"
mkfs.$kind -q -L root "$to"
mount -o loop "$to" "$new"
if [ $kind = btrfs ]; then
	options=noatime,subvol=@rootfs
	btrfs -q subvolume create "$new/@rootfs"
	umount "$new"
	mount -o loop,$options "$to" "$new"
fi
cp -a "$old"/. "$new"
echo "LABEL=root / $kind $options 0 0" > "$new/etc/fstab"
`

// TestGuests tests a pair whose partitions are Debian with systemd. A unit is started by role; the agent is restarted
// without a takeover; the kernel panics, and the other side serves the same files from the same address; what the dead
// side had unsaved on its own root disk is there when it boots again; a supervisor leaves, and the next one lets the
// other side take over on plan; and both are powered off in good order.
func TestGuests(t *testing.T) {
	for name, on := range guestRoots {
		t.Run(name, func(t *testing.T) { testGuests(t, on) })
	}
}

func testGuests(t *testing.T, on guestRoot) {
	tier.Full(t, "partitions with Debian and systemd")
	vm(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	name, more := on.system()
	kind, shared := "ext4", []string{"e2fsck", "-fn"} // of the shared disk
	if on.selinux {
		kind, shared = "xfs", on.check
	}
	root, err := systems.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Copy(t.Context(), in("plain.img")); err != nil {
		t.Fatal(err)
	}
	on.place(t, in("plain.img"), dir)
	parameters, err := root.PrepareLeft(t.Context(), dir, binary, "nginx.service", "postgresql@15-main.service", "prometheus.service")
	if err != nil {
		t.Fatal(err)
	}
	cpus := thisMachine(t).Two()
	err = errors.Join(
		os.MkdirAll(in("disk/html"), 0o755), os.WriteFile(in("disk/work"), []byte(guestsWork), 0o755),
		os.WriteFile(in("disk/html/old1"), []byte("one"), 0o644), os.WriteFile(in("disk/html/old2"), []byte("two"), 0o644),
		os.WriteFile(in("pair.yaml"), fmt.Appendf(nil, guestsPair, cpus[0], cpus[1], root.Kernel, root.Initramfs, parameters+more, kind), 0o600),
		os.WriteFile(in("data.img"), nil, 0o600), os.Truncate(in("data.img"), 256<<20),
	)
	if err != nil {
		t.Fatal(err)
	}
	if on.selinux {
		checked(t, "unshare", "-m", "bash", "-c", labelled, "bash", in("disk"), in("data.img"), t.TempDir(), webContent)
	} else if out, err := exec.Command("mkfs.ext4", "-q", "-d", in("disk"), in("data.img")).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	lab, err := netlab.NewLab(netip.MustParsePrefix(clients4))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	up := func() {
		t.Helper()
		err := lab.Services.Do(func() error { _, err := understudy(t, "up", "-d", "-f", in("pair.yaml")); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	up()
	down := func() error {
		out, err := exec.Command(binary, "down").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t)
			exec.Command(binary, "down", "--force", "--discard").Run() // it may be down already
		}
	})
	client := &http.Client{Transport: &http.Transport{DialContext: lab.Client.DialContext, DisableKeepAlives: true}, Timeout: time.Minute}
	if b, err := fetchFile(client, "/old2"); err != nil || string(b) != "two" {
		t.Fatalf("before: %q, %v", b, err)
	}
	_, _ = fetchFile(client, "/go") // there is no such file
	console := func(side string) string {
		return string(readFile(t, filepath.Join(dirs.Run("guests"), side+".console.log")))
	}
	await(t, "unsaved files", programLimit, func() bool { return strings.Contains(console("left"), "UNSAVED") })
	left := console("left")
	checkRestart(t, left)
	if !strings.Contains(left, "MANAGED NM_UNMANAGED=1") {
		t.Error("NetworkManager would not leave the interface to the agent")
	}
	if st := pairStatus(t); st.State != "protected" || st.Active != "left" || st.Takeovers != 0 {
		t.Fatalf("after the restart of the agent: %+v", st)
	}
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	st := awaitTakeover(t)
	if st.Active != "right" || st.Takeover == nil || len(st.Takeover.Refused) > 0 {
		t.Fatalf("after the takeover: %+v", st)
	}
	checkMAC(t, lab.Client)
	checkSums(t, left, client)
	awaitProtection := func(active string) {
		t.Helper()
		await(t, "protection", programLimit, func() bool {
			time.Sleep(2 * time.Second) // a boot takes minutes
			st = pairStatus(t)
			return st.State == "protected" && st.Active == active
		})
		if len(st.Troubles) > 0 {
			t.Errorf("troubles: %q", st.Troubles)
		}
	}
	awaitProtection("right")
	if _, err := understudy(t, "leave"); err != nil {
		t.Fatal(err)
	}
	up()
	checkSums(t, left, client)
	if out, err := understudy(t, "switch"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	checkMAC(t, lab.Client)
	checkSums(t, left, client)
	awaitProtection("left")
	if err := down(); err != nil {
		t.Fatal(err)
	}
	if on.out != nil {
		for _, side := range []string{"left.img", "right.img"} {
			on.out(t, in(side), in("plain.img"))
			renamed(t, in("plain.img"), in(side))
		}
	}
	for image, check := range map[string][]string{"left.img": on.check, "right.img": on.check, "data.img": shared} { // all of them are unmounted
		if out, err := exec.Command(check[0], append(check[1:len(check):len(check)], in(image))...).CombinedOutput(); err != nil || strings.Contains(string(out), "journal recovery") {
			t.Errorf("%s: %v: %s", image, err, out)
		}
	}
	there := mountedHere(t, in("left.img"), "ro,"+on.mount)
	own := readFile(t, filepath.Join(there, "var/lib/own"))
	if sum := fmt.Sprintf("SUM %x /var/lib/own", sha256.Sum256(own)); !strings.Contains(left, sum) {
		t.Errorf("the dead side's own file is %s", sum)
	}
	if on.selinux {
		checkEnforced(t, left, there)
	}
}

// webContent is the label of what Debian's policy lets nginx serve.
const webContent = "system_u:object_r:httpd_sys_content_t:s0"

// labelled makes an image with XFS of a directory, all of which gets a label.
const labelled = `
set -euo pipefail
from=$1 to=$2 at=$3 label=$4
truncate -s 512M "$to"
mkfs.xfs -q "$to"
mount -o loop "$to" "$at"
cp -a "$from"/. "$at"
find "$at" -exec setfattr -h -n security.selinux -v "$label" {} +
`

// checkEnforced checks that SELinux was enforced, that the agent, which has started the script, is not confined by it, and that the
// dead side's own file has the label that it had.
func checkEnforced(t *testing.T, console, root string) {
	t.Helper()
	if !strings.Contains(console, "ENFORCED 1 system_u:system_r:initrc_t:s0") {
		t.Error("SELinux was not enforced, or the agent is confined")
	}
	label := make([]byte, 128)
	n, err := unix.Lgetxattr(filepath.Join(root, "var/lib/own"), "security.selinux", label)
	if want := "system_u:object_r:var_lib_t:s0\x00"; err != nil || string(label[:n]) != want {
		t.Errorf("the dead side's own file has the label %q, %v, want %q", label[:n], err, want)
	}
}

func renamed(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func showLogs(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(dirs.Run("guests"), "*.log")) // the pattern is well-formed
	for _, path := range logs {
		if b, err := os.ReadFile(path); err == nil {
			t.Logf("the end of %s:\n%s", filepath.Base(path), b[max(0, len(b)-3000):])
		}
	}
}

// fetchFile returns what is served at a path; nil if there is no such file.
func fetchFile(client *http.Client, path string) ([]byte, error) {
	q, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+pair4+path, nil)
	if err != nil {
		return nil, err
	}
	r, err := client.Do(q)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	return io.ReadAll(r.Body)
}

// checkRestart checks that the agent is another process, and that the process that beats is the same.
func checkRestart(t *testing.T, console string) {
	t.Helper()
	for line := range strings.Lines(console) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "AGENT" {
			if f[1] == f[2] || f[4] != f[5] {
				t.Errorf("the agent's restart: %s", line)
			}
			return
		}
	}
	t.Errorf("the agent was not started again: %s", console)
}

// checkSums compares what is served with what the dead kernel had in memory only.
func checkSums(t *testing.T, console string, client *http.Client) {
	t.Helper()
	sums := 0
	for line := range strings.Lines(console) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "SUM" || strings.HasPrefix(f[2], "/") {
			continue
		}
		sums++
		b, err := fetchFile(client, "/"+f[2])
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); err != nil || got != f[1] {
			t.Errorf("%s is %s, and was %s: %v", f[2], got, f[1], err)
		}
	}
	if sums != 9 {
		t.Errorf("%d files were told of", sums)
	}
	for _, gone := range []string{"/old1", "/old2"} {
		if b, err := fetchFile(client, gone); err != nil || b != nil {
			t.Errorf("%s is there again: %q, %v", gone, b, err)
		}
	}
}
