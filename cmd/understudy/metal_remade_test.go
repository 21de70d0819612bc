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
)

// remadeCase is a type of file system whose log a takeover does not finish, on the data disk of a machine.
type remadeCase struct {
	name, active string
	make         string   // makes and mounts it on /srv, on the machine
	disk         string   // the disk of the role
	drivers      []string // of the machine's own kernel
	view         string   // mount options with which all of it is seen at the end
	at           string   // where /srv is then
}

var remadeCases = []remadeCase{
	{
		name: "xfs", drivers: []string{"libcrc32c|", "xfs"}, view: "ro,nouuid",
		disk: `{"name": "data", "type": "xfs", "mount": "/srv"}`,
		make: "mkfs.xfs -q /dev/vda && mount -t xfs /dev/vda /srv",
	},
	{
		name: "btrfs", active: "6.12-cloud", drivers: []string{"libcrc32c|", "xxhash_generic|", "blake2b_generic|", "sha256_generic|", "btrfs"}, view: "ro,subvolid=5", at: "@srv",
		disk: `{"name": "data", "type": "btrfs", "mount": "/srv", "options": "subvol=/@srv", "also": [{"mount": "/srv/more", "options": "subvol=/@more"}]}`,
		make: `mkfs.btrfs -q /dev/vda && mount -t btrfs -o commit=86400 /dev/vda /srv && btrfs subvolume create /srv/@srv && btrfs subvolume create /srv/@more && umount /srv
mount -t btrfs -o commit=86400,subvol=@srv /dev/vda /srv && mkdir /srv/more && mount -t btrfs -o subvol=@more /dev/vda /srv/more`,
	},
}

// remadeOld makes the files that metalWork finds on the disk.
const remadeOld = ` || echo "FAILED mount"
mkdir -p /srv/cgi-bin /srv/more
for n in 1 2 3 4; do seq 1 1000 > /srv/old$n; done
cp /return /srv/cgi-bin/return && chmod 755 /srv/cgi-bin/return
sync
`

// TestMetalRemade checks that an understudy takes over XFS, and subvolumes of btrfs, with every file that the dead kernel
// had in memory only.
func TestMetalRemade(t *testing.T) {
	for _, c := range remadeCases {
		t.Run(c.name, func(t *testing.T) {
			tier.Full(t, "a machine with "+c.name)
			c.run(t)
		})
	}
}

