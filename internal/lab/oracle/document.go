package oracle

import (
	"slices"
	"strings"
	"time"
)

// parts are those of docs/ORACLE.md. Each begins with its head, and is of one run.
var parts = []struct {
	head string
	of   func(Result) bool
	text func([]Result, time.Time) string
}{
	{"# The oracle\n", func(r Result) bool { return r.Deaths == 0 && !r.remakes() }, Markdown},
	{remadeHead, func(r Result) bool { return r.Deaths == 0 && r.remakes() }, RemadeMarkdown},
	{liveHead, func(r Result) bool { return r.Deaths > 0 && !r.remakes() }, LiveMarkdown},
	{remadeLiveHead, func(r Result) bool { return r.Deaths > 0 && r.remakes() }, RemadeLiveMarkdown},
}

// remakes reports whether the result is of a configuration whose rescue makes again what was not committed.
func (r Result) remakes() bool {
	c, err := FindConfig(r.Config)
	return err == nil && c.remakes()
}

// Page puts the results into the text of docs/ORACLE.md. A part without results stays as it was.
func Page(was string, results []Result, when time.Time) string {
	var out []string
	for i, p := range parts {
		text := ""
		if at := strings.Index(was, p.head); at >= 0 {
			text = was[at:]
		}
		for _, next := range parts[i+1:] {
			if at := strings.Index(text, "\n"+next.head); at >= 0 {
				text = text[:at]
			}
		}
		if its := slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return !p.of(r) }); len(its) > 0 {
			text = p.text(its, when)
		}
		if text = strings.TrimSpace(text); text != "" {
			out = append(out, text+"\n")
		}
	}
	return strings.Join(out, "\n")
}
