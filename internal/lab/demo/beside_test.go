package demo

import (
	"strings"
	"testing"
)

// TestBeside sums up rounds: each ratio is of one round, and a run without an outage has none.
func TestBeside(t *testing.T) {
	b := &Beside{FS: [2]string{"ext4", "ext3"}, Sides: [2]*Series{{}, {}}}
	ms := func(v float64) *float64 { return &v }
	for _, round := range [][2]*float64{{ms(300), ms(200)}, {ms(100), ms(400)}, {nil, ms(250)}, {ms(200), ms(200)}} {
		for side, outage := range round {
			r := &Report{OutageMS: outage}
			if outage == nil {
				r.fail("no good answer")
			}
			b.Sides[side].add(r)
		}
		b.compare()
	}
	if b.Ratio != (Spread{N: 3, Median: 1, Min: 0.25, Max: 1.5}) || b.Sides[0].Held != 3 || b.Sides[1].Held != 4 {
		t.Errorf("%+v, %+v", b.Ratio, b.Sides)
	}
	if o := b.Sides[1].Outage; o != (Spread{N: 4, Median: 225, Min: 200, Max: 400}) {
		t.Errorf("%+v", o)
	}
	var out strings.Builder
	if err := b.Write(&out); err != nil || !strings.Contains(out.String(), "outage of ext4 to that of ext3: 0.89 by the medians; round by round median 1.00, 0.25 to 1.50") {
		t.Errorf("%v: %s", err, &out)
	}
}
