package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"understudy.dev/understudy/internal/takeover"
)

// Colours of the view, as SGR parameters (ECMA-48); a terminal has its own tones for them.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
	blue   = "34"
	faint  = "90"
	bold   = "1"
)

func paint(sgr, s string) string { return "\x1b[" + sgr + "m" + s + "\x1b[0m" }

// stateColours are the colours of states.
var stateColours = map[string]string{"protected": green, "unprotected": yellow, "taking over": yellow, "switching": yellow, "failed": red}

// draw draws the whole view, with at most as many lines and columns as the terminal has.
func (v *view) draw() string {
	var b strings.Builder
	v.drawHead(&b)
	if v.status.Name != "" {
		v.drawSides(&b)
		v.drawRisk(&b)
		v.drawWrong(&b)
	}
	v.drawTakeovers(&b)
	v.drawEvents(&b)
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if most := max(1, v.height-2); len(lines) > most {
		lines = lines[:most]
	}
	lines = append(lines, "", paint(faint, " q leaves"))
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, max(1, v.width), "…")
	}
	return strings.Join(lines, "\n")
}

func (v *view) drawHead(b *strings.Builder) {
	st := &v.status
	switch {
	case v.err != nil:
		fmt.Fprintf(b, " %s  %s\n\n", paint(bold, v.name), paint(red, "no supervisor answers: "+oneLine(v.err.Error())))
	case st.Name == "":
		fmt.Fprintf(b, " %s\n\n", paint(bold, v.name))
	default:
		state := st.State
		colour := stateColours[state]
		if st.Held != "" {
			state, colour = state+", held", red
		}
		fmt.Fprintf(b, " %s  %s  %s\n\n", paint(bold, v.name), paint(bold+";"+colour, strings.ToUpper(state)),
			paint(faint, fmt.Sprintf("since %s, for %s", st.Since.Local().Format(time.TimeOnly), age(v.now.Sub(st.Since)))))
	}
}

func (v *view) drawSides(b *strings.Builder) {
	st := &v.status
	width := max(len(st.Active), len(st.Understudy), len("none"))
	fmt.Fprintf(b, " %s %-*s  serves   %s  %s\n", paint(green, "●"), width, st.Active, v.beat(st.Beat, st.Limit), paint(faint, "Linux "+st.Kernel+", "+st.Accel))
	if st.Understudy == "" {
		fmt.Fprintf(b, " %s %-*s  %s\n\n", paint(yellow, "○"), width, "none", paint(yellow, "a death now would be an outage until an understudy has booted"))
		return
	}
	fmt.Fprintf(b, " %s %-*s  waits    %s  %s\n\n", paint(blue, "○"), width, st.Understudy, v.beat(st.UnderstudyBeat, 10*st.Limit), paint(faint, "it has rehearsed a takeover"))
}

// beat says how long ago a side was seen to beat. limit is the side's limit (an understudy's
// is longer, since nobody waits for it).
func (v *view) beat(at time.Time, limit time.Duration) string {
	if at.IsZero() {
		return fmt.Sprintf("%-18s", "no beat yet")
	}
	d := max(0, v.now.Sub(at))
	text := fmt.Sprintf("%-18s", "beat "+age(d)+" ago")
	if d > limit/2 && d > 100*time.Millisecond {
		return paint(yellow, text)
	}
	return text
}

const barWidth = 36

func (v *view) drawRisk(b *strings.Builder) {
	st := &v.status
	unsaved := "not known"
	if st.Unsaved != nil {
		unsaved = size(float64(*st.Unsaved))
	}
	most := ""
	if len(v.samples) > 0 {
		most = fmt.Sprintf("at most %s in a minute", size(slices.Max(v.samples)))
	}
	fmt.Fprintf(b, " unsaved now   %-11s %s  %s\n", unsaved, paint(blue, spark(v.samples, barWidth)), paint(faint, most))
	if st.Limit > 0 {
		part := min(1, float64(st.Pause)/float64(st.Limit))
		colour := green
		if part > 0.5 {
			colour = yellow
		}
		full := int(part * barWidth)
		fmt.Fprintf(b, " beat paused   %-11s %s%s  %s\n", age(st.Pause), paint(colour, strings.Repeat("█", full)), paint(faint, strings.Repeat("░", barWidth-full)),
			paint(faint, "at the longest; dead at "+age(st.Limit)))
	}
	fmt.Fprintf(b, " takeovers     %d\n\n", st.Takeovers)
}

