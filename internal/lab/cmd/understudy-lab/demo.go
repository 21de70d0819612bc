package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/lab/demo"
	"understudy.dev/understudy/internal/takeover"
)

func demoCommand() *cobra.Command {
	var (
		o      demo.Options
		asJSON bool
		runs   int
		beside string
		svg    string
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a real Linux kernel die and its service go on, with its unsaved data",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, fs := range []string{o.FS, beside} {
				if fs != "ext4" && fs != "ext3" && (fs != "" || fs == o.FS) {
					return fmt.Errorf("file system %q: the demo knows ext4 and ext3", fs)
				}
			}
			if !cmd.Flags().Changed("seed") {
				o.Seed = rand.Uint64N(1 << 32)
			}
			o.Log, o.Say = io.Discard, cmd.OutOrStdout()
			if asJSON {
				o.Say = cmd.ErrOrStderr()
			}
			if beside != "" {
				both, err := demo.RunBeside(cmd.Context(), o, beside, runs)
				return errors.Join(err, show(cmd.OutOrStdout(), both, asJSON))
			}
			if runs > 1 {
				return demoSeries(cmd, o, runs, asJSON)
			}
			r, err := demo.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), r, asJSON); err != nil {
				return err
			}
			if svg != "" {
				if err := drawTimeline(svg, r); err != nil {
					return err
				}
			}
			if !r.Held() {
				return errors.New("not all of it held")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Kernel, "kernel", "", "`DIR` with boot/vmlinuz and lib/modules of the guests' kernel (default: what setup has fetched)")
	f.StringVar(&o.FS, "fs", "ext4", "file system of the data disk: ext4 or ext3")
	f.StringVar(&beside, "beside", "", "play each run on this file system, too, in turns, and compare the outages")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of the files' content (default: random)")
	f.IntVar(&o.MiB, "mib", 0, "leave about so many MiB unsaved (default: 101)")
	f.BoolVar(&o.Patient, "patient", false, "take no silence for a death, for a machine that is emulated itself")
	f.BoolVar(&o.NoSalvage, "no-salvage", false, "give the unsaved data up, and see what is lost")
	f.BoolVar(&o.Hang, "hang", false, "stop the CPUs without a dying message")
	f.BoolVar(&o.Unfenced, "cannot-fence", false, "have another process hold the disk, so that nothing may be taken over")
	f.BoolVar(&o.Contrast, "contrast", true, "have a second guest look at the disk as it was at the fence")
	f.IntVar(&o.Writers, "writers", 0, "have so many writers at work until the kernel dies")
	f.BoolVar(&asJSON, "json", false, "print the report for programs")
	f.StringVar(&svg, "svg", "", "draw the timeline into this file")
	f.IntVar(&runs, "runs", 1, "how many times, each with a fresh pair")
	return cmd
}

// demoSeries shows a series even if a run failed: then it has the runs before that one.
func demoSeries(cmd *cobra.Command, o demo.Options, runs int, asJSON bool) error {
	series, err := demo.RunSeries(cmd.Context(), o, runs)
	return errors.Join(err, show(cmd.OutOrStdout(), series, asJSON))
}

// drawTimeline draws a run as a picture.
func drawTimeline(path string, r *demo.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("Takeover of Linux %s on %s, %d files with %.0f MiB of unsaved data", r.Kernel, r.Accel, r.Files, float64(r.BytesRecovered)/(1<<20))
	return errors.Join(takeover.WriteSVG(f, title, r.Steps, r.ServedMS), f.Close())
}

// show prints a report for people or for programs.
func show(w io.Writer, r interface{ Write(io.Writer) error }, asJSON bool) error {
	if asJSON {
		return writeJSON(w, r)
	}
	return r.Write(w)
}
