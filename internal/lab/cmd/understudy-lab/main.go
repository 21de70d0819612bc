// Command understudy-lab proves what understudy promises: the demo, and measurements of
// what NFS clients see of a crash. As PID 1 it is understudy's agent, with additional
// verbs for these.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/demo"
	"understudy.dev/understudy/internal/lab/nfsbench"
	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/live/agent"
)

func main() {
	agent.Child()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if os.Getpid() == 1 {
		verbs := demo.Verbs()
		maps.Copy(verbs, nfslab.Verbs())
		maps.Copy(verbs, nfsbench.Verbs())
		agent.Main(ctx, verbs)
		return
	}
	cmd := &cobra.Command{
		Use:           "understudy-lab",
		Short:         "Try what understudy promises",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(demoCommand(), nfsBenchCommand(), nfsCrashesCommand())
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "understudy-lab:", err)
		os.Exit(1)
	}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
