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
}

// OpenNeighbour opens the shared pages of the reservation.
func OpenNeighbour(r Reservation) (*Neighbour, error) {
	n := &Neighbour{reservation: r}
	var err error
	if n.status, err = mapPhysical(Range{r.StatusPage(), r.StatusPage() + pageBytes}); err != nil {
		return nil, err
	}
	n.log.window, err = mapLog(r)
	if err != nil {
		return nil, errors.Join(err, n.status.Close())
	}
	return n, nil
}

func mapLog(r Reservation) (*window, error) {
	at := r.Mid.Start + midLog
	return mapPhysical(Range{at, at + logBytes})
}

func (n *Neighbour) Close() error { return errors.Join(n.status.Close(), n.log.Close()) }

// State is how far the understudy has come.
func (n *Neighbour) State() State { return State(n.status.load64(statusState)) }

// Beats is how often it has counted.
func (n *Neighbour) Beats() uint64 { return n.status.load64(statusBeat) }

// Log is what it said last.
func (n *Neighbour) Log() []byte { return n.log.text() }

// Start puts an understudy into memory and starts its CPU. It returns when the CPU is in
// the understudy's kernel.
func Start(b *Built, r Reservation, apicAt uint64) error {
	if err := write(b.Pieces); err != nil {
		return fmt.Errorf("start understudy: %w", err)
	}
	a, err := openAPIC(apicAt)
	if err != nil {
		return fmt.Errorf("start understudy: %w", err)
	}
	defer a.Close()
	at := r.Low.Start + lowTrampoline
	page, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return fmt.Errorf("start understudy: %w", err)
	}
	defer page.Close()
	n, err := OpenNeighbour(r)
	if err != nil {
		return fmt.Errorf("start understudy: %w", err)
	}
	defer n.Close()
	n.status.store64(statusClock, uint64(time.Now().UnixNano()))
	if err := a.start(b.CPU, b.Vector); err != nil {
		return fmt.Errorf("start understudy: %w", err)
	}
	for range 1000 {
		if page.load32(trampReached) == reachedKernel {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("start understudy: the CPU with APIC number %d does not start", b.CPU)
}

// Await waits until the understudy has come as far as that, or has failed.
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

// Enter says how far the understudy has come.
func (s *Self) Enter(state State) { s.status.store64(statusState, uint64(state)) }

// Count counts: the understudy lives.
func (s *Self) Count() { s.status.store64(statusBeat, s.status.load64(statusBeat)+1) }

// Beat is the active side's counter at an offset of its beat page (package liveness).
func (s *Self) Beat(offset int) uint64 { return s.beat.load64(offset) }

// Clock is the time that the active side had when it started the understudy.
func (s *Self) Clock() time.Time { return time.Unix(0, int64(s.status.load64(statusClock))) }
