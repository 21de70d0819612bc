package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
)

// leave is the key that ends a console: Ctrl-], as in telnet.
const leave = 0x1d

func consoleCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "console [PARTITION]",
		Short: "Show a partition's serial console, and type into it",
		Long: `Show a partition's serial console, and type into it.

PARTITION is its name, or active, which is the default, or understudy, whichever that is
now. Of one that is dead, what it said is shown.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pair, err := findPair(name)
			if err != nil {
				return err
			}
			side, err := findSide(cmd.Context(), pair, first(args))
			if err != nil {
				return err
			}
			return console(filepath.Join(dirs.Run(pair), side))
		},
		ValidArgsFunction: cobra.FixedCompletions([]cobra.Completion{"active", "understudy"}, cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.Flags().StringVar(&name, "pair", "", "the pair, if more than one is up")
	return cmd
}

// findSide returns the name of the partition that has a name, or a role.
func findSide(ctx context.Context, pair, name string) (string, error) {
	if name == "" {
		name = "active"
	}
	if _, err := os.Stat(filepath.Join(dirs.Run(pair), name+".console.log")); err == nil || name != "active" && name != "understudy" {
		return name, nil
	}
	var st status
	if err := ask(ctx, pair, verbStatus, nil, &st); err != nil {
		return "", err
	}
	switch {
	case name == "active":
		return st.Active, nil
	case st.Understudy == "":
		return "", fmt.Errorf("pair %s is %s: it has no understudy now", pair, st.State)
	}
	return st.Understudy, nil
}

// console shows what a serial port has said so far, and then connects to it.
func console(base string) error {
	said, err := os.ReadFile(base + ".console.log")
	if err != nil {
		return fmt.Errorf("no such partition: %w", err)
	}
	conn, err := net.Dial("unix", base+".console")
	if err != nil {
		_, _ = os.Stdout.Write(said) // an error could not be reported anywhere else
		return fmt.Errorf("the partition is dead; this was its console: %w", err)
	}
	defer conn.Close()
	fmt.Fprintln(os.Stderr, "Ctrl-] leaves.")
	if _, err := os.Stdout.Write(said); err != nil {
		return err
	}
	restore, err := rawTerminal(int(os.Stdin.Fd()))
	if err != nil {
		return err
	}
	defer restore()
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		done <- err
	}()
	go func() { done <- typeInto(conn, os.Stdin) }()
	return <-done
}

func typeInto(conn io.Writer, keys io.Reader) error {
	b := make([]byte, 256)
	for {
		n, err := keys.Read(b)
		for i, k := range b[:n] {
			if k == leave {
				_, err := conn.Write(b[:i])
				return err
			}
		}
		if _, werr := conn.Write(b[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// rawTerminal makes keys arrive as they are typed. A file that is not a terminal stays as
// it is.
func rawTerminal(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, nil
	}
	raw := *old
	raw.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG | unix.IEXTEN
	raw.Iflag &^= unix.IXON | unix.ICRNL
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("set up terminal: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}
