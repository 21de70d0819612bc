package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
)

// The layers under a file system are activated from the disk up: an md mirror, LUKS, an LVM logical
// volume, as far as a disk has them. Each is found again as a holder of the device below it
// (Documentation/ABI/testing/sysfs-block, holders), whatever its name is.

// layer is one of these layers.
type layer struct {
	program string                // what activates it
	is      func(dir string) bool // whether a block device, given by its directory in sysfs, is this layer
	// The program's arguments: up activates the layer on the devices below it, down ends the layer's device.
	up   func(below []string) []string
	down func(device string) []string
}

// layers are the layers of a disk, the lowest first.
func layers(d wire.Disk) (all []layer) {
	if d.Mirror != "" {
		all = append(all, mirrorLayer(d))
	}
	if d.LUKS != "" {
		all = append(all, luksLayer(d))
	}
	if d.Volume != "" {
		all = append(all, volumeLayer(d))
	}
	return all
}

func mirrorLayer(d wire.Disk) layer {
	return layer{
		program: "mdadm",
		is:      func(dir string) bool { _, err := os.Stat(filepath.Join(dir, "md")); return err == nil },
		up: func(below []string) []string { // with whichever of its members are up to date
			return append([]string{"--assemble", "--run", "/dev/md/" + nodeOf(d)}, below...)
		},
		down: func(device string) []string { return []string{"--stop", device} },
	}
}

func luksLayer(d wire.Disk) layer {
	return layer{
		program: "cryptsetup",
		is:      func(dir string) bool { return strings.HasPrefix(dmField(dir, "uuid"), "CRYPT-LUKS") },
		up: func(below []string) []string {
			return []string{"open", "--type", "luks", "--key-file", d.LUKS, below[0], "luks-" + nodeOf(d)}
		},
		down: func(device string) []string { return []string{"close", dmField(sysfsOf(device), "name")} },
	}
}

func volumeLayer(d wire.Disk) layer {
	group, _, _ := strings.Cut(d.Volume, "/")
	return layer{
		program: "lvm",
		is:      func(dir string) bool { return dmField(dir, "name") == (disk.Where{Volume: d.Volume}).Mapper() },
		up: func(below []string) []string {
			// LVM looks at this device only: another disk may have a copy of it.
			filter := fmt.Sprintf("filter=[%q,\"r|.*|\"]", "a|/"+filepath.Base(below[0])+"$|")
			return []string{"lvchange", volumeConfig(filter), "--activate", "y", d.Volume}
		},
		down: func(string) []string { return []string{"vgchange", volumeConfig(""), "--activate", "n", group} },
	}
}

// volumeConfig is the configuration that makes LVM wait for no other program, and leave nothing behind.
func volumeConfig(filter string) string {
	return "--config=devices{use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" " + filter +
		"} activation{udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0} backup{backup=0 archive=0}"
}

// nodeOf is the name that a disk's md and LUKS devices are given, from the disk's name.
func nodeOf(d wire.Disk) string { return strings.ReplaceAll(d.Name, ".", "-") }

// dmField is what device-mapper says of one of its devices (Documentation/ABI/testing/sysfs-block-dm).
func dmField(dir, field string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "dm", field)) // empty: it is not a device-mapper device
	return strings.TrimSpace(string(b))
}

func sysfsOf(device string) string { return filepath.Join("/sys/class/block", filepath.Base(device)) }

// holder is the device that lies on another and is of the given kind, or empty if there is none.
func holder(device string, is func(string) bool) string {
	held, _ := filepath.Glob(filepath.Join(sysfsOf(device), "holders", "*")) // the pattern is well-formed
	for _, h := range held {
		if is(sysfsOf(h)) {
			return "/dev/" + filepath.Base(h)
		}
	}
	return ""
}

// bottom are the devices that the lowest layer of a disk is on.
func bottom(d wire.Disk) ([]string, error) {
	var devices []string
	for _, name := range []string{d.Name, d.Mirror} {
		if name == "" {
			continue
		}
		path, err := diskPath(name)
		if err == nil && d.Part != 0 {
			path, err = partition(filepath.Join("/sys/block", filepath.Base(path)), fmt.Sprint(d.Part))
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, path)
	}
	return devices, nil
}

// standing are a disk's devices, the lowest first: those that the lowest layer is on, and then the device
// of each active layer. A mirror counts as active even if only one of its disks is in it.
func standing(d wire.Disk) ([][]string, error) {
	below, err := bottom(d)
	if err != nil {
		return nil, err
	}
	all := [][]string{below}
	for _, l := range layers(d) {
		up := ""
		for _, device := range below {
			up = max(up, holder(device, l.is))
		}
		if up == "" {
			return all, nil
		}
		below = []string{up}
		all = append(all, below)
	}
	return all, nil
}

// activate activates the layers of a disk up to the device that its file system is on.
func (a *Agent) activate(ctx context.Context, d wire.Disk) error {
	all := layers(d)
	for {
		up, err := standing(d)
		if err != nil {
			return err
		}
		n := len(up) - 1
		if n == len(all) {
			return nil
		}
		l := all[n]
		if err := a.tool(ctx, l.program, l.up(up[n])); err != nil {
			return fmt.Errorf("activate the layers (md, LUKS, LVM) under the file system of disk %s: %w", d.Name, err)
		}
		after, err := standing(d)
		if err == nil && len(after) > len(up) {
			a.tellDegraded(d, after[len(up)][0])
			continue
		}
		return errors.Join(err, fmt.Errorf("activate the layers (md, LUKS, LVM) under the file system of disk %s: %s made no device on %s", d.Name, l.program, strings.Join(up[n], " and ")))
	}
}

