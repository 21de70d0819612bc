package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/events"
)

// followEvery is how often we look for new events in the log.
const followEvery = 200 * time.Millisecond

func eventsCommand() *cobra.Command {
	var (
		asJSON, follow bool
		last           int
	)
	cmd := &cobra.Command{
		Use:   "events [PAIR]",
		Short: "Say what has happened to a pair",
		Long: `Say what has happened to a pair: every change of its state, every takeover, every
trouble, from a log that outlives it (/var/lib/understudy/PAIR/events.jsonl, and
events.old.jsonl before that).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := findLog(first(args))
			if err != nil {
				return err
			}
			w := &eventWriter{out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), asJSON: asJSON}
			if !follow {
				return w.write(tail(events.Read(dir), last))
			}
			r := events.NewReader(dir)
			defer r.Close()
			if err := w.write(tail(r.Read(), last)); err != nil {
				return err
			}
			return w.write(r.Follow(cmd.Context(), followEvery))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs: one object a line")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on, with what happens from now on")
	cmd.Flags().IntVarP(&last, "lines", "n", 0, "only the last so many; 0: all")
	return cmd
}

// findLog returns the directory of a pair's log, or of the only log that there is.
func findLog(name string) (string, error) {
	if name == "" {
		logs, err := filepath.Glob(filepath.Join(dirs.State("*"), "events.jsonl"))
		if err != nil {
			return "", err
		}
		switch len(logs) {
		case 0:
			return "", fmt.Errorf("no pair has ever been up here: %s has no log", filepath.Dir(dirs.State("*")))
		case 1:
			return filepath.Dir(logs[0]), nil
		}
		return "", fmt.Errorf("%d pairs have a log: say which", len(logs))
	}
	dir := dirs.State(name)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("pair %s has no log: %w", name, err)
	}
	return dir, nil
}

// tail returns the last n events of all, or all of them if n is 0.
func tail(all iter.Seq2[events.Event, error], n int) iter.Seq2[events.Event, error] {
	if n <= 0 {
		return all
	}
	type read struct {
		e   events.Event
		err error
	}
	return func(yield func(events.Event, error) bool) {
		var kept []read
		for e, err := range all {
			if kept = append(kept, read{e, err}); len(kept) > n {
				kept = kept[1:]
			}
		}
		for _, r := range kept {
			if !yield(r.e, r.err) {
				return
			}
		}
	}
}

// eventWriter prints events.
type eventWriter struct {
	out, errs io.Writer
	asJSON    bool
}

func (w *eventWriter) write(all iter.Seq2[events.Event, error]) error {
	for e, err := range all {
		var bad *events.BadLine
		if errors.As(err, &bad) {
			fmt.Fprintln(w.errs, "understudy:", bad)
			continue
		}
		if err == nil {
			err = w.one(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *eventWriter) one(e events.Event) error {
	if w.asJSON {
		return json.NewEncoder(w.out).Encode(e)
	}
	var b bytes.Buffer
	if e.Dropped > 0 {
		fmt.Fprintf(&b, "%23s  (%d events before this one could not be kept in time)\n", "", e.Dropped)
	}
	fmt.Fprintf(&b, "%s  %-11s  %s\n", e.At.Local().Format("2006-01-02 15:04:05.000"), e.Kind, describe(e))
	_, err := w.out.Write(b.Bytes())
	return err
}

// describe returns an event as a line of text.
func describe(e events.Event) string {
	var parts []string
	switch e.Kind {
	case events.Up, events.Protected, events.TookOver, events.Switched, events.Unprotected:
		if e.Active != "" {
			parts = append(parts, e.Active+" serves"+waits(e))
		}
	}
	if e.Cause != "" {
		parts = append(parts, e.Cause)
	}
	if e.Detail != "" {
		parts = append(parts, oneLine(e.Detail))
	}
	return strings.Join(parts, ": ")
}

// waits says which side waits.
func waits(e events.Event) string {
	switch {
	case e.Understudy != "":
		return ", " + e.Understudy + " waits"
	case e.Kind == events.Unprotected:
		return ", alone"
	}
	return ""
}
