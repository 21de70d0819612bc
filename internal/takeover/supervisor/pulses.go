package supervisor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/wire"
)

// pulse is one of a side's pulses, as it was last seen.
type pulse struct {
	liveness.Pulse
	period, limit time.Duration
	silencer      *liveness.Silencer
	seen          time.Time
}

// lookAtPulses observes those pulses that are due.
func (w *watcher) lookAtPulses(ctx context.Context) (liveness.Verdict, bool) {
	var effort liveness.Effort
	for _, p := range w.pulses {
		now := time.Now()
		if now.Sub(p.seen) < p.period {
			continue
		}
		p.seen = now
		if effort == nil {
			effort, _ = w.side.process.Effort() // an error means that it is ending
		}
		o := liveness.Observation{At: now, Counter: w.side.counter(p.Offset), Effort: effort}
		v, dead := p.silencer.Observe(o)
		if !dead {
			continue
		}
		p.silencer = liveness.NewSilencer(p.period, p.limit)
		if w.ask(ctx) != "" {
			continue // nothing runs there: the beat shows that
		}
		if disk, is := strings.CutPrefix(p.Name, "disk "); is && !w.hostReads(disk) {
			w.trouble(wire.TroubleNotice{What: fmt.Sprintf("disk %s: this machine gets no block of its image either, within %v", disk, hostLimit)})
			continue
		}
		v.Cause, v.Detail = p.Cause, fmt.Sprintf("%s of partition %s stands still for more than %v", p.Name, w.side.name, p.limit)
		return v, true
	}
	return liveness.Verdict{}, false
}

// hostReads reports whether this machine itself can read a block of a disk's image within
// hostLimit. If it cannot, the guest's kernel is not to blame.
func (s *Supervisor) hostReads(disk string) bool {
	i := slices.IndexFunc(s.Pair.Disks, func(d pair.Disk) bool { return d.Name == disk })
	if i < 0 {
		return true
	}
	h := s.holds[s.Pair.Disks[i].Image]
	s.mu.Lock()
	done, waits := s.reads[disk]
	if !waits { // otherwise a read from an earlier call is still under way
		done = make(chan struct{})
		if s.reads == nil {
			s.reads = make(map[string]chan struct{})
		}
		s.reads[disk] = done
		go func() {
			hostRead(h)
			s.mu.Lock()
			delete(s.reads, disk)
			s.mu.Unlock()
			close(done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-done:
		return true
	case <-time.After(hostLimit):
		return false
	}
}

// hostLimit is how long this machine's own read of an image may take.
const hostLimit = 5 * time.Second

// hostRead reads the last block of an image past the host's page cache, if that is possible.
func hostRead(h *fence.Hold) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", h.Fd()), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return // a file system without O_DIRECT answers from memory
	}
	defer f.Close()
	const block = 4096
	b, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return
	}
	defer func() { _ = unix.Munmap(b) }()
	_, _ = f.ReadAt(b, max(0, h.Size-block)&^(block-1)) // an error is an answer, too
}
