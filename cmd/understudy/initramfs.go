package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/initramfs"
)

// guestModules are what the agent and a pair's disks need of a kernel that has its
// drivers as modules, as Debian's cloud kernels have, or its file systems too, as
// the others have. The checksum is asked for by name when a disk is mounted.
var guestModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", panicModule, "crc32c_generic|crc32c|", "ext4"}

// panicModule drives the device that a dying kernel sends its last message by: that
// on PCI since 5.13, until then only the older one, on an ISA port.
const panicModule = "pvpanic-pci|pvpanic"

// busyboxNames are the commands that busybox is linked as in the guest.
var busyboxNames = []string{"sh", "httpd", "nc", "ls", "cat", "mount", "umount", "ps", "dmesg", "ip", "sync", "sleep"}

// guestImage builds the guest image at path from this very program. wanted are
// the modules that are loaded at boot, of those in the directory modules.
func guestImage(path, modules string, wanted []string, add []initramfs.File) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return programImage(self, path, modules, wanted, add)
}

// programImage builds it from this or another build of the program.
func programImage(program, path, modules string, wanted []string, add []initramfs.File) error {
	spec := initramfs.Spec{Init: program, ModulesDir: modules, Modules: wanted, Files: add}
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err == nil {
		spec.Files = append(spec.Files, initramfs.Copy(busybox, busybox, 0o755))
		for _, name := range busyboxNames {
			spec.Files = append(spec.Files, initramfs.Link("/bin/"+name, "busybox"))
		}
	}
	spec.Files = initramfs.Distinct(spec.Files)
	return initramfs.WriteFile(path, spec)
}

func initramfsCommand() *cobra.Command {
	var (
		output, modules string
		files           []string
		server, client  bool
	)
	cmd := &cobra.Command{
		Use:   "initramfs -o guest.cpio --modules /lib/modules/RELEASE",
		Short: "Build the image of the small guest: this program as PID 1, and the modules it needs",
		Long: `Build the image of the small guest: this program as PID 1, and the modules it
needs. The host's /bin/busybox goes in too if it is there (it must be the static
one: package busybox-static), and so does every file named with --add, a program
with the libraries that it needs.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var add []initramfs.File
			for _, f := range files {
				abs, err := filepath.Abs(f)
				if err != nil {
					return err
				}
				more, err := initramfs.Add(abs)
				if err != nil {
					return err
				}
				add = append(add, more...)
			}
			if _, err := os.Stat(modules); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no modules in %s: name the lib/modules/RELEASE of the guest's kernel", modules)
			}
			wanted, more, err := nfsContent(server, client)
			if err != nil {
				return err
			}
			return guestImage(output, modules, append(wanted, guestModules...), append(more, add...))
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "guest.cpio", "image to write")
	cmd.Flags().StringVar(&modules, "modules", "", "the guest kernel's lib/modules/RELEASE")
	cmd.Flags().StringArrayVar(&files, "add", nil, "file of this machine to put at the same path of the guest")
	cmd.Flags().BoolVar(&server, "nfs", false, "add the kernel's NFS server and its helpers")
	cmd.Flags().BoolVar(&client, "nfs-client", false, "add the kernel's NFS client and its helpers")
	_ = cmd.MarkFlagRequired("modules") // the flag exists
	return cmd
}
