package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

func upCommand() *cobra.Command {
	var (
		file   string
		detach bool
	)
	cmd := &cobra.Command{
		Use:   "up -f pair.yaml",
		Short: "Boot a pair and stand guard over it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := loadPair(file)
			if err != nil {
				return err
			}
			if detach {
				return upDetached(cmd.Context(), p.Name, file)
			}
			return up(cmd.Context(), p, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "pair.yaml", "description of the pair")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return once the pair is protected, and stand guard in the background")
	return cmd
}

// loadPair reads a pair's description and checks it against this machine.
func loadPair(file string) (*pair.Pair, error) {
	p, err := pair.Load(file)
	if err != nil {
		return nil, err
	}
	m, err := pair.ThisMachine()
	if err != nil {
		return nil, err
	}
	return p, p.Check(m)
}

// up runs the pair until ctx ends, somebody asks for its end, or nothing of it
// is left to guard.
func up(ctx context.Context, p *pair.Pair, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := supervisor.Start(ctx, p, supervisor.Options{
		Dir: dirs.Run(p.Name), Log: out,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c, err := serveControl(ctx, s, dirs.Run(p.Name), cancel)
	if err != nil {
		return err
	}
	defer c.close()
	fmt.Fprintf(out, "pair %s is protected\n", p.Name)
	return c.guard(ctx, out)
}

// upDetached starts this program again in the background and waits until the
// pair answers.
func upDetached(ctx context.Context, name, file string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(dirs.Run(name)+".log", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "up", "-f", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name()) // it is empty then
			os.Remove(log.Name())
			return fmt.Errorf("pair %s did not come up:\n%s", name, said)
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
			os.Remove(log.Name())
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
		if _, err := os.Stat(filepath.Join(dirs.Run(name), controlSocket)); err == nil {
			kept := filepath.Join(dirs.Run(name), "supervisor.log") // and removed with the rest
			if err := os.Rename(log.Name(), kept); err != nil {
				return err
			}
			fmt.Printf("pair %s is protected; its supervisor logs to %s\n", name, kept)
			return nil
		}
	}
}
