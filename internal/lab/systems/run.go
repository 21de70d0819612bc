package systems

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/sparse"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// Options are what a run needs.
type Options struct {
	Dir        string // for its disks
	Understudy string // path of the program
	Suite      Suite
	Programs   []Program
	Log        io.Writer
}

// Result is the outcome of a run.
type Result struct {
	Suite   Suite
	Kernel  string
	After   time.Duration // how long the programs had worked
	Bytes   int64         // that were in memory only
	Refused int
	Of      []Outcome
}

// Outcome is what became of one program's data.
type Outcome struct {
	Program
	Acknowledged int
	Takeover     Judgement
	Plain        Judgement // on the disk as the crash left it, as after a boot
}

// The shared disks of a run. Of each there is a copy as the crash left it.
var disks = []struct{ name, mount string }{{"pg", "/var/lib/postgresql"}, {"srv", "/srv"}}

const diskSize = 768 << 20

const (
	memory    = 1024 << 20 // of each side, bytes
	workLimit = time.Hour  // only ends a run that hangs
	least     = 3          // answers of each program before the kernel may die
	longest   = 20 * time.Second
)

// running is a run that is under way.
type running struct {
	Options
	run   string // the run directory
	super *supervisor.Supervisor
}

// Run lets programs work on a pair, kills the kernel under them, and judges what is there
// after the takeover, and what would have been there after a boot.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	r := &running{Options: o, run: dirs.Run(fmt.Sprintf("systems-%d", os.Getpid()))}
	p, err := r.describe(ctx)
	if err != nil {
		return nil, err
	}
	r.super, err = supervisor.Start(ctx, p, supervisor.Options{Dir: r.run, Devices: r.devices, Fenced: r.keepPlain, Log: o.Log})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.super.Discard())
		}
		err = errors.Join(err, r.super.Close())
	}()
	if result, err = r.crash(ctx); err != nil {
		return nil, err
	}
	if err := r.judgeAll(ctx, result, byPair, func(o *Outcome) *Judgement { return &o.Takeover }); err != nil {
		return nil, err
	}
	return result, r.judgePlain(ctx, result)
}

