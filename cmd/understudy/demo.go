package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy/demo"
)

func demoCommand() *cobra.Command {
	var (
		o      demo.Options
		asJSON bool
		runs   int
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a real Linux kernel die and its service go on, with its unsaved data",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.FS != "ext4" && o.FS != "ext3" {
				return fmt.Errorf("file system %q: the demo knows ext4 and ext3", o.FS)
			}
			if !cmd.Flags().Changed("seed") {
				o.Seed = rand.Uint64N(1 << 32)
			}
			if err := demoPlace(&o); err != nil {
				return err
			}
			o.Say = cmd.OutOrStdout()
			if asJSON {
				o.Say = cmd.ErrOrStderr()
			}
			r, err := demo.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.Write(cmd.OutOrStdout())
			}
			if err == nil && !r.Held() {
				err = errors.New("not all of it held")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.FS, "fs", "ext4", "file system of the data disk: ext4 or ext3")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of the files' content (default: random)")
	f.BoolVar(&o.NoSalvage, "no-salvage", false, "give the unsaved data up, and see what is lost")
	f.BoolVar(&o.Hang, "hang", false, "stop the CPUs without a dying message")
	f.BoolVar(&o.Contrast, "contrast", true, "have a second guest look at the disk as it was at the fence")
	f.BoolVar(&asJSON, "json", false, "print the report for programs")
	f.IntVar(&runs, "runs", 1, "how many times, each with a fresh pair")
	return cmd
}

// demoPlace fills in where the demo finds what setup has fetched.
func demoPlace(o *demo.Options) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	kernel := filepath.Join(cache, "kernels", "default")
	o.Kernel = filepath.Join(kernel, "boot", "vmlinuz")
	if _, err := os.Stat(o.Kernel); err != nil {
		return fmt.Errorf("%w (scripts/setup.sh fetches the kernel)", err)
	}
	modules, err := filepath.Glob(filepath.Join(kernel, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	if len(modules) != 1 {
		return fmt.Errorf("no modules in %s (scripts/setup.sh fetches them)", kernel)
	}
	o.GuestImage = func(path string) error { return guestImage(path, modules[0], nil) }
	o.WorkDir, o.RunDir, o.Open, o.Accel = filepath.Join(cache, "runs"), runDir, openMorgue, chooseAccel
	o.Log = io.Discard
	return nil
}
