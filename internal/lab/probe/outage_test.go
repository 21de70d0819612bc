package probe

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"
)

func TestOutage(t *testing.T) {
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	ok := func(start, end int) Answer { return Answer{Start: at(start), End: at(end), Class: OK} }
	bad := func(start, end int) Answer { return Answer{Start: at(start), End: at(end), Class: Timeout} }
	wrong := func(start, end int) Answer { return Answer{Start: at(start), End: at(end), Class: OK, Size: 1} }
	tests := []struct {
		name    string
		answers []Answer
		last    int // end of the last good answer, ms
		gap     int // ms
		err     error
	}{
		{"plain", []Answer{ok(-40, -35), ok(-20, -15), bad(0, 40), bad(20, 60), ok(40, 65), ok(60, 66)}, -15, 80, nil},
		{"ended out of order", []Answer{ok(-20, -5), ok(-40, -10), ok(50, 90), ok(70, 80)}, -5, 85, nil},
		{"wrong content does not count", []Answer{ok(-9, -8), wrong(-7, -6), wrong(3, 4), ok(5, 6)}, -8, 14, nil},
		{"a try across the crash counts for neither side", []Answer{ok(-9, -8), ok(-1, 1), ok(30, 31)}, -8, 39, nil},
		{"a try that begins at the crash is after it", []Answer{ok(-9, -8), ok(0, 1)}, -8, 9, nil},
		{"never good", []Answer{bad(-9, -8), ok(1, 2)}, 0, 0, ErrNeverGood},
		{"never back", []Answer{ok(-9, -8), bad(1, 2), wrong(3, 4)}, 0, 0, ErrNeverBack},
		{"nothing", nil, 0, 0, ErrNeverGood},
	}
	good := func(a Answer) bool { return a.Class == OK && a.Size == 0 }
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 {
				gap, err := Outage(tt.answers, good, zero)
				if !errors.Is(err, tt.err) || gap.Duration != time.Duration(tt.gap)*time.Millisecond {
					t.Errorf("%v, %v", gap.Duration, err)
				}
				if tt.err == nil && !gap.Last.End.Equal(at(tt.last)) {
					t.Errorf("last good %v", gap.Last.End.Sub(zero))
				}
				slices.Reverse(tt.answers) // the order does not matter
			}
		})
	}
}

func TestTally(t *testing.T) {
	answers := []Answer{{Class: OK}, {Class: OK, Size: 1}, {Class: BadStatus}, {Class: Timeout}, {Class: Timeout}, {Class: Reset}}
	c := Tally(answers, func(a Answer) bool { return a.Size == 0 })
	want := map[Class]int{BadStatus: 1, Timeout: 2, Reset: 1}
	if c.Total != 6 || c.Good != 1 || c.WrongBody != 1 || !maps.Equal(c.Errors, want) {
		t.Errorf("%+v", c)
	}
}
