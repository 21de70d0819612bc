package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [PAIR]",
		Short: "Say how a pair is",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var st status
			if err := ask(cmd.Context(), first(args), verbStatus, nil, &st); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), st)
			}
			return st.write(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	return cmd
}

func (st *status) write(w io.Writer) error {
	understudy := st.Understudy
	if understudy == "" {
		understudy = "none: the next crash is an outage"
	}
	fmt.Fprintf(w, "%-11s %s, since %s\n", st.Name, st.State, st.Since.Format(time.DateTime))
	fmt.Fprintf(w, "active      %s (Linux %s, %s)\nunderstudy  %s\n", st.Active, st.Kernel, st.Accel, understudy)
	if st.Error != "" {
		fmt.Fprintf(w, "error       %s\n", st.Error)
	}
	t := st.Takeover
	if t == nil {
		return nil
	}
	fmt.Fprintf(w, "takeover    %s, %s\n", t.At.Format(time.DateTime), t.Verdict)
	fmt.Fprintf(w, "            %d files, %d bytes recovered, %d refused\n", t.Files, t.Bytes, len(t.Refused))
	fmt.Fprintf(w, "            %s\n", &t.Notified)
	return takeover.WriteSteps(w, t.Steps, 50)
}

func crashCommand() *cobra.Command {
	var hang bool
	cmd := &cobra.Command{
		Use:   "crash [PAIR]",
		Short: "Panic the active kernel on purpose",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), first(args), verbCrash, wire.CrashRequest{Silent: hang}, nil)
		},
	}
	cmd.Flags().BoolVar(&hang, "hang", false, "stop all its CPUs without a dying message, so that only the heartbeat tells")
	return cmd
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down [PAIR]",
		Short: "Stop a pair in good order, and remove what it left",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := findPair(first(args))
			if err != nil {
				return err
			}
			if err := ask(cmd.Context(), name, verbDown, nil, nil); err != nil {
				return err
			}
			for { // until its run directory is gone
				if _, err := os.Stat(filepath.Join(dirs.Run(name))); os.IsNotExist(err) {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(50 * time.Millisecond):
				}
			}
		},
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
