package oracle

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// Finding is something that is not as it must be.
type Finding struct {
	Path    string `json:"path"`
	What    string `json:"what"`
	Durable bool   `json:"durable,omitempty"` // it was synced, and nothing happened to it since
}

func (f Finding) String() string { return fmt.Sprintf("%q: %s", f.Path, f.What) }

// Comparison is how a tree compares with what it must be.
type Comparison struct {
	Nodes    int       `json:"nodes"`    // files, directories and symbolic links that must be there
	Durable  int       `json:"durable"`  // of them, those that are durable
	Done     int       `json:"done"`     // threads whose pending operation is done
	Partial  int       `json:"partial"`  // threads whose pending write is done in part
	Forgiven int       `json:"forgiven"` // after a refusal: differences that exist without a rescue, too
	Back     int       `json:"back"`     // names that were removed, and are there again
	Findings []Finding `json:"findings"` // none if the tree is exact
}

// Lost returns how many of the findings are about what was durable.
func (c Comparison) Lost() int {
	n := 0
	for _, f := range c.Findings {
		if f.Durable {
			n++
		}
	}
	return n
}

// on reports whether a node is what the thread's pending operation is about.
func (t *Thread) on(n *script.Node) bool {
	on, err := t.After.At(t.Pending.On)
	if t.Pending.Kind == script.Rename || t.Pending.Kind == script.Link {
		on, err = t.After.At(script.Ref{Path: t.Pending.To, Slot: script.NoSlot})
	}
	return err == nil && on.ID == n.ID
}

// comparer compares one thread's tree with one of its models.
type comparer struct {
	thread  *Thread
	touched map[int]bool // IDs of the nodes that the pending operation touches
	since   int64        // no mtime of this run is older, in seconds
	remade  *remade      // nil if everything must be as it was
	found   Tree
	partial bool // the pending write is done in part
	out     []Finding

	forgiven, back int // as in Comparison
}

// Compare compares a tree with what it must be after the crash.
func (c *Crashed) Compare(found Tree) Comparison {
	if c.ran != nil {
		return c.ran.compare(found, c.remade)
	}
	var out Comparison
	if found.Error != "" {
		out.Findings = append(out.Findings, Finding{Path: "", What: found.Error, Durable: true})
		return out
	}
	out.Findings = c.compareTop(found)
	for i := range c.Threads {
		t := &c.Threads[i]
		before := t.compare(found, t.Before, threadDir(i), c.Root.Sec, c.remade)
		t.Before.Top.Walk("", func(_ string, n *script.Node) {
			out.Nodes++
			if n.Durable() && !before.touched[n.ID] {
				out.Durable++
			}
		})
		best := before
		if (len(before.out) > 0 || before.partial) && t.Pending != nil {
			after := t.compare(found, t.After, threadDir(i), c.Root.Sec, c.remade)
			switch {
			case len(after.out) < len(before.out) || len(after.out) == 0 && !after.partial:
				best = after
				out.Done++
			case before.partial:
				out.Partial++
			}
		}
		out.Findings = append(out.Findings, best.out...)
		out.Forgiven, out.Back = out.Forgiven+best.forgiven, out.Back+best.back
	}
	return out
}

// compareTop checks what is above the threads' directories.
func (c *Crashed) compareTop(found Tree) []Finding {
	var out []Finding
	root := found.Entries[""]
	if root.Sec != c.Root.Sec || root.Nsec != c.Root.Nsec {
		out = append(out, Finding{What: fmt.Sprintf("mtime %d.%09d, want %d.%09d", root.Sec, root.Nsec, c.Root.Sec, c.Root.Nsec)})
	}
	if root.Mode != script.TypeDir|0o755 || root.UID != 0 || root.GID != 0 { // as mkfs makes it
		out = append(out, Finding{What: fmt.Sprintf("mode %o, owner %d:%d, want 40755, 0:0", root.Mode, root.UID, root.GID)})
	}
	for at, e := range found.Entries {
		top, _, _ := strings.Cut(at, "/")
		known := at == "" || at == "lost+found" || at == ballastName && c.Config.Ballast
		for i := range c.Threads {
			known = known || top == threadDir(i)
		}
		if !known {
			out = append(out, Finding{Path: at, What: fmt.Sprintf("inode %d is too much", e.Ino)})
		}
	}
	return out
}

