// Command understudy keeps a Linux service alive when its kernel dies: it is
// the supervisor of a pair of partitions, the operator's command line, and, as
// PID 1, the agent inside them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/bare"
)

func main() {
	agent.Child()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	signal.Ignore(unix.SIGPIPE) // a pair does not end because nobody reads our output
	if os.Getpid() == 1 && !bare.Main(ctx, version()) {
		agent.Main(ctx, nil)
		return
	}
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
		os.Exit(exitCode(err))
	}
}

// built is the version that make build sets; if it is empty, the version that Go has recorded is used.
var built string

// version returns the tag or commit that this program was built from, with -dirty if the
// tree had changes, and the version of Go.
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
	cmd.AddCommand(manualCommand(), checkCommand(), upCommand(), statusCommand(), eventsCommand(), switchCommand(), crashCommand(), leaveCommand(), downCommand(), consoleCommand(), recoverCommand(),
		initramfsCommand(), imageCommand(), metalCommand(), agentCommand(), inspectCommand(), salvageCommand(), socketsCommand())
	for _, c := range cmd.Commands() {
		if strings.HasSuffix(c.Use, "[PAIR]") {
			c.ValidArgsFunction = completePair
		}
	}
	return cmd
}

// completePair lets shells complete the names of pairs that are up, or have been.
func completePair(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if len(args) == 0 {
		run, _ := filepath.Glob(filepath.Join(dirs.Run("*"), "record.json")) // the patterns are well-formed
		for _, path := range run {
			names = append(names, strings.TrimPrefix(filepath.Base(filepath.Dir(path)), filepath.Base(dirs.Run(""))))
		}
		known, _ := filepath.Glob(dirs.State("*"))
		for _, path := range known {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
