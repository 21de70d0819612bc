package main

import (
	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/sdnotify"
)

func agentCommand() *cobra.Command {
	var service bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Serve a supervisor from inside a partition that has a system of its own",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !service {
				return agent.New(nil).Serve(cmd.Context())
			}
			notifier, err := sdnotify.Open()
			if err != nil {
				return err
			}
			defer notifier.Close()
			err = agent.ServeAsService(cmd.Context(), nil, func() error { return notifier.Tell(sdnotify.Ready) })
			if cmd.Context().Err() != nil {
				return nil // it was asked to end
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&service, "service", false, "be a unit of systemd's, which the services of the role are, too")
	return cmd
}
