package wire

import "strings"

// Layers are the programs in a guest for the layers that may be under a file system: md arrays,
// LUKS, LVM.
var Layers = []string{"mdadm", "cryptsetup", "lvm"}

// Programs returns those of Layers that the disk needs.
func (d *Disk) Programs() (programs []string) {
	for i, has := range []string{d.Mirror, d.LUKS, d.Volume} {
		if has != "" {
			programs = append(programs, Layers[i])
		}
	}
	return programs
}

// VolumeNode is the name that device-mapper has for a logical volume GROUP/NAME: both with their
// dashes doubled (LVM2, libdm, dm_build_dm_name).
func VolumeNode(volume string) string {
	group, name, _ := strings.Cut(volume, "/")
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(group) + "-" + double(name)
}
