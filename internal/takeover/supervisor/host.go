package supervisor

import (
	"context"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/wire"
)

// hostEvery is how often we check that this machine still has what a pair was given.
const hostEvery = 10 * time.Second

// every calls do at once, and then every period, until ctx ends.
func every(ctx context.Context, period time.Duration, do func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// watchPaths reports a disk that was renamed or replaced under a pair: both sides have the old file
// open, but a side that boots would open another one.
func (s *Supervisor) watchPaths(ctx context.Context, disks []*fence.Hold) {
	every(ctx, hostEvery, func() {
		for _, h := range disks {
			if err := h.Named(); ctx.Err() == nil {
				s.missed(h.Name(), err, "disk "+h.Name()+" has its path again")
			}
		}
	})
}

// watchPorts puts the active side back into its bridges: a restart of the machine's network makes these
// anew, without their ports. It returns when a tap of the understudy is gone, since no network would
// reach that side, and only a partition that boots can get a new tap. It also returns with ctx's error.
func (s *Supervisor) watchPorts(ctx context.Context) (liveness.Verdict, error) {
	active, understudy := s.roles()
	tick := time.NewTicker(hostEvery)
	defer tick.Stop()
	for {
		s.connectAgain(ctx, active)
		if tap := s.goneTap(understudy); tap != "" {
			return liveness.Verdict{
				Cause: liveness.Degraded, At: time.Now(),
				Detail: fmt.Sprintf("tap %s of partition %s was removed, or has another name: no network would reach it", tap, understudy.name),
			}, nil
		}
		select {
		case <-ctx.Done():
			return liveness.Verdict{}, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// connectAgain puts the active side into its bridges, and reports if it was not in them.
func (s *Supervisor) connectAgain(ctx context.Context, active *side) {
	news, err := s.connect(active)
	if ctx.Err() != nil {
		return // the side may be gone
	}
	s.missed("network", err, "the network reaches partition "+active.name+" again")
	if !news || err != nil {
		return
	}
	s.log("partition %s was put into its bridges again", active.name)
	if err := s.announce(ctx, active); err != nil {
		s.log("announce the addresses of partition %s: %v", active.name, err)
	}
}

// goneTap returns a tap of a side that no longer exists; empty if all exist, or if that cannot be found out.
func (s *Supervisor) goneTap(sd *side) string {
	if sd == nil {
		return ""
	}
	for _, tap := range sd.taps {
		if there, err := s.options.Network.Has(tap); err == nil && !there {
			return tap
		}
	}
	return ""
}

// lostKernel is the key in Supervisor.lost for an active kernel that was not found in its memory.
const lostKernel = "kernel"

// findAgain looks for an active kernel that was not found when we took charge of it, with growing
// pauses. Until it is found, a takeover would not bring over what only memory has.
func (s *Supervisor) findAgain(ctx context.Context) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		s.mu.Lock()
		active, prepared := s.active, s.prepared
		s.mu.Unlock()
		if prepared {
			s.missed(lostKernel, nil, "the kernel of partition "+active.name+" is found in its memory")
			return
		}
		if sleep(ctx, pause) != nil {
			return
		}
		if err := s.prepare(ctx); err != nil && ctx.Err() == nil {
			s.missed(lostKernel, err, "")
		}
	}
}

// missed reports, once, that something is missing, and reports when it is there again. The first
// error is kept, even if later ones differ: its text is what the second report says has ended.
func (s *Supervisor) missed(what string, err error, again string) {
	s.mu.Lock()
	was := s.lost[what]
	if err == nil {
		delete(s.lost, what)
	} else if was == "" {
		s.lost[what] = err.Error()
	}
	s.mu.Unlock()
	switch {
	case was != "" && err == nil:
		s.trouble(wire.TroubleNotice{What: again, Ends: was})
	case was == "" && err != nil:
		s.trouble(wire.TroubleNotice{What: err.Error()})
	}
}
