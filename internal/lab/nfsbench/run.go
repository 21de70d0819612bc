package nfsbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/nfslab"
)

// Row is how a run is set up: a row of the table.
type Row struct {
	Name    string
	More    string // lines of pair.yaml
	Reboots bool   // no pair, but a guest that reboots itself
}

// The rows of the table.
var (
	Takeover   = Row{Name: "takeover"}
	Unnotified = Row{Name: "takeover, no notification of peers", More: "takeover: {notify: none}"}
	Reboot     = Row{Name: "what people do today: the guest reboots itself (panic=1)", Reboots: true}
)

// Options say how to run.
type Options struct {
	Lab nfslab.Options
	Say io.Writer // progress, for people
}

// Beginnings of the names of the streams whose stall is measured.
const (
	streamV3  = "v3/TCP"
	streamUDP = "v3/UDP"
	streamV42 = "v4.2"
	// Two clients of one server: the kernel is a different client in each minor version
	// (nfs4_init_uniform_client_string, fs/nfs/nfs4proc.c).
	streamLockA = "lock, v4.2"
	streamLockB = "lock, v4.1"
)

// mounts are the client's mount points, by version.
var mounts = map[string]string{"3": "/mnt/v3", "4.2": "/mnt/v42", "4.1": "/mnt/v41"}

const (
	udpRetransmit = 100 * time.Millisecond
	udpFile       = "append-udp"
	lockedFile    = "locked"
	heldFile      = "held"
)

// run is a run under way.
type run struct {
	*nfslab.Lab
	o      Options
	row    Row
	report *Report
	began  time.Time

	tcp, udp *Remote
	bulk     Bulk
	retried  []*Retried
	local    *running // streams of this process: UDP, and pings
	pings    *Moments
	pinging  errgroup.Group
	ended    func() // ends the pings
	crashed  int64
	outcome  Outcome
}

