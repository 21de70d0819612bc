package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
	"understudy.dev/understudy/internal/live/partition"
)

// toolsName is the serial number of the disk with the programs.
const toolsName = "tools"

var toolsMount = page.Mount{Disk: toolsName, Type: "ext4", ReadOnly: true}

// Program is a real program as the workload, and as its own judge.
type Program struct {
	Name  string
	steps [][]string
	talk  *page.Talk
	check [][]string // must end with status 0
	// judge looks at what the checks said; progress is what the guest had reported.
	judge func(progress int, said []page.Entry) []string
	// midway: the crash comes while it runs, at a random progress up to that; if 0, it
	// comes right after, without a sync, and the whole tree is then compared, too.
	midway int
}

// silent requires the checks to succeed and print nothing.
func silent(_ int, said []page.Entry) []string {
	var out []string
	for _, e := range said {
		if e.Exit != 0 || len(e.Output) > 0 {
			out = append(out, fmt.Sprintf("%s: status %d: %.500s", strings.Join(e.Command, " "), e.Exit, e.Output))
		}
	}
	return out
}

// database is SQLite that never syncs. That is safe if a process dies, and with a rescue
// it is safe if a kernel dies, too. Each transaction inserts a row, deletes another, and
// counts.
func database(journal string) Program {
	return Program{
		Name: "sqlite-" + journal,
		talk: &page.Talk{
			Command: []string{"/usr/bin/sqlite3", "-interactive", "db"},
			Setup: "PRAGMA journal_mode=" + journal + "; PRAGMA synchronous=OFF;\n" +
				"CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE c(n INTEGER); INSERT INTO c VALUES(0);\n",
			Line: "BEGIN; INSERT INTO t VALUES(%[1]d, printf('%%0*d', 100 + %[1]d %% 3000, %[1]d)); DELETE FROM t WHERE id = %[1]d - 200;" +
				" UPDATE c SET n = %[1]d; COMMIT; SELECT 'done', %[1]d;\n",
			Answer: "done|%d\n",
		},
		check: [][]string{
			{"/usr/bin/sqlite3", "db", "PRAGMA integrity_check;"},
			{"/usr/bin/sqlite3", "db", "SELECT n, (SELECT max(id) FROM t) - n, (SELECT count(*) FROM t) - min(n, 200)," +
				" (SELECT count(*) FROM t WHERE v != printf('%0*d', 100 + id % 3000, id)) FROM c;"},
		},
		midway: 1500,
		judge: func(progress int, said []page.Entry) []string {
			var out []string
			if got := string(said[0].Output); got != "ok\n" {
				out = append(out, fmt.Sprintf("integrity_check: %.500s", got))
			}
			// One transaction may be committed without its answer.
			want, next := fmt.Sprintf("%d|0|0|0\n", progress), fmt.Sprintf("%d|0|0|0\n", progress+1)
			if got := string(said[1].Output); got != want && got != next {
				out = append(out, fmt.Sprintf("database has %.200q, want %q", got, want))
			}
			return out
		},
	}
}

// Programs are all programs.
var Programs = []Program{
	database("DELETE"),
	database("WAL"),
	{
		Name:  "git",
		steps: [][]string{{"/usr/bin/git", "clone", "-q", "file:///src.git", "clone"}},
		check: [][]string{
			{"/usr/bin/git", "-C", "clone", "fsck", "--full", "--strict", "--no-progress"},
			{"/usr/bin/git", "-C", "clone", "status", "--porcelain"},
			{"/usr/bin/git", "-C", "clone", "diff", "HEAD", "--stat"},
		},
		judge: silent,
	},
	{
		Name:  "tar",
		steps: [][]string{{"/usr/bin/tar", "-xf", "/src.tar"}},
		check: [][]string{{"/usr/bin/tar", "--compare", "-f", "/src.tar"}},
		judge: silent,
	},
	{
		Name:  "tar-midway",
		steps: [][]string{{"/usr/bin/tar", "-xvf", "/src.tar"}},
		check: [][]string{
			{"/bin/sh", "-c", "/usr/bin/tar -tf /src.tar"},
			{"/bin/sh", "-c", "/usr/bin/tar --compare -f /src.tar 2>&1; true"},
		},
		judge:  unpacked,
		midway: 600,
	},
	{
		Name: "dpkg",
		steps: [][]string{
			{"/bin/sh", "-c", "mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates && touch root/var/lib/dpkg/status"},
			{"/bin/sh", "-c", "/usr/bin/dpkg --root=/disk/root --force-all --force-unsafe-io --unpack /debs/*.deb"},
		},
		check: [][]string{{"/bin/sh", "-c", "/usr/bin/dpkg --root=/disk/root --verify && cd root && cat var/lib/dpkg/info/*.md5sums | md5sum -c -s"}},
		judge: silent,
	},
}

