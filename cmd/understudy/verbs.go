package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

func statusCommand() *cobra.Command {
	var (
		asJSON, watched bool
		drawn           string
	)
	cmd := &cobra.Command{
		Use:   "status [PAIR]",
		Short: "Say how a pair is",
		Long: `Say how a pair is.

The exit status is 0 if the pair is protected and nothing of it is in trouble; 4 if it
serves, and is unprotected, in transition or in trouble; 5 if nobody serves; and 1 if there
is no pair to be asked.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case watched:
				return watch(cmd.Context(), first(args))
			case drawn != "":
				return drawTo(cmd.Context(), first(args), drawn)
			}
			var st status
			if err := ask(cmd.Context(), first(args), verbStatus, nil, &st); err != nil {
				return err
			}
			write := st.write
			if asJSON {
				write = func(w io.Writer) error { return writeJSON(w, st) }
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			return st.alarm()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	cmd.Flags().BoolVarP(&watched, "watch", "w", false, "show it in the terminal, as it changes, until q is pressed")
	cmd.Flags().StringVar(&drawn, "picture", "", "draw that view, as it is now, into an SVG `FILE`")
	cmd.MarkFlagsMutuallyExclusive("json", "watch", "picture")
	return cmd
}

// Exit statuses of understudy status, in addition to 0 for protected and 1 for nobody to ask.
const (
	exitUnprotected = 4 // the pair serves, but a death now would be an outage, or something does not work
	exitNoService   = 5 // nobody serves
)

// alarm is what is wrong with a pair, for scripts.
type alarm struct {
	what string
	code int
}

func (a *alarm) Error() string { return a.what }

// alarm returns nil if a pair is as it should be.
func (st *status) alarm() error {
	switch {
	case st.State == "failed":
		return &alarm{fmt.Sprintf("pair %s has failed, and nobody serves", st.Name), exitNoService}
	case st.Held != "":
		return &alarm{fmt.Sprintf("pair %s is held, and nobody serves", st.Name), exitNoService}
	case st.State != "protected":
		return &alarm{fmt.Sprintf("pair %s is %s", st.Name, st.State), exitUnprotected}
	case st.UnderstudyHeld != "":
		return &alarm{fmt.Sprintf("pair %s is not protected: its understudy stands still", st.Name), exitUnprotected}
	case st.Unread != "":
		return &alarm{fmt.Sprintf("pair %s is not protected: its service is, and what its active side has in memory only is not", st.Name), exitUnprotected}
	case len(st.Troubles) > 0:
		return &alarm{fmt.Sprintf("pair %s is protected, and in trouble", st.Name), exitUnprotected}
	}
	return nil
}

func (st *status) write(w io.Writer) error {
	understudy := st.Understudy
	if understudy == "" {
		understudy = "none yet: a crash would be an outage until one has booted"
	}
	fmt.Fprintf(w, "%-11s %s, since %s\n", st.Name, st.State, st.Since.Format(time.DateTime))
	fmt.Fprintf(w, "active      %s (Linux %s, %s)\nunderstudy  %s\n", st.Active, st.Kernel, st.Accel, understudy)
	fmt.Fprintf(w, "beat        paused for %v at the longest; at %v it is dead\n", st.Pause.Round(time.Millisecond), st.Limit)
	if st.Unsaved != nil {
		fmt.Fprintf(w, "unsaved     %.1f MiB in memory only, by the kernel's own count\n", float64(*st.Unsaved)/(1<<20))
	}
	if st.Held != "" {
		fmt.Fprintf(w, "held        the active side stands still, and is not dead: %s\n", st.Held)
	}
	if st.UnderstudyHeld != "" {
		fmt.Fprintf(w, "held        the understudy stands still, and could not take over: %s\n", st.UnderstudyHeld)
	}
	if st.Unread != "" {
		fmt.Fprintln(w, "unread      a takeover would bring over nothing that is in memory only; it is tried again:")
	}
	for _, what := range st.Troubles {
		fmt.Fprintf(w, "trouble     %s\n", what)
	}
	for _, k := range st.Kept {
		fmt.Fprintf(w, "kept        %s: %s\n", k.File, k.Why)
	}
	if st.Error != "" {
		fmt.Fprintf(w, "error       %s\n", st.Error)
	}
	t := st.Takeover
	if t == nil {
		return nil
	}
	return t.write(w)
}

// outage returns the time from the last sign of life until the understudy has the address.
func (t *lastTakeover) outage() time.Duration {
	for _, s := range t.Steps {
		if s.Name == takeover.StepAddress {
			return time.Duration(s.End * float64(time.Millisecond))
		}
	}
	return 0
}

// summary returns a takeover as a line of text.
func (t *lastTakeover) summary() string {
	s := fmt.Sprintf("served again after %v", t.outage().Round(time.Millisecond))
	if t.Verdict == "" {
		s += ", in good order"
	}
	if t.Files > 0 {
		s += fmt.Sprintf("; %s recovered, files: %d", size(float64(t.Bytes)), t.Files)
	}
	if t.Unreached != "" {
		s += "; " + t.Unreached
	}
	if n := t.Refusals(); n > 0 {
		s += fmt.Sprintf("; REFUSED: %d", n)
	}
	return s
}

// alarm returns what did not come over with the service, for scripts.
func (t *lastTakeover) alarm() error {
	var what []string
	for _, u := range t.Unready {
		what = append(what, u.String())
	}
	if t.Unreached != "" {
		what = append(what, t.Unreached)
	}
	if len(what) == 0 {
		return nil
	}
	return &alarm{strings.Join(what, "\nunderstudy: "), exitUnprotected}
}

func (t *lastTakeover) write(w io.Writer) error {
	at := t.At.Format(time.DateTime)
	if t.Verdict == "" {
		fmt.Fprintf(w, "switch      %s, in good order\n", at)
	} else {
		fmt.Fprintf(w, "takeover    %s, %s\n", at, t.Verdict)
		fmt.Fprintf(w, "            %d files, %d bytes recovered, %d refused\n", t.Files, t.Bytes, t.Refusals())
		var refused []string
		for _, r := range t.Refused {
			refused = append(refused, fmt.Sprintf("refused: %v", r))
		}
		for _, line := range firstRefusals(refused, t.Refusals(), "status --json tells all that are known by name") {
			fmt.Fprintf(w, "            %s\n", line)
		}
		fmt.Fprintf(w, "            %s\n", &t.Notified)
	}
	return takeover.WriteSteps(w, t.Steps, 50)
}

func crashCommand() *cobra.Command {
	var r crashRequest
	cmd := &cobra.Command{
		Use:   "crash [PAIR]",
		Short: "Panic the active kernel on purpose",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), first(args), verbCrash, r, nil)
		},
	}
	cmd.Flags().BoolVar(&r.Force, "force", false, "even if the pair is unprotected, and its service would end")
	cmd.Flags().BoolVar(&r.Silent, "hang", false, "have its CPUs run nothing but a spinning thread of the highest priority, so that only the heartbeat tells")
	return cmd
}

func leaveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "leave [PAIR]",
		Short: "End a pair's supervisor, and let its guests go on",
		Long: `End a pair's supervisor, and let its guests go on, unwatched, until understudy up takes
charge of them again: of another version, for example.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := findPair(first(args))
			if err != nil {
				return err
			}
			began := supervisedSince(name)
			if err := ask(cmd.Context(), name, verbLeave, nil, nil); err != nil {
				return err
			}
			return awaitLeft(cmd.Context(), name, began)
		},
	}
}

