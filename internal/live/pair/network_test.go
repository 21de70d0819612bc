package pair

import (
	"strings"
	"testing"
)

func TestNetworkRefuses(t *testing.T) {
	const nic = "address: 10.0.0.2/24, address6: 'fd00::2/64', bridge: br0}"
	const text = smallest + "nics:\n- {name: n, mac: '52:54:00:00:00:02',\n   " + nic + "\ntakeover: {notify: all}\n"
	tests := []struct {
		name     string
		old, new string // a change to text
		want     string // the whole message
	}{
		{"no IPv6", "fd00::2/64", "10.0.0.3/24", `pair.yaml:7: nics.0.address6: 10.0.0.3 is not an IPv6 address that others could use; write e.g. fd00::2/64`},
		{"link-local", "fd00::2/64", "fe80::2/64", `pair.yaml:7: nics.0.address6: fe80::2 is not an IPv6 address that others could use; write e.g. fd00::2/64`},
		{"no length", "fd00::2/64", "fd00::2", `pair.yaml:7: nics.0.address6: "fd00::2" is not an address with a prefix length; write e.g. fd00::2/64`},
		{"same address", "br0}", "br0}\n- {name: m, mac: '52:54:00:00:00:03', address: 'fd00::2/64', bridge: br0}",
			`pair.yaml:8: nics.1.address: fd00::2 is taken (line 7); give each its own`},
		{"same address twice", "10.0.0.2/24", "'fd00::2/64'", `pair.yaml:7: nics.0.address6: fd00::2 is taken (line 7); give each its own`},
		{"gateway6 of no address6", "address6: 'fd00::2/64'", "gateway6: 'fd00::1'",
			`pair.yaml:7: nics.0.gateway6: there is no address6 to reach it from; add address6:, or remove the key`},
		{"gateway6 outside", "bridge", "gateway6: 'fd01::1', bridge",
			`pair.yaml:7: nics.0.gateway6: fd01::1 is not in fd00::/64; correct the gateway or the prefix length`},
		{"gateway6 itself", "bridge", "gateway6: 'fd00::2', bridge",
			`pair.yaml:7: nics.0.gateway6: is the address itself; name the router, or remove the key`},
		{"gateway6 is IPv4", "bridge", "gateway6: 10.0.0.1, bridge",
			`pair.yaml:7: nics.0.gateway6: 10.0.0.1 is not an IPv6 address; write e.g. fd00::1 or fe80::1`},
		{"gateway of the other family", "bridge", "gateway: 'fd00::1', bridge",
			`pair.yaml:7: nics.0.gateway: fd00::1 is not in 10.0.0.0/24; correct the gateway or the prefix length`},
		{"two gateways", "bridge: br0}", "gateway: 10.0.0.1, gateway6: 'fe80::1', bridge: br0}\n- {name: m, mac: '52:54:00:00:00:03', address: 10.1.0.2/24, gateway: 10.1.0.1, bridge: br0}",
			`pair.yaml:8: nics.1.gateway: there is one way to everything else, which is that of line 7; keep one, and name the networks behind the other under its routes:`},
		{"routes are no list", "bridge", "routes: {to: 10.0.0.0/8}, bridge",
			`pair.yaml:7: nics.0.routes: this is a mapping (key: value), and must be a list; see the example in the README`},
		{"route without via", "bridge", "routes: [{to: 10.0.0.0/8}], bridge", `pair.yaml:7: nics.0.routes.0: key "via" is missing; add it`},
		{"route by nobody", "bridge", "\n   routes: [{to: 10.0.0.0/8, via: 10.0.1.1}], bridge",
			`pair.yaml:8: nics.0.routes.0.via: 10.0.1.1 is on none of the interface's networks; correct it, or the length of the address's prefix`},
		{"route by itself", "bridge", "routes: [{to: 10.0.0.0/8, via: 10.0.0.2}], bridge",
			`pair.yaml:7: nics.0.routes.0.via: is the interface's own address; name the router`},
		{"route of two families", "bridge", "routes: [{to: 10.0.0.0/8, via: 'fd00::1'}], bridge",
			`pair.yaml:7: nics.0.routes.0.via: fd00::1 cannot lead to 10.0.0.0/8; use addresses of one family`},
		{"route with host bits", "bridge", "routes: [{to: 10.1.0.0/8, via: 10.0.0.1}], bridge",
			`pair.yaml:7: nics.0.routes.0.to: 10.1.0.0/8 has bits beyond its length: the network is 10.0.0.0/8; write e.g. 10.0.0.0/8`},
		{"route to everything", "bridge", "routes: [{to: '::/0', via: 'fd00::1'}], bridge",
			`pair.yaml:7: nics.0.routes.0.to: ::/0 is the default route: give that as gateway or gateway6; write e.g. 10.0.0.0/8`},
		{"route to an address", "bridge", "routes: [{to: 10.0.0.9, via: 10.0.0.1}], bridge",
			`pair.yaml:7: nics.0.routes.0.to: "10.0.0.9" is not a network; write e.g. 10.0.0.0/8`},
		{"route twice", "bridge", "routes: [{to: 10.0.0.0/8, via: 10.0.0.1},\n   {to: 10.0.0.0/8, via: 10.0.0.3}], bridge",
			`pair.yaml:8: nics.0.routes.1.to: 10.0.0.0/8 is taken (line 7); give each its own`},
		{"notify some", "notify: all", "notify: some", `pair.yaml:8: takeover.notify: "some" is not known; write all, none, or a list of ports such as [2049, 80]`},
		{"notify nothing", "notify: all", "notify: []", `pair.yaml:8: takeover.notify: names no port; write all, none, or a list of ports such as [2049, 80]`},
		{"notify a name", "notify: all", "notify: [80,\n  nfs]", `pair.yaml:9: takeover.notify.1: "nfs" is not a TCP port; write all, none, or a list of ports such as [2049, 80]`},
		{"notify twice", "notify: all", "notify: [80, 80]", `pair.yaml:8: takeover.notify.1: port 80 is named twice; remove one of the two`},
		{"notify mapping", "notify: all", "notify: {port: 80}",
			`pair.yaml:8: takeover.notify: this is a mapping (key: value), and must be a single value; see the example in the README`},
		{"rate", "notify: all", "notify_rate: 0", `pair.yaml:8: takeover.notify_rate: "0" is not a rate; write clients a second, from 1 to 1000000`},
	}
	if _, err := parse("pair.yaml", "/etc", []byte(text)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(text, tt.old) != 1 {
				t.Fatalf("%q occurs %d times", tt.old, strings.Count(text, tt.old))
			}
			_, err := parse("pair.yaml", "/etc", []byte(strings.Replace(text, tt.old, tt.new, 1)))
			if err == nil {
				t.Fatal("accepted")
			}
			if err.Error() != tt.want {
				t.Errorf("got:\n%v\nwant:\n%s", err, tt.want)
			}
		})
	}
}
