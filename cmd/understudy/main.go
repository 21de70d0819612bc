// Command understudy keeps a Linux service alive when its kernel dies: it is
// the supervisor of a pair of partitions, the operator's command line, and, as
// PID 1, the agent inside them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/agent"
)

func main() {
	agent.Child()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	signal.Ignore(unix.SIGPIPE) // that nobody reads our output ends no pair
	if os.Getpid() == 1 {
		agent.Main(ctx, nil)
		return
	}
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
		os.Exit(exitCode(err))
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "understudy",
		Short:         "Keep a Linux service alive, with nothing lost, when its kernel dies",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(upCommand(), statusCommand(), switchCommand(), crashCommand(), leaveCommand(), downCommand(), consoleCommand(), recoverCommand(),
		initramfsCommand(), agentCommand(), inspectCommand(), salvageCommand(), socketsCommand())
	return cmd
}
