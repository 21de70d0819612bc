package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/dirs"
)

// lvmGuest makes the image of a guest that has LVM, for madeBy.
func lvmGuest(t *testing.T, dir string) (path string) {
	t.Helper()
	_, modules, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "guest.cpio")
	if _, err := understudy(t, "initramfs", "-o", path, "--modules", modules, "--under", "lvm"); err != nil {
		t.Fatal(err)
	}
	return path
}

// volumesOf makes an image with volume group a-group, by LVM itself: srv, in two pieces, with the files of makeData, and
// between, which lies between the pieces, with an empty file system.
func volumesOf(t *testing.T, dir, image string) {
	t.Helper()
	lvmGuest(t, dir)
	madeBy(t, dir, "D=/dev/vda; "+makeVolume+endVolume, 320<<20, filepath.Base(image))
	plain := filepath.Join(t.TempDir(), "plain.img")
	fill := func(volume string) {
		onVolume(t, image, volume, func(v device.Section) {
			from, err := os.Open(plain)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			copyData(t, v, from)
		})
	}
	makeData(t, plain)
	fill("a-group/srv")
	mkfsOn(t, plain, 8<<20, "mkfs.ext4", "-qF")
	fill("a-group/between")
}

const volumeRole = `{
	"partition": "understudy",
	"disks": [{"name": "data-lvm-a--group-srv", "volume": "a-group/srv", "type": "ext4", "mount": "/srv"},
		{"name": "data-lvm-a--group-between", "volume": "a-group/between", "type": "ext4", "mount": "/srv/more"}],
`

// TestMetalVolume checks that an understudy takes over file systems in two logical volumes of one group, one of them in two
// pieces, with everything that the dead kernel had of them in memory only.
func TestMetalVolume(t *testing.T) {
	tier.Full(t, "logical volumes of a machine")
	dir := t.TempDir()
	role := filepath.Join(dir, "volume.json")
	_, rest, _ := strings.Cut(metalRole, "\"mount\": \"/srv\"}],\n")
	if err := os.WriteFile(role, []byte(volumeRole+rest), 0o644); err != nil {
		t.Fatal(err)
	}
	const mounts = `
while [ ! -e /dev/vda ]; do sleep 0.1; done
mkdir -p /run/lvm /run/lock/lvm
lvm vgchange --config 'activation{udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0} devices{use_devicesfile=0 obtain_device_list_from_udev=0} backup{backup=0 archive=0}' -ay a-group || echo "FAILED volumes"
mount -t ext4 -o commit=86400,noinit_itable /dev/mapper/a--group-srv /srv && mkdir /srv/more || echo "FAILED mount"
mount -t ext4 -o commit=86400,noinit_itable /dev/mapper/a--group-between /srv/more || echo "FAILED mount of more"
`
	m := bareMachine{
		// The role is compared with what is mounted when the understudy is started.
		script: parametersFirst + mounts + strings.ReplaceAll(metalRun, "/role.json", "/volume.json") + metalWorkMore(t, "") + "echo c > /proc/sysrq-trigger\n",
		files:  []string{role}, programs: []string{"/sbin/lvm"}, ownDrivers: []string{"dm-mod"}, options: []string{"--under", "lvm"},
	}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	image := filepath.Join(m.Dir, "data.img")
	volumesOf(t, m.Dir, image)
	ns := virtio.attach(t, m, image)
	r, end := startMetal(t, ctx, m)
	defer end()
	client, fetch, _ := outlived(t, ctx, r, ns, 0)
	gone := []string{"/old2", "/old4", "/new/file3"}
	checkTold(t, r.Console(), 24, gone, fetch)
	report := metalReport(t, fetch, ":81/takeover.json")
	if len(report.Refused) > 0 || len(report.Commits) != 2 || !report.Durable {
		t.Errorf("the report is %+v", report.Report)
	}
	givesBack(t, client, r, "/cgi-bin/return")
	left := make(map[string]string)
	for _, v := range []string{"srv", "between"} {
		plain := filepath.Join(dir, v+".img")
		outOfVolume(t, image, "a-group/"+v, plain)
		left[v] = lookInto(t, plain)
	}
	checkTold(t, r.Console(), 24, gone, func(path string) []byte {
		at := filepath.Join(left["srv"], path)
		if name, ok := strings.CutPrefix(path, "/more/"); ok {
			at = filepath.Join(left["between"], name)
		}
		return readLeft(t, at)
	})
}
