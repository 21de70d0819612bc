package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/oracle/page"
	smallguest "understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// Crashes of live cases only.
const (
	Hang Crash = "hang" // all CPUs spin
	Sync Crash = "sync" // a panic within syncfs(2), 0 to 20 ms after it began
)

var liveCrashes = []Crash{Panic, Busy, Sync, Hang}

// LiveCases returns cases of pairs: the work is done by a service of the active side, and
// the rescue is the takeover. In a third of them the side that took over works and dies
// in its turn, once the pair is protected again.
func LiveCases(first uint64, count int, configs, kernels []string) ([]Case, error) {
	cases, err := Cases(first, count, configs, kernels, nil)
	for i := range cases {
		c := &cases[i]
		c.Crash, c.Deaths = liveCrashes[c.Seed%uint64(len(liveCrashes))], 1
		if c.Seed%3 == 0 {
			c.Deaths = 2
		}
	}
	return cases, err
}

// life is what a side does until it dies.
type life struct {
	number int       // from 1
	work   page.Work // empty if it is idle
	page   page.Page
}

// top returns the directory, on the shared disk, that life n works in.
func top(n int) string { return fmt.Sprintf("life%d", n) }

// live is a running pair of a case.
type live struct {
	Case
	dir   string
	image string
	super *supervisor.Supervisor

	mu    sync.Mutex
	lives []*life // in the order in which they booted
	dead  int     // sides, so far
}

// workOf returns what life n does.
func (c Case) workOf(n int) page.Work {
	c.Seed += uint64(n-1) << 32
	crash := c.Crash
	switch crash {
	case Hang:
		c.Crash = Kill
	case Sync:
		c.Crash = Panic
	}
	w := c.work()
	w.Mount, w.Root, w.Sync = page.Mount{}, "/srv/"+top(n), crash == Sync
	w.SyncMicros = rand.New(rand.NewPCG(c.Seed, 3)).IntN(20000)
	return w
}

// devices makes a side that is about to boot share a page with us, which tells it what to
// do once it is active.
func (l *live) devices(_ string, active bool) ([]partition.Device, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := &life{number: l.dead + 2}
	if active {
		next.number = 1
	}
	var order page.Order
	if next.number <= l.Deaths {
		next.work = l.workOf(next.number)
		order.Work = &next.work
	}
	file := filepath.Join(l.dir, fmt.Sprintf("page-%d", len(l.lives)))
	b, err := mapFile(file, page.Size)
	if err == nil {
		next.page, err = page.Of(b)
	}
	if err == nil {
		err = next.page.Give(order)
	}
	l.lives = append(l.lives, next)
	return []partition.Device{partition.Memory{Name: "page", Path: file, Size: page.Size}}, err
}

// life returns the life with a number: if several with it have booted, the last.
func (l *live) life(n int) *life {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, is := range slices.Backward(l.lives) {
		if is.number == n {
			return is
		}
	}
	return nil
}

const livePair = `name: oracle
partitions:
  left: {cpus: "%[1]d", vcpus: 2, memory: 512MiB, kernel: %[3]s, initramfs: guest.cpio}
  right: {cpus: "%[2]d", vcpus: 2, memory: 512MiB, kernel: %[3]s, initramfs: guest.cpio}
disks:
  - {name: data, image: data.img, type: %[4]s, mount: /srv%[5]s}
services:
  - {name: work, command: [/oracle]}
`

// describe makes the pair's files, with the program as PID 1.
func (l *live) describe(program string) (*pair.Pair, error) {
	tree, err := fixture.Kernel(l.Kernel)
	if err != nil {
		return nil, err
	}
	packed, err := image(tree, l.Config) // the worker is beside it
	if err != nil {
		return nil, err
	}
	modules := filepath.Join(tree, "lib", "modules", filepath.Base(tree))
	worker := initramfs.Copy("/oracle", filepath.Join(filepath.Dir(packed), "init"), 0o755)
	guest := smallguest.Image{Program: program, Modules: modules, Files: []initramfs.File{worker}}
	if l.Config.remakes() {
		guest.Types = []string{l.Config.Type}
	}
	if err := guest.WriteFile(filepath.Join(l.dir, "guest.cpio")); err != nil {
		return nil, err
	}
	if err := l.formatTops(); err != nil {
		return nil, err
	}
	machine, err := pair.ThisMachine()
	if err != nil {
		return nil, err
	}
	cpus, options := machine.Two(), ""
	if l.Config.Options != "" {
		options = fmt.Sprintf(", options: %q", l.Config.Options)
	}
	file := filepath.Join(l.dir, "pair.yaml")
	text := fmt.Sprintf(livePair, cpus[0], cpus[1], filepath.Join(tree, "boot", "vmlinuz"), l.Config.Type, options)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := pair.Load(file)
	if err != nil {
		return nil, err
	}
	return p, p.Check(machine)
}