func downCommand() *cobra.Command {
	var r downRequest
	cmd := &cobra.Command{
		Use:   "down [PAIR]",
		Short: "Stop a pair in good order, and remove what it left",
		Long: `Stop a pair in good order, and remove what it left.

The active side writes what is unsaved while its services run, within 10 minutes, stops
them, and unmounts its disks. If it cannot, the pair stays up, and what keeps it is named. Nothing is ever removed that may be nowhere else: after
a takeover that failed, or with --force, the memory is kept for understudy recover, and the exit
status is not 0.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := findPair(first(args))
			if err == nil {
				err = ask(cmd.Context(), name, verbDown, r, nil)
			}
			var gone *notUp
			if errors.As(err, &gone) {
				return tidy(cmd.Context(), gone.name, r)
			}
			if err != nil {
				return err
			}
			return awaitDown(cmd.Context(), name, r)
		},
	}
	cmd.Flags().BoolVar(&r.Force, "force", false, "even if the active side cannot stop in good order; its memory is kept")
	cmd.Flags().BoolVar(&r.Discard, "discard", false, "with --force, or after a failed takeover: give up what is in memory only")
	return cmd
}

// awaitLeft waits until a pair's supervisor, which began to answer at began, has let go of the run
// directory: another supervisor can take charge of the guests, or has done so. The supervisor itself
// may take longer, to run hooks. It fails if the guests do not go on, and have left something.
func awaitLeft(ctx context.Context, name string, began time.Time) error {
	return whileRunning(ctx, func() error {
		d, err := supervisor.OpenRunDir(dirs.Run(name))
		if err == nil {
			return errors.Join(leftBehind(d), d.Close())
		}
		if now := supervisedSince(name); !now.IsZero() && !now.Equal(began) {
			return nil
		}
		if !errors.Is(err, supervisor.ErrRunning) {
			return nil // its content is left to the next supervisor
		}
		return err
	})
}

// leftBehind returns an error if a pair's guests have ended with something in memory only.
func leftBehind(d *supervisor.RunDir) error {
	if d.HasGuests() || !d.AtStake() {
		return nil
	}
	return &supervisor.Unsaved{Dir: d.Path, Record: d.Record}
}

// awaitDown waits until a pair's supervisor has ended, and reports what it left.
func awaitDown(ctx context.Context, name string, r downRequest) error {
	return whileRunning(ctx, func() error { return tidy(ctx, name, r) })
}

// whileRunning repeats try for as long as a supervisor prevents it.
func whileRunning(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil || !errors.Is(err, supervisor.ErrRunning) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tidy ends a pair that has no supervisor. If its guests still run, they are stopped in
// good order; then the run directory is removed, unless it has something that is nowhere
// else and is not to be discarded.
func tidy(ctx context.Context, name string, r downRequest) error {
	d, err := supervisor.OpenRunDir(dirs.Run(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.HasGuests() {
		s, err := supervisor.Reconnect(ctx, d, tidyOptions(name, os.Stderr))
		if err == nil {
			c := &control{s: s}
			if err = c.stopAlone(r); err != nil {
				return errors.Join(err, s.Leave())
			}
			return s.Close()
		}
		if !r.Force {
			return hint.New("stop the guests of pair "+name, err, "Run this again; or: understudy down --force, which keeps their memory.")
		}
		if d, err = supervisor.OpenRunDir(dirs.Run(name)); err != nil {
			return err
		}
	}
	if d.AtStake() && !r.Discard {
		return errors.Join(d.EndGuests(), &supervisor.Unsaved{Dir: d.Path, Record: d.Record}, d.Close())
	}
	return errors.Join(d.EndGuests(), d.Remove())
}

// tidyOptions returns the options of a supervisor that only ends a pair. Nobody else would report its troubles.
func tidyOptions(name string, errs io.Writer) supervisor.Options {
	return supervisor.Options{
		Log: errs, Outlive: true, Rescue: rescueRoot(name),
		Trouble: func(t wire.TroubleNotice) { fmt.Fprintf(errs, "understudy: %s\n", t.What) },
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
