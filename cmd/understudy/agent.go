package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/demo"
	"understudy.dev/understudy/internal/lab/nfsbench"
	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/live/agent"
)

// runInit is PID 1 of the small guest. If it cannot go on, the guest ends, and
// its console says why.
func runInit(ctx context.Context) {
	verbs := demo.Verbs()
	maps.Copy(verbs, nfslab.Verbs())
	maps.Copy(verbs, nfsbench.Verbs())
	err := agent.Init(ctx, verbs)
	fmt.Fprintln(os.Stderr, "understudy: init:", err)
	time.Sleep(100 * time.Millisecond) // let the console say it
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func agentCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Serve a supervisor from inside a partition that has a system of its own",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.New(nil).Serve(cmd.Context())
		},
	}
}