// unpacked requires all files that tar had named to be whole, except the last: tar names
// a file, then makes it. Directories get their mode and time at the end.
func unpacked(progress int, said []page.Entry) []string {
	names := strings.Split(strings.TrimSpace(string(said[0].Output)), "\n")
	whole := make(map[string]bool)
	for _, name := range names[:max(0, min(progress-1, len(names)))] {
		if !strings.HasSuffix(name, "/") {
			whole[name] = true
		}
	}
	var out []string
	for line := range strings.Lines(string(said[1].Output)) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "/usr/bin/tar: "), ": ")
		if whole[name] {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// FindProgram returns the program with a name.
func FindProgram(name string) (*Program, error) {
	var names []string
	for i := range Programs {
		if Programs[i].Name == name {
			return &Programs[i], nil
		}
		names = append(names, Programs[i].Name)
	}
	return nil, fmt.Errorf("no program %q: there are %s", name, strings.Join(names, ", "))
}

// ran is what a program did before the crash.
type ran struct {
	*Program
	progress int
	truth    *Tree // what there was at the crash; nil if the crash came midway
}

// runProgram is Run for a case with a program.
func (c Case) runProgram(ctx context.Context, dir string) (*Crashed, error) {
	tools, err := toolsDisk()
	if err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(c.Seed, 2))
	image := filepath.Join(dir, "disk.img")
	order := page.Program{
		Mount: page.Mount{Disk: disk, Type: c.Config.Type, Options: c.Config.Options}, Tools: toolsMount,
		Steps: c.Program.steps, Talk: c.Program.talk, Panic: c.Crash != Kill,
	}
	if c.Program.midway > 0 {
		order.Until = 1 + r.IntN(c.Program.midway)
	} else if c.Config.Type != "xfs" && !c.Config.NoJournal && !strings.Contains(order.Mount.Options, "commit=") {
		// Otherwise a program that takes longer than 5 s, as on a slow machine, would have little to lose.
		order.Mount.Options = strings.TrimPrefix(order.Mount.Options+",commit=300", ",")
	}
	format := func() error { return c.format(image) }
	g, err := c.boot(ctx, page.Running, format, dir, "work", page.Order{Program: &order},
		partition.Disk{Name: disk, Image: image}, partition.Disk{Name: toolsName, Image: tools, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer g.release()
	err = c.drive(ctx, g)
	g.end()
	if err != nil {
		return nil, err
	}
	out := &Crashed{Case: c, Dir: dir, RAM: g.Spec.RAMPath(), Disk: image}
	out.ran = &ran{Program: c.Program, progress: int(g.page.Load(page.Progress))}
	out.Ops = out.ran.progress
	if g.page.Load(page.State) == page.Failed {
		return out, errors.New(g.page.Failure())
	}
	if c.Program.midway == 0 {
		b, err := g.page.Told()
		if err != nil {
			return out, err
		}
		t, err := trees(b, nil)
		if err != nil {
			return out, err
		}
		out.ran.truth = t[disk]
	}
	return out, nil
}

// compare compares a tree with what there was, and judges the output of the checks.
func (r *ran) compare(found Tree, again *remade) Comparison {
	var out Comparison
	if found.Error != "" {
		out.Findings = append(out.Findings, Finding{What: found.Error})
		return out
	}
	out.Nodes = len(found.Entries)
	if r.truth != nil {
		out.Findings = again.differences(*r.truth, found, &out)
	}
	if len(found.Said) != len(r.check) {
		out.Findings = append(out.Findings, Finding{What: fmt.Sprintf("%d checks instead of %d", len(found.Said), len(r.check))})
		return out
	}
	for i, e := range found.Said {
		if e.Exit != 0 || e.Error != "" {
			out.Findings = append(out.Findings, Finding{What: fmt.Sprintf("%s: status %d %s: %.500s", strings.Join(r.check[i], " "), e.Exit, e.Error, e.Output)})
		}
	}
	for _, what := range r.judge(r.progress, found.Said) {
		out.Findings = append(out.Findings, Finding{What: what})
	}
	return out
}

// differences compares two walks of what must be the same tree, and counts what may differ all the same.
func (r *remade) differences(want, found Tree, count *Comparison) []Finding {
	var out []Finding
	all := maps.Clone(want.Entries)
	maps.Copy(all, found.Entries)
	for _, at := range slices.Sorted(maps.Keys(all)) {
		w, g := want.Entries[at], found.Entries[at]
		_, wanted := want.Entries[at]
		switch {
		case !wanted && r.hadBefore(at, found):
			count.Back++
			continue
		case r.refuses(at, w.Ino) && r.leftAs(g, g.Ino != 0):
			count.Forgiven++
			continue
		case r != nil:
			if r.xattrs[w.Ino] {
				w.Xattrs, g.Xattrs = nil, nil
			}
			w.Ino, g.Ino = 0, 0 // what is missing has another mode
			if w.Mode&script.TypeMask == script.TypeDir {
				w.Sec, w.Nsec, g.Sec, g.Nsec = 0, 0, 0, 0
			}
		}
		w.Disk, g.Disk = "", ""
		if w.Mode&0o170000 == 0o040000 { // a directory's size is that of its blocks
			w.Size, g.Size = 0, 0
		}
		if !reflect.DeepEqual(w, g) {
			out = append(out, Finding{Path: at, What: fmt.Sprintf("is %.300s, want %.300s", brief(g), brief(w))})
		}
	}
	return out
}

// brief describes an entry for people.
func brief(e page.Entry) string {
	if e.Mode == 0 {
		return "missing"
	}
	return fmt.Sprintf("{inode %d, mode %o, owner %d:%d, links %d, %d bytes, mtime %d.%09d, sum %.4x, attributes %q, %q}",
		e.Ino, e.Mode, e.UID, e.GID, e.Nlink, e.Size, e.Sec, e.Nsec, e.Sum, e.Xattrs, e.Target)
}
