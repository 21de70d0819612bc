package audit

import (
	"io"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// excuse makes a verdict Foreign if all of its contradictions were there before the change. A
// kernel goes on with a file system that has faults, often without noticing them, and what it commits
// then is no damage of its memory. What the change touches is judged once more in its old state.
func (c *checker) excuse(old io.ReaderAt) error {
	same := make(map[addr.Block][]byte, len(c.different))
	for b := range c.different {
		data, err := c.old.block(b)
		if err != nil {
			return nil // the bounds of the work are reached: there is no excuse
		}
		same[b] = data
	}
	for _, t := range c.tables {
		if t.same {
			same[t.block] = c.new.over[t.block]
		}
	}
	was := newChecker(c.old.super, old, same)
	was.against, was.memory = c.new, c.memory
	was.run(same)
	if was.failed != nil {
		return was.failed
	}
	var wrong []string
	for _, reason := range was.verdict.Reasons {
		wrong = append(wrong, subject(reason))
	}
	for _, reason := range c.verdict.Reasons {
		if !slices.Contains(wrong, subject(reason)) || strings.HasPrefix(reason, "block ") { // a block that nobody claims
			return nil
		}
	}
	c.verdict.Foreign = true
	for i := range c.verdict.Reasons {
		c.verdict.Reasons[i] += " (as before)"
	}
	return nil
}

// subject returns what a reason is about, if that is something that can be judged by itself: "inode
// 12", "directory 12", "group 3"; else the whole reason.
func subject(reason string) string {
	words := strings.SplitN(reason, " ", 3)
	if len(words) < 3 || !slices.Contains([]string{"inode", "directory", "group"}, words[0]) {
		return reason
	}
	return words[0] + " " + strings.TrimSuffix(words[1], ":")
}