// TestMetalTooOld checks that an understudy beside a kernel in whose memory it could not read XFS does not protect, and
// says why.
func TestMetalTooOld(t *testing.T) {
	tier.Full(t, "a kernel that keeps no types of its modules")
	c := remadeCases[0]
	c.active = "5.10-generic"
	m, _ := c.machine(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	virtio.attach(t, m, c.image(t, m))
	console := bootToEnd(t, ctx, m)
	if !strings.Contains(console, "FAILED metal run") || !strings.Contains(console, "keeps no types of its modules") || strings.Contains(console, "PROTECTED") {
		t.Errorf("it said:\n%s", console)
	}
}

// machine makes a machine that dies with files in memory only. gone are the files that are not there any more then.
func (c *remadeCase) machine(t *testing.T) (made *barelab.Machine, gone []string) {
	t.Helper()
	given := t.TempDir()
	role, back := filepath.Join(given, "remade.json"), filepath.Join(given, "return")
	_, rest, _ := strings.Cut(metalRole, "\"mount\": \"/srv\"}],\n")
	err := os.WriteFile(role, []byte("{\"partition\": \"understudy\",\n\"disks\": ["+c.disk+"],\n"+rest), 0o644)
	if err := errors.Join(err, os.WriteFile(back, []byte(returnScript), 0o644)); err != nil {
		t.Fatal(err)
	}
	work := metalWorkMore(t, "[ ! -e /proc/sys/fs/xfs ] || echo 720000 > /proc/sys/fs/xfs/xfssyncd_centisecs\n")
	prepare := "while [ ! -e /dev/vda ]; do sleep 0.1; done\n" + c.make + remadeOld
	m := bareMachine{
		active: c.active,
		script: parametersFirst + prepare + strings.ReplaceAll(metalRun, "/role.json", "/remade.json") + work + "echo c > /proc/sysrq-trigger\n",
		files:  []string{role, back}, programs: []string{"/sbin/mkfs." + c.name}, ownDrivers: c.drivers, options: []string{"--fs", c.name},
	}
	if c.name == "btrfs" {
		m.programs = append(m.programs, "/bin/btrfs")
	}
	return m.make(t), []string{"/old2", "/old4", "/new/file3"}
}

// image makes the empty disk of a machine.
func (c *remadeCase) image(t *testing.T, m *barelab.Machine) (path string) {
	t.Helper()
	path = filepath.Join(m.Dir, "data.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 512<<20)); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *remadeCase) run(t *testing.T) {
	m, gone := c.machine(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	image := c.image(t, m)
	ns := virtio.attach(t, m, image)
	r, end := startMetal(t, ctx, m)
	defer end()
	client, fetch, _ := outlived(t, ctx, r, ns, 0)
	checkTold(t, r.Console(), 24, gone, fetch)
	report := metalReport(t, fetch, ":81/takeover.json")
	if len(report.Refused) > 0 || report.Bytes < 20<<20 || !report.Durable {
		t.Errorf("the report is %+v", report.Report)
	}
	givesBack(t, client, r, "/cgi-bin/return")
	left := mountedHere(t, image, c.view)
	checkTold(t, r.Console(), 24, gone, func(path string) []byte {
		at := filepath.Join(left, c.at, path)
		if name, ok := strings.CutPrefix(path, "/more/"); ok && c.name == "btrfs" {
			at = filepath.Join(left, "@more", name)
		}
		return readLeft(t, at)
	})
}

// mountedHere mounts an image on this machine, until the test ends, and returns where.
func mountedHere(t *testing.T, image, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,"+options, image, dir).CombinedOutput(); err != nil {
		tier.Lacks(t, errors.New("this machine does not mount it: "+string(out)))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// anotherRoot makes the disk of a machine whose root file system is of another type, from one that scripts/debian.sh makes:
// /boot is ext4, in the first partition, where GRUB finds it by the path that it had. The root is in the second, of btrfs in
// subvolume @rootfs, with /home in @home.
const anotherRoot = `
set -euo pipefail
from=$1 to=$2 type=$3 dir=$4
mkdir "$dir"/old "$dir"/new
mount -o loop,ro,offset=1M "$from" "$dir/old"
head -c 1M "$from" > "$to"
truncate -s 3584M "$to"
printf '%s\n' 'label: dos' '2048,524288,L,*' '526336,,L' | sfdisk -q --wipe never "$to"
loop=$(losetup -f --show -o $((526336 * 512)) "$to")
trap 'umount -q "$dir/new" || true; losetup -d $loop' EXIT
mkfs.$type -q -L root $loop
case $type in
xfs)
	options=defaults
	mount $loop "$dir/new"
	;;
btrfs)
	options=subvol=@rootfs
	mount $loop "$dir/new"
	btrfs -q subvolume create "$dir/new/@rootfs"
	btrfs -q subvolume create "$dir/new/@home"
	umount "$dir/new"
	mount -o subvol=@rootfs $loop "$dir/new"
	mkdir -p "$dir/new/home"
	mount -o subvol=@home $loop "$dir/new/home"
	;;
esac
cp -a "$dir"/old/. "$dir/new"
root=$dir/new
printf '%s\n' "LABEL=root / $type $options 0 0" 'LABEL=boot /boot ext4 defaults 0 2' 'LABEL=data /srv ext4 nofail 0 2' > "$root/etc/fstab"
if [ $type = btrfs ]; then
	echo 'LABEL=root /home btrfs subvol=@home 0 0' >> "$root/etc/fstab"
	sed -i 's/root=LABEL=root/& rootflags=subvol=@rootfs/' "$root/boot/grub/grub.cfg"
fi
echo $type >> "$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all
ln -s . "$root/boot/boot"
mke2fs -q -t ext4 -L boot -d "$root/boot" "$dir/boot.img" 256M
dd status=none conv=notrunc,sparse if="$dir/boot.img" of="$to" bs=1M seek=1
rm -r "$root"/boot/*
[ $type != btrfs ] || umount "$root/home"
`

// anotherHold keeps debianInstall's work in memory, whatever the file system.
const anotherHold = `
echo 720000 > /proc/sys/fs/xfs/xfssyncd_centisecs
if grep -q ' / btrfs ' /proc/mounts; then mount -o remount,commit=86400 / || echo FAILED remount; fi
mount -o remount,commit=86400 /srv || echo FAILED remount
`

// anotherScript is debianInstall without an NFS server, for any type of root file system, and with a file in /home.
func anotherScript(t *testing.T) string {
	t.Helper()
	return rewritten(t, debianInstall, [][2]string{
		{nfsStart, ""},
		{"mount -o remount,commit=86400 / && mount -o remount,commit=86400 /srv || echo FAILED remount\n", anotherHold},
		{"mv srv/old1", "head -c 5000 /dev/urandom > home/note\nmv srv/old1"},
		{"var/lib/moved etc", "var/lib/moved home/note etc"},
		{"until [ -e srv/files/die ] || [ -e home/files/die ]; do sleep 0.1; done\n", ""},
		{"echo yes > /run/serving\n", "echo yes > /run/serving\ntouch /serve\n"},
		{". /die\n", "echo c > /proc/sysrq-trigger\n"},
	})
}

// TestMetalRoot checks that metal install protects a machine with Debian whose root file system is XFS, or subvolumes of
// btrfs; that the understudy serves from there; and that the machine, given back, boots with all of it and is protected
// again.
func TestMetalRoot(t *testing.T) {
	for _, c := range []struct{ kind, options string }{{"xfs", ""}, {"btrfs", " --mount /home"}} {
		t.Run(c.kind, func(t *testing.T) {
			tier.Full(t, "a machine whose root file system is "+c.kind)
			vm(t)
			ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
			defer cancel()
			options := strings.Replace(debianOptions, " --nfs", " --mount /boot"+c.options, 1)
			m, ns := debianMachine(t, debianCase{bookworm, "default", "default", virtio, false}, strings.Replace(anotherScript(t), "OPTIONS", options, 1), "{}")
			root := filepath.Join(m.Dir, "root.img")
			if err := os.Rename(root, root+".ext4"); err != nil {
				t.Fatal(err)
			}
			checked(t, "unshare", "-m", "bash", "-c", anotherRoot, "bash", root+".ext4", root, c.kind, t.TempDir())
			installDebian(t, ctx, m)
			r, end := startMetal(t, ctx, m)
			defer end()
			if err := r.Await(ctx, "DYING"); err != nil {
				t.Fatal(err)
			}
			died := time.Now()
			client, fetch := metalClient(t, ctx, ns)
			for fetch("/run/serving") != nil { // the dying kernel still answers
				time.Sleep(5 * time.Millisecond)
			}
			t.Logf("served again after %v", time.Since(died))
			gone := []string{"/srv/old1", "/srv/old3", "/srv/new/file3", "/var/lib/new/file3", "/etc/motd"}
			told := r.Console()
			checkTold(t, told, 24, gone, fetch)
			report := metalReport(t, fetch, "/run/understudy/takeover.json")
			if len(report.Refused) > 0 || !report.Durable {
				t.Errorf("the report is %+v", report.Report)
			}
			givesBack(t, client, r, "/srv/cgi-bin/return")
			checked(t, "bash", "-c", checkRoot, "bash", root, c.kind)
			again, endAgain := startMetal(t, ctx, m)
			defer endAgain()
			if err := again.Await(ctx, "PROTECTED"); err != nil {
				t.Fatal(err)
			}
			checkTold(t, told, 24, gone, fetch)
		})
	}
}

// checkRoot checks the unmounted root file system on such a disk.
const checkRoot = `
loop=$(losetup -f --show -o $((526336 * 512)) "$1") || exit
case $2 in
xfs) xfs_repair -n $loop ;;
btrfs) btrfs check $loop ;;
esac
ended=$?
losetup -d $loop
exit $ended
`
