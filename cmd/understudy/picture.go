package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Measures of a picture of a terminal, in its own units.
const (
	cellWidth  = 8.4 // of a character of the font below
	cellHeight = 19
	fontSize   = 14
	framePad   = 14
)

// tones are the colours of the view in a picture.
var tones = map[string]string{green: "#3fb950", yellow: "#d29922", red: "#f85149", blue: "#58a6ff", faint: "#8b949e"}

// writePicture draws the text of a terminal, with the colours that paint gives, as SVG.
func writePicture(w io.Writer, text string, columns int) error {
	lines := strings.Split(text, "\n")
	width, height := 2*framePad+int(float64(columns)*cellWidth), 2*framePad+len(lines)*cellHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="%d">`+"\n", width, height, fontSize)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="#0d1117"/>`+"\n", width, height)
	for i, line := range lines {
		y := framePad + i*cellHeight + fontSize
		column := 0
		for _, s := range spans(line) {
			if strings.TrimSpace(s.text) != "" {
				fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="%s"%s xml:space="preserve" textLength="%.1f">`, framePad+float64(column)*cellWidth, y, s.colour(), s.weight(),
					float64(ansi.StringWidth(s.text))*cellWidth)
				_ = xml.EscapeText(&b, []byte(s.text)) // a Builder takes all
				b.WriteString("</text>\n")
			}
			column += ansi.StringWidth(s.text)
		}
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// span is text of one colour.
type span struct{ sgr, text string }

func (s span) colour() string {
	for p := range strings.SplitSeq(s.sgr, ";") {
		if tone, ok := tones[p]; ok {
			return tone
		}
	}
	return "#e6edf3"
}

func (s span) weight() string {
	if strings.HasPrefix(s.sgr, bold) && (s.sgr == bold || strings.HasPrefix(s.sgr, bold+";")) {
		return ` font-weight="bold"`
	}
	return ""
}

// spans returns the parts of a line that paint has coloured, and those in between.
func spans(line string) (all []span) {
	sgr := ""
	for part := range strings.SplitSeq(line, "\x1b[") {
		if code, text, ok := strings.Cut(part, "m"); ok && len(all) > 0 {
			if sgr = code; code == "0" {
				sgr = ""
			}
			part = text
		}
		all = append(all, span{sgr, part})
	}
	return all
}
