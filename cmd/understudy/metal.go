package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
)

func metalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metal",
		Short: "Have an understudy beside this machine's own Linux, without a hypervisor",
	}
	cmd.AddCommand(metalParametersCommand(), metalStartCommand(), metalStatusCommand())
	return cmd
}

func metalParametersCommand() *cobra.Command {
	var memory, cpus int
	cmd := &cobra.Command{
		Use:   "parameters",
		Short: "Print the kernel parameters that leave room for an understudy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := metal.Look(os.DirFS("/"))
			if err != nil {
				return err
			}
			r, err := metal.Reserve(m.Resources, uint64(memory)<<20)
			if err != nil {
				return err
			}
			keep := len(m.Processors.IDs) - cpus
			if keep < 1 || cpus < 1 {
				return fmt.Errorf("of %d CPUs, %d cannot be the understudy's", len(m.Processors.IDs), cpus)
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.Join(r.Parameters(keep), " "))
			return nil
		},
	}
	cmd.Flags().IntVar(&memory, "memory", 1536, "the understudy's memory, MiB")
	cmd.Flags().IntVar(&cpus, "cpus", 1, "the understudy's CPUs")
	return cmd
}

func metalStartCommand() *cobra.Command {
	var kernel, image, appended, role string
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start an understudy beside the running kernel",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u := &metal.Understudy{Append: appended}
			var err error
			if u.Kernel, err = os.ReadFile(kernel); err != nil {
				return err
			}
			if u.Image, err = os.ReadFile(image); err != nil {
				return err
			}
			if u.Config.Role, err = readRole(role); err != nil {
				return err
			}
			return startBeside(cmd.Context(), u)
		},
	}
	cmd.Flags().StringVar(&kernel, "kernel", "", "the understudy's bzImage")
	cmd.Flags().StringVar(&image, "image", "", "its initramfs")
	cmd.Flags().StringVar(&appended, "append", "", "further parameters of its kernel")
	cmd.Flags().StringVar(&role, "role", "", "what it takes over: a JSON file")
	return cmd
}

func readRole(path string) (c wire.Config, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read role %s: %w", path, err)
	}
	return c, nil
}

func startBeside(ctx context.Context, u *metal.Understudy) error {
	m, err := metal.Look(os.DirFS("/"))
	if err != nil {
		return err
	}
	r, err := metal.ParseReservation(m.Cmdline)
	if err != nil {
		return err
	}
	if err := r.Left(m.Resources); err != nil {
		return err
	}
	if u.TSC, err = metal.TSC(); err != nil {
		return err
	}
	b, err := metal.Build(m, r, u)
	if err != nil {
		return err
	}
	if err := metal.Start(b, r, m.Processors.APIC); err != nil {
		return err
	}
	n, err := metal.OpenNeighbour(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it is not protecting after a minute"))
	defer cancel()
	return errors.Join(n.Await(ctx, metal.Protected), n.Close())
}

func metalStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how the understudy is, and what it said",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := os.ReadFile("/proc/cmdline")
			if err != nil {
				return err
			}
			r, err := metal.ParseReservation(string(line))
			if err != nil {
				return err
			}
			n, err := metal.OpenNeighbour(r)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %d beats\n%s", n.State(), n.Beats(), n.Log())
			return n.Close()
		},
	}
}