func (t *Thread) compare(found Tree, want *script.Script, dir string, since int64, r *remade) *comparer {
	c := &comparer{thread: t, touched: t.touched(), since: since, found: found, remade: r}
	wanted := make(map[string]bool)
	want.Top.Walk(dir, func(at string, n *script.Node) {
		wanted[at] = true
		e, ok := found.Entries[at]
		sound := len(c.out)
		if !ok {
			c.find(at, n, "missing")
		} else {
			c.node(at, n, e)
		}
		if len(c.out) > sound && c.remade.refuses(at, n.Ino) && c.remade.leftAs(e, ok) {
			c.out = c.out[:sound]
			c.forgiven++
		}
	})
	for _, at := range slices.Sorted(maps.Keys(found.Entries)) {
		if !strings.HasPrefix(at, dir+"/") || wanted[at] {
			continue
		}
		if c.remade.hadBefore(at, found) {
			c.back++
		} else {
			c.find(at, nil, "inode %d is too much", found.Entries[at].Ino)
		}
	}
	return c
}

// touched are the nodes that the pending operation may have begun to change.
func (t *Thread) touched() map[int]bool {
	ids := make(map[int]bool)
	if t.Pending == nil {
		return ids
	}
	for _, s := range []*script.Script{t.Before, t.After} {
		refs := append([]script.Ref{t.Pending.On}, t.Pending.Touch...)
		if t.Pending.Kind == script.Rename { // the name that it may replace
			refs = append(refs, script.Ref{Path: t.Pending.To, Slot: script.NoSlot})
		}
		for _, ref := range refs {
			if n, err := s.At(ref); err == nil {
				ids[n.ID] = true
			}
		}
	}
	return ids
}

func (c *comparer) find(at string, n *script.Node, format string, args ...any) {
	f := Finding{Path: at, What: fmt.Sprintf(format, args...)}
	f.Durable = n != nil && n.Durable() && !c.touched[n.ID]
	c.out = append(c.out, f)
}

// node compares one name.
func (c *comparer) node(at string, n *script.Node, e page.Entry) {
	touched := c.touched[n.ID]
	if e.Error != "" {
		c.find(at, n, "%s", e.Error)
		return
	}
	if e.Mode&script.TypeMask != n.Mode&script.TypeMask {
		c.find(at, n, "type %o, want %o", e.Mode&script.TypeMask, n.Mode&script.TypeMask)
		return
	}
	again := c.remade != nil && !n.Durable() // it may have been made again
	if n.Ino != 0 && e.Ino != n.Ino && !again {
		c.find(at, n, "inode %d, want %d", e.Ino, n.Ino)
	}
	chown := touched && c.thread.Pending.Kind == script.Chown
	if e.Mode == n.Mode&^0o077 && e.Mode != n.Mode && again && c.remade.xattrs[n.Ino] { // it might have had an ACL
		c.forgiven++
	} else if e.Mode != n.Mode && !(chown && e.Mode == n.Mode&^0o6000) {
		c.find(at, n, "mode %o, want %o", e.Mode, n.Mode)
	}
	if e.UID != n.UID || e.GID != n.GID {
		c.find(at, n, "owner %d:%d, want %d:%d", e.UID, e.GID, n.UID, n.GID)
	}
	if e.NoDump != n.NoDump && n.Ino != 0 { // what was just made may have it from its directory
		c.find(at, n, "the flag no dump is %v, want %v", e.NoDump, n.NoDump)
	}
	if e.Nlink != n.Nlink() && c.remade == nil { // a name that was removed may be back
		c.find(at, n, "%d links, want %d", e.Nlink, n.Nlink())
	}
	if !c.mtime(n, e) && !(n.Dir() && (again || c.remade != nil && c.remade.unrescued)) {
		c.find(at, n, "mtime %d.%09d, want %d.%09d", e.Sec, e.Nsec, n.Sec, n.Nsec)
	}
	if what := c.xattrs(n, e); what != "" && again && c.remade.xattrs[n.Ino] {
		c.forgiven++
	} else if what != "" {
		c.find(at, n, "%s", what)
	}
	switch {
	case n.File():
		c.content(at, n, e)
	case !n.Dir() && (string(e.Target) != n.Target || e.Size != n.Size):
		c.find(at, n, "target %q, want %q", e.Target, n.Target)
	}
}

