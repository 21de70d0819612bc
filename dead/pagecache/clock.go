package pagecache

import (
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/dead/kernel"
)

// Clock is what the kernel knew of the time at its last tick.
type Clock struct {
	Now  time.Time     // wall clock at the last tick, at most some milliseconds before death
	Boot time.Time     // wall clock at boot
	Tick time.Duration // length of a jiffy; 0 if unknown

	real        int64  // wall clock minus monotonic clock, in nanoseconds
	jiffies     uint64 // at Now
	dirtiedWhen kernel.Field
}

// Uptime is how long the kernel lived.
func (k *Clock) Uptime() time.Duration { return k.Now.Sub(k.Boot) }

// wall turns a time of the monotonic clock (ktime_get) into one of the wall clock.
func (k *Clock) wall(monotonic int64) time.Time { return time.Unix(0, monotonic+k.real) }

// ErrClock says that the kernel's clock has a value it cannot have.
var ErrClock = errors.New("clock is implausible")

// Clock reads the kernel's timekeeper (include/linux/timekeeper_internal.h).
func (c *Cache) Clock() (*Clock, error) {
	at, err := c.k.Timekeeper()
	if err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	l := c.k.Types().Layout("timekeeper")
	sec, nsec := l.Field("xtime_sec", 8), l.Field("tkr_mono.xtime_nsec", 8)
	shift := l.Field("tkr_mono.shift", 4)
	interval := l.Field("xtime_interval", 8)
	real, boot := l.Field("offs_real", 8), l.Field("offs_boot", 8)
	if err := l.Err(); err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	b, err := c.k.Bytes(at, l.Size)
	if err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	k := &Clock{real: int64(real.Uint(b))}
	k.Now = time.Unix(int64(sec.Uint(b)), int64(nsec.Uint(b)>>min(shift.Uint(b), 63)))
	k.Boot = time.Unix(0, k.real-int64(boot.Uint(b)))
	const century = 100 * 365 * 24 * time.Hour
	if s := sec.Uint(b); s > 1<<34 || k.Uptime() < 0 || k.Uptime() > century {
		return nil, fmt.Errorf("read clock: %w: %v, up %v", ErrClock, k.Now, k.Uptime())
	}
	c.readTick(k, interval.Uint(b)>>min(shift.Uint(b), 63))
	return k, nil
}

// readTick finds the length of a jiffy. Without it, ages are unknown. interval is how
// far the clock advances with each tick (NTP_INTERVAL_FREQ is HZ), in nanoseconds,
// apart from a correction of a few parts per million.
func (c *Cache) readTick(k *Clock, interval uint64) {
	l := c.k.Types().Layout("inode")
	k.dirtiedWhen = l.Field("dirtied_when", 8)
	jiffies, err := c.k.Symbol("jiffies_64")
	if err != nil || l.Err() != nil {
		return
	}
	now, err := c.k.U64(jiffies)
	if err != nil {
		return
	}
	for _, hz := range []uint64{100, 250, 300, 1000} { // kernel/Kconfig.hz
		if exact := uint64(time.Second) / hz; interval > exact-exact/1000 && interval < exact+exact/1000 {
			k.jiffies, k.Tick = now, time.Duration(exact)
		}
	}
}

// UnsavedFor returns how long ago a dirty inode became dirty. The second result
// is false if that cannot be known.
func (c *Cache) UnsavedFor(k *Clock, i *Inode) (time.Duration, bool) {
	if k == nil || k.Tick == 0 {
		return 0, false
	}
	when, err := c.k.U64(k.dirtiedWhen.In(i.Addr))
	if err != nil || when == 0 {
		return 0, false
	}
	// Jiffies begin 300 seconds before they wrap at 32 bits.
	ticks := k.jiffies - when
	if ticks > uint64(k.Uptime()/k.Tick)+1 {
		return 0, false
	}
	return time.Duration(ticks) * k.Tick, true
}