// formatTops makes the file system, with the directories that the lives work in.
func (l *live) formatTops() error {
	tops := filepath.Join(l.dir, "tops")
	proto := "-\n0 0\nd--755 0 0\n" // mkfs.xfs(8), -p
	for n := range l.Deaths {
		if err := os.MkdirAll(filepath.Join(tops, top(n+1)), 0o755); err != nil {
			return err
		}
		proto += top(n+1) + " d--755 0 0\n$\n"
	}
	switch l.Config.Type {
	case "xfs":
		file := filepath.Join(l.dir, "proto")
		if err := os.WriteFile(file, []byte(proto+"$\n"), 0o600); err != nil {
			return err
		}
		return l.format(l.image, "-p", file)
	case "btrfs":
		return l.format(l.image, "--rootdir", tops)
	}
	return l.format(l.image, "-d", tops)
}

// fenced keeps what the dead side left, for a look at it and for comparison.
func (l *live) fenced() {
	l.mu.Lock()
	l.dead++
	n := l.dead
	l.mu.Unlock()
	ram := filepath.Join(l.dir, "run", []string{"right", "left"}[n%2]+".ram")
	_ = copySparse(ram, filepath.Join(l.dir, fmt.Sprintf("life%d.ram", n)), memory) // without it there is less to look at
	_ = copyDisk(l.image, l.plain(n))                                               // if that fails, the walk does not find it
}

// plain returns the path of the disk as life n left it.
func (l *live) plain(n int) string { return filepath.Join(l.dir, fmt.Sprintf("plain%d.img", n)) }

// die lets life n work and die, and the other side take over.
func (l *live) die(ctx context.Context, n int) (*takeover.Report, error) {
	is := l.life(n)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	died := make(chan error, 1)
	var death supervisor.Death
	go func() {
		var err error
		death, err = l.super.Watch(watch)
		died <- err
	}()
	err := l.drive(is, died)
	if err == nil {
		err = <-died
	}
	if err != nil {
		return nil, fmt.Errorf("life %d: %w", n, err)
	}
	if death.Understudy {
		return nil, fmt.Errorf("life %d: the understudy died: %s", n, death.Verdict)
	}
	return l.super.TakeOver(ctx, death.Verdict)
}

// drive brings a life to its end. It fails if something arrives on died before that.
func (l *live) drive(is *life, died chan error) error {
	if err := awaitPage(is.page, page.Running, bootLimit, died); err != nil {
		return err
	}
	is.page.Store(page.Go, 1)
	if l.Crash != Hang {
		return nil
	}
	if err := awaitPage(is.page, page.Crashing, endLimit, died); err != nil {
		return err
	}
	return l.super.Crash(true)
}

