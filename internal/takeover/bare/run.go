package bare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// run is all that the understudy does, from its boot to the end of a takeover.
func run(ctx context.Context, self *metal.Self) error {
	setClock(self.Clock())
	a, err := agent.Boot(nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(ReportFile), 0o755); err != nil {
		return err
	}
	self.Enter(metal.Booted)
	m, err := meet(ctx, self, a)
	if err != nil {
		return err
	}
	self.Enter(metal.Protected)
	verdict, dead := watch(self, m.morgue)
	if !dead {
		self.Enter(metal.Stopped)
		return nil
	}
	self.Enter(metal.TakingOver)
	say("the other kernel is dead: %v", verdict)
	report, err := m.takeOver(ctx, verdict)
	if err != nil {
		return m.failed(ctx, err)
	}
	self.Enter(metal.Active)
	m.serve(ctx, report)
	for {
		self.Count()
		time.Sleep(period)
	}
}

// serve does what remains to be done after the takeover, while the services run.
func (m *machine) serve(ctx context.Context, report *Report) {
	spare := 0
	if report.whole() || m.role.Dump != "" {
		spare = m.spare()
	}
	report.CPUs = m.enlist(spare)
	m.leftover.set(!report.whole())
	m.keepReport(report)
	if err := m.serveOperator(ctx); err != nil {
		say("nobody can give orders: %v", err)
	}
	if !report.whole() {
		if err := m.leftover.dump(m); err != nil {
			say("the dead kernel's memory may be all that has what was refused, and is left as it is: not protected again: %v", err)
			return
		}
		report.Dump = m.role.Dump
		m.keepReport(report)
	}
	if m.self.Config.Again != nil {
		m.protect(ctx)
	} else {
		resetAtPanic(true)
	}
}

func (m *machine) keepReport(report *Report) {
	if err := report.keep(); err != nil {
		say("keep the report: %v", err)
	}
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "understudy: "+format+"\n", args...)
}

