package supervisor

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
)

func (sd *side) counter() uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&sd.beat[liveness.CounterOffset])).Load()
}

// lastSign is when the side was last seen to beat, or now.
func (sd *side) lastSign() time.Time {
	if sd.beaten.IsZero() {
		return time.Now()
	}
	return sd.beaten
}

// watch looks at the beat every period, and listens for the dying message and
// the end of the process. It returns at the first sign of death, or with ctx's
// error.
func (sd *side) watch(ctx context.Context, h pair.Heartbeat) (liveness.Verdict, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dying := sd.listen(ctx)
	silencer := liveness.NewSilencer(h.Period, h.Limit)
	tick := time.NewTicker(h.Period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return liveness.Verdict{}, context.Cause(ctx)
		case v := <-dying:
			return v, nil
		case <-sd.process.Ended():
			return liveness.Verdict{
				Cause: liveness.ProcessGone, At: time.Now(),
				Detail: fmt.Sprintf("partition %s ended: %v", sd.name, sd.process.Status()),
			}, nil
		case <-tick.C:
			if v, dead := sd.look(silencer); dead {
				return v, nil
			}
		}
	}
}

// listen passes the dying message on.
func (sd *side) listen(ctx context.Context) <-chan liveness.Verdict {
	dying := make(chan liveness.Verdict, 1)
	go func() {
		for e, err := range sd.process.QMP.Events(ctx) {
			if err != nil {
				return // the process has ended, which is a sign of its own
			}
			if e.Name == "GUEST_PANICKED" {
				dying <- liveness.Verdict{
					Cause: liveness.DyingMessage, At: time.Now(),
					Detail: "the kernel of partition " + sd.name + " panicked",
				}
				return
			}
		}
	}()
	return dying
}

// look takes one observation. What the process did is asked only when the beat
// stands still.
func (sd *side) look(silencer *liveness.Silencer) (liveness.Verdict, bool) {
	o := liveness.Observation{At: time.Now(), Counter: sd.counter()}
	if o.Counter != sd.counted {
		sd.counted, sd.beaten = o.Counter, o.At
		return silencer.Observe(o)
	}
	// An error means that the process is ending: that is seen elsewhere.
	o.Effort, _ = sd.process.Effort()
	return silencer.Observe(o)
}
