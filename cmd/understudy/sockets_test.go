package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/connections"
	"understudy.dev/understudy/internal/lab/connections/truth"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestSockets checks that the verb lists what the guest had.
func TestSockets(t *testing.T) {
	image := connections.Get(t, fixture.Default, truth.Order{Pairs: 1500}) // the image of package sockets
	got := command(t, "sockets", image.RAM)
	if got.err != nil {
		t.Fatal(got.err)
	}
	rows := make(map[string]bool)
	for line := range strings.Lines(got.out) {
		if f := strings.Fields(line); len(f) == 8 {
			rows[strings.Join(f[3:], " ")] = true
		}
	}
	for _, c := range image.Connections {
		word := "yes"
		if c.SndUna != c.SndNxt {
			word = "no"
		}
		row := fmt.Sprintf("%v %v %d %s %d", c.Local, c.Remote, c.SndNxt, word, c.Namespace)
		if c.Numbers && !rows[row] {
			t.Errorf("no row with %s", row)
		}
	}
	if want := fmt.Sprintf("\n%d connections, %d established, ", len(image.Connections)+image.SynRecv, image.Established); !strings.Contains(got.out, want) {
		t.Errorf("it does not say %q", want)
	}

	var l struct {
		Connections []struct{ State string }
		Neighbours  []neighbourInfo
	}
	if err := json.Unmarshal([]byte(command(t, "sockets", image.RAM, "--json").out), &l); err != nil {
		t.Fatal(err)
	}
	if len(l.Connections) != len(image.Connections)+image.SynRecv || len(l.Neighbours) != len(image.Neighbours) {
		t.Errorf("%d connections and neighbours %+v", len(l.Connections), l.Neighbours)
	}
	if out := command(t, "sockets", image.RAM, "--neighbours").out; !strings.Contains(out, "permanent router") {
		t.Error(out)
	}
	if out := command(t, "inspect", image.RAM).out; !strings.Contains(out, fmt.Sprintf("%d connections established, 0 refusals", image.Established)) {
		t.Error(out)
	}
}