// meet examines the other kernel while it lives, and prepares what can be prepared.
func meet(ctx context.Context, self *metal.Self, a *agent.Agent) (*machine, error) {
	memory, err := ram.OpenRanges("/dev/mem", Memory(self.Config.Memory))
	if err != nil {
		return nil, err
	}
	m := &machine{self: self, role: within(self.Config.Role), agent: a, morgue: morgue.New(memory), memory: memory, images: make(map[string]*image)}
	if err := m.morgue.Prepare(ctx); err != nil {
		return nil, err
	}
	if m.nmi.virtual, m.nmi.physical, err = m.morgue.Symbol(nmiEntry); err != nil {
		return nil, fmt.Errorf("find the NMI entry of the other kernel: %w", err)
	}
	if m.role.NFS != nil {
		_, _ = m.morgue.NFSClients() // this finds out where they are, if the server runs already
	}
	if err := m.equipped(); err != nil {
		return nil, err
	}
	for _, d := range m.role.Disks {
		if err := m.morgue.Reads(d.Type); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	// The interfaces are not there yet.
	role := m.role
	role.NICs, role.Beat = nil, wire.Beat{}
	return m, a.Do(ctx, wire.Configure, role, nil)
}

// Memory converts ranges of memory to the type that package ram takes.
func Memory(all []metal.Range) (ranges []addr.PhysRange) {
	for _, r := range all {
		ranges = append(ranges, addr.PhysRange{Start: addr.Phys(r.Start), End: addr.Phys(r.End)})
	}
	return ranges
}

// equipped returns an error if this kernel or its image lacks what a takeover needs, so that this is known
// before a takeover.
func (m *machine) equipped() error {
	lacks := metal.Lacking(os.DirFS("/"), m.self.Config.Drivers, m.role.Disks)
	for _, s := range m.role.Services {
		if _, err := exec.LookPath(s.Command[0]); err != nil {
			lacks = append(lacks, "program "+s.Command[0])
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("the understudy lacks what a takeover needs: %s; have understudy initramfs put it into the image (--driver, --add)", strings.Join(lacks, ", "))
}

// takeOver carries out a takeover. If it fails after the fence, nothing is served.
func (m *machine) takeOver(ctx context.Context, v liveness.Verdict) (*Report, error) {
	t := takeover.NewTimeline(v.At)
	o := takeover.Options{
		Salvager: m.morgue, SyncFirst: true,
		Witness: m.morgue, Notice: notice(m.role.NICs),
	}
	for _, d := range m.role.Disks {
		o.Disks = append(o.Disks, d.Name)
	}
	serving, err := takeover.Run(ctx, m, t, o)
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	err = serving.Settle(ctx)
	say("took over: %d files, %d bytes recovered, %d refused", serving.Files, serving.Bytes, serving.Refusals())
	for _, c := range serving.Commits {
		say("disk %s: %v", c.Disk, &c)
	}
	for _, r := range serving.Refused {
		say("refused: %v", r)
	}
	if serving.MoreRefused > 0 {
		say("refused: and %d more", serving.MoreRefused)
	}
	_ = takeover.WriteSteps(os.Stderr, t.Steps(), 50)
	if err != nil {
		say("not all of it is durable yet: %v", err)
	}
	return &Report{Verdict: v.String(), Report: serving.Report, Steps: t.Steps()}, nil
}

// failed handles a takeover that has failed. If no data is in the dead memory only, or that memory is
// saved on the role's disk for dumps, the machine is given back to its own kernel, as by metal return: it
// boots with all data, or with what a crash leaves. Otherwise nothing touches that memory any more.
func (m *machine) failed(ctx context.Context, err error) error {
	var unserved *takeover.UnservedError
	switch {
	case !m.parked:
		return fmt.Errorf("%w; nothing but CPUs of the other kernel was touched: it may still be alive, and its memory and disks were left to it", err)
	case errors.As(err, &unserved) && unserved.Report.Durable && unserved.Report.Refusals() == 0:
		say("%v; all that was unsaved is on the disks: the machine boots its own kernel again", err)
		return errors.Join(err, m.giveBack(ctx))
	case m.fenced && m.role.Dump != "":
		say("%v", err)
		if dumped := m.dump(); dumped != nil {
			err = errors.Join(err, dumped)
			break
		}
		say("the machine boots its own kernel again; what was unsaved is in the dump only")
		if stopped := m.stop(ctx); stopped != nil {
			say("stop: %v", stopped)
		}
		return errors.Join(err, restart())
	}
	return fmt.Errorf("%w; what is unsaved stays in memory until the machine is reset: to give that up, reset it, and its disks are as a crash leaves them", err)
}

// tellRate is how many clients are told per second.
const tellRate = 2000

// notice returns a Notice for all clients of the interfaces' addresses.
func notice(nics []wire.NIC) takeover.Notice {
	var ours []netip.Addr
	for _, n := range nics {
		for _, text := range []string{n.Address, n.Address6} {
			if p, err := netip.ParsePrefix(text); err == nil { // what is no address fails at GoLive
				ours = append(ours, p.Addr())
			}
		}
	}
	return takeover.Notice{Rate: tellRate, Of: func(local netip.AddrPort) bool { return slices.Contains(ours, local.Addr()) }}
}

// ReportFile has the report of the takeover by which this machine's kernel became the active one.
const ReportFile = "/run/understudy/takeover.json"

// Report is what is in ReportFile.
type Report struct {
	Verdict string `json:"verdict"`
	*takeover.Report
	Steps []takeover.Step `json:"steps"`
	CPUs  int             `json:"cpus"`           // that this kernel runs on now
	Dump  string          `json:"dump,omitempty"` // disk that has the dead kernel's memory, for what was refused
}

// whole says whether all that the dead kernel had is on the disks.
func (r *Report) whole() bool { return r.Durable && r.Refusals() == 0 }

// panicFile has how many seconds after its panic this kernel resets the machine; 0 means never
// (Documentation/admin-guide/sysctl/kernel.rst, panic).
const panicFile = "/proc/sys/kernel/panic"

// resetAtPanic sets whether a panic of this kernel resets the machine, which then boots its own kernel.
// While no other understudy can take over from this one, nothing else helps.
func resetAtPanic(yes bool) {
	seconds := "0"
	if yes {
		seconds = "10"
	}
	if err := os.WriteFile(panicFile, []byte(seconds), 0); err != nil {
		say("have a panic reset the machine: %v", err)
	}
}

// keep writes the report.
func (r *Report) keep() error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	whole := ReportFile + ".new"
	return errors.Join(os.WriteFile(whole, b, 0o644), os.Rename(whole, ReportFile))
}

// enlist brings the CPUs that were the other kernel's online here, except the last spare of them, and
// returns how many are online then. It does without a CPU that does not come online.
func (m *machine) enlist(spare int) (online int) {
	m.enlisting.Lock()
	defer m.enlisting.Unlock()
	online = 1
	var off []string
	for cpu := 1; ; cpu++ {
		path := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu)
		b, err := os.ReadFile(path)
		if err != nil {
			break
		}
		if b[0] == '1' {
			online++
			continue
		}
		off = append(off, path)
	}
	for _, path := range off[:max(0, len(off)-spare)] {
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			say("bring a CPU online: %v", err)
			continue
		}
		online++
	}
	return online
}
