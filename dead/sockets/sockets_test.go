package sockets_test

import (
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// walk returns the connections, the reasons of refusals, and other errors.
func walk(k *kernel.Kernel) (found []sockets.Connection, refused []sockets.Reason, errs []error) {
	for c, err := range sockets.Connections(k) {
		var refusal *sockets.Refusal
		switch {
		case err == nil:
			found = append(found, c)
		case errors.As(err, &refusal):
			refused = append(refused, refusal.Reason)
		default:
			errs = append(errs, err)
		}
	}
	return found, refused, errs
}

// TestWithout checks that what a kernel was built without is not reported as an error, and that what cannot be
// read of a kernel with any symbol of TCP is.
func TestWithout(t *testing.T) {
	for _, tt := range []struct {
		symbols []string
		want    string
	}{
		{nil, "a network"},
		{[]string{"sock_release"}, "TCP"},
		{[]string{"init_net"}, "TCP"},
		{[]string{"sock_release", "tcp_v4_rcv"}, ""},
		{[]string{"net_namespace_list", "tcp_hashinfo"}, ""},
	} {
		m := kerneltest.New(t)
		for _, s := range tt.symbols {
			m.Image(s, 16)
		}
		m.Finish(types()...)
		k, err := kernel.Find(m)
		if err != nil {
			t.Fatal(err)
		}
		if got := sockets.Without(k); got != tt.want {
			t.Errorf("%v: without %q, want %q", tt.symbols, got, tt.want)
		}
		_, _, errs := walk(k)
		for _, err := range sockets.Neighbours(k) {
			errs = append(errs, err)
		}
		if (len(errs) == 0) != (tt.want != "") {
			t.Errorf("%v: %v", tt.symbols, errs)
		}
	}
}

// TestConnections damages one connection of several, and checks that the others are found.
func TestConnections(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(w *world, s addr.Virt)
		want   sockets.Reason // 0: none
		lost   int
		chain  bool // what comes after it in its chain may be lost, too
	}{
		"whole":               {damage: func(*world, addr.Virt) {}},
		"remote address":      {func(w *world, s addr.Virt) { w.Put(s+scDaddr, []byte{11}) }, sockets.BadHash, 1, false},
		"remote port":         {func(w *world, s addr.Virt) { w.Put(s+scDport, []byte{1}) }, sockets.BadHash, 1, false},
		"hash":                {func(w *world, s addr.Virt) { w.PutU32(s+scHash, ^uint32(0)-w.u32(s+scHash)) }, sockets.BadHash, 1, false},
		"no port":             {func(w *world, s addr.Virt) { w.Put(s+scDport, []byte{0, 0}) }, sockets.BadPort, 1, false},
		"two ports":           {func(w *world, s addr.Virt) { w.Put(s+tkSport, []byte{9}) }, sockets.BadPort, 1, false},
		"two addresses":       {func(w *world, s addr.Virt) { w.Put(s+tkSaddr, []byte{9}) }, sockets.BadAddress, 1, false},
		"family":              {func(w *world, s addr.Virt) { w.Put(s+scFamily, []byte{3}) }, sockets.BadProtocol, 1, false},
		"protocol":            {func(w *world, s addr.Virt) { w.Put(s+tkProtocol, []byte{17}) }, sockets.BadProtocol, 1, false},
		"struct proto":        {func(w *world, s addr.Virt) { w.PutU64(s+scProto, uint64(w.net)) }, sockets.BadProtocol, 1, false},
		"struct proto astray": {func(w *world, s addr.Virt) { w.PutU64(s+scProto, 1<<40) }, sockets.Unreadable, 1, false},
		"namespace":           {func(w *world, s addr.Virt) { w.PutU64(s+scNet, uint64(w.proto)) }, sockets.BadNamespace, 1, false},
		"closed":              {func(w *world, s addr.Virt) { w.Put(s+scState, []byte{7}) }, sockets.BadState, 1, false},
		"over":                {func(w *world, s addr.Virt) { w.Put(s+scState, []byte{6}) }, 0, 1, false},
		"half-open":           {func(w *world, s addr.Virt) { w.halfOpen(s, 99, 6, 7) }, 0, 0, false},
		"points back":         {func(w *world, s addr.Virt) { w.PutU64(s+scNode+8, uint64(s)) }, sockets.BadChain, 1, true},
		"cycle":               {func(w *world, s addr.Virt) { w.PutU64(s+scNode, uint64(s+scNode)) }, sockets.BadChain, 0, true},
		"end of another":      {func(w *world, s addr.Virt) { w.PutU64(s+scNode, size<<1|1) }, sockets.BadChain, 0, true},
		"no end":              {func(w *world, s addr.Virt) { w.PutU64(s+scNode, 0) }, sockets.Unreadable, 0, true},
		"mask":                {func(w *world, s addr.Virt) { w.PutU32(w.info+4, size) }, sockets.BadTable, 6, false},
		"huge":                {func(w *world, s addr.Virt) { w.PutU32(w.info+4, 1<<25-1) }, sockets.BadTable, 6, false},
		"buckets":             {func(w *world, s addr.Virt) { w.PutU64(w.info+8, 1<<50) }, sockets.BadTable, 6, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := busy(t)
			victim := w.connect("10.0.0.1:2049", "10.0.0.9:900")
			w.Finish(types()...)
			c.damage(w, victim)
			found, refused, errs := walk(w.open(t))
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if (len(refused) > 0) != (c.want != 0) || len(refused) > 0 && refused[0] != c.want {
				t.Errorf("refused for %v, not for %v", refused, c.want)
			}
			most := 7 - c.lost
			if len(found) > most || (!c.chain && c.lost < 6 && len(found) != most) {
				t.Errorf("%d connections: %+v", len(found), found)
			}
			for i := range found {
				if found[i].Exact() == (found[i].State == sockets.HalfOpen) || found[i].Namespace != inode || found[i].Local.String() != "10.0.0.1:2049" {
					t.Errorf("%+v", found[i])
				}
			}
		})
	}
}

