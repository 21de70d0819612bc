package metal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/mounts"
	"understudy.dev/understudy/internal/live/unit"
	"understudy.dev/understudy/internal/live/wire"
)

// DiskOf returns what is mounted on a directory of this machine, in the form by which an understudy finds it
// again: by the serial number of its disk. root is os.DirFS("/"). A file system that lies neither directly on a
// disk, nor in a linear logical volume on one, or has a type that is not salvaged, is refused.
func DiskOf(root fs.FS, mount string) (d wire.Disk, err error) {
	m, device, err := mountAt(root, mount)
	if err != nil {
		return d, err
	}
	if !slices.Contains(taken, m.Type) {
		return d, fmt.Errorf("%s has a file system of type %s: %v can be taken over", mount, m.Type, taken)
	}
	below, volume, err := underneath(root, device)
	if err != nil {
		return d, fmt.Errorf("%s: %w", mount, err)
	}
	name, err := serialOf(root, below)
	if err != nil {
		return d, fmt.Errorf("%s: %w", mount, err)
	}
	if volume != "" {
		name += volumeSuffix + disk.Where{Volume: volume}.Mapper()
	}
	d = wire.Disk{Name: name, Volume: volume, Type: m.Type, Mount: mount}
	if m.Type == "btrfs" {
		d.Options = "subvol=" + m.Subvolume()
	}
	return d, nil
}

// Join adds what is mounted on a directory to the disks of a role. If another directory has the same file system
// already, that disk has both.
func Join(disks []wire.Disk, d wire.Disk) []wire.Disk {
	i := slices.IndexFunc(disks, func(have wire.Disk) bool { return have.Name == d.Name })
	if i < 0 {
		return append(disks, d)
	}
	points := append(disks[i].Points(), d.Points()...)
	slices.SortStableFunc(points, func(a, b wire.MountPoint) int { return cmp.Compare(a.Dir, b.Dir) })
	disks[i].Mount, disks[i].Options, disks[i].Also = points[0].Dir, points[0].Options, points[1:]
	return disks
}

// DeviceOf returns the path of the block device whose file system is mounted on a directory of this machine. root is
// os.DirFS("/"). It fails with ErrNotMounted if nothing is mounted there.
func DeviceOf(root fs.FS, mount string) (string, error) {
	_, number, err := mountAt(root, mount)
	if err != nil {
		return "", err
	}
	at, err := resolve(root, "sys/dev/block/"+number)
	return "/dev/" + path.Base(at), err
}

// mountAt returns what is mounted on a directory, and the block device that its file system is on, as MAJOR:MINOR.
func mountAt(root fs.FS, dir string) (m mounts.Mount, device string, err error) {
	b, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return m, "", err
	}
	if m, err = mounted(string(b), dir); err != nil {
		return m, "", err
	}
	if device, err = deviceOf(root, m); err != nil {
		return m, "", fmt.Errorf("%s: %w", dir, err)
	}
	return m, device, nil
}

