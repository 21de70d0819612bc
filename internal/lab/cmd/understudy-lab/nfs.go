package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/lab/nfsbench"
)

// nfsBenchCommand is for make nfs.
func nfsBenchCommand() *cobra.Command {
	var (
		runs, reboots int
		seed          uint64
		out           string
		o             nfsbench.Options
		verbose       bool
	)
	cmd := &cobra.Command{
		Use:    "nfs-bench",
		Short:  "Measure what NFS clients see when their server's kernel dies",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				seed = rand.Uint64N(1 << 32)
			}
			o.Lab.Log, o.Say = io.Discard, io.Discard
			if verbose {
				o.Say = cmd.ErrOrStderr()
			}
			plan := []nfsbench.Plan{{Row: nfsbench.Takeover, Runs: runs}, {Row: nfsbench.Unnotified, Runs: runs}, {Row: nfsbench.Reboot, Runs: reboots}}
			reports, err := nfsbench.RunAll(cmd.Context(), o, plan, seed, cmd.OutOrStdout())
			metrics := nfsbench.Metrics(reports)
			return errors.Join(err, nfsbench.WriteTable(cmd.OutOrStdout(), metrics),
				writeReport(filepath.Join(out, "nfs.json"), metrics), writeReport(filepath.Join(out, "nfs-runs.json"), reports))
		},
	}
	f := cmd.Flags()
	f.IntVar(&runs, "runs", 10, "how many times for each of the rows of a takeover, each with a fresh pair")
	f.IntVar(&reboots, "reboots", 5, "how many times for the row of a reboot")
	f.Uint64Var(&seed, "seed", 0, "seed of what is written (default: random)")
	f.StringVar(&out, "out", "out", "directory for nfs.json, and for nfs-runs.json with all of every run")
	f.StringVar(&o.Lab.Kernel, "kernel", "", "`DIR` with boot/vmlinuz and lib/modules of the guests' kernel (default: what setup has fetched)")
	f.BoolVarP(&verbose, "verbose", "v", false, "tell what happens")
	return cmd
}

// nfsCrashesCommand is for make nfs-crashes.
func nfsCrashesCommand() *cobra.Command {
	var (
		runs     int
		seed     uint64
		top, out string
		o        nfsbench.Options
		verbose  bool
	)
	cmd := &cobra.Command{
		Use:    "nfs-crashes",
		Short:  "Crash an NFS server while a kernel client runs fio --verify and unpacks a tree",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if !cmd.Flags().Changed("seed") {
				seed = rand.Uint64N(1 << 32)
			}
			o.Lab.Log, o.Say = io.Discard, io.Discard
			if verbose {
				o.Say = cmd.ErrOrStderr()
			}
			tree, err := nfsbench.PackTree(top)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, tree.Close()) }()
			if o.Lab.ClientFiles, err = tree.Content(); err != nil {
				return err
			}
			reports, err := nfsbench.Crashes(cmd.Context(), o, tree, runs, seed, cmd.OutOrStdout())
			return errors.Join(err, writeReport(filepath.Join(out, "nfs-crashes.json"), reports))
		},
	}
	f := cmd.Flags()
	f.IntVar(&runs, "runs", 20, "how many crashes, each of a fresh pair")
	f.Uint64Var(&seed, "seed", 0, "seed of when it crashes and what fio writes (default: random)")
	f.StringVar(&top, "tree", ".", "directory whose files are unpacked")
	f.StringVar(&out, "out", "out", "directory for nfs-crashes.json")
	f.StringVar(&o.Lab.Kernel, "kernel", "", "`DIR` with boot/vmlinuz and lib/modules of the guests' kernel (default: what setup has fetched)")
	f.BoolVarP(&verbose, "verbose", "v", false, "tell what happens")
	return cmd
}

// writeReport writes a report to a temporary file and renames it to path.
func writeReport(path string, v any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".report-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone if all went well
	if err := errors.Join(writeJSON(f, v), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
