package metal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Neighbour is an understudy, as the active side sees it.
type Neighbour struct {
	reservation Reservation
	status      *window
	log         log
	apicAt      uint64
	cpus        []uint32
}

// OpenNeighbour opens the shared pages of the reservation.
func OpenNeighbour(r Reservation) (*Neighbour, error) {
	n := &Neighbour{reservation: r}
	var err error
	if n.status, err = mapPhysical(Range{r.StatusPage(), r.StatusPage() + pageBytes}); err != nil {
		return nil, err
	}
	if n.log.window, err = mapLog(r); err != nil {
		return nil, errors.Join(err, n.status.Close())
	}
	return n, nil
}

func mapLog(r Reservation) (*window, error) {
	at := r.Mid.Start + midLog
	return mapPhysical(Range{at, at + logBytes})
}

func (n *Neighbour) Close() error {
	return errors.Join(n.status.Close(), n.log.Close())
}

// BeatPage maps the page on which the active side counts. It stays mapped for as long as
// this process lives: threads count on it.
func (n *Neighbour) BeatPage() ([]byte, error) {
	at := n.reservation.BeatPage()
	w, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return nil, err
	}
	return w.data, nil
}

// State is how far the understudy has come.
func (n *Neighbour) State() State { return State(n.status.load64(statusState)) }

// Beats is how many times the understudy has counted.
func (n *Neighbour) Beats() uint64 { return n.status.load64(statusBeat) }

// Log is what the understudy said last.
func (n *Neighbour) Log() []byte { return n.log.text() }

// Start builds an understudy for this machine, puts it into memory, and starts its CPU. It
// returns when that CPU enters the understudy's kernel.
func Start(m *Machine, u *Understudy) (*Neighbour, error) {
	n, err := start(m, u)
	if err != nil {
		return nil, fmt.Errorf("start understudy: %w", err)
	}
	return n, nil
}

func start(m *Machine, u *Understudy) (*Neighbour, error) {
	r, err := m.Reservation()
	if err != nil {
		return nil, err
	}
	if err := r.Left(m.Resources); err != nil {
		return nil, err
	}
	b, err := Build(m, r, u)
	if err != nil {
		return nil, err
	}
	// Whatever runs in that memory now must be stopped before it is overwritten.
	if err := park(r, m.Processors.APIC, m.Free()); err != nil {
		return nil, err
	}
	if err := write(b.Pieces); err != nil {
		return nil, err
	}
	n, err := OpenNeighbour(r)
	if err != nil {
		return nil, err
	}
	n.apicAt, n.cpus = m.Processors.APIC, m.Free()
	if err := n.launch(b); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// SetClock tells the understudy the time.
func (n *Neighbour) SetClock(t time.Time) { n.status.store64(statusClock, uint64(t.UnixNano())) }

// launch starts the understudy's first CPU.
func (n *Neighbour) launch(b *Built) error {
	a, err := openAPIC(n.apicAt)
	if err != nil {
		return err
	}
	defer a.Close()
	at := n.reservation.Low.Start + lowTrampoline
	page, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return err
	}
	defer page.Close()
	n.SetClock(time.Now())
	if err := a.start(b.Vector, b.CPU); err != nil {
		return err
	}
	if !await(func() bool { return page.load32(trampReached) == reachedKernel }) {
		return fmt.Errorf("the CPU with APIC number %d does not start", b.CPU)
	}
	return nil
}

// stopLimit is how long an understudy may take to notice that it is to stop.
const stopLimit = time.Second

// Stop orders the understudy not to take over any more, and parks its CPUs. It fails if
// one of those CPUs does not stop.
func (n *Neighbour) Stop() error {
	defer n.Close()
	n.status.store64(statusOrder, orderStop)
	for end := time.Now().Add(stopLimit); n.State() != Stopped && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if err := park(n.reservation, n.apicAt, n.cpus); err != nil {
		return fmt.Errorf("stop understudy: %w", err)
	}
	n.status.store64(statusState, uint64(Stopped))
	return nil
}

// Await waits until the understudy has reached that state. It returns an error if the
// understudy has failed.
func (n *Neighbour) Await(ctx context.Context, s State) error {
	for {
		switch got := n.State(); {
		case got == Failed:
			return fmt.Errorf("the understudy has failed; it said:\n%s", n.Log())
		case got >= s:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the understudy is %s: %w; it said:\n%s", n.State(), context.Cause(ctx), n.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Self is an understudy, as it sees itself.
type Self struct {
	Config      *Config
	reservation Reservation
	status      *window
	beat        *window
	log         log
}

// OpenSelf opens what the active side gave to the understudy that runs this program.
func OpenSelf() (*Self, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	s := new(Self)
	if s.reservation, err = ParseReservation(string(line)); err != nil {
		return nil, err
	}
	r := s.reservation
	if s.log.window, err = mapLog(r); err != nil {
		return nil, err
	}
	if s.status, err = mapPhysical(Range{r.StatusPage(), r.StatusPage() + pageBytes}); err != nil {
		return nil, err
	}
	if s.beat, err = mapPhysical(Range{r.BeatPage(), r.BeatPage() + pageBytes}); err != nil {
		return nil, err
	}
	at := r.Mid.Start + midConfig
	config, err := mapPhysical(Range{at, at + configBytes})
	if err != nil {
		return nil, err
	}
	defer config.Close()
	s.Config, err = decodeConfig(config.data)
	return s, err
}

// Log is where the understudy says what it does: the active side can read it.
func (s *Self) Log() log { return s.log }

// Enter reports how far the understudy has come.
func (s *Self) Enter(state State) { s.status.store64(statusState, uint64(state)) }

// Count increments the counter which shows that the understudy lives.
func (s *Self) Count() { s.status.store64(statusBeat, s.status.load64(statusBeat)+1) }

// Beat is the active side's counter at an offset of its beat page (package liveness).
func (s *Self) Beat(offset int) uint64 { return s.beat.load64(offset) }

// Told says whether the active side wants the understudy to stop.
func (s *Self) Told() bool { return s.status.load64(statusOrder) == orderStop }

// Clock is the time that the active side told last.
func (s *Self) Clock() time.Time { return time.Unix(0, int64(s.status.load64(statusClock))) }