// drawWrong draws what does not work.
func (v *view) drawWrong(b *strings.Builder) {
	st := &v.status
	if st.Held != "" {
		fmt.Fprintf(b, " %s the active side stands still, and is not dead: %s\n", paint(red, "held   "), oneLine(st.Held))
	}
	if st.UnderstudyHeld != "" {
		fmt.Fprintf(b, " %s the understudy stands still, and could not take over: %s\n", paint(yellow, "held   "), oneLine(st.UnderstudyHeld))
	}
	for _, what := range st.Troubles {
		fmt.Fprintf(b, " %s %s\n", paint(yellow, "trouble"), oneLine(what))
	}
	for _, k := range st.Kept {
		fmt.Fprintf(b, " %s %s: %s\n", paint(yellow, "kept   "), k.File, oneLine(k.Why))
	}
	if st.Error != "" {
		fmt.Fprintf(b, " %s %s\n", paint(red, "error  "), oneLine(st.Error))
	}
	if st.Held != "" || st.UnderstudyHeld != "" || len(st.Troubles)+len(st.Kept) > 0 || st.Error != "" {
		b.WriteByte('\n')
	}
}

// drawTakeovers draws the last takeovers, and the steps of the very last one.
func (v *view) drawTakeovers(b *strings.Builder) {
	if len(v.takeovers) == 0 {
		return
	}
	fmt.Fprintf(b, " %s\n", paint(bold, "last takeovers"))
	for _, e := range slices.Backward(v.takeovers) {
		fmt.Fprintf(b, "   %s  %-14s  %s\n", e.At.Local().Format(time.DateTime), e.Cause, oneLine(e.Detail))
	}
	var t lastTakeover
	if err := json.Unmarshal(v.takeovers[len(v.takeovers)-1].Takeover, &t); err == nil && len(t.Steps) > 0 {
		steps := slices.DeleteFunc(t.Steps, func(s takeover.Step) bool { return strings.HasPrefix(s.Name, " ") })
		var bars strings.Builder
		_ = takeover.WriteSteps(&bars, steps, barWidth) // a Builder takes all
		b.WriteByte('\n')
		for line := range strings.Lines(bars.String()) {
			line = strings.NewReplacer("|", "").Replace(line)
			if i := strings.IndexRune(line, '█'); i >= 0 {
				line = line[:i] + paint(blue, strings.TrimRight(line[i:], " \n")) + "\n"
			}
			b.WriteString("   " + line)
		}
	}
	b.WriteByte('\n')
}

func (v *view) drawEvents(b *strings.Builder) {
	if len(v.events) == 0 {
		return
	}
	fmt.Fprintf(b, " %s\n", paint(bold, "what happened"))
	for _, e := range slices.Backward(v.events) {
		fmt.Fprintf(b, "   %s  %-11s  %s\n", paint(faint, e.At.Local().Format("15:04:05.000")), e.Kind, describe(e))
	}
}

// sparks are the characters of a curve, by height.
var sparks = []rune(" ▁▂▃▄▅▆▇█")

// spark draws the last values, the newest at the right, relative to the largest of them.
func spark(values []float64, width int) string {
	values = values[max(0, len(values)-width):]
	most := 1.0
	for _, x := range values {
		most = max(most, x)
	}
	line := []rune(strings.Repeat(" ", width-len(values)))
	for _, x := range values {
		line = append(line, sparks[min(len(sparks)-1, max(0, int(x/most*float64(len(sparks)-1)+0.5)))])
	}
	return string(line)
}

func size(bytes float64) string {
	switch {
	case bytes < 1<<20:
		return fmt.Sprintf("%.0f KiB", bytes/(1<<10))
	case bytes < 1<<30:
		return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
}

// age returns a duration as text for people.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

// oneLine removes line breaks, and everything that a terminal would obey: what a guest says
// is not to be trusted.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t':
			return ' '
		case c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0:
			return -1
		}
		return c
	}, s)
}