// TestExact checks that numbers that contradict each other or were being changed are in doubt.
func TestExact(t *testing.T) {
	for name, c := range map[string]struct {
		numbers       map[addr.Virt]uint32
		exact, unsure bool
	}{
		"idle":                {exact: true},
		"in flight":           {numbers: map[addr.Virt]uint32{tkNxt: 200, tkWrite: 300, tkOut: 1}},
		"unsent":              {numbers: map[addr.Virt]uint32{tkWrite: 300}, exact: true},
		"wrapped":             {numbers: map[addr.Virt]uint32{tkUna: 1<<32 - 5, tkNxt: 1<<32 - 5, tkWrite: 5}, exact: true},
		"no packet in flight": {numbers: map[addr.Virt]uint32{tkNxt: 200, tkWrite: 300}, unsure: true},
		"packet without data": {numbers: map[addr.Virt]uint32{tkOut: 1}, unsure: true},
		"acknowledged unsent": {numbers: map[addr.Virt]uint32{tkUna: 200, tkOut: 1}, unsure: true},
		"sent unwritten":      {numbers: map[addr.Virt]uint32{tkNxt: 200, tkOut: 1}, unsure: true},
		"read unreceived":     {numbers: map[addr.Virt]uint32{tkCopy: 9}, unsure: true},
		"in a program's hand": {numbers: map[addr.Virt]uint32{tkOwned: 1}, unsure: true},
		"locked":              {numbers: map[addr.Virt]uint32{tkSlock: 1}, unsure: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.connect("10.0.0.1:2049", "10.0.0.9:900")
			for at, v := range c.numbers {
				w.PutU32(s+at, v)
			}
			w.Finish(types()...)
			found, refused, errs := walk(w.open(t))
			if len(found) != 1 || len(refused) > 0 || len(errs) > 0 {
				t.Fatal(found, refused, errs)
			}
			if found[0].Exact() != c.exact || found[0].Unsure != c.unsure {
				t.Errorf("exact is %v, unsure %v", found[0].Exact(), found[0].Unsure)
			}
		})
	}
	for sure, received := range map[bool]uint32{true: 6, false: 7} {
		w := newWorld(t)
		w.halfOpen(w.connect("10.0.0.1:2049", "10.0.0.9:900"), 1<<32-1, received, 7)
		w.Finish(types()...)
		found, refused, errs := walk(w.open(t))
		if len(found) != 1 || len(refused) > 0 || len(errs) > 0 {
			t.Fatal(found, refused, errs)
		}
		if c := found[0]; c.Unsure == sure || c.Exact() || c.SndNxt != 0 || c.RcvNxt != 7 || c.State != sockets.HalfOpen {
			t.Errorf("%+v", c)
		}
	}
	handshake := sockets.Connection{State: sockets.SynRecv}
	if handshake.Exact() {
		t.Error("a handshake is exact")
	}
}

// TestMapped checks that a connection of an IPv6 socket that uses IPv4 has IPv4 addresses.
func TestMapped(t *testing.T) {
	w := newWorld(t)
	s := w.connect("10.0.0.1:2049", "10.0.0.9:900")
	w.Put(s+scFamily, []byte{10})
	w.Finish(types()...)
	k := w.open(t)
	found, _, _ := walk(k)
	if len(found) != 1 || found[0].Remote.String() != "10.0.0.9:900" {
		t.Errorf("%+v", found)
	}
	w.Put(s+scDaddr6+15, []byte{8}) // now it has two remote addresses
	if found, refused, _ := walk(k); len(found) > 0 || len(refused) != 1 || refused[0] != sockets.BadAddress {
		t.Errorf("%+v, %v", found, refused)
	}
}

