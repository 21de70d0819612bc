package oracle

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"unicode/utf8"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// TestRemade checks what may differ where a rescue makes again what was not committed, and what may not.
func TestRemade(t *testing.T) {
	c, earlier := pretend(t, 3, 420), pretend(t, 3, 330)
	before, plain := c.Threads[0].Before, render(earlier.Threads[0].Before)
	touched := c.Threads[0].touched()
	// The first file, in the order of paths, for which ok holds.
	file := func(what string, ok func(at string, n *script.Node) bool) (found string) {
		before.Top.Walk("t0", func(at string, n *script.Node) {
			if found == "" && n.File() && utf8.ValidString(at) && !touched[n.ID] && ok(at, n) {
				found = at
			}
		})
		if found == "" {
			t.Fatal("no file is ", what)
		}
		return found
	}
	same := render(before)
	durable := file("durable", func(_ string, n *script.Node) bool { return n.Durable() })
	fresh := file("not durable", func(_ string, n *script.Node) bool { return !n.Durable() && len(n.Names) == 1 })
	// Without the rescue it had the same name, and other content.
	changed := file("changed", func(at string, n *script.Node) bool {
		was := plain.Entries[at]
		return was.Ino == n.Ino && !n.Durable() && len(n.Names) == 1 && string(was.Sum) != string(same.Entries[at].Sum)
	})
	removed := ""
	for _, at := range slices.Sorted(maps.Keys(plain.Entries)) {
		if _, there := same.Entries[at]; !there && same.place(at).dir != 0 && same.place(at) == plain.place(at) {
			removed = at
			break
		}
	}
	if removed == "" {
		t.Fatal("no name was removed")
	}
	edit := func(at string, do func(*page.Entry)) func(Tree) {
		return func(found Tree) {
			e := found.Entries[at]
			do(&e)
			found.Entries[at] = e
		}
	}
	again := func(e *page.Entry) { e.Ino = 9999 }
	xattr := func(e *page.Entry) { e.Xattrs = append(slices.Clone(e.Xattrs), []byte("user.more"), []byte("x")) }
	missing := func(at string) func(Tree) { return func(found Tree) { delete(found.Entries, at) } }
	for name, tc := range map[string]struct {
		change   func(Tree)
		refused  string
		reason   string
		bad      bool
		forgiven int
		back     int
	}{
		"the same":                        {change: func(Tree) {}},
		"made again":                      {change: edit(fresh, again)},
		"made again, and durable":         {change: edit(durable, again), bad: true},
		"another size":                    {change: edit(fresh, func(e *page.Entry) { e.Size++ }), bad: true},
		"other content":                   {change: edit(fresh, func(e *page.Entry) { e.Sum = []byte("other") }), bad: true},
		"another owner":                   {change: edit(fresh, func(e *page.Entry) { e.UID++ }), bad: true},
		"other permissions":               {change: edit(fresh, func(e *page.Entry) { e.Mode ^= 0o100 }), bad: true},
		"another mtime":                   {change: edit(fresh, func(e *page.Entry) { e.Sec++ }), bad: true},
		"other attributes":                {change: edit(fresh, xattr), bad: true},
		"other attributes, and refused":   {change: edit(fresh, xattr), refused: fresh, reason: "its extended attributes are lost", forgiven: 1},
		"owner only, attributes refused":  {change: edit(fresh, func(e *page.Entry) { e.Mode &^= 0o077 }), refused: fresh, reason: "its extended attributes are lost", forgiven: 1},
		"owner only":                      {change: edit(fresh, func(e *page.Entry) { e.Mode &^= 0o077 }), bad: true},
		"missing, attributes refused":     {change: missing(fresh), refused: fresh, reason: "its extended attributes are lost", bad: true},
		"missing":                         {change: missing(fresh), bad: true},
		"missing, and refused":            {change: missing(fresh), refused: fresh, forgiven: 1},
		"missing, another refused":        {change: missing(fresh), refused: durable, bad: true},
		"as before":                       {change: edit(changed, func(e *page.Entry) { *e = plain.Entries[changed] }), bad: true},
		"as before, and refused":          {change: edit(changed, func(e *page.Entry) { *e = plain.Entries[changed] }), refused: changed, forgiven: 1},
		"neither, and refused":            {change: edit(changed, func(e *page.Entry) { e.Sum = []byte("other") }), refused: changed, bad: true},
		"back":                            {change: edit(removed, func(e *page.Entry) { *e = plain.Entries[removed] }), back: 1},
		"another in the place of removed": {change: edit(removed, func(e *page.Entry) { *e = plain.Entries[removed]; e.Ino = 9999 }), bad: true},
		"too much":                        {change: edit("t0/strange", func(e *page.Entry) { e.Ino, e.Mode = 9999, script.TypeFile }), bad: true},
	} {
		for _, by := range []struct {
			path bool
			top  string // that the paths begin with
		}{{}, {path: true}, {true, "life2/"}} {
			if by.path && tc.reason != "" {
				continue // these are refused by inode
			}
			t.Run(fmt.Sprintf("%s, by path %v %s", name, by.path, by.top), func(t *testing.T) {
				found := Tree{Entries: maps.Clone(same.Entries)}
				tc.change(found)
				var report struct {
					Refused []map[string]any `json:"refused"`
				}
				switch {
				case tc.refused != "" && by.path:
					report.Refused = []map[string]any{{"path": by.top + tc.refused}}
				case tc.refused != "":
					report.Refused = []map[string]any{{"inode": same.Entries[tc.refused].Ino, "reason": tc.reason}}
				}
				b, err := json.Marshal(report)
				if err != nil {
					t.Fatal(err)
				}
				c.remade = remadeOf(plain, &RescueReport{Report: b}, by.top)
				got := c.Compare(found)
				if (len(got.Findings) > 0) != tc.bad || got.Forgiven != tc.forgiven || got.Back != tc.back {
					t.Errorf("%d forgiven, %d back, %v", got.Forgiven, got.Back, got.Findings)
				}
			})
		}
	}
}
