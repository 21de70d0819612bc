package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/rootdisk"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make root disks for partitions that have a system of their own",
	}
	cmd.AddCommand(imagePrepareCommand(), imageBuildCommand())
	return cmd
}

// preparation has the options of image prepare.
type preparation struct {
	rootdisk.Content
	release string
	out     string
	where   disk.Where
	undo    bool
}

func (p *preparation) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&p.Units, "unit", nil, "service of systemd's, NAME.service, that the pair starts by role: in a pair it starts nowhere else")
	cmd.Flags().StringArrayVar(&p.Mounts, "mount", nil, "directory whose disk is one of the pair's: its line in /etc/fstab is set aside")
}

const prepareLong = `Put the agent into a system on a disk image, so that it can be the root disk of a partition.

The image is raw, or a block device, with the root file system alone, in a partition, or
in a linear logical volume; nobody may use it. Each thing that is changed is told. Outside of a pair the system boots
as before, but for what --mount has set aside. Its kernel and initramfs are copied to
IMAGE.vmlinuz and IMAGE.initrd; of a block device, whose place is not kept over a boot,
only to where --out says. The lines for pair.yaml are printed.`

func imagePrepareCommand() *cobra.Command {
	var p preparation
	cmd := &cobra.Command{
		Use:   "prepare IMAGE",
		Short: "Put the agent into a system on a disk image",
		Long:  prepareLong,
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return p.run(args[0], cmd.OutOrStdout()) },
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&p.release, "release", "", "the kernel to boot, a release in its /boot; the newest by default")
	cmd.Flags().StringVar(&p.out, "out", "", "copy its kernel and initramfs to `PREFIX`.vmlinuz and PREFIX.initrd; IMAGE by default")
	whereFlags(cmd.Flags(), &p.where, "the root file system", "where there is one")
	cmd.MarkFlagsMutuallyExclusive("partition", "lvm")
	cmd.Flags().BoolVar(&p.undo, "undo", false, "take away what was put there before")
	return cmd
}

// run prepares an image, or undoes it.
func (p *preparation) run(image string, out io.Writer) (err error) {
	d, err := rootdisk.Open(image, p.where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	changed := false
	tell := func(what string) {
		changed = changed || !strings.HasPrefix(what, rootdisk.Note)
		fmt.Fprintln(out, what)
	}
	if p.undo {
		if err := d.Undo(tell); err != nil || changed {
			return err
		}
		_, err = fmt.Fprintln(out, "nothing of ours is in it")
		return err
	}
	abs, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	prefix, err := p.prefix(abs)
	if err != nil {
		return err
	}
	if p.Program, err = os.Executable(); err != nil {
		return err
	}
	if err := d.Prepare(p.Content, tell); err != nil {
		return err
	}
	if !changed {
		fmt.Fprintln(out, "it is prepared already")
	}
	k, err := d.TakeKernel(p.release, prefix)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "its kernel is %s; for pair.yaml:\n  kernel: %s\n  initramfs: %s\n  root: %s\n  append: %s ro\n",
		k.Release, k.Image, k.Initramfs, abs, d.Parameters())
	return err
}

// prefix returns the prefix of the names of an image's kernel and initramfs.
func (p *preparation) prefix(image string) (string, error) {
	prefix := image
	if p.out != "" {
		var err error
		if prefix, err = filepath.Abs(p.out); err != nil {
			return "", err
		}
	}
	if strings.HasPrefix(prefix, "/dev/") {
		return "", hint.New("copy the kernel of "+image, fmt.Errorf("%s.vmlinuz would be gone when this machine boots again", prefix),
			"Say where it goes: --out PREFIX, which is not below /dev.")
	}
	return prefix, nil
}

func imageBuildCommand() *cobra.Command {
	var (
		p    preparation
		s    rootdisk.System
		size int64
	)
	cmd := &cobra.Command{
		Use:   "build FILE",
		Short: "Make a root disk with Debian, from its archive, and put the agent into it",
		Long: `Make a root disk with Debian, from its archive, and put the agent into it, as image prepare
does. It takes some minutes, mmdebstrap, a network, and root.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Size = size << 20
			if err := rootdisk.Build(cmd.Context(), args[0], s, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return p.run(args[0], cmd.OutOrStdout())
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&s.Suite, "suite", "bookworm", "Debian's release")
	cmd.Flags().StringSliceVar(&s.Packages, "package", nil, "further package; may be given for each, or as a list with commas")
	cmd.Flags().StringVar(&s.Hostname, "hostname", "guest", "its name")
	cmd.Flags().Int64Var(&size, "size", 4096, "size of the image, MiB")
	return cmd
}