// say logs how far a run is, since a run takes long.
func (r *running) say(format string, args ...any) {
	fmt.Fprintf(r.Log, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func (r *running) in(name string) string { return filepath.Join(r.Dir, name) }

// describe makes the disks of the pair, and its description.
func (r *running) describe(ctx context.Context) (*pair.Pair, error) {
	root, err := Find(ctx, r.Suite.Name)
	if err != nil {
		return nil, err
	}
	parameters, err := root.Prepare(ctx, r.Dir, r.Understudy, r.Suite.cluster(), "nginx.service", "prometheus.service")
	if err != nil {
		return nil, err
	}
	if err := r.makeDisks(ctx, root); err != nil {
		return nil, err
	}
	m, err := pair.ThisMachine()
	if err != nil {
		return nil, err
	}
	cpus := m.Two()
	var text strings.Builder
	text.WriteString("name: systems\npartitions:\n")
	for i, name := range []string{"left", "right"} {
		fmt.Fprintf(&text, "  %s: {cpus: \"%d\", memory: %dMiB, kernel: %s, initramfs: %s, root: %s.img, append: %q}\n", name, cpus[i], memory>>20, root.Kernel, root.Initramfs, name, parameters)
	}
	text.WriteString("disks:\n")
	for _, d := range disks {
		fmt.Fprintf(&text, "  - {name: %s, image: %[1]s.img, mount: %s}\n", d.name, d.mount)
	}
	services := ""
	for _, p := range r.Programs {
		services += p.service()
	}
	if services != "" {
		text.WriteString("services:\n" + services)
	}
	if err := os.WriteFile(r.in("pair.yaml"), []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	p, err := pair.Load(r.in("pair.yaml"))
	if err != nil {
		return nil, err
	}
	return p, p.Check(m)
}

// makeDisks makes the shared disks: Debian's PostgreSQL cluster on one, all else on the
// other. For their copies it makes empty files.
func (r *running) makeDisks(ctx context.Context, root Root) error {
	if err := root.Take(ctx, "/var/lib/postgresql", r.Dir); err != nil {
		return err
	}
	srv := r.in("tree")
	if err := os.MkdirAll(srv, 0o755); err != nil {
		return err
	}
	for name, text := range configurations {
		if name == "programs.sh" {
			text = programs
		}
		if err := os.WriteFile(filepath.Join(srv, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := run(ctx, "cp", "-a", r.in(fmt.Sprintf("postgresql/%d/main", r.Suite.postgres)), filepath.Join(srv, "fast")); err != nil {
		return err
	}
	const wwwData = 33 // of base-passwd
	for _, dir := range []string{"nginx", "nginx/www", "nginx/tmp"} {
		at := filepath.Join(srv, dir)
		if err := errors.Join(os.Mkdir(at, 0o755), os.Chown(at, wwwData, wwwData)); err != nil {
			return err
		}
	}
	for tree, name := range map[string]string{r.in("postgresql"): "pg", srv: "srv"} {
		for _, file := range []string{name + ".img", "plain-" + name} {
			if err := errors.Join(os.WriteFile(r.in(file), nil, 0o600), os.Truncate(r.in(file), diskSize)); err != nil {
				return err
			}
		}
		if err := run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, r.in(name+".img")); err != nil {
			return err
		}
	}
	return nil
}

// devices gives the side that will take over the copies, too.
func (r *running) devices(_ string, active bool) (out []partition.Device, err error) {
	if active {
		return nil, nil
	}
	for _, d := range disks {
		out = append(out, partition.Disk{Name: "plain-" + d.name, Image: r.in("plain-" + d.name)})
	}
	return out, nil
}

// keepPlain copies the disks as the crash left them, once nobody writes to them.
func (r *running) keepPlain() {
	for _, d := range disks {
		if err := copyInto(r.in(d.name+".img"), r.in("plain-"+d.name)); err != nil {
			fmt.Fprintf(r.Log, "copy disk %s: %v\n", d.name, err) // the checks find that there is no copy
		}
	}
}

// copyInto copies the data of a file, without its holes, into an empty file of the same size.
func copyInto(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	return sparse.Copy(out, in)
}

// sh runs a script in the active side, with the programs' functions.
func (r *running) sh(ctx context.Context, script string) (wire.ExecResult, error) {
	var out wire.ExecResult
	err := r.super.Call(ctx, wire.Exec, wire.ExecRequest{Command: []string{"bash", "-c", "cp -n /srv/programs.sh /run/programs.sh 2>/dev/null; . /run/programs.sh; " + script}}, &out)
	return out, err
}

// must is sh for a script that must succeed.
func (r *running) must(ctx context.Context, script string) error {
	out, err := r.sh(ctx, script)
	if err == nil && out.Status != 0 {
		err = fmt.Errorf("status %d: %s", out.Status, out.Output)
	}
	if err != nil {
		return fmt.Errorf("run %q: %w", script, err)
	}
	return nil
}

// crash lets the programs work, and the kernel die at a random moment.
func (r *running) crash(ctx context.Context) (*Result, error) {
	active, _ := r.super.Sides()
	result := &Result{Suite: r.Suite, Kernel: active.Release}
	for _, p := range r.Programs {
		if err := r.must(ctx, fmt.Sprintf("wait_port %d %s; setup_%s %[3]s", p.ready, p.unitOf(byPair), p.Name)); err != nil {
			return nil, err
		}
	}
	r.say("the programs begin to work, until each has answered %d times", least)
	began := time.Now()
	for _, p := range r.Programs {
		if err := r.must(ctx, fmt.Sprintf("systemd-run -q --unit=work-%s --property=CPUWeight=%d bash -c '. /run/programs.sh; work_%[1]s %[1]s'", p.Name, cmp.Or(p.weight, 100))); err != nil {
			return nil, err
		}
	}
	if err := r.await(ctx); err != nil {
		return nil, err
	}
	time.Sleep(rand.N(longest))
	result.After = time.Since(began)
	r.say("the kernel of the active side dies")
	died := make(chan error, 1)
	var death supervisor.Death
	go func() {
		var err error
		death, err = r.super.Watch(ctx)
		died <- err
	}()
	if err := r.super.Crash(false); err != nil {
		return nil, err
	}
	if err := <-died; err != nil {
		return nil, err
	}
	if death.Understudy {
		return nil, fmt.Errorf("the understudy died: %s", death.Verdict)
	}
	count, _ := acks(r.console())
	report, err := r.super.TakeOver(ctx, death.Verdict)
	if report == nil || err != nil {
		return nil, err
	}
	result.learn(report)
	for _, p := range r.Programs {
		result.Of = append(result.Of, Outcome{Program: p, Acknowledged: count[p.Name]})
	}
	return result, nil
}

// console returns what the side that was active first has printed.
func (r *running) console() string {
	b, err := os.ReadFile(filepath.Join(r.run, "left.console.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// await waits until each program has answered some times.
func (r *running) await(ctx context.Context) error {
	for late := time.After(workLimit); ; {
		count, _ := acks(r.console())
		missing := ""
		for _, p := range r.Programs {
			if count[p.Name] < least {
				missing = p.Name
			}
		}
		if missing == "" {
			return nil
		}
		select {
		case <-late:
			out, _ := r.sh(ctx, "systemctl status --no-pager work-"+missing)
			return fmt.Errorf("program %s has answered %d times in %v: %s", missing, count[missing], workLimit, out.Output)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *Result) learn(report *takeover.Report) {
	r.Bytes, r.Refused = report.Bytes, len(report.Refused)
	for _, c := range report.Commits {
		r.Bytes += c.Data
	}
}

// How a program was started: the beginning of its unit's name (unitOf).
const (
	byPair = "understudy"
	byHand = "plain"
)

// judgeAll runs each program's check on its data, once the program runs.
func (r *running) judgeAll(ctx context.Context, result *Result, way string, of func(*Outcome) *Judgement) error {
	_, last := acks(r.console())
	for i := range result.Of {
		o := &result.Of[i]
		r.say("check of %s, started by %s", o.Name, way)
		out, err := r.sh(ctx, fmt.Sprintf("wait_port %d %s; check_%s %[3]s %s", o.ready, o.unitOf(way), o.Name, last[o.Name]))
		if err != nil {
			return fmt.Errorf("check %s: %w", o.Name, err)
		}
		*of(o) = judge(out.Status, out.Output)
	}
	return nil
}

// quiet stops the programs and writes their data to the disks, however long that takes: a
// pair's own stop has a limit.
func (r *running) quiet(ctx context.Context, result *Result) error {
	for _, o := range result.Of {
		if o.unit == "" && o.serve == "" {
			continue
		}
		if _, err := r.sh(ctx, "systemctl stop "+o.unitOf(byPair)); err != nil { // the pair's own stop finds what does not stop here
			return err
		}
	}
	return r.must(ctx, "sync")
}

// judgePlain runs the checks on the disks as the crash left them.
func (r *running) judgePlain(ctx context.Context, result *Result) error {
	if err := r.quiet(ctx, result); err != nil {
		return err
	}
	if err := r.super.Stop(ctx); err != nil {
		return err
	}
	for _, d := range disks {
		at := "/dev/disk/by-id/virtio-plain-" + d.name
		if err := r.must(ctx, fmt.Sprintf("blockdev --flushbufs %s; mount %[1]s %s", at, d.mount)); err != nil {
			return err
		}
	}
	for _, p := range r.Programs { // one that does not start is found by its check
		start := ""
		switch {
		case p.unit != "":
			start = fmt.Sprintf("mkdir -p /run/understudy/role; touch /run/understudy/role/%s; systemctl start %[1]s", p.unit)
		case p.serve != "":
			start = fmt.Sprintf("systemd-run -q --unit=%s sh -c %q", p.unitOf(byHand), p.serve)
		default:
			continue
		}
		if _, err := r.sh(ctx, start); err != nil {
			return err
		}
	}
	return r.judgeAll(ctx, result, byHand, func(o *Outcome) *Judgement { return &o.Plain })
}
