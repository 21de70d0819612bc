package takeover

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// witness is a Witness that records when it is read.
type witness struct {
	m     *stand
	peers wire.Peers
	err   error
	hold  chan struct{} // it answers once this is closed
}

func (w *witness) Peers(of func(netip.AddrPort) bool) (wire.Peers, error) {
	w.m.did("peers")
	if w.hold != nil {
		<-w.hold
	}
	p := wire.Peers{Neighbours: w.peers.Neighbours}
	for _, c := range w.peers.Connections {
		if of(c.Local) {
			p.Connections = append(p.Connections, c)
		}
	}
	w.m.did("peers read")
	return p, w.err
}

func somePeers() wire.Peers {
	return wire.Peers{
		Neighbours: []wire.Neighbour{{Address: netip.MustParseAddr("10.0.0.1")}},
		Connections: []wire.Connection{
			{Local: netip.MustParseAddrPort("10.0.0.2:80"), Remote: netip.MustParseAddrPort("10.0.0.1:4000")},
			{Local: netip.MustParseAddrPort("10.0.0.2:22"), Remote: netip.MustParseAddrPort("10.0.0.1:4000")},
		},
	}
}

func port80(local netip.AddrPort) bool { return local.Port() == 80 }

// TestPeersAreTold: the peers are read after the fence, then the understudy learns them,
// and they are told when the address is live.
func TestPeersAreTold(t *testing.T) {
	for name, disks := range map[string][]string{"a disk": {"data"}, "no disk": nil} {
		m := newStand()
		m.told = wire.TellResult{Reset: 1}
		r, err := play(m, Options{Disks: disks, Salvager: &body{m: m},
			Witness: &witness{m: m, peers: somePeers()}, Notice: Notice{Of: port80, Rate: 7}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, order := range [][]string{{"fence", "peers", "acquaint", "tell 7"}, {"start", "go live", "tell 7"}, {"start", "go live", "announce"}} {
			for i := 1; i < len(order); i++ {
				if !m.before(order[i-1], order[i]) {
					t.Errorf("%s: %s did not come before %s: %v", name, order[i-1], order[i], m.calls)
				}
			}
		}
		if len(m.peers.Connections) != 1 || m.peers.Connections[0].Local.Port() != 80 {
			t.Errorf("%s: acquainted with %+v", name, m.peers)
		}
		if want := (Notified{Neighbours: 1, Reset: 1}); !reflect.DeepEqual(r.Notified, want) {
			t.Errorf("%s: %+v, want %+v", name, r.Notified, want)
		}
		if !slices.ContainsFunc(r.Timeline.Steps(), func(s Step) bool { return s.Name == "notify" }) {
			t.Errorf("%s: timeline %v", name, r.Timeline.Steps())
		}
	}
}

// TestSlowWitness: only the telling of the peers waits for them to be read.
func TestSlowWitness(t *testing.T) {
	m := newStand()
	w := &witness{m: m, peers: somePeers(), hold: make(chan struct{})}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m}, Witness: w, Notice: Notice{Of: port80, Rate: 1}})
	if err != nil {
		t.Fatal(err)
	}
	settled := make(chan error)
	go func() { settled <- r.Settle(context.Background()) }()
	for deadline := time.Now().Add(10 * time.Second); !m.has("announce") || !m.has("sync"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the address was not announced, or nothing was synced, before the peers were read")
		}
	}
	close(w.hold)
	if err := <-settled; err != nil || !m.before("go live", "peers read") || !m.before("peers read", "tell 1") {
		t.Errorf("%v, calls %v", err, m.calls)
	}
}

// TestNobodyReadsABuriedMemory: when a takeover has failed, nobody reads its memory any
// more.
func TestNobodyReadsABuriedMemory(t *testing.T) {
	m := newStand()
	m.fail["mount"] = errors.New("broken")
	w := &witness{m: m, hold: make(chan struct{})}
	go func() {
		time.Sleep(50 * time.Millisecond)
		close(w.hold)
	}()
	if _, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m}, Witness: w, Notice: Notice{Of: port80}}); err == nil {
		t.Fatal("no error")
	}
	if !m.has("peers read") {
		t.Error("returned before the peers were read")
	}
	if m.has("announce") || m.has("tell 0") {
		t.Errorf("told somebody: %v", m.calls)
	}
}

// TestUntold: each failure of the telling is a line in the report.
func TestUntold(t *testing.T) {
	wrong := errors.New("wrong")
	tests := []struct {
		name, fail string
		witness    error
		peers      wire.Peers
		result     wire.TellResult
		want       Notified
	}{
		{"some are unreadable", "", wrong, somePeers(), wire.TellResult{Tickled: 1},
			Notified{Neighbours: 1, Tickled: 1, Failures: []string{"read peers: wrong"}}},
		{"nobody is readable", "", wrong, wire.Peers{}, wire.TellResult{}, Notified{Failures: []string{"read peers: wrong"}}},
		{"not acquainted", "acquaint", nil, somePeers(), wire.TellResult{},
			Notified{Untold: 1, Failures: []string{"hand peers to the understudy: wrong"}}},
		{"not announced", "announce", nil, somePeers(), wire.TellResult{Reset: 1},
			Notified{Neighbours: 1, Reset: 1, Failures: []string{"announce address: wrong"}}},
		{"not told", "tell 0", nil, somePeers(), wire.TellResult{},
			Notified{Neighbours: 1, Untold: 1, Failures: []string{"tell clients: wrong"}}},
		{"too many", "", nil, somePeers(), wire.TellResult{Untold: 1, Failure: "too many"},
			Notified{Neighbours: 1, Untold: 1, Failures: []string{"too many"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newStand()
			m.told = tt.result
			if tt.fail != "" {
				m.fail[tt.fail] = wrong
			}
			r, err := play(m, Options{Witness: &witness{m: m, peers: tt.peers, err: tt.witness}, Notice: Notice{Of: port80}})
			if err == nil {
				err = r.Settle(context.Background())
			}
			if err != nil || !reflect.DeepEqual(r.Notified, tt.want) {
				t.Errorf("%+v, %v; want %+v", r.Notified, err, tt.want)
			}
		})
	}
}

// TestNoNetwork: without one there is nothing to tell and no step for it.
func TestNoNetwork(t *testing.T) {
	m := newStand()
	r, err := play(m, Options{})
	if err == nil {
		err = r.Settle(context.Background())
	}
	if err != nil || m.has("announce") || slices.ContainsFunc(r.Timeline.Steps(), func(s Step) bool { return s.Name == "notify" }) {
		t.Errorf("%v, calls %v, steps %v", err, m.calls, r.Timeline.Steps())
	}
}

// TestNotifiedString is what people read.
func TestNotifiedString(t *testing.T) {
	n := Notified{Reset: 3, Tickled: 1, Called: 4, Untold: 2, Failures: []string{"a", "b"}}
	if got, want := n.String(), "3 clients reset, 1 tickled, 4 called, 2 not told; a; b"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
