package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
)

// RecordSide is a side whose guest goes on when its supervisor ends.
type RecordSide struct {
	Name string `json:"name"`
	partition.Identity
	Accel partition.Accel `json:"accel"`
}

// pairName is the file of a run directory that describes the pair as it runs.
const pairName = "pair.json"

// keepPair writes down the description of the pair, for a supervisor that takes charge of it.
func (s *Supervisor) keepPair() error {
	b, err := json.Marshal(s.Pair)
	if err == nil {
		err = writeDurably(filepath.Join(s.dir.Path, pairName), b)
	}
	if err != nil {
		return fmt.Errorf("write down the pair: %w", err)
	}
	return nil
}

// HasGuests reports whether a pair whose supervisor has ended was up, was neither taking
// over nor going down, and still has guests.
func (d *RunDir) HasGuests() bool {
	r := d.Record
	return r != nil && r.Up && !r.Saved && r.Heir == "" && r.Why == "" && len(guests(d.Path+"/")) > 0
}

// guests returns the QEMU processes of partitions whose memory is in files whose path
// begins so.
func guests(path string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, l := range lines {
		b, err := os.ReadFile(l)
		program, args, _ := strings.Cut(string(b), "\x00")
		if err == nil && strings.Contains(args, "mem-path="+path) && strings.HasPrefix(filepath.Base(program), "qemu-system") {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2]) // it is a number
			pids = append(pids, pid)
		}
	}
	return pids
}

// EndGuests ends the guests that a supervisor has left. Their memory stays.
func (d *RunDir) EndGuests() error { return d.endGuests(d.Path + "/") }

// endGuests ends the guests whose memory is in files whose path begins so.
func (d *RunDir) endGuests(path string) error {
	for deadline := time.Now().Add(endLimit); ; time.Sleep(10 * time.Millisecond) {
		pids := guests(path)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end the guests of %s: processes %v have not ended %v after SIGKILL: they may still have the disks", d.Path, pids, endLimit)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it may just have ended
		}
	}
}

// Reconnect takes charge of a pair whose supervisor has ended, and whose guests go on. Watch
// reports what has become of them since. On an error, the guests are left as they were.
func Reconnect(ctx context.Context, d *RunDir, o Options) (*Supervisor, error) {
	s := newSupervisor(&pair.Pair{}, o, d)
	s.options.Dir, s.options.Outlive = d.Path, true // as the guests do
	if err := s.reconnect(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("take charge of the pair again: %w", err), s.Leave())
	}
	return s, nil
}

// pair returns the description of the pair in a run directory. It fails with fs.ErrNotExist if that was not
// written yet.
func (d *RunDir) pair() (*pair.Pair, error) {
	p := &pair.Pair{}
	b, err := os.ReadFile(filepath.Join(d.Path, pairName))
	if err == nil {
		err = json.Unmarshal(b, p)
	}
	if err != nil {
		return nil, fmt.Errorf("read the description of the pair: %w", err)
	}
	return p, nil
}

func (s *Supervisor) reconnect(ctx context.Context) error {
	p, err := s.dir.pair()
	if err != nil {
		return err
	}
	s.Pair = p
	if err := s.hold(fence.Rekeep); err != nil {
		return err
	}
	if s.staging, err = device.OpenStaging(s.stagingPath()); err != nil {
		return err
	}
	r := s.dir.Record
	for i, p := range s.Pair.Partitions {
		j := slices.IndexFunc(r.Sides, func(rs RecordSide) bool { return rs.Name == p.Name })
		if j < 0 || p.Name != r.Active && p.Name != r.Understudy {
			continue
		}
		sd, err := s.reconnectSide(ctx, i, r.Sides[j])
		switch {
		case p.Name == r.Active && (err == nil || sd.died != nil || errors.Is(err, partition.ErrGone) || errors.Is(err, errStill)):
			if err != nil { // Watch will say so
				s.log("%v", err)
			}
			s.sides[i], s.active = sd, sd
		case p.Name == r.Active:
			return err
		case err == nil:
			s.sides[i], s.understudy = sd, sd
		default: // Protect boots another one in its place
			s.log("%v", err)
			s.understudy = sd
			if err := s.LoseUnderstudy(); err != nil {
				return err
			}
		}
	}
	if s.active == nil {
		return errors.New("the record in its run directory names no active side")
	}
	if dead := s.dead(); s.understudy == nil && dead == nil { // a partition that was booting was not in use yet
		if err := s.clear(1 - s.active.index); err != nil {
			return err
		}
	} else if dead != nil { // Protect deals with its memory
		if err := s.dir.endGuests(s.dir.RAM(dead.Name)); err != nil {
			return err
		}
	}
	if s.active.died == nil && r.Frozen != "" { // somebody has let it continue
		if err := s.record(func(r *Record) { r.Frozen = "" }); err != nil {
			return err
		}
	}
	s.crashLoop.protected(time.Now())
	if err := s.prepare(ctx); err != nil { // it is watched all the same
		if ctx.Err() != nil {
			return err
		}
		s.missed(lostKernel, err, "")
	}
	return s.resumeStopped(ctx)
}

// resumeStopped lets an active side go back to its work if its last supervisor ended while it was
// stopping that side. What is not stopped yet is stopped first: nothing must run twice. A failure
// is a trouble, but does not end the pair: the side has to be watched in any case.
func (s *Supervisor) resumeStopped(ctx context.Context) error {
	if !s.dir.Record.Stopping {
		return nil
	}
	if s.active.muted {
		s.trouble(wire.TroubleNotice{What: fmt.Sprintf("partition %s was to stop its services when its supervisor ended, and does not answer: if it is not taken over from, it needs understudy switch", s.active.name)})
		return nil
	}
	s.log("partition %s was to stop its services when its supervisor ended: it goes back to its work", s.active.name)
	if err := s.stopLimited(ctx, s.active); err != nil { // a disk was busy, and stays mounted
		s.log("%v", err)
	}
	_ = s.resume(ctx, s.active) // it has reported the error
	return ctx.Err()
}

