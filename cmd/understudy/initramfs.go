package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/initramfs"
)

func initramfsCommand() *cobra.Command {
	var (
		output string
		files  []string
		image  guest.Image
	)
	cmd := &cobra.Command{
		Use:   "initramfs -o guest.cpio --modules /lib/modules/RELEASE",
		Short: "Build the image of the small guest: this program as PID 1, and the modules it needs",
		Long: `Build the image of the small guest: this program as PID 1, the modules it needs,
and /sbin/e2fsck. The host's busybox goes in too if it has one, and so does every file
named with --add, a program with the libraries that it needs.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, f := range files {
				abs, err := filepath.Abs(f)
				if err != nil {
					return err
				}
				if agent.Hides(abs) {
					return fmt.Errorf("add %s: the guest mounts a file system of its own there, which hides it: copy it to a place such as /opt first", abs)
				}
				more, err := initramfs.Add(abs)
				if err != nil {
					return err
				}
				image.Files = append(image.Files, more...)
			}
			if _, err := os.Stat(image.Modules); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no modules in %s: name the lib/modules/RELEASE of the guest's kernel", image.Modules)
			}
			return image.WriteFile(output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "guest.cpio", "image to write")
	cmd.Flags().StringVar(&image.Modules, "modules", "", "the guest kernel's lib/modules/RELEASE")
	cmd.Flags().StringArrayVar(&files, "add", nil, "file of this machine to put at the same path of the guest")
	cmd.Flags().StringArrayVar(&image.Types, "fs", nil, "file system besides ext4: xfs, btrfs")
	cmd.Flags().StringArrayVar(&image.Under, "under", nil, "what lies under file systems: md, luks, lvm")
	cmd.Flags().StringArrayVar(&image.Drivers, "driver", nil, "further module to load, for a device of a bare machine")
	cmd.Flags().BoolVar(&image.NFSServer, "nfs", false, "add the kernel's NFS server and its helpers")
	cmd.Flags().BoolVar(&image.NFSClient, "nfs-client", false, "add the kernel's NFS client and its helpers")
	_ = cmd.MarkFlagRequired("modules") // the flag exists
	return cmd
}
