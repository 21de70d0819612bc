package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/takeover"
)

// viewed returns a view of a pair in some state, after a takeover.
func viewed(change func(*view)) *view {
	now := time.Date(2026, 11, 28, 1, 2, 3, 0, time.Local)
	unsaved := uint64(34 << 20)
	v := &view{name: "web", now: now, width: 100, height: 50, status: status{
		Name: "web", State: "protected", Active: "left", Understudy: "right", Kernel: "6.1.0", Accel: "kvm", Since: now.Add(-3 * time.Minute),
		Takeovers: 1, Pause: 25 * time.Millisecond, Limit: 300 * time.Millisecond, Beat: now.Add(-12 * time.Millisecond), UnderstudyBeat: now.Add(-15 * time.Millisecond), Unsaved: &unsaved,
	}}
	for i := range 200 {
		v.learn(asked{status: func() status { st := v.status; n := uint64(i) << 18; st.Unsaved = &n; return st }(), at: now})
	}
	v.status.Unsaved = &unsaved
	t := lastTakeover{Steps: []takeover.Step{{Name: "detect", End: 20}, {Name: "fence", Start: 20, End: 30}, {Name: "  part", Start: 25, End: 26}, {Name: takeover.StepAddress, Start: 131, End: 132}}}
	report, _ := json.Marshal(t)
	for i := range 12 {
		v.happened(events.Event{At: now.Add(time.Duration(i) * time.Second), Kind: events.TookOver, Active: "left", Cause: "heartbeat", Detail: fmt.Sprintf("number %d", i), Takeover: report})
	}
	if change != nil {
		change(v)
	}
	return v
}

func TestDraw(t *testing.T) {
	tests := []struct {
		name   string
		change func(*view)
		want   []string
		not    []string
	}{
		{"protected", nil, []string{"web  PROTECTED", "for 3 min", "left   serves", "right  waits", "beat 12 ms ago", "34.0 MiB", "at most 49.8 MiB", "25 ms", "number 11", "detect", "address"}, []string{"number 3", "part", "error", "held"}},
		{"alone", func(v *view) { v.status.State, v.status.Understudy = "unprotected", "" }, []string{"UNPROTECTED", "outage until"}, []string{"waits"}},
		{"held", func(v *view) { v.status.Held = "QEMU has stopped it (io-error)" }, []string{"PROTECTED, HELD", "io-error"}, nil},
		{"troubles", func(v *view) { v.status.Troubles = []string{"service web keeps ending"} }, []string{"trouble service web"}, nil},
		{"gone", func(v *view) { v.learn(asked{err: errors.New("pair web is not up")}) }, []string{"no supervisor answers: pair web is not up", "number 11"}, []string{"PROTECTED"}},
		{"nothing known", func(v *view) { *v = view{name: "web", width: 80, height: 24} }, []string{"web", "q leaves"}, nil},
		{"unknown", func(v *view) { v.status.Unsaved, v.samples = nil, nil }, []string{"unsaved now   not known"}, nil},
		{"hostile", func(v *view) { v.status.Error = "x\x1b[2Jy\nz\u009b31m" }, []string{"x[2Jy z31m"}, nil},
		{"narrow", func(v *view) { v.width, v.height = 20, 6 }, []string{"web", "q leaves"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := viewed(tt.change)
			text := v.draw()
			plain := ansi.Strip(text)
			for _, want := range tt.want {
				if !strings.Contains(plain, want) {
					t.Errorf("no %q in\n%s", want, plain)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(plain, not) {
					t.Errorf("%q in\n%s", not, plain)
				}
			}
			lines := strings.Split(text, "\n")
			if len(lines) > v.height {
				t.Errorf("%d lines on a terminal of %d", len(lines), v.height)
			}
			for _, l := range lines {
				if w := ansi.StringWidth(l); w > v.width {
					t.Errorf("%d columns of %d: %q", w, v.width, l)
				}
			}
			checkPicture(t, v)
		})
	}
}

// checkPicture checks that the picture is XML, and has the text of the view.
func checkPicture(t *testing.T, v *view) {
	t.Helper()
	text := v.draw()
	var b strings.Builder
	if err := writePicture(&b, text, v.width); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	d := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := token.(xml.CharData); ok {
			said.Write(c)
		}
	}
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), "") }
	if got, want := squeeze(said.String()), squeeze(ansi.Strip(text)); got != want {
		t.Errorf("the picture says %q, and the view %q", got, want)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0 ms", 999 * time.Millisecond: "999 ms", 59 * time.Second: "59 s", 61 * time.Second: "1 min", 26 * time.Hour: "26 h 0 min", 72 * time.Hour: "3 days"} {
		if got := age(d); got != want {
			t.Errorf("%v is %q, not %q", d, got, want)
		}
	}
}
