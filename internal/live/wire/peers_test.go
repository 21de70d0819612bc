package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func somePeers() Peers {
	return Peers{
		Neighbours: []Neighbour{
			{netip.MustParseAddr("10.77.0.1"), [6]byte{2, 0, 0, 0, 0, 1}, "eth0"},
			{netip.MustParseAddr("fe80::1"), [6]byte{2, 0, 0, 0, 0, 2}, "fifteen-letters"},
		},
		Connections: []Connection{
			{netip.MustParseAddrPort("10.77.0.2:2049"), netip.MustParseAddrPort("10.77.0.1:1023"), 1, 2, math.MaxUint32, false, nil},
			{netip.MustParseAddrPort("[fd00::2]:80"), netip.MustParseAddrPort("[fd00::1]:40000"), 7, 7, 8, true, nil},
		},
	}
}

func TestPeers(t *testing.T) {
	for name, p := range map[string]Peers{"some": somePeers(), "none": {}} {
		b, err := EncodePeers(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodePeers(b)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	if _, err := EncodePeers(Peers{Neighbours: make([]Neighbour, MaxNeighbours+1)}); err == nil {
		t.Error("too many are encoded")
	}
}

// TestPeersFit: the most that can be encoded fits in a message.
func TestPeersFit(t *testing.T) {
	p := Peers{make([]Neighbour, MaxNeighbours), make([]Connection, MaxConnections)}
	for i := range MaxCalls {
		p.Connections[len(p.Connections)-1-i].Call = make([]byte, MaxCall)
	}
	r, err := NewAcquaintRequest(p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(b)+1024 > FromSupervisor.Request {
		t.Errorf("%d bytes in JSON, and a request may have %d", len(b), FromSupervisor.Request)
	}
}

// TestCalls: the calls for peers are sent along with them, and calls for unknown connections are refused.
func TestCalls(t *testing.T) {
	p := somePeers()
	p.Connections[1].Call = []byte("call")
	r, err := NewAcquaintRequest(p)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Decode(); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, c := range map[string]Call{
		"of no connection": {Connection: 2}, "before the first": {Connection: -1}, "too long": {Connection: 1, Bytes: make([]byte, MaxCall+1)},
	} {
		r.Calls = []Call{c}
		if got, err := r.Decode(); err == nil || len(got.Connections) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	r.Calls = make([]Call, MaxCalls+1)
	if _, err := r.Decode(); err == nil {
		t.Error("too many are decoded")
	}
}

func TestDecodePeersRefuses(t *testing.T) {
	good, err := EncodePeers(somePeers())
	if err != nil {
		t.Fatal(err)
	}
	const (
		counts     = len(peersMagic)
		neighbour  = counts + 8
		connection = neighbour + 2*neighbourBytes
	)
	set := func(at int, bytes ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], bytes); return b }
	}
	loopback := netip.IPv6Loopback().As16()
	tests := []struct {
		name string
		edit func([]byte) []byte
		want string
	}{
		{"empty", func([]byte) []byte { return nil }, "no magic"},
		{"magic", set(0, 'U'), "no magic"},
		{"cut short", func(b []byte) []byte { return b[:len(b)-1] }, "2 neighbours and 2 connections in"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "2 neighbours and 2 connections in"},
		{"more than fit", set(counts, 3), "3 neighbours"},
		{"very many", set(counts, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "4294967295 neighbours"},
		{"nobody's address", set(neighbour, make([]byte, 16)...), "neighbour 0: :: is not the address of a host"},
		{"everybody's address", set(neighbour+12, 255, 255, 255, 255), "255.255.255.255 is not the address of a host"},
		{"own address", set(neighbour, loopback[:]...), "::1 is not the address of a host"},
		{"group", set(neighbour, 0xff, 2), "is not the address of a host"},
		{"name goes on", set(neighbour+16+6+5, 'x'), `name "eth0" has bytes after its terminating NUL`},
		{"two families", set(connection, 0xfd), "are not ends of one connection"},
		{"neither exact nor not", set(connection+connectionBytes-1, 2), "connection 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodePeers(tt.edit(bytes.Clone(good)))
			if !errors.Is(err, errPeers) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzDecodePeers checks that no bytes make it panic, and that bytes that are accepted are
// exactly what EncodePeers makes of the result.
func FuzzDecodePeers(f *testing.F) {
	good, err := EncodePeers(somePeers())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(binary.LittleEndian.AppendUint64([]byte(peersMagic), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePeers(b)
		if err != nil {
			return
		}
		again, err := EncodePeers(p)
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("accepted %x, and wrote %x, %v", b, again, err)
		}
	})
}
