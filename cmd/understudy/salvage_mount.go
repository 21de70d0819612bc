package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/cachefs"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/takeover/offline"
)

func mountCommand() *cobra.Command {
	var s selection
	var asJSON, unsaved, others bool
	var disks []string
	var from offline.Source
	cmd := &cobra.Command{
		Use:   "mount IMAGE... DIR",
		Short: "Show the files in a dead kernel's memory as a read-only file system",
		Long: `Show the files in a dead kernel's memory as a read-only file system, until it is
unmounted or the command is interrupted. A file is at DIR/DEVICE/PATH. What memory
does not hold of it reads as an I/O error, never as zeros, unless --disk has it:
the disk image as the crash left it, raw or qcow2, with ext2, ext3 or ext4. Both together give
every cached file in full, as the dead kernel saw it.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.all = !unsaved
			dir := args[len(args)-1]
			c, err := s.open(args[:len(args)-1], true)
			if err != nil {
				return err
			}
			defer c.close()
			behind, shut, err := c.backings(disks, from)
			defer shut()
			if err != nil {
				return err
			}
			server, n, err := c.mount(dir, behind, others)
			if err != nil {
				return err
			}
			if asJSON {
				c.fill()
				c.report.Time(c.image)
				err = writeJSON(cmd.OutOrStdout(), c.report)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s on %s, until Ctrl-C or umount\n", plural(n, "file"), dir)
			}
			if refused := c.verdict(); refused != nil && err == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "understudy:", refused) // report this now, not when the command ends
				err = &incomplete{what: []string{"some of what is in memory was refused, as said when it was mounted"}}
			}
			return errors.Join(err, serve(cmd.Context(), server, dir))
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&unsaved, "unsaved", false, "show only files of which something is unsaved")
	cmd.Flags().BoolVar(&others, "allow-other", false, "let other users look, too, as the modes of files say")
	backingFlag(cmd.Flags(), &from)
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "fill what is not in memory from this `IMAGE`, its partitions and linear logical volumes; may be given for each disk")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what is mounted for programs")
	return cmd
}

func (c *chosen) mount(dir string, behind map[*inventory.FileSystem]*inventory.Backing, others bool) (*cachefs.Server, int, error) {
	var files []cachefs.File
	names := inventory.NewNamer()
	for _, l := range c.found {
		for _, f := range l.Files {
			rest := behind[l.FileSystem].Of(f)
			shown := cachefs.File{File: f, Name: names.Name(l.Device, f.Path, f.Ino, f.Generation), Fill: rest.Fill}
			shown.Links = names.Links(l.Device, f.Links)
			files = append(files, shown)
		}
	}
	var server *cachefs.Server
	err := c.image.Stage("mount", func() (err error) {
		server, err = cachefs.Mount(dir, c.image, files, others)
		return err
	})
	return server, len(files), err
}

// backings opens what is behind the files of each file system. Each of disks is for the
// file system whose UUID it has.
func (c *chosen) backings(disks []string, from offline.Source) (map[*inventory.FileSystem]*inventory.Backing, func(), error) {
	var open []*offline.View
	shut := func() {
		for _, f := range open {
			_ = f.Close() // nothing was written
		}
	}
	behind := make(map[*inventory.FileSystem]*inventory.Backing)
	for _, l := range c.found {
		behind[l.FileSystem], _ = l.Backing(nil) // cannot fail without a disk
	}
	for _, name := range disks {
		f, err := from.Look(name)
		if err != nil {
			return nil, shut, err
		}
		open = append(open, f)
		if err := c.back(behind, f); err != nil {
			return nil, shut, fmt.Errorf("open disk %s: %w", name, err)
		}
	}
	return behind, shut, nil
}

// back opens what a disk has behind the files of each file system: the whole disk, or parts of it.
func (c *chosen) back(behind map[*inventory.FileSystem]*inventory.Backing, f *offline.View) error {
	parts, _, _ := f.Areas() // if the partition table is damaged, there may still be a file system at the beginning
	var failed error
	found := 0
	for _, p := range parts {
		on := f.On(p)
		fsys, err := c.whose(on)
		if err != nil {
			if failed == nil || errors.Is(failed, errNoExt) {
				failed = err
			}
			continue
		}
		if behind[fsys], err = fsys.Backing(on); err != nil {
			return err
		}
		found++
	}
	if found > 0 {
		return nil
	}
	return failed
}

var errNoExt = errors.New("only raw and qcow2 images can fill holes, with ext2, ext3 or ext4 at their beginning, in a partition or in a linear logical volume")

// whose returns the file system that is on a disk, or on a part of one.
func (c *chosen) whose(disk io.ReaderAt) (*inventory.FileSystem, error) {
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w: %w", err, errNoExt)
	}
	on, err := ext4.ParseSuper(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errNoExt)
	}
	all := make([]*inventory.FileSystem, len(c.found))
	for n, l := range c.found {
		all[n] = l.FileSystem
	}
	if of := inventory.OfUUID(all, on.UUID); len(of) > 0 {
		return of[0], nil
	}
	return nil, fmt.Errorf("its UUID is %v: the dead kernel had %s mounted, and not that", on.UUID, c.devices())
}

// serve waits until somebody unmounts a file system, or unmounts it when the command is to
// end.
func serve(ctx context.Context, server *cachefs.Server, dir string) error {
	gone := make(chan struct{})
	go func() {
		server.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	err := server.Unmount()
	if err == nil {
		<-gone
		return nil
	}
	// Somebody uses it: it disappears now, and accesses to open files fail.
	if detach := unix.Unmount(dir, unix.MNT_DETACH); detach != nil {
		return fmt.Errorf("unmount %s: %w: end what uses it, then run umount %s", dir, err, dir)
	}
	select {
	case <-gone:
	case <-time.After(time.Second):
	}
	return nil
}
