package takeover

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// Measures of the picture, in its own units.
const (
	svgWidth   = 860
	svgLabel   = 110 // of the names at the left
	svgValue   = 90  // of the numbers at the right
	svgRow     = 24
	svgBar     = 14
	svgMargin  = 64 // above the bars, for the title
	svgTickGap = 80 // between marks of the axis, at least
)

// WriteSVG draws steps as a picture: bars over an axis in milliseconds, and
// the end of the outage as a line. outage is in milliseconds; 0 draws none.
func WriteSVG(w io.Writer, title string, steps []Step, outage float64) error {
	end := outage
	for _, s := range steps {
		end = max(end, s.End)
	}
	if end <= 0 {
		end = 1
	}
	plot := float64(svgWidth - svgLabel - svgValue)
	x := func(ms float64) float64 { return svgLabel + ms*plot/end }
	height := svgMargin + len(steps)*svgRow + 40
	bottom := height - 30

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<text x="8" y="22" font-size="15">%s</text>`+"\n", html.EscapeString(title))
	for ms := 0.0; ms <= end; ms += tick(end, plot) {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%.0f ms</text>`+"\n",
			x(ms), svgMargin, bottom, x(ms), bottom+18, ms)
	}
	for i, s := range steps {
		y := svgMargin + i*svgRow
		fmt.Fprintf(&b, `<text x="8" y="%d">%s</text>`, y+13, html.EscapeString(strings.TrimSpace(s.Name)))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#2b6cb0"/>`, x(s.Start), y+2, max((s.End-s.Start)*plot/end, 1.5), svgBar)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#444">%.1f ms</text>`+"\n", svgWidth-8, y+13, s.End-s.Start)
	}
	if outage > 0 {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#c53030" stroke-width="2"/><text x="%.1f" y="%d" text-anchor="end" fill="#c53030">the client is served again</text>`+"\n",
			x(outage), svgMargin-4, bottom, x(outage)-5, svgMargin-8)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// tick is a round distance between marks, such that they do not crowd.
func tick(end, plot float64) float64 {
	for base := 1.0; ; base *= 10 {
		for _, step := range []float64{base, 2 * base, 5 * base} {
			if step*plot/end >= svgTickGap {
				return step
			}
		}
	}
}
