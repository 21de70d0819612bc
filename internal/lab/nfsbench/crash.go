package nfsbench

import (
	"context"
	"fmt"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/takeover"
)

// Limits of one run.
const (
	backLimit = 10 * time.Minute // until all clients go on
	stopLimit = 10 * time.Minute // until the last operations have ended
	goOn      = 20               // operations of each stream after the crash
	settle    = 2 * time.Second  // for what comes late
)

// write writes the unsaved data, carries out the calls that will be repeated, and checks
// that the server has written nothing back.
func (p *run) write(ctx context.Context) error {
	if err := p.bulk.write(ctx, p.tcp); err != nil {
		return err
	}
	if err := before(ctx, p.retried); err != nil {
		return err
	}
	if err := p.report.Unstable.write(ctx, p.tcp); err != nil {
		return err
	}
	info, err := p.Lab.Run(ctx, "/bin/busybox", "cat", "/proc/meminfo")
	if err != nil {
		return err
	}
	p.report.UnsavedBytes, err = dirty(info)
	if err == nil && p.report.UnsavedBytes < p.bulk.Bytes() {
		p.report.fail("%d bytes were unsaved before the crash, and %d had been written", p.report.UnsavedBytes, p.bulk.Bytes())
	}
	return err
}

// dirty returns how many bytes are dirty according to /proc/meminfo.
func dirty(info string) (int64, error) {
	for line := range strings.Lines(info) {
		var kib int64
		if _, err := fmt.Sscanf(line, "Dirty: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no Dirty in %q", info)
}

// crash kills the server's kernel. It returns when the understudy serves, or at
// once if there is none.
func (p *run) crash(ctx context.Context) error {
	if p.row.Reboots {
		p.crashed = clock()
		return p.Alone.Crash()
	}
	p.crashed = clock()
	if err := p.Super.Crash(false); err != nil {
		return err
	}
	v, err := p.Super.Watch(ctx)
	if err != nil {
		return err
	}
	report, err := p.Super.TakeOver(ctx, v.Verdict)
	if err != nil {
		return err
	}
	p.report.Steps = report.Timeline.Steps()
	for _, f := range report.Refused {
		p.report.fail("not brought over: %v", f)
	}
	var text strings.Builder
	if err := takeover.WriteSteps(&text, p.report.Steps, 50); err != nil {
		return err
	}
	fmt.Fprint(p.o.Say, text.String())
	return nil
}

// await waits until all streams go on.
func (p *run) await(ctx context.Context) error {
	if err := p.progress(ctx, goOn, backLimit); err != nil {
		return err
	}
	select {
	case <-time.After(settle):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends all streams, and brings their times to one clock.
func (p *run) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	by, err := p.clockOffset(ctx)
	if err != nil {
		return err
	}
	o := &Outcome{}
	if err := p.Client.Call(ctx, VerbStop, nil, o); err != nil {
		return err
	}
	for i := range o.Streams {
		o.Streams[i].shift(by)
	}
	ours, err := p.local.stop(ctx)
	if err != nil {
		return err
	}
	p.outcome = Outcome{Streams: append(o.Streams, ours.Streams...), Works: append(o.Works, ours.Works...)}
	for i := range p.outcome.Streams {
		p.report.judge(&p.outcome.Streams[i], p.crashed)
	}
	p.report.Streams = p.outcome.Streams
	pings := p.pings.end()
	p.report.PingGapMS = float64(pings.Stall(p.crashed).Microseconds()) / 1000
	return nil
}

// clockOffset returns what to add to the guest's clock to get ours. It uses the quickest
// of several answers.
func (p *run) clockOffset(ctx context.Context) (int64, error) {
	best, offset := int64(1)<<62, int64(0)
	for range 10 {
		var theirs int64
		from := clock()
		if err := p.Client.Call(ctx, VerbClock, nil, &theirs); err != nil {
			return 0, err
		}
		if to := clock(); to-from < best {
			best, offset = to-from, (from+to)/2-theirs
		}
	}
	return offset, nil
}

// verdict reports what should have held and did not.
func (p *run) verdict() {
	r := p.report
	if p.row.Reboots {
		if r.BytesLost < p.bulk.Bytes()/2 {
			r.fail("the reboot lost only %d bytes: what was written was not unsaved", r.BytesLost)
		}
		return
	}
	if r.BytesLost > 0 {
		r.fail("%d bytes lost", r.BytesLost)
	}
	for _, e := range r.Errors {
		r.fail("%s", e)
	}
	for _, f := range r.Findings {
		r.fail("%s", f)
	}
}

// lock is the lock that one client has held throughout.
var lock = nfslab.LockRequest{Path: mounts["4.2"] + "/" + heldFile}
