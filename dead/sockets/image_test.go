//go:build linux

package sockets_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/lab/connections"
	"understudy.dev/understudy/internal/lab/connections/truth"
	"understudy.dev/understudy/internal/lab/fixture"
)

// order is what the guests do: some 4,500 connections.
var order = truth.Order{Pairs: 1500}

func open(t testing.TB, image *connections.Image) *kernel.Kernel {
	t.Helper()
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// identity is what only one socket has.
func identity(c *sockets.Connection) string {
	return fmt.Sprintf("%v %v in %d", c.Local, c.Remote, c.Namespace)
}

// TestConnectionsInImage checks that exactly the connections of the guest are found, each
// with the numbers that its kernel reported.
func TestConnectionsInImage(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			image := connections.Get(t, name, order)
			k := open(t, image)
			if !sockets.KnowsHash(k) {
				t.Error("the keys of its hash were not found")
			}
			start := time.Now()
			found := make(map[string]sockets.Connection)
			for c, err := range sockets.Connections(k) {
				if err != nil {
					t.Error(err)
					continue
				}
				if _, twice := found[identity(&c)]; twice {
					t.Errorf("twice: %+v", c)
				}
				found[identity(&c)] = c
			}
			t.Logf("%d connections in %v, of which %d established; %d over, %d half-open",
				len(found), time.Since(start), image.Established, image.TimeWait, image.SynRecv)
			if image.TimeWait < 30 || image.SynRecv < 7 {
				t.Errorf("the guest had %d sockets in TIME_WAIT and %d in SYN_RECV", image.TimeWait, image.SynRecv)
			}
			compare(t, image, found)
		})
	}
}

func compare(t *testing.T, image *connections.Image, found map[string]sockets.Connection) {
	t.Helper()
	kinds := make(map[string]int)
	inFlight, unsent := 0, 0
	for _, want := range image.Connections {
		id := identity(&sockets.Connection{Local: want.Local, Remote: want.Remote, Namespace: want.Namespace})
		got, ok := found[id]
		if !ok {
			t.Errorf("missing: %+v", want)
			continue
		}
		delete(found, id)
		kinds[want.Kind]++
		if uint8(got.State) != want.State || got.Bound != want.Bound || got.Unsure {
			t.Errorf("%+v instead of %+v", got, want)
		}
		if !want.Numbers {
			if got.Exact() {
				t.Errorf("exact: %+v", got)
			}
			continue
		}
		numbers := [...]uint32{got.SndUna, got.SndNxt, got.RcvNxt, got.WriteSeq}
		if numbers != [...]uint32{want.SndUna, want.SndNxt, want.RcvNxt, want.WriteSeq} {
			t.Errorf("%+v instead of %+v", got, want)
		}
		// The kernel leaves out the end of what the peer sent (SIOCINQ).
		if got.State == sockets.Established && got.CopiedSeq != want.CopiedSeq {
			t.Errorf("%+v instead of %+v", got, want)
		}
		if got.Exact() != (want.SndUna == want.SndNxt) {
			t.Errorf("exact is %v: %+v", got.Exact(), want)
		}
		if want.SndUna != want.SndNxt {
			inFlight++
		}
		if want.WriteSeq != want.SndNxt {
			unsent++
		}
	}
	halfOpen := compareHalfOpen(t, image, found)
	for _, c := range found {
		t.Errorf("too much: %+v", c)
	}
	if halfOpen != image.SynRecv {
		t.Errorf("%d half-open instead of %d", halfOpen, image.SynRecv)
	}
	t.Logf("%v; %d with bytes in flight, %d with bytes unsent", kinds, inFlight, unsent)
	if inFlight < 20 || unsent < 10 || len(kinds) < 15 {
		t.Error("the guest did too little")
	}
}

// compareHalfOpen takes the half-open connections out of found. The guest knows the other
// end of each, whose handshake is complete, and which has the same numbers, swapped.
func compareHalfOpen(t *testing.T, image *connections.Image, found map[string]sockets.Connection) (n int) {
	t.Helper()
	for id, c := range found {
		if c.State != sockets.HalfOpen {
			continue
		}
		delete(found, id)
		n++
		i := slices.IndexFunc(image.Connections, func(o truth.Connection) bool {
			return o.Local == c.Remote && o.Remote == c.Local && o.Namespace == c.Namespace
		})
		if i < 0 {
			t.Errorf("nobody has the other end: %+v", c)
			continue
		}
		if o := image.Connections[i]; c.Exact() || c.Unsure || c.SndNxt != o.RcvNxt || c.RcvNxt != o.SndUna {
			t.Errorf("%+v, and at the other end %+v", c, o)
		}
	}
	return n
}

// TestNeighboursInImage checks that exactly the neighbours of the guest are found.
func TestNeighboursInImage(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			image := connections.Get(t, name, order)
			k := open(t, image)
			found := make(map[truth.Neighbour]bool)
			for n, err := range sockets.Neighbours(k) {
				if err != nil {
					t.Error(err)
					continue
				}
				known := truth.Neighbour{
					Interface: n.Interface, Index: n.Index, Address: n.Address, MAC: n.MAC,
					Permanent: n.Permanent, Router: n.Router, Namespace: n.Namespace,
				}
				if found[known] {
					t.Errorf("twice: %+v", n)
				}
				found[known] = true
			}
			permanent, learned := 0, 0
			for _, want := range image.Neighbours {
				if !found[want] {
					t.Errorf("missing: %+v", want)
				}
				delete(found, want)
				if want.Permanent {
					permanent++
				} else {
					learned++
				}
			}
			for n := range found {
				t.Errorf("too much: %+v", n)
			}
			t.Logf("%d set, %d learned", permanent, learned)
			if permanent != 6 || learned < 4 {
				t.Error("the guest knew too few")
			}
		})
	}
}
