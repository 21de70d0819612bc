package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/bare"
)

func metalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metal",
		Short: "Have an understudy beside this machine's own Linux, without a hypervisor",
	}
	cmd.AddCommand(metalCheckCommand(), metalParametersCommand(), metalInstallCommand(), metalRemoveCommand(), metalRunCommand(), metalStatusCommand(), metalReturnCommand(), metalAgainCommand(), metalEnterCommand())
	return cmd
}

func metalCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say of each thing that it depends on whether this machine is fit for an understudy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := metal.Check(os.DirFS("/"), metal.Host{})
			if asJSON {
				if err := writeJSON(cmd.OutOrStdout(), found); err != nil {
					return err
				}
			} else {
				writeFindings(cmd.OutOrStdout(), found)
			}
			if unfit := metal.Unfit(found); len(unfit) > 0 {
				return fmt.Errorf("not fit: %d of %d", len(unfit), len(found))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	return cmd
}

func writeFindings(w io.Writer, found []metal.Finding) {
	for _, f := range found {
		mark := "fit  "
		if !f.Fit {
			mark = "UNFIT"
		}
		fmt.Fprintf(w, "%s  %-18s %s\n", mark, f.What, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(w, "       %-18s %s\n", "", f.Advice)
		}
	}
}

func metalParametersCommand() *cobra.Command {
	var r reserve
	cmd := &cobra.Command{
		Use:   "parameters",
		Short: "Print the kernel parameters that leave room for an understudy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			words, err := r.parameters()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(words, " "))
			}
			return err
		},
	}
	r.flags(cmd)
	return cmd
}

// How long the running kernel, and one of its CPUs, may be silent by default.
const (
	silenceLimit    = time.Second
	silenceCPULimit = 10 * time.Second
)

// beside has the options of metal run.
type beside struct {
	kernel, image, appended, role string
	beat                          wire.Beat
	limit                         time.Duration
	again                         bool
	roots                         []string // directories below which /sys is visible
}

// beatPeriod is the default period of the beat.
const beatPeriod = 20 * time.Millisecond

func metalRunCommand() *cobra.Command {
	b := beside{roots: []string{""}}
	cmd := &cobra.Command{
		Use:   "run --kernel VMLINUZ --image CPIO --role FILE",
		Short: "Start an understudy beside the running kernel, and beat for it until this ends",
		Long: `Start an understudy beside the running kernel, and beat for it. It takes over when the
kernel panics, or the beat stops on one CPU or on all. When this program is asked to end, it stops the
understudy first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&b.kernel, "kernel", "", "the understudy's bzImage; it may be of another version than the running one")
	cmd.Flags().StringVar(&b.image, "image", "", "its initramfs: understudy initramfs makes it")
	cmd.Flags().StringVar(&b.role, "role", "", "what it takes over: disks, interfaces, services; JSON")
	cmd.Flags().StringVar(&b.appended, "append", "", "further parameters of its kernel")
	cmd.Flags().DurationVar(&b.beat.Period, "beat", beatPeriod, "how often to beat")
	cmd.Flags().DurationVar(&b.limit, "limit", silenceLimit, "silence of all CPUs that is death; 0: none is")
	cmd.Flags().DurationVar(&b.beat.CPU, "cpu-limit", silenceCPULimit, "silence of one CPU that is death; 0: none is")
	cmd.Flags().BoolVar(&b.again, "again", false, againUsage)
	for _, name := range []string{"kernel", "image", "role"} {
		_ = cmd.MarkFlagRequired(name) // the flag exists
	}
	return cmd
}

// understudy reads what is to be started, and reports on w what of the role is not carried out.
func (b *beside) understudy(w io.Writer) (*metal.Understudy, error) {
	u := &metal.Understudy{Append: b.appended}
	u.Config.Version, u.Config.Limit, u.Config.CPU = version(), b.limit, b.beat.CPU
	var err error
	if u.Kernel, err = os.ReadFile(b.kernel); err != nil {
		return nil, err
	}
	if u.Image, err = os.ReadFile(b.image); err != nil {
		return nil, err
	}
	role, err := os.ReadFile(b.role)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(role, &u.Config.Role); err != nil {
		return nil, fmt.Errorf("read role %s: %w", b.role, err)
	}
	omitted, err := checkRole(u.Config.Role)
	if err == nil {
		err = metal.CheckNICs(u.Config.Role)
	}
	if err != nil {
		return nil, fmt.Errorf("role %s: %w", b.role, err)
	}
	for _, line := range omitted {
		fmt.Fprintln(w, line)
	}
	if err := sayLeft(w, u.Config.Role); err != nil {
		return nil, err
	}
	var absent []string
	if u.Config.Drivers, absent, err = metal.Drivers(os.DirFS("/"), u.Config.Role); err != nil {
		return nil, err
	}
	for _, what := range absent {
		fmt.Fprintf(w, "%s is not here now: whether the understudy can drive it is not known\n", what)
	}
	if b.again {
		if u.Config.Again, err = b.files(u); err != nil {
			return nil, err
		}
	}
	u.TSC, err = metal.TSC()
	return u, err
}

// metalLock is the lock that a metal run holds for as long as it lives.
const metalLock = "/run/understudy/metal.lock"

// lockFile locks a file that only this user may open. It fails if another process holds the lock.
func lockFile(path string) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

func (b *beside) run(ctx context.Context, w io.Writer) error {
	root := os.DirFS("/")
	m, err := metal.Look(root)
	if err != nil {
		return err
	}
	if unfit := metal.Unfit(m.Check(root, metal.Host{})); len(unfit) > 0 {
		return &metal.Refused{Findings: unfit}
	}
	unlock, err := lockFile(metalLock)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another metal run keeps an understudy already: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }()
	u, err := b.understudy(w)
	if err != nil {
		return err
	}
	if err := checkDump(w, m, u.Config.Role, 0); err != nil {
		return err
	}
	n, err := metal.Start(m, u)
	if err != nil {
		return err
	}
	return errors.Join(b.guard(ctx, n, w, func() error {
		now, err := metal.Look(root)
		if err == nil {
			err = m.Still(now, root, metal.Host{})
		}
		if err == nil {
			err = metal.CheckDisks(root, u.Config.Role)
		}
		if err == nil {
			err = bare.CheckFileSystems(u.Config.Role)
		}
		if err == nil {
			err = metal.CheckNICs(u.Config.Role)
		}
		return err
	}), n.Stop())
}