// TestNeighbours damages one neighbour of several.
func TestNeighbours(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(w *world, n addr.Virt)
		want   sockets.Reason // 0: none
		lost   int
		chain  bool
	}{
		"whole":       {damage: func(*world, addr.Virt) {}},
		"failed":      {func(w *world, n addr.Virt) { w.Put(n+nbState, []byte{0x20}) }, 0, 1, false},
		"no ARP":      {func(w *world, n addr.Virt) { w.Put(n+nbState, []byte{0x40}) }, 0, 1, false},
		"dead":        {func(w *world, n addr.Virt) { w.Put(n+nbDead, []byte{1}) }, 0, 1, false},
		"states":      {func(w *world, n addr.Virt) { w.Put(n+nbState, []byte{0x84}) }, sockets.BadState, 1, false},
		"address":     {func(w *world, n addr.Virt) { w.Put(n+nbSize, []byte{11}) }, sockets.BadHash, 1, false},
		"MAC":         {func(w *world, n addr.Virt) { w.Put(n+nbHa, []byte{6}) }, sockets.BadLinkAddress, 1, false},
		"in change":   {func(w *world, n addr.Virt) { w.PutU32(n+nbSeq, 3) }, sockets.BadLinkAddress, 1, false},
		"other table": {func(w *world, n addr.Virt) { w.PutU64(n+nbTable, uint64(w.net)) }, sockets.BadChain, 1, true},
		"cycle":       {func(w *world, n addr.Virt) { w.PutU64(n+nbNext, uint64(n)) }, sockets.BadChain, 0, true},
		"astray":      {func(w *world, n addr.Virt) { w.PutU64(n+nbNext, 1<<40) }, sockets.Unreadable, 0, true},
		"device name": {func(w *world, n addr.Virt) { w.Put(w.device+dvName, []byte("a/b")) }, sockets.BadDevice, 5, false},
		"namespace":   {func(w *world, n addr.Virt) { w.PutU64(w.device+dvNet, uint64(w.arp)) }, sockets.BadNamespace, 5, false},
		"no Ethernet": {func(w *world, n addr.Virt) { w.Put(w.device+dvLen, []byte{20}) }, 0, 5, false},
		"key length":  {func(w *world, n addr.Virt) { w.PutU32(w.arp+16, 16) }, sockets.BadTable, 5, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := busy(t)
			victim := w.neighbour("10.0.0.8", 0x80)
			w.Finish(types()...)
			c.damage(w, victim)
			var refused []sockets.Reason
			found := 0
			for n, err := range sockets.Neighbours(w.open(t)) {
				var refusal *sockets.Refusal
				switch {
				case errors.As(err, &refusal):
					refused = append(refused, refusal.Reason)
				case err != nil:
					t.Error(err)
				default:
					found++
					last := n.Address.As4()[3]
					if n.Interface != "eth0" || n.Index != 2 || n.Namespace != inode || n.MAC[5] != last || n.Permanent != (last == 8) {
						t.Errorf("%+v", n)
					}
				}
			}
			if (len(refused) > 0) != (c.want != 0) || len(refused) > 0 && refused[0] != c.want {
				t.Errorf("refused for %v, not for %v", refused, c.want)
			}
			if found > 5-c.lost || (!c.chain && found != 5-c.lost) {
				t.Errorf("%d neighbours", found)
			}
		})
	}
}

// FuzzWalks checks that walks end, and yield nothing twice, whatever memory says.
func FuzzWalks(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1})
	f.Add([]byte{9, 200, 1, 0, 255, 7, 30, 0, 0, 0, 0, 7})
	whole := busy(f)
	whole.Finish(types()...)
	f.Fuzz(func(t *testing.T, script []byte) {
		w := &world{Machine: whole.Clone(t)}
		w.Damage(script, whole.nodes...)
		k, err := kernel.Find(w)
		if err != nil {
			return
		}
		seen := make(map[addr.Virt]bool)
		for c, err := range sockets.Connections(k) {
			if err != nil {
				continue
			}
			if seen[c.Addr] || c.Local.Port() == 0 || c.Remote.Port() == 0 || c.Remote.Addr().IsUnspecified() {
				t.Errorf("%+v", c)
			}
			seen[c.Addr] = true
		}
		for n, err := range sockets.Neighbours(k) {
			if err == nil && (seen[n.Addr] || n.Interface == "" || n.MAC == [6]byte{}) {
				t.Errorf("%+v", n)
			}
			seen[n.Addr] = err == nil
		}
	})
}
