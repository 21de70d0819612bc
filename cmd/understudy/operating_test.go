package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/events"
)

// operator makes a pair report what happens to it.
type operator struct {
	t     *testing.T
	port  int
	hooks string // the file that a hook writes to
	cause string // of the death; the test cannot know which sign of it is seen first
}

func operate(t *testing.T) *operator {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the pair may use the port then
	return &operator{t: t, port: l.Addr().(*net.TCPAddr).Port, hooks: filepath.Join(t.TempDir(), "hooks")}
}

// keys returns keys of a pair.yaml, up to services.
func (o *operator) keys() string {
	return fmt.Sprintf(`metrics: 127.0.0.1:%d
hooks:
  - {command: [/bin/sh, -c, 'cat >> "$1"', hook, %q], on: [took-over, down]}
  - {command: [/bin/sh, -c, exit 3], on: [protected]}
services:`, o.port, o.hooks)
}

// metric returns the value of a metric, with its labels; false if there is none.
func (o *operator) metric(name string) (value float64, is bool) {
	o.t.Helper()
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", o.port))
	if err != nil {
		o.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(b)
	if m == nil {
		return 0, false
	}
	value, err = strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		o.t.Fatal(err)
	}
	return value, true
}

// wants checks the values of metrics.
func (o *operator) wants(want map[string]float64) {
	o.t.Helper()
	for name, v := range want {
		if got, is := o.metric(name); !is || got != v {
			o.t.Errorf("%s is %v (there: %v), not %v", name, got, is, v)
		}
	}
}

// protected checks what a pair reports that has just come up.
func (o *operator) protected() {
	o.t.Helper()
	o.wants(map[string]float64{
		`understudy_protected{pair="test"}`: 1, `understudy_state{pair="test",state="protected"}`: 1,
		`understudy_takeovers_total{cause="dying message",pair="test"}`: 0,
	})
	// Whatever the guest writes, its own count is less than its memory.
	if n, is := o.metric(`understudy_unsaved_bytes{pair="test"}`); !is || n < 0 || n > 256<<20 {
		o.t.Errorf("%v bytes are unsaved (known: %v)", n, is)
	}
	var st status
	await(o.t, "look at both sides", programLimit, func() bool {
		st = pairStatus(o.t)
		return !st.Beat.IsZero() && !st.UnderstudyBeat.IsZero()
	})
	if st.Unsaved == nil || time.Since(st.Beat) > time.Minute || time.Since(st.UnderstudyBeat) > time.Minute {
		o.t.Errorf("status: unsaved %v, beat %v, the understudy's %v", st.Unsaved, st.Beat, st.UnderstudyBeat)
	}
	for name, want := range map[string]string{"": "left", "active": "left", "understudy": "right", "right": "right"} {
		if side, err := findSide(o.t.Context(), "test", name); side != want || err != nil {
			o.t.Errorf("console of %q is that of %q, %v", name, side, err)
		}
	}
	await(o.t, "failure of the hook that fails", programLimit, func() bool {
		n, _ := o.metric(`understudy_hook_failures_total{pair="test"}`)
		return n == 1
	})
}

// watched looks at the pair in a terminal, until q is pressed.
func (o *operator) watched() {
	o.t.Helper()
	cmd := exec.Command("script", "-qec", "stty cols 90 rows 30; "+binary+" status --watch", "/dev/null")
	var seen lockedBuffer
	cmd.Stdout, cmd.Stderr = &seen, &seen
	keys, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		o.t.Fatal(err)
	}
	defer cmd.Process.Kill()
	await(o.t, "view of the pair", programLimit, func() bool {
		s := seen.String()
		return strings.Contains(s, "PROTECTED") && strings.Contains(s, "unsaved now") && strings.Contains(s, "what happened")
	})
	if _, err := keys.Write([]byte("q")); err != nil {
		o.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		o.t.Errorf("the view ended with %v: %q", err, seen.String())
	}
}

// tookOver checks what the pair reports after a takeover.
func (o *operator) tookOver(st status) {
	o.t.Helper()
	o.cause, _, _ = strings.Cut(st.Takeover.Verdict, ":")
	count := fmt.Sprintf(`understudy_takeovers_total{cause=%q,pair="test"}`, o.cause)
	await(o.t, count, programLimit, func() bool {
		n, _ := o.metric(count)
		return n == 1
	})
	o.wants(map[string]float64{
		fmt.Sprintf(`understudy_takeover_seconds_count{cause=%q,pair="test"}`, o.cause): 1,
		`understudy_takeover_step_seconds_count{pair="test",step="fence"}`:              1,
	})
}

// down checks what is left of a pair that was taken over once: its log, and what the hooks wrote.
func (o *operator) down() {
	o.t.Helper()
	out, err := understudy(o.t, "events", "--json")
	if err != nil {
		o.t.Fatal(err)
	}
	kinds, all := kindsOf(o.t, out)
	again := slices.DeleteFunc(kinds, func(k events.Kind) bool { return k == events.Error })
	want := []events.Kind{events.Up, events.Protected, events.TakingOver, events.TookOver, events.Unprotected}
	if !slices.Equal(again[:min(len(again), len(want))], want) || again[len(again)-1] != events.Down {
		o.t.Errorf("events %v", kinds)
	}
	for _, e := range all {
		if e.Kind != events.TookOver {
			continue
		}
		var t lastTakeover
		if err := json.Unmarshal(e.Takeover, &t); err != nil || len(t.Steps) < 5 || e.Active != "right" || e.Cause != o.cause || t.outage() <= 0 {
			o.t.Errorf("event %+v with %d steps, %v", e, len(t.Steps), err)
		}
	}
	hooked, _ := kindsOf(o.t, string(readFile(o.t, o.hooks)))
	if !slices.Equal(hooked, []events.Kind{events.TookOver, events.Down}) {
		o.t.Errorf("the hook was run at %v", hooked)
	}
	text, err := understudy(o.t, "events", "-n", "1")
	if err != nil || !regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  down`).MatchString(text) || strings.Count(text, "\n") != 1 {
		o.t.Errorf("the last event is %q, %v", text, err)
	}
}

// kindsOf parses events, one on each line.
func kindsOf(t *testing.T, text string) (kinds []events.Kind, all []events.Event) {
	t.Helper()
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		var e events.Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%v in %q", err, s.Text())
		}
		kinds, all = append(kinds, e.Kind), append(all, e)
	}
	return kinds, all
}

// TestTimed checks that each line of a log begins with the time, however it is written.
func TestTimed(t *testing.T) {
	var to strings.Builder
	w := &timed{to: &to, now: func() time.Time { return time.Date(2026, 11, 28, 1, 2, 3, 4e6, time.UTC) }}
	for _, part := range []string{"one", " line\n", "two\nthree\n", "\n", "half"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	const at = "2026-11-28T01:02:03.004Z "
	if want := at + "one line\n" + at + "two\n" + at + "three\n" + at + "\n"; to.String() != want {
		t.Errorf("%q", to.String())
	}
}