// awaitPage waits until a guest is in a state, or something else happens to it.
func awaitPage(p page.Page, state uint32, limit time.Duration, died chan error) error {
	for late := time.After(limit); ; {
		switch now := p.Load(page.State); {
		case now == page.Failed:
			return fmt.Errorf("%w: %s", errFailed, p.Failure())
		case now >= state:
			return nil
		}
		select {
		case <-late:
			return fmt.Errorf("guest takes longer than %v", limit)
		case err := <-died:
			return errors.Join(errDied, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// run lets the pair live and die, and ends it.
func (l *live) run(ctx context.Context, program string) (reports []*takeover.Report, err error) {
	p, err := l.describe(program)
	if err != nil {
		return nil, err
	}
	l.super, err = supervisor.Start(ctx, p, supervisor.Options{Dir: filepath.Join(l.dir, "run"), Devices: l.devices, Fenced: l.fenced, Log: io.Discard})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.super.Close()) }()
	for n := 1; n <= l.Deaths; n++ {
		if n > 1 {
			if err := l.super.Protect(ctx, func(error) {}); err != nil {
				return reports, err
			}
		}
		report, err := l.die(ctx, n)
		if report == nil {
			return reports, errors.Join(err, l.super.Discard())
		}
		reports = append(reports, report)
	}
	err = l.super.Stop(ctx)
	if err == nil && slices.ContainsFunc(reports, func(r *takeover.Report) bool { return r.Refusals() > 0 }) {
		err = l.super.Discard() // else the memory with what was refused would be kept
	}
	return reports, err
}

// judgeLive carries out a live case.
func (c Case) judgeLive(ctx context.Context, dir string, o Options, r *Result) error {
	l := &live{Case: c, dir: dir, image: filepath.Join(dir, "data.img")}
	defer func() {
		for _, is := range l.lives {
			_ = unix.Munmap(is.page)
		}
	}()
	reports, err := l.run(ctx, o.Agent)
	if len(reports) == c.Deaths && err == nil {
		return l.compare(ctx, reports, r)
	}
	if l.dead > 0 {
		r.Verdict, r.Error = Failed, fmt.Sprint(err)
	}
	return err
}

// compare judges what is on the disk now.
func (l *live) compare(ctx context.Context, reports []*takeover.Report, r *Result) error {
	disks := []string{l.image}
	var dump []record.Path
	var lives []*Crashed
	for n := 1; n <= l.Deaths; n++ {
		is := l.life(n)
		c := &Crashed{Case: l.Case, Dir: l.dir}
		c.Seed = is.work.Seed
		if err := c.learn(is.page, is.work); err != nil {
			return err
		}
		lives, disks, dump = append(lives, c), append(disks, l.plain(n)), append(dump, c.pending(top(n))...)
		r.Ops, r.Threads, r.Pending = r.Ops+c.Ops, r.Threads+len(c.Threads), r.Pending+c.pendingCount()
		r.InSync = r.InSync || c.InSync
		r.PendingOps += fmt.Sprintf("life %d: %s\n", n, c.pendingText())
	}
	if l.Config.NoJournal {
		for _, plain := range disks[1:] {
			if err := repair(plain); err != nil {
				return err
			}
		}
	}
	trees, err := l.walk(ctx, l.dir, page.Walk{Dump: dump}, nil, disks)
	if err != nil {
		return err
	}
	r.Tree = &Comparison{Findings: strays(trees[0], l.Deaths)}
	for n, c := range lives {
		plain, rescued := trees[n+1].below(top(n+1)), trees[0].below(top(n+1))
		r.Undone += len(c.Compare(plain).Findings)
		if l.Config.remakes() {
			c.remade = remadeOf(plain, rescueOf(reports[n:n+1]), top(n+1)+"/")
		}
		found := c.Compare(rescued)
		if len(reports[n].Refused) > 0 && c.remade == nil {
			found.forgive(plain, rescued)
		}
		r.Tree.add(found)
		r.Plain.add(c.CompareDurable(plain))
		if n > 0 && reports[n-1].Durable { // what the takeover before reported as durable
			was := trees[n+1].below(top(n))
			lost := lives[n-1].Compare(was)
			r.Plain.Findings = append(r.Plain.Findings, lost.Findings...)
		}
	}
	if l.Config.NoJournal { // fsync promises little there: see Case.judge
		r.Plain.Findings = nil
	}
	r.Rescue = rescueOf(reports)
	if r.Fsck, err = l.check(l.image); err != nil {
		return err
	}
	r.Verdict = verdict(r)
	return nil
}

// rescueOf combines the reports of the takeovers. Its Commit is the last one of all.
func rescueOf(reports []*takeover.Report) *RescueReport {
	var out RescueReport
	var report struct {
		Commit  takeover.Commit    `json:"commit"`
		Commits []takeover.Commit  `json:"commits"`
		Refused []takeover.Refusal `json:"refused"`
	}
	for _, r := range reports {
		report.Commits = append(report.Commits, r.Commits...)
		report.Refused = append(report.Refused, r.Refused...)
	}
	if n := len(report.Commits); n > 0 {
		report.Commit = report.Commits[n-1]
	}
	if len(report.Refused) > 0 {
		out.Exit = 3
		for _, refused := range report.Refused {
			out.Said += fmt.Sprintf("refused: %v\n", refused)
		}
	}
	out.Report, _ = json.Marshal(report) // these types can be encoded
	return &out
}

// below returns the part of a tree that is in a directory, as if that were its top.
func (t Tree) below(dir string) Tree {
	out := Tree{Entries: make(map[string]page.Entry), Error: t.Error}
	for at, e := range t.Entries {
		if at == dir {
			out.Entries[""] = e
		} else if rest, inside := strings.CutPrefix(at, dir+"/"); inside {
			out.Entries[rest] = e
		}
	}
	return out
}

// strays returns findings for what is in the top directory although nobody made it there.
func strays(t Tree, deaths int) []Finding {
	var out []Finding
	for _, at := range slices.Sorted(maps.Keys(t.Entries)) {
		known := at == "" || at == "lost+found" || path.Dir(at) != "."
		for n := range deaths {
			known = known || at == top(n+1)
		}
		if !known {
			out = append(out, Finding{Path: at, What: fmt.Sprintf("inode %d is too much", t.Entries[at].Ino)})
		}
	}
	return out
}

// add adds another comparison.
func (c *Comparison) add(o Comparison) {
	c.Nodes, c.Durable, c.Done = c.Nodes+o.Nodes, c.Durable+o.Durable, c.Done+o.Done
	c.Partial, c.Forgiven, c.Back = c.Partial+o.Partial, c.Forgiven+o.Forgiven, c.Back+o.Back
	c.Findings = append(c.Findings, o.Findings...)
}