// deviceOf returns the block device that a mount's file system is on, as MAJOR:MINOR. The number that mountinfo has for
// btrfs is no device's (fs/super.c, get_anon_bdev), and its source is the node that the file system was mounted by.
func deviceOf(root fs.FS, m mounts.Mount) (string, error) {
	if m.Type != "btrfs" {
		return m.Device, nil
	}
	node := strings.TrimPrefix(m.Source, "/")
	if target, err := fs.ReadLink(root, node); err == nil {
		node = target
	}
	b, err := fs.ReadFile(root, "sys/class/block/"+path.Base(node)+"/dev")
	if err != nil {
		return "", fmt.Errorf("find device %s: %w", m.Source, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// checkPoints refuses a disk whose directories are not in the order in which they are mounted. Disks are mounted in the
// alphabetical order of their first directories.
func checkPoints(disks []wire.Disk, d wire.Disk) error {
	points := d.Points()
	for i, p := range points {
		switch {
		case !path.IsAbs(p.Dir) || path.Clean(p.Dir) != p.Dir:
			return fmt.Errorf("disk %s: %q is no clean absolute path", d.Name, p.Dir)
		case i > 0 && p.Dir <= points[i-1].Dir:
			return fmt.Errorf("disk %s: the directories that it is mounted on must be in alphabetical order, and %s comes after %s", d.Name, p.Dir, points[i-1].Dir)
		}
		if on, ok := diskAt(disks, p.Dir); !ok || on.Name != d.Name {
			return fmt.Errorf("%s of disk %s would be hidden by disk %s, which is mounted after it on %s", p.Dir, d.Name, on.Name, on.Mount)
		}
	}
	return nil
}

// InOrder returns a role's disks in the order in which an understudy mounts them: one that is mounted inside another comes
// after that one.
func InOrder(disks []wire.Disk) []wire.Disk {
	return slices.SortedStableFunc(slices.Values(disks), func(a, b wire.Disk) int { return cmp.Compare(a.Mount, b.Mount) })
}

// diskAt returns the disk of a role that a path is on when all disks are mounted: what is mounted later hides what was
// there before.
func diskAt(disks []wire.Disk, path string) (found wire.Disk, ok bool) {
	for _, d := range InOrder(disks) {
		for _, p := range d.Points() {
			if within(path, p.Dir) {
				found, ok = d, true
			}
		}
	}
	return found, ok
}

// CheckRole returns why a role cannot be carried out for this machine: its disks must be those that are mounted
// now; a service that is to run from its root file system must be there, and have a unit that can be started
// without systemd. omitted are the settings of units that are not carried out then, a line for each unit. root
// is os.DirFS("/").
func CheckRole(root fs.FS, role wire.Config) (omitted []string, err error) {
	if err := checkRole(&role); err != nil {
		return nil, err
	}
	if err := errors.Join(CheckDisks(root, role), checkBelow(root, role)); err != nil {
		return nil, err
	}
	if role.NFS != nil {
		if err := checkPaths(root, role.NFS); err != nil {
			return nil, err
		}
	}
	return checkServices(root, role)
}

// CheckDisks refuses a role that does not match what is mounted: another file system is on the directory of one
// of its disks. A directory with nothing mounted on it passes: its disk may have been unmounted in good order.
// root is as for CheckRole.
func CheckDisks(root fs.FS, role wire.Config) error {
	for _, d := range role.Disks {
		for _, p := range d.Points() {
			if err := checkMounted(root, d, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkMounted(root fs.FS, d wire.Disk, p wire.MountPoint) error {
	got, err := DiskOf(root, p.Dir)
	switch {
	case errors.Is(err, ErrNotMounted):
		return nil
	case err != nil:
		return fmt.Errorf("disk %s: %w", d.Name, err)
	case got.Name != d.Name || got.Type != d.Type:
		return fmt.Errorf("disk %s (%s) of the role is to be mounted on %s, where disk %s (%s) is now: put the mounted disk into the role", d.Name, d.Type, p.Dir, got.Name, got.Type)
	case d.Type == "btrfs" && got.Options != p.Options:
		return fmt.Errorf("disk %s of the role is to be mounted on %s with %q, where it is with %q now: put that into the role", d.Name, p.Dir, p.Options, got.Options)
	}
	return nil
}

// checkBelow refuses a role with services that would not find a file system which is mounted below the role's
// disks, even if that is a directory of one of these disks (mount --bind).
func checkBelow(root fs.FS, role wire.Config) error {
	if len(role.Services) == 0 && role.NFS == nil {
		return nil
	}
	b, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return err
	}
	var missed []string
	for m := range mounts.Parse(string(b)) {
		ours := hasPoint(role.Disks, m.Dir)
		_, below := diskAt(role.Disks, m.Dir)
		spared := slices.ContainsFunc(role.Without, func(dir string) bool { return within(m.Dir, dir) })
		if what := describe(m); stored(m) && below && !ours && !spared && !slices.Contains(missed, what) {
			missed = append(missed, what)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("services would not find %s: take them over too, or name the directories that no service needs with --without (\"without\" in a role)", strings.Join(missed, ", "))
	}
	return nil
}

// within says whether a path is a directory, or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// checkServices is CheckRole for a role's services.
func checkServices(root fs.FS, role wire.Config) (omitted []string, err error) {
	rooted := hasPoint(role.Disks, "/")
	for _, s := range role.Services {
		switch {
		case s.Unit == "" && len(s.Command) == 0:
			return nil, fmt.Errorf("service %s has neither a command nor a unit", s.Name)
		case s.Unit == "":
		case len(s.Command) > 0:
			return nil, fmt.Errorf("service %s has a command and a unit: give one of them", s.Name)
		case !rooted:
			return nil, fmt.Errorf("service %s is unit %s of the root file system, which is not taken over: have / among the disks", s.Name, s.Unit)
		default:
			u, err := unit.Load(root, s.Unit)
			if err != nil {
				return nil, fmt.Errorf("service %s: %w", s.Name, err)
			}
			if len(u.Omitted) > 0 {
				omitted = append(omitted, fmt.Sprintf("%s: not done on the understudy: %s", s.Unit, strings.Join(u.Omitted, ", ")))
			}
		}
	}
	return omitted, nil
}

// hasPoint reports whether a directory is one that a disk of a role is mounted on.
func hasPoint(disks []wire.Disk, dir string) bool {
	return slices.ContainsFunc(disks, func(d wire.Disk) bool {
		return slices.ContainsFunc(d.Points(), func(p wire.MountPoint) bool { return p.Dir == dir })
	})
}

// ErrNotMounted says that nothing is mounted on a directory.
var ErrNotMounted = errors.New("nothing is mounted there")

// mounted returns what is mounted on a directory: the last mount counts. It fails with ErrNotMounted if nothing
// is mounted there.
func mounted(info, dir string) (found mounts.Mount, err error) {
	for m := range mounts.Parse(info) {
		if m.Dir == dir {
			found = m
		}
	}
	switch {
	case found.Device == "":
		return found, fmt.Errorf("%s: %w", dir, ErrNotMounted)
	case !found.Whole():
		return found, fmt.Errorf("%s has directory %s of %s (%s) mounted on it: only the whole of a file system, or of a subvolume, can be taken over", dir, found.Root, found.Source, found.Type)
	}
	return found, nil
}

// remote are the types of file systems whose content is not on a device in /dev.
var remote = []string{"zfs", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs"}

// stored says whether a mount has content that outlives the kernel.
func stored(m mounts.Mount) bool {
	return strings.HasPrefix(m.Source, "/dev/") || slices.Contains(remote, m.Type)
}

func describe(m mounts.Mount) string { return fmt.Sprintf("%s (%s on %s)", m.Dir, m.Type, m.Source) }

// Left returns the file systems of devices that this machine has mounted for writing, and that a role does not
// have: what is unsaved there is lost with the kernel. root is os.DirFS("/").
func Left(root fs.FS, role wire.Config) (left []string, err error) {
	b, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool) // by device
	for m := range mounts.Parse(string(b)) {
		if hasPoint(role.Disks, m.Dir) && m.Whole() {
			known[m.Device] = true
		}
	}
	for m := range mounts.Parse(string(b)) {
		if m.Has("rw") && stored(m) && !known[m.Device] {
			known[m.Device] = true
			left = append(left, describe(m))
		}
	}
	return left, nil
}

// serialOf is the serial number of a block device's disk, with -partN behind it if the device is a partition.
func serialOf(root fs.FS, device string) (serial string, err error) {
	dir := "sys/dev/block/" + device
	number := ""
	if b, err := fs.ReadFile(root, dir+"/partition"); err == nil {
		number = strings.TrimSpace(string(b))
		dir += "/.."
	}
	at, err := resolve(root, dir)
	if err != nil {
		return "", err
	}
	for _, stacked := range []string{"dm", "md", "loop", "bcache"} {
		if _, err := fs.Stat(root, at+"/"+stacked); err == nil {
			return "", fmt.Errorf("it lies on %s (%s), which an understudy cannot put together yet", path.Base(at), stacked)
		}
	}
	if _, err := onPCI(root, at); err != nil {
		return "", err
	}
	if serial = disk.Serial(root, at); serial == "" {
		return "", fmt.Errorf("disk %s has no serial number to be found again by", path.Base(at))
	}
	disks, err := bySerial(root)
	if err != nil {
		return "", err
	}
	if same := disks[serial]; len(same) > 1 {
		return "", fmt.Errorf("disk %s has serial number %s, which %d disks have: namespaces of one controller, or paths to one disk, cannot be told apart", path.Base(at), serial, len(same))
	}
	if number != "" {
		serial += "-part" + number
	}
	return serial, nil
}

// resolve follows the link of a block device in sysfs.
func resolve(root fs.FS, dir string) (string, error) {
	link, up := strings.CutSuffix(dir, "/..")
	target, err := fs.ReadLink(root, link)
	if err != nil {
		return "", fmt.Errorf("find device %s: %w", path.Base(link), err)
	}
	at := path.Join(path.Dir(link), target)
	if up {
		at = path.Dir(at)
	}
	if !strings.HasPrefix(at, "sys/devices/") {
		return "", fmt.Errorf("find device %s: its link leads to %s, which is not in /sys/devices", path.Base(link), at)
	}
	return at, nil
}