// Run plays one crash. What did not hold is in the report's failures.
func Run(ctx context.Context, o Options, row Row, seed uint64) (r *Report, err error) {
	r = &Report{
		Row: row.Name, Seed: seed, StallMS: make(map[string]float64), Errors: []string{}, LostReplies: []string{},
		Findings: []string{}, Checks: []string{}, Failures: []string{},
	}
	p := &run{o: o, row: row, report: r, began: time.Now(), bulk: bulk(seed), local: &running{}}
	lab := o.Lab
	lab.More, lab.Append, lab.Reboots = row.More, hold.Parameters(), row.Reboots
	p.say("boot: %s", row.Name)
	if p.Lab, err = boot(ctx, lab); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	steps := []struct {
		name string
		f    func(context.Context) error
	}{
		{"mount", p.mount},
		{"start the clients", p.start},
		{"write", p.write},
		{"crash", p.crash},
		{"wait for all clients", p.await},
		{"stop the clients", p.stop},
		{"check", p.check},
	}
	for _, s := range steps {
		p.say("%s", s.name)
		if err := s.f(ctx); err != nil {
			return r, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	p.verdict()
	return r, nil
}

// tries is how many times setting a lab up is tried: a guest that does not boot on a busy
// machine is no result.
const tries = 3

func boot(ctx context.Context, o nfslab.Options) (*nfslab.Lab, error) {
	for try := 1; ; try++ {
		l, err := nfslab.New(ctx, o)
		if err == nil || ctx.Err() != nil || try == tries {
			return l, err
		}
		fmt.Fprintf(o.Log, "set the lab up again: %v\n", err)
	}
}

// say prints what happens, with the seconds since the run began.
func (p *run) say(format string, args ...any) {
	fmt.Fprintf(p.o.Say, "%5.1f s  "+format+"\n", append([]any{time.Since(p.began).Seconds()}, args...)...)
}

func (p *run) close() error {
	if p.ended != nil {
		p.ended()
	}
	errs := []error{p.pinging.Wait()}
	for _, r := range []*Remote{p.tcp, p.udp} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(append(errs, p.Lab.Close())...)
}

// mount makes all clients mount the export.
func (p *run) mount(ctx context.Context) (err error) {
	for version, target := range mounts {
		if err := p.Mount(ctx, target, version); err != nil {
			return err
		}
	}
	in := p.Net.Client
	if p.tcp, err = dial(ctx, in, "tcp", nfslab.ServerAddress, nfslab.Export, 0); err != nil {
		return err
	}
	if p.udp, err = dial(ctx, in, "udp", nfslab.ServerAddress, nfslab.Export, udpRetransmit); err != nil {
		return err
	}
	var dirs []string
	for _, dir := range []string{p.bulk.Dir, retryDir, "names-3", "names-4.2"} {
		dirs = append(dirs, mounts["3"]+"/"+dir)
	}
	if err := p.Client.Call(ctx, VerbSetUp, dirs, nil); err != nil {
		return err
	}
	p.retried, err = prepareRetried(ctx, p.tcp)
	return err
}

// works returns the streams in the client's guest.
func (p *run) works() []*Work {
	seed := p.report.Seed
	return []*Work{
		{Name: streamV3 + " files", Append: &Appended{Path: mounts["3"] + "/append-3", Seed: seed + 1000}},
		{Name: streamV3 + " names", Names: &Names{Dir: mounts["3"] + "/names-3", Seed: seed + 2000}},
		{Name: streamV42 + " files", Append: &Appended{Path: mounts["4.2"] + "/append-4.2", Seed: seed + 3000}},
		{Name: streamV42 + " names", Names: &Names{Dir: mounts["4.2"] + "/names-4.2", Seed: seed + 4000}},
		{Name: streamLockA, Lines: &Lines{Path: mounts["4.2"] + "/" + lockedFile, Writer: "a"}},
		{Name: streamLockB, Lines: &Lines{Path: mounts["4.1"] + "/" + lockedFile, Writer: "b"}},
	}
}

// start begins all streams, and syncs the server, so that what exists by then is on the disk.
func (p *run) start(ctx context.Context) error {
	for _, w := range p.works() {
		if err := p.Client.Call(ctx, VerbStart, w, nil); err != nil {
			return err
		}
	}
	lasting := context.WithoutCancel(ctx)
	p.local.run(&Work{Name: streamUDP + " files", Append: &Appended{Path: udpFile, Seed: p.report.Seed + 5000}},
		func(ctx context.Context, m *Moments, w *Work) {
			appendRecords(ctx, m, w.Append, p.udp.open(lasting, udpFile))
		})
	pinging, cancel := context.WithCancel(ctx)
	p.ended = cancel
	p.pings = newMoments("ping")
	p.pinging.Go(func() error { return ping(pinging, p.Net.Client, nfslab.ServerAddress, p.pings) })
	if err := p.progress(ctx, 10, backLimit); err != nil {
		return err
	}
	if err := p.Client.Call(ctx, nfslab.VerbLock, lock, nil); err != nil {
		return err
	}
	_, err := p.Lab.Run(ctx, "/bin/busybox", "sync")
	return err
}

// counts returns how many operations each stream has done.
func (p *run) counts(ctx context.Context) (map[string]int, error) {
	n := make(map[string]int)
	if err := p.Client.Call(ctx, VerbCount, nil, &n); err != nil {
		return nil, err
	}
	for name, done := range p.local.count() {
		n[name] = done
	}
	n["ping"] = p.pings.done()
	return n, nil
}

// progress waits until each stream has done that many more operations.
func (p *run) progress(ctx context.Context, more int, limit time.Duration) error {
	first, err := p.counts(ctx)
	if err != nil {
		return err
	}
	return p.progressFrom(ctx, first, more, limit)
}

func (p *run) progressFrom(ctx context.Context, first map[string]int, more int, limit time.Duration) error {
	late := time.After(limit)
	for {
		now, err := p.counts(ctx)
		if err != nil {
			return err
		}
		slow := ""
		for name, n := range now {
			if n < first[name]+more {
				slow = name
			}
		}
		if slow == "" {
			return nil
		}
		select {
		case <-late:
			return fmt.Errorf("%s did %d operations within %v, of which %d were wanted", slow, now[slow]-first[slow], limit, more)
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
