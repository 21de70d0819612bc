// Package guest builds the image of the small guest that a partition runs if it has no
// root disk of its own.
package guest

import (
	"fmt"
	"os"
	"slices"

	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/wire"
)

// guestModules are the modules that the agent and a pair's disks need: some kernels have
// their drivers as modules, such as Debian's cloud kernels, and the others their file
// systems too. The kernel asks for the modules of the checksum and of the format of quota
// files by name, when a disk is mounted.
var guestModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", panicModule, "crc32c_generic|crc32c|", "ext4", "quota_v2|"}

// panicModule drives the device by which a dying kernel sends its last message. Since 5.13
// there is a driver for the one on PCI, before that only for the older one on an ISA port.
const panicModule = "pvpanic-pci|pvpanic"

// fsModules are, for each type of file system, its modules, which a kernel may have built in, and
// the modules that it asks for by name. Those of the ext family are in every guest.
var fsModules = map[string][]string{
	"ext2": nil, "ext3": nil, "ext4": nil,
	"xfs":   {"libcrc32c|", "xfs"},
	"btrfs": {"libcrc32c|", "xxhash_generic|", "blake2b_generic|", "sha256_generic|", "btrfs"},
}

// under are the programs and modules for what may lie under a file system.
var under = map[string]struct {
	program string
	modules []string
}{
	"md":   {"/sbin/mdadm", []string{"raid1"}},
	"luks": {"/sbin/cryptsetup", []string{"dm-crypt", "xts|", "ecb|", "essiv|", "cbc|", "sha512_generic|", "sha256_generic|", "algif_skcipher|"}},
	"lvm":  {"/sbin/lvm", []string{"dm-mod"}},
}

// busybox is the path of busybox in guests, and busyboxes are its paths in distributions: Fedora and RHEL have it
// in /sbin. It need not be the static one. busyboxNames are the commands that are linked to it.
const busybox = "/bin/busybox"

var busyboxes = []string{busybox, "/sbin/busybox"}

var busyboxNames = []string{"sh", "httpd", "nc", "ls", "cat", "mount", "umount", "ps", "dmesg", "ip", "sync", "sleep"}

// Image is the image of the small guest: this program as PID 1, the modules that it loads
// at boot, e2fsck(8), without which a takeover cannot mount a file system that a crash left
// mid-update, and busybox if this machine has it.
type Image struct {
	Program   string           // path of the program that becomes PID 1; empty: the running one
	Modules   string           // lib/modules/RELEASE of the guest's kernel
	Types     []string         // file systems besides ext4: xfs, btrfs
	Under     []string         // what lies under file systems: md, luks, lvm
	Drivers   []string         // further modules, such as nvme; NAME| if the kernel may have it built in
	NFSServer bool             // add the kernel's NFS server and its helpers
	NFSClient bool             // add its client, and helpers
	Files     []initramfs.File // everything else
}

// WriteFile builds the image at path: complete and on disk, or not at all.
func (i Image) WriteFile(path string) error {
	program := i.Program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return err
		}
	}
	checker, err := initramfs.Program(wire.Checker)
	if err != nil {
		return err
	}
	modules, files, err := nfsContent(i.NFSServer, i.NFSClient)
	if err != nil {
		return err
	}
	modules = slices.Concat(modules, guestModules, i.Drivers)
	for _, t := range i.Types {
		of, known := fsModules[t]
		if !known {
			return fmt.Errorf("no modules are known for file system %q: there are xfs and btrfs", t)
		}
		modules = append(modules, of...)
	}
	for _, name := range i.Under {
		u, ok := under[name]
		if !ok {
			return fmt.Errorf("%q under a file system is not supported: name md, luks or lvm", name)
		}
		program, err := initramfs.Program(u.program)
		if err != nil {
			return err
		}
		modules, files = append(modules, u.modules...), append(files, program...)
	}
	box, err := busyboxFiles()
	if err != nil {
		return err
	}
	files = slices.Concat(files, checker, i.Files, box)
	return initramfs.WriteFile(path, initramfs.Spec{Init: program, ModulesDir: i.Modules, Modules: modules, Files: initramfs.Distinct(files)})
}

// busyboxFiles are busybox, with its libraries if it has any, and its commands. There are none if this
// machine has no busybox.
func busyboxFiles() ([]initramfs.File, error) {
	for _, at := range busyboxes {
		if _, err := os.Stat(at); err != nil {
			continue
		}
		files, err := initramfs.Add(at)
		if err != nil {
			return nil, err
		}
		if at != busybox {
			files = append(files, initramfs.Link(busybox, at))
		}
		for _, name := range busyboxNames {
			files = append(files, initramfs.Link("/bin/"+name, "busybox"))
		}
		return files, nil
	}
	return nil, nil
}
