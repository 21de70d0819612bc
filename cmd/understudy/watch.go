package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"golang.org/x/term"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/events"
)

// How often the view asks, and how much it keeps of the answers.
const (
	askEvery    = 500 * time.Millisecond
	maxSamples  = 120 // of unsaved bytes: a minute
	maxShown    = 8   // events
	maxHistory  = 5   // takeovers
	askLimit    = 2 * time.Second
	plainWidth  = 108 // if no terminal has given the view a width
	plainHeight = 40
)

// view is what is known of a pair, for the terminal.
type view struct {
	name      string
	status    status
	err       error     // why the supervisor does not answer; nil if it does
	now       time.Time // when status was taken
	samples   []float64 // of unsaved bytes, the newest last
	events    []events.Event
	takeovers []events.Event
	width     int
	height    int
}

type (
	asked struct {
		status status
		err    error
		at     time.Time
	}
	happened events.Event
	tick     struct{}
)

// watch shows a pair in the terminal until the operator has seen enough.
func watch(ctx context.Context, name string) error {
	if !term.IsTerminal(int(os.Stdout.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("--watch needs a terminal; understudy events -f goes anywhere")
	}
	name, err := findPair(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := &view{name: name, width: plainWidth, height: plainHeight}
	p := tea.NewProgram(v, tea.WithContext(ctx), tea.WithoutSignalHandler())
	go readEvents(ctx, name, func(e events.Event) { p.Send(happened(e)) })
	_, err = p.Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil { // killed by a signal
		return nil
	}
	return err
}

// readEvents reads the past events of a pair, and then follows the new ones.
func readEvents(ctx context.Context, name string, seen func(events.Event)) {
	r := events.NewReader(dirs.State(name))
	defer r.Close()
	for e, err := range r.Read() {
		if err == nil {
			seen(e)
		}
	}
	for e, err := range r.Follow(ctx, followEvery) {
		if err == nil {
			seen(e)
		}
	}
}

// askNow asks the supervisor for its status.
func (v *view) askNow() tea.Msg {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	a := asked{}
	a.err = ask(ctx, v.name, verbStatus, nil, &a.status)
	a.at = time.Now()
	return a
}

// Init implements tea.Model.
func (v *view) Init() tea.Cmd { return v.askNow }

// Update implements tea.Model.
func (v *view) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch m := msg.(type) {
	case tea.KeyPressMsg:
		switch m.String() {
		case "q", "esc", "ctrl+c":
			return v, tea.Quit
		}
	case tea.WindowSizeMsg:
		if m.Width > 0 && m.Height > 0 { // a terminal may not know its size
			v.width, v.height = m.Width, m.Height
		}
	case asked:
		v.learn(m)
		return v, tea.Tick(askEvery, func(time.Time) tea.Msg { return tick{} })
	case tick:
		return v, v.askNow
	case happened:
		v.happened(events.Event(m))
	}
	return v, nil
}

// learn takes in an answer.
func (v *view) learn(a asked) {
	v.now, v.err = a.at, a.err
	if a.err != nil {
		return
	}
	v.status = a.status
	if a.status.Unsaved == nil {
		return
	}
	if v.samples = append(v.samples, float64(*a.status.Unsaved)); len(v.samples) > maxSamples {
		v.samples = v.samples[1:]
	}
}

func (v *view) happened(e events.Event) {
	if v.events = append(v.events, e); len(v.events) > maxShown {
		v.events = v.events[1:]
	}
	if e.Kind != events.TookOver && e.Kind != events.Switched {
		return
	}
	if v.takeovers = append(v.takeovers, e); len(v.takeovers) > maxHistory {
		v.takeovers = v.takeovers[1:]
	}
}

// View implements tea.Model.
func (v *view) View() tea.View {
	w := tea.NewView(v.draw())
	w.AltScreen, w.WindowTitle = true, "understudy "+v.name
	return w
}

// drawTo draws the view into a file.
func drawTo(ctx context.Context, name, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(picture(ctx, name, f), f.Close())
}

// picture draws the view of a pair as it is now.
func picture(ctx context.Context, name string, w io.Writer) error {
	name, err := findPair(name)
	if err != nil {
		return err
	}
	v := &view{name: name, width: plainWidth, height: plainHeight}
	for e, err := range events.Read(dirs.State(name)) {
		if err == nil {
			v.happened(e)
		}
	}
	for range maxSamples / 4 { // enough for a curve
		v.learn(v.askNow().(asked))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(askEvery / 2):
		}
	}
	if v.err != nil {
		return v.err
	}
	return writePicture(w, v.draw(), v.width)
}
