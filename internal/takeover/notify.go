package takeover

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"understudy.dev/understudy/internal/live/wire"
)

// Witness says whom the dead side communicated with. A Salvager may be one too.
type Witness interface {
	// Peers returns the dead side's neighbours, and the far ends of its TCP connections,
	// of those whose local ends the function of accepts. An error says what could not be
	// read; what could be read is valid all the same.
	Peers(of func(local netip.AddrPort) bool) (wire.Peers, error)
}

// Notice says whose clients are told that their connections are gone, and how fast.
// Without Of there is no network to tell anything.
type Notice struct {
	Of   func(local netip.AddrPort) bool
	Rate int // clients a second
}

// Notified is the outcome of telling the network and the clients. No failure of it keeps
// a takeover from completing.
type Notified struct {
	Neighbours int      `json:"neighbours"` // of the dead side, that the understudy knew at once
	Reset      int      `json:"reset"`      // clients sent a reset, with the dead side's numbers
	Tickled    int      `json:"tickled"`    // clients asked for their numbers, to be reset with those
	Called     int      `json:"called"`     // clients of NFS called on their session, and then reset
	Untold     int      `json:"untold"`     // clients not told
	Failures   []string `json:"failures,omitempty"`
}

func (n *Notified) String() string {
	s := fmt.Sprintf("%d clients reset, %d tickled", n.Reset, n.Tickled)
	if n.Called > 0 {
		s += fmt.Sprintf(", %d called", n.Called)
	}
	if n.Untold > 0 {
		s += fmt.Sprintf(", %d not told", n.Untold)
	}
	if len(n.Failures) > 0 {
		s += "; " + strings.Join(n.Failures, "; ")
	}
	return s
}

func (n *Notified) fail(what string, err error) {
	if err != nil {
		n.Failures = append(n.Failures, fmt.Sprintf("%s: %v", what, err))
	}
}

// teller tells the dead side's peers, concurrently with a takeover: it reads who they are
// while other steps run, and speaks once the address is live.
type teller struct {
	run      *run
	once     sync.Once
	read     chan struct{} // closed when the understudy knows the peers, or never will
	told     chan struct{} // closed when everything is done
	notified Notified      // may be used after waiting for one of these
	peers    int           // connections that the understudy knows
}

func newTeller(r *run) *teller {
	return &teller{run: r, read: make(chan struct{}), told: make(chan struct{})}
}

// meet begins to read the peers, if that has not begun yet.
func (t *teller) meet(ctx context.Context) {
	t.once.Do(func() {
		go func() {
			defer close(t.read)
			if t.run.options.Witness != nil {
				t.fetch(ctx)
			}
		}()
	})
}

func (t *teller) fetch(ctx context.Context) {
	var peers wire.Peers
	err := t.run.measure("peers", func() (err error) {
		peers, err = t.run.options.Witness.Peers(t.run.options.Notice.Of)
		return err
	})
	t.notified.fail("read peers", err)
	if len(peers.Neighbours) == 0 && len(peers.Connections) == 0 {
		return
	}
	result, err := t.run.machine.Acquaint(ctx, peers)
	t.notified.fail("hand peers to the understudy", err)
	if err != nil {
		t.notified.Untold = len(peers.Connections)
		return
	}
	t.peers, t.notified.Neighbours = len(peers.Connections), result.Neighbours
	if result.Failure != "" {
		t.notified.Failures = append(t.notified.Failures, result.Failure)
	}
}

// tell begins to speak; the address is live.
func (t *teller) tell(ctx context.Context) {
	if t.run.options.Notice.Of == nil {
		close(t.told)
		return
	}
	go func() {
		defer close(t.told)
		_ = t.run.measure("notify", func() error {
			announced := make(chan error, 1)
			go func() { announced <- t.run.machine.Announce(ctx) }()
			<-t.read
			if t.peers > 0 {
				t.tellPeers(ctx)
			}
			t.notified.fail("announce address", <-announced)
			return nil
		})
	}()
}

func (t *teller) tellPeers(ctx context.Context) {
	result, err := t.run.machine.Tell(ctx, t.run.options.Notice.Rate)
	t.notified.fail("tell clients", err)
	if err != nil {
		t.notified.Untold += t.peers
		return
	}
	n := &t.notified
	n.Reset, n.Tickled, n.Called, n.Untold = result.Reset, result.Tickled, result.Called, result.Untold
	if result.Failure != "" {
		t.notified.Failures = append(t.notified.Failures, result.Failure)
	}
}