// mtime reports whether a node has the time that was reported. The pending operation may
// have set another: the time of the run, or what utimensat(2) was given.
func (c *comparer) mtime(n *script.Node, e page.Entry) bool {
	if e.Sec == n.Sec && e.Nsec == n.Nsec {
		return true
	}
	top := len(n.Names) == 0 && n.Ino == 0 // nothing happened in the thread's directory yet
	if !c.touched[n.ID] {
		return top
	}
	const hour = 3600
	p := c.thread.Pending
	return e.Sec >= c.since && e.Sec < c.since+hour || p.Kind == script.Utimes && e.Sec == p.Sec && int64(e.Nsec) == p.Nsec
}

// xattrs compares the attributes. Operations that change a file's content or owner remove
// its capability first.
func (c *comparer) xattrs(n *script.Node, e page.Entry) string {
	got := make(map[string]string)
	for i := 0; i+1 < len(e.Xattrs); i += 2 {
		got[string(e.Xattrs[i])] = string(e.Xattrs[i+1])
	}
	if c.touched[n.ID] && got[script.Capability] == "" {
		switch c.thread.Pending.Kind {
		case script.Write, script.Store, script.Truncate, script.Fallocate, script.Chown:
			got[script.Capability] = n.Xattrs[script.Capability]
		}
	}
	for name := range n.Xattrs {
		if got[name] != n.Xattrs[name] {
			return fmt.Sprintf("attribute %s is %.40q, want %.40q", name, got[name], n.Xattrs[name])
		}
	}
	for name := range got {
		if _, ok := n.Xattrs[name]; !ok && got[name] != "" {
			return fmt.Sprintf("attribute %s is too much", name)
		}
	}
	return ""
}

// content compares what a file holds.
func (c *comparer) content(at string, n *script.Node, e page.Entry) {
	sum := n.Content.Sum()
	if bytes.Equal(e.Sum, sum[:]) && e.Size == n.Size {
		return
	}
	if c.touched[n.ID] && e.Pages != nil && inPart(*c.thread.Pending, c.thread.Before, n, e, c.remade != nil) {
		c.partial = true
		return
	}
	if e.Size != n.Size {
		c.find(at, n, "%d bytes, want %d", e.Size, n.Size)
		return
	}
	c.find(at, n, "content of %d bytes differs", e.Size)
}

// inPart reports whether a file is as an operation may leave it half-way: after a write,
// some first bytes are done; after fallocate(2), any of the blocks. With zeroing, also after a truncation: XFS first makes the rest of its
// last block zeros, and up to 6.1 at least the file as long as that block (fs/iomap/buffered-io.c, iomap_write_end).
func inPart(op script.Op, s *script.Script, n *script.Node, e page.Entry, zeroing bool) bool {
	longest := max(n.Size, op.Off+op.Len)
	if op.Kind == script.Truncate && zeroing {
		longest = (longest + script.PageSize - 1) / script.PageSize * script.PageSize
	}
	if e.Size < n.Size || e.Size > longest {
		return false
	}
	got := script.Content{Size: e.Size, Pages: e.Pages}
	for number, p := range got.Pages {
		got.Pages[number] = append(bytes.Clone(p), make([]byte, script.PageSize-len(p))...)
	}
	data := make([]byte, op.Len)
	s.Fill(data, op, 0)
	from, to := op.Off, min(op.Off+op.Len, e.Size)
	prefix := true
	for off := range e.Size {
		now, old := got.At(off), n.Content.At(off)
		inside := off >= from && off < to
		switch op.Kind {
		case script.Write, script.Store:
			prefix = prefix && (!inside || now == data[off-from])
			if now != old && !(inside && prefix) || e.Size > n.Size && inside && !prefix {
				return false
			}
		case script.Fallocate:
			if now != old && !(inside && now == 0) {
				return false
			}
		case script.Truncate:
			if !zeroing || now != old && !(off >= op.Off && now == 0) {
				return false
			}
		default:
			return false
		}
	}
	return true
}