// clear ends a guest that was not ready, and removes its files.
func (s *Supervisor) clear(i int) error {
	spec := s.spec(i, "")
	if err := s.dir.endGuests(spec.RAMPath()); err != nil {
		return err
	}
	return spec.Remove()
}

// reconnectSide takes charge of a guest. Even with an error, the side has what is to be ended.
func (s *Supervisor) reconnectSide(ctx context.Context, i int, r RecordSide) (*side, error) {
	p := s.Pair.Partitions[i]
	sd := &side{index: i, name: p.Name, troubles: make(chan wire.TroubleNotice, maxTroubles)}
	sd.spec = s.spec(i, r.Accel)
	for n := range s.Pair.NICs {
		sd.taps = append(sd.taps, tapName(s.Pair.Name, i, n))
	}
	var gone error
	sd.process, gone = partition.Reconnect(ctx, sd.spec, r.Identity)
	if errors.Is(gone, partition.ErrStopped) {
		// This is how Freeze leaves it. It must not continue: a crash kernel would run.
		if sd.died = s.foundDead(ctx, sd); sd.died != nil {
			gone = errors.New(sd.died.Detail)
		}
	}
	var err error
	if sd.beat, err = mapBeat(sd.spec.BeatPath()); err != nil {
		return sd, err
	}
	if gone != nil {
		return sd, errors.Join(gone, sd.mute())
	}
	if err := s.haveDisks(sd); err != nil {
		return sd, errors.Join(err, sd.mute())
	}
	if err := sd.meetAgain(ctx, s.options.Notice); err != nil {
		return sd, errors.Join(err, sd.mute())
	}
	return sd, nil
}

// foundDead returns the death of a side that is stopped, if that is why it was stopped: the previous supervisor
// has frozen it until there is an understudy, or its kernel is in panic(). Otherwise it returns nil.
func (s *Supervisor) foundDead(ctx context.Context, sd *side) *liveness.Verdict {
	switch {
	case s.recorded().Frozen == sd.name:
		return &liveness.Verdict{Cause: liveness.Silence, Detail: fmt.Sprintf("partition %s was found dead, and stopped, by the supervisor before", sd.name)}
	case inPanic(ctx, sd.spec.RAMPath()):
		return &liveness.Verdict{Cause: liveness.PanicState, Detail: fmt.Sprintf("partition %s was stopped in panic()", sd.name)}
	}
	return nil
}

// inPanic reports whether the kernel in this memory file is in panic().
func inPanic(ctx context.Context, memory string) bool {
	m, err := findKernel(ctx, memory)
	if err != nil {
		return false
	}
	defer m.Close()
	_, panicked := m.Panicked()
	return panicked
}

// mute gives a side an agent that answers nothing.
func (sd *side) mute() error {
	if sd.agent != nil {
		_ = sd.agent.Close() // it may be closed
	}
	sd.muted = true
	none, _ := net.Pipe()
	sd.agent = wire.New(none, wire.FromAgent, nil)
	return sd.agent.Close()
}

// reach connects to the agent of a side that stood still when we reconnected to it, since it was
// stopped or got no CPU time. The side may run again by now.
func (sd *side) reach(ctx context.Context) error {
	if !sd.muted {
		return nil
	}
	err := sd.meetAgain(ctx, nil)
	sd.muted = err != nil
	return err
}

// errStill means that an agent is not waited for.
var errStill = errors.New("its heartbeat has stopped, and its agent does not answer")

// meetAgain connects to the agent of a guest that another supervisor had. A message that
// was cut off when that ended comes first, and does not make sense.
func (sd *side) meetAgain(ctx context.Context, notice Notice) error {
	for deadline := time.Now().Add(reconnectLimit); ; {
		before := sd.counter(liveness.CounterOffset)
		err := sd.meet(ctx, notice, greetLimit)
		if err != nil && sd.counter(liveness.CounterOffset) == before {
			return fmt.Errorf("partition %s: %w", sd.name, errStill)
		}
		if err == nil && !sd.greeting.Configured {
			err = fmt.Errorf("the agent of partition %s was restarted, and has lost its configuration", sd.name)
		}
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		_ = sd.agent.Close() // it may be closed
	}
}

const (
	// greetLimit is how long an agent that runs may take to greet.
	greetLimit = 3 * time.Second
	// reconnectLimit is how long we try to reach an agent, which may be busy.
	reconnectLimit = 30 * time.Second
)

// Leave lets the guests go on without us.
func (s *Supervisor) Leave() error {
	errs := []error{s.closeMorgue()}
	for _, sd := range s.sides {
		if sd != nil {
			errs = append(errs, sd.leave())
		}
	}
	return errors.Join(append(errs, s.release(), s.dir.Close())...)
}

// leave lets a guest go on without us.
func (sd *side) leave() error {
	if sd.agent != nil {
		_ = sd.agent.Close() // it may be closed
	}
	if sd.process != nil && sd.process.QMP != nil {
		_ = sd.process.QMP.Close() // likewise
	}
	var err error
	if sd.beat != nil {
		err = unix.Munmap(sd.beat)
		sd.beat = nil
	}
	return err
}
