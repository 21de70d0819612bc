package metal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
)

// volumeSuffix stands in the name of a role's disk before the device mapper's name for a logical volume on it.
const volumeSuffix = "-lvm-"

// underneath returns the block device that a file system lies on, as MAJOR:MINOR, and the logical volume between the two, if
// there is one. The volume must be one that an understudy finds again: linear, on that device only. root is os.DirFS("/").
func underneath(root fs.FS, device string) (below, volume string, err error) {
	at, err := resolve(root, "sys/dev/block/"+device)
	if err != nil {
		return "", "", err
	}
	uuid, err := fs.ReadFile(root, at+"/dm/uuid")
	if err != nil || !strings.HasPrefix(string(uuid), "LVM-") { // LVM2, lib/activate/dev_manager.c, UUID_PREFIX
		return device, "", nil
	}
	name, err := fs.ReadFile(root, at+"/dm/name")
	if err == nil {
		volume, err = unmangle(strings.TrimSpace(string(name)))
	}
	if err != nil {
		return "", "", err
	}
	slaves, err := fs.Glob(root, at+"/slaves/*")
	if err != nil {
		return "", "", err
	}
	if len(slaves) != 1 {
		return "", "", fmt.Errorf("logical volume %s lies on %d devices, and an understudy puts together only one that lies on one", volume, len(slaves))
	}
	number, err := fs.ReadFile(root, slaves[0]+"/dev")
	if err == nil {
		err = linear(root, slaves[0], volume)
	}
	return strings.TrimSpace(string(number)), volume, err
}

// unmangle is the opposite of disk.Where.Mapper.
func unmangle(name string) (volume string, err error) {
	for i := 1; i+1 < len(name); i++ {
		if name[i] == '-' && name[i+1] == '-' {
			i++
		} else if name[i] == '-' {
			single := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
			return single(name[:i]) + "/" + single(name[i+1:]), nil
		}
	}
	return "", fmt.Errorf("%q is not the name of a logical volume", name)
}

// linear checks that a volume is linear, on the device whose directory in sysfs is at.
func linear(root fs.FS, at, volume string) error {
	size, err := sizeOf(root, at)
	if err != nil {
		return err
	}
	f, err := root.Open("dev/" + path.Base(at))
	if err != nil {
		return err
	}
	defer f.Close()
	r, ok := f.(io.ReaderAt)
	if !ok {
		return errors.ErrUnsupported
	}
	_, err = disk.At(r, size, disk.Where{Volume: volume})
	return err
}
