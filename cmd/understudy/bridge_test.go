package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestNetworkStartsAnew checks that the pair's ports are put back after a restart of the machine's network has made
// its bridges anew, without them, and that a takeover while there is no bridge brings the data over in any case.
func TestNetworkStartsAnew(t *testing.T) {
	tier.Full(t, "a bridge that goes and comes again")
	vm(t)
	lab := networkPair(t, "salvage: true")
	s := &standing{t: t}
	s.state("protected")
	removed := func() {
		t.Helper()
		if err := lab.Services.Do(func() error { return exec.Command("ip", "link", "del", netlab.BridgeName).Run() }); err != nil {
			t.Fatal(err)
		}
	}
	made := func() {
		t.Helper()
		if err := errors.Join(lab.Services.Bridge(netlab.BridgeName), lab.Services.Enslave("client", netlab.BridgeName)); err != nil {
			t.Fatal(err)
		}
	}
	reached := func() bool {
		conn, err := lab.Client.DialContext(t.Context(), "tcp", "10.77.0.2:7")
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	troubled := func() bool { return strings.Contains(strings.Join(s.status().Troubles, "\n"), "find bridge") }

	removed()
	await(t, "a word about the bridge", programLimit, troubled)
	made()
	await(t, "the service at its address again", programLimit, reached)
	await(t, "the end of the trouble", programLimit, func() bool { return !troubled() })

	removed()
	st := s.tookOver()
	if st.Takeover.Unreached == "" {
		t.Errorf("the takeover did not say that nobody reaches it: %+v", st.Takeover)
	}
	await(t, "a word about the bridge", programLimit, troubled)
	made()
	await(t, "the service of the other side", programLimit, reached)
	s.state("protected")
	time.Sleep(time.Second)
	if !reached() {
		t.Error("it was reached once only")
	}
}
