package wire

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
