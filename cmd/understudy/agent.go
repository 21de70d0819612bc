package main

import (
	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/agent"
)

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