// tellDegraded reports an array that runs on one disk of two.
func (a *Agent) tellDegraded(d wire.Disk, device string) {
	b, err := os.ReadFile(filepath.Join(sysfsOf(device), "md", "degraded")) // Documentation/admin-guide/md.rst
	if n := strings.TrimSpace(string(b)); err == nil && n != "0" {
		a.trouble("disk %s: its mirror has only one disk that is up to date: add the other again (mdadm --manage %s --re-add)", d.Name, device)
	}
}

// deactivate ends what activate began, the highest layer first.
func (a *Agent) deactivate(ctx context.Context, d wire.Disk) error {
	up, err := standing(d)
	if err != nil {
		return err
	}
	all := layers(d)
	for n := len(up) - 1; n > 0; n-- {
		l := all[n-1]
		if err := a.tool(ctx, l.program, l.down(up[n][0])); err != nil {
			return fmt.Errorf("deactivate the layers (md, LUKS, LVM) under the file system of disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// tool runs the program of a layer. In a small guest, only that program makes the nodes of the layer's devices.
func (a *Agent) tool(ctx context.Context, program string, args []string) error {
	if _, err := exec.LookPath(program); err != nil {
		return hint.New("find "+program, err, "Build the guest's image again with understudy initramfs --under, or install it there.")
	}
	for _, dir := range []string{"/run/cryptsetup", "/run/lvm", "/run/lock/lvm", "/run/mdadm"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MDADM_NO_UDEV=1", "LVM_SUPPRESS_FD_WARNINGS=1")
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.children.Run(cmd); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(said.String()))
	}
	return nil
}

// activateDisk is the verb: it activates the layers of a disk that has just become this partition's, or
// that the partition has at its start. The device is not mounted yet.
func (a *Agent) activateDisk(ctx context.Context, r wire.ActivateRequest) (result wire.ActivateResult, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(r.Disk)
	if err != nil {
		return result, err
	}
	if err := a.prepareDevice(ctx, d); err != nil {
		return result, err
	}
	path, err := devicePath(d)
	if err != nil {
		return result, err
	}
	f, err := os.Open(path)
	if err != nil {
		return result, fmt.Errorf("open disk %s: %w", r.Disk, err)
	}
	defer f.Close()
	if result.Size, err = f.Seek(0, 2); err != nil {
		return result, fmt.Errorf("size disk %s: %w", r.Disk, err)
	}
	return result, nil
}

// prepareDevice activates a disk's layers, after it has dropped what was cached of the disk.
func (a *Agent) prepareDevice(ctx context.Context, d wire.Disk) error {
	if up, err := standing(d); err != nil || len(up) == 1 { // otherwise its layers already use the disks as they are
		if err := freshen(ctx, d); err != nil {
			return err
		}
	}
	return a.activate(ctx, d)
}

// read reads from the device that a disk's file system is on.
func (a *Agent) read(_ context.Context, r wire.ReadRequest) (result wire.ReadResult, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(r.Disk)
	if err != nil {
		return result, err
	}
	if r.Off < 0 || r.Len <= 0 || r.Len > wire.MaxRead || r.Off%512 != 0 || r.Len%512 != 0 {
		return result, fmt.Errorf("read %d bytes at %d of disk %s: no more than %d, in whole sectors", r.Len, r.Off, r.Disk, wire.MaxRead)
	}
	path, err := devicePath(d)
	if err != nil {
		return result, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return result, fmt.Errorf("open disk %s: %w", r.Disk, err)
	}
	defer f.Close()
	room := make([]byte, r.Len+directRead)
	at := int(-uintptr(unsafe.Pointer(&room[0])) % directRead)
	result.Data = room[at : at+int(r.Len)]
	if _, err := f.ReadAt(result.Data, r.Off); err != nil {
		return result, fmt.Errorf("read disk %s: %w", r.Disk, err)
	}
	return result, nil
}

// haveLayers are the programs for layers that this guest has.
func haveLayers() (programs []string) {
	for _, p := range wire.Layers {
		if _, err := exec.LookPath(p); err == nil {
			programs = append(programs, p)
		}
	}
	return programs
}

// endLayers ends all layers of the disks, whose file systems are unmounted.
func (a *Agent) endLayers(ctx context.Context) error {
	var errs []error
	for _, d := range slices.Backward(a.config.Disks) {
		if len(layers(d)) > 0 {
			errs = append(errs, a.deactivate(ctx, d))
		}
	}
	return errors.Join(errs...)
}

// rehearseLayers activates the layers of shared disk i for a moment, on the trial disk that stands for
// it: with the real key, and with the time and memory that this takes.
func (a *Agent) rehearseLayers(ctx context.Context, i int, d wire.Disk) error {
	if len(layers(d)) == 0 {
		return nil
	}
	d.Name = wire.TrialDisk(i, 0)
	if d.Mirror != "" {
		d.Mirror = wire.TrialDisk(i, 1)
	}
	err := a.prepareDevice(ctx, d)
	return errors.Join(err, a.deactivate(ctx, d))
}
