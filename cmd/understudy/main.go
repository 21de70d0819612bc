// Command understudy keeps a Linux service alive when its kernel dies: it is
// the supervisor of a pair of partitions, the operator's command line, and, as
// PID 1, the agent inside them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/takeover/bare"
)

func main() {
	agent.Child()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	signal.Ignore(unix.SIGPIPE) // that nobody reads our output ends no pair
	if os.Getpid() == 1 && !bare.Main(ctx) {
		agent.Main(ctx, nil)
		return
	}
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
		os.Exit(exitCode(err))
	}
}

// built is the version that make build gives; empty: that which Go has put there.
var built string

// version is that of the tag or commit that this program was built from, with -dirty if the
// tree had changes, and of Go.
func version() string {
	b, ok := debug.ReadBuildInfo()
	switch {
	case built == "" && ok:
		built = b.Main.Version
	case built == "":
		built = "unknown"
	}
	return built + " " + runtime.Version()
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "understudy",
		Short:         "Keep a Linux service alive, with nothing lost, when its kernel dies",
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(checkCommand(), upCommand(), statusCommand(), eventsCommand(), switchCommand(), crashCommand(), leaveCommand(), downCommand(), consoleCommand(), recoverCommand(),
		initramfsCommand(), metalCommand(), agentCommand(), inspectCommand(), salvageCommand(), socketsCommand())
	return cmd
}
