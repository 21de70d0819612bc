package metal

import (
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// network is an address with its prefix, as netlink has it.
func network(t *testing.T, text string) *net.IPNet {
	t.Helper()
	ip, n, err := net.ParseCIDR(text)
	if err != nil {
		t.Fatal(err)
	}
	return &net.IPNet{IP: ip, Mask: n.Mask}
}

func TestCarryAddresses(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
	address := func(text string, flags int) netlink.Addr {
		return netlink.Addr{IPNet: network(t, text), Flags: flags}
	}
	of := func(a netlink.Addr, change func(*netlink.Addr)) netlink.Addr {
		change(&a)
		return a
	}
	const permanent = unix.IFA_F_PERMANENT
	for _, c := range []struct {
		name      string
		addresses []netlink.Addr
		want      wire.NIC
		left      []string
	}{
		{"one of each", []netlink.Addr{address("10.0.0.2/24", permanent), address("fd00::2/64", permanent)}, wire.NIC{Address: "10.0.0.2/24", Address6: "fd00::2/64"}, nil},
		{"a lease", []netlink.Addr{address("10.0.0.2/24", 0), address("fd00::2/128", 0)}, wire.NIC{Address: "10.0.0.2/24", Address6: "fd00::2/128"}, nil},
		{"made by the kernel", []netlink.Addr{
			address("fe80::5054:ff:fe00:2/64", permanent), address("2001:db8::5054:ff:fe00:2/64", 0), address("2001:db8::77/64", unix.IFA_F_TEMPORARY), address("fd00::2/64", permanent),
		}, wire.NIC{Address6: "fd00::2/64"}, nil},
		{"a lease too", []netlink.Addr{address("fd00::9/128", 0), address("fd00::2/64", permanent)}, wire.NIC{Address6: "fd00::2/64"}, []string{"address fd00::9/128"}},
		{"secondary", []netlink.Addr{address("10.0.0.2/24", permanent), address("10.0.0.3/24", permanent|unix.IFA_F_SECONDARY)}, wire.NIC{Address: "10.0.0.2/24"}, []string{"address 10.0.0.3/24"}},
		{"another network", []netlink.Addr{address("10.0.0.2/24", permanent), address("192.0.2.2/24", permanent)}, wire.NIC{Address: "10.0.0.2/24"}, []string{"address 192.0.2.2/24"}},
		{"a peer", []netlink.Addr{of(address("10.0.0.2/32", permanent), func(a *netlink.Addr) { a.Peer = network(t, "10.0.0.1/32") })}, wire.NIC{}, []string{"address 10.0.0.2/32"}},
		{"of the link", []netlink.Addr{of(address("169.254.0.2/16", permanent), func(a *netlink.Addr) { a.Scope = unix.RT_SCOPE_LINK })}, wire.NIC{}, []string{"address 169.254.0.2/16"}},
	} {
		var n wire.NIC
		if left := carryAddresses(&n, mac, c.addresses); !reflect.DeepEqual(n, c.want) || !slices.Equal(left, c.left) {
			t.Errorf("%s: %+v without %q", c.name, n, left)
		}
	}
}

// TestReaddressed: a role's address that the interface has exchanged for another is not taken over.
func TestReaddressed(t *testing.T) {
	role := wire.NIC{MAC: "52:54:00:00:00:02", Address: "10.0.0.2/24", Address6: "fd00:0::2/64"}
	for _, c := range []struct {
		name      string
		addresses []string
		wrong     string
	}{
		{"none yet", nil, ""},
		{"as it was", []string{"10.0.0.2/24", "fd00::2/64"}, ""},
		{"another beside it", []string{"10.0.0.7/24", "10.0.0.2/24"}, ""},
		{"another prefix", []string{"10.0.0.2/16"}, ""},
		{"another lease", []string{"10.0.0.7/24"}, "10.0.0.7/24"},
		{"another of IPv6", []string{"10.0.0.2/24", "fd00::7/64"}, "fd00::7/64"},
		{"of the link", []string{"fe80::7/64"}, ""},
	} {
		var addresses []netlink.Addr
		for _, a := range c.addresses {
			addresses = append(addresses, netlink.Addr{IPNet: network(t, a)})
		}
		if err := readdressed(role, addresses); (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := readdressed(wire.NIC{MAC: role.MAC}, []netlink.Addr{{IPNet: network(t, "10.0.0.2/24")}}); err != nil {
		t.Errorf("a role without an address: %v", err)
	}
}

// TestOnTop: interfaces on top of another are reported, and not left out silently.
func TestOnTop(t *testing.T) {
	of := func(name string, index, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, Index: index, ParentIndex: parent, NetNsID: -1}
	}
	all := []netlink.Link{
		&netlink.Device{LinkAttrs: of("eth0", 2, 0)}, &netlink.Device{LinkAttrs: of("eth1", 3, 0)},
		&netlink.Vlan{LinkAttrs: of("eth0.10", 4, 2)}, &netlink.Vlan{LinkAttrs: of("eth1.10", 5, 3)}, &netlink.Dummy{LinkAttrs: of("dummy0", 6, 0)},
	}
	container := netlink.Veth{LinkAttrs: of("veth1", 7, 2)}
	container.NetNsID = 0
	all = append(all, &container)
	if got := onTop(2, all); !slices.Equal(got, []string{"interface eth0.10 (vlan)"}) {
		t.Errorf("%q", got)
	}
}

func TestCarryRoutes(t *testing.T) {
	const link = 2
	type change = func(*netlink.Route)
	route := func(to, via string, changes ...change) netlink.Route {
		r := netlink.Route{LinkIndex: link, Family: netlink.FAMILY_V4, Dst: network(t, to), Gw: net.ParseIP(via), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		if r.Dst.IP.To4() == nil {
			r.Family = netlink.FAMILY_V6
		}
		for _, c := range changes {
			c(&r)
		}
		return r
	}
	src := func(text string) change { return func(r *netlink.Route) { r.Src = net.ParseIP(text) } }
	onLink := func(r *netlink.Route) { r.Flags = int(netlink.FLAG_ONLINK) }
	several := func(r *netlink.Route) {
		r.LinkIndex, r.MultiPath = 0, []*netlink.NexthopInfo{{LinkIndex: 7}, {LinkIndex: link}}
	}
	for _, c := range []struct {
		name   string
		routes []netlink.Route
		want   wire.NIC // without its addresses
		left   string   // destinations of the routes that are left out
	}{
		{"gateways", []netlink.Route{route("0.0.0.0/0", "10.0.0.1", src("10.0.0.2")), route("::/0", "fe80::1")}, wire.NIC{Gateway: "10.0.0.1", Gateway6: "fe80::1"}, ""},
		{"no destination", []netlink.Route{route("0.0.0.0/0", "10.0.0.1", func(r *netlink.Route) { r.Dst = nil })}, wire.NIC{Gateway: "10.0.0.1"}, ""},
		{"half of all", []netlink.Route{route("0.0.0.0/1", "10.0.0.1")}, wire.NIC{Routes: []wire.Route{{To: "0.0.0.0/1", Via: "10.0.0.1"}}}, ""},
		{"by a route", []netlink.Route{route("0.0.0.0/0", "10.9.0.1"), route("10.9.0.1/32", "")}, wire.NIC{Gateway: "10.9.0.1", Routes: []wire.Route{{To: "10.9.0.1/32"}}}, ""},
		{"on the link", []netlink.Route{route("0.0.0.0/0", "10.9.0.1", onLink)}, wire.NIC{Routes: []wire.Route{{To: "0.0.0.0/0", Via: "10.9.0.1", OnLink: true}}}, ""},
		{"of the kernel, and of others", []netlink.Route{
			route("10.0.0.0/24", "", func(r *netlink.Route) { r.Protocol = unix.RTPROT_KERNEL }), route("::/0", "fe80::1", func(r *netlink.Route) { r.Protocol = unix.RTPROT_RA }),
			route("10.0.0.2/32", "", func(r *netlink.Route) { r.Table = unix.RT_TABLE_LOCAL }), route("10.8.0.0/16", "10.0.0.9", func(r *netlink.Route) { r.LinkIndex = 7 }),
		}, wire.NIC{}, ""},
		{"another source", []netlink.Route{route("10.8.0.0/16", "10.0.0.9", src("10.0.0.3"))}, wire.NIC{}, "10.8.0.0/16"},
		{"another table", []netlink.Route{route("0.0.0.0/0", "10.0.0.9", func(r *netlink.Route) { r.Table = 100 })}, wire.NIC{}, "0.0.0.0/0 in table 100"},
		{"several", []netlink.Route{route("10.8.0.0/16", "", several)}, wire.NIC{}, "10.8.0.0/16"},
		{"twice", []netlink.Route{route("0.0.0.0/0", "10.0.0.1"), route("0.0.0.0/0", "10.0.0.9")}, wire.NIC{Gateway: "10.0.0.1"}, "0.0.0.0/0"},
	} {
		n := wire.NIC{Address: "10.0.0.2/24", Address6: "fd00::2/64"}
		c.want.Address, c.want.Address6 = n.Address, n.Address6
		left := strings.Join(carryRoutes(&n, link, c.routes), ", ")
		if !reflect.DeepEqual(n, c.want) || (left == "") != (c.left == "") || !strings.Contains(left, c.left) {
			t.Errorf("%s: %+v without %q", c.name, n, left)
		}
	}
	n := wire.NIC{Address: "10.0.0.2/24"}
	if left := carryRoutes(&n, link, []netlink.Route{route("fd01::/48", "fe80::1")}); len(left) != 1 || len(n.Routes) > 0 {
		t.Errorf("without an address of its family: %+v without %q", n, left)
	}
}

// TestCheckNIC: a gateway that the interface would not reach is refused before it makes a takeover
// fail.
func TestCheckNIC(t *testing.T) {
	const mac = "52:54:00:00:00:02"
	for _, c := range []struct {
		nic   wire.NIC
		wrong string // empty: it is right
	}{
		{wire.NIC{MAC: mac, Address: "10.0.0.2/24", Gateway: "10.0.0.1", Address6: "fd00::2/64", Gateway6: "fe80::1"}, ""},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/32", Gateway: "10.0.0.1", Routes: []wire.Route{{To: "10.0.0.1/32"}}}, ""},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/32", Routes: []wire.Route{{To: "0.0.0.0/0", Via: "10.0.0.1", OnLink: true}}}, ""},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/32", Gateway: "10.0.0.1"}, "gateway 10.0.0.1 is in none of its networks"},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/24", Routes: []wire.Route{{To: "10.8.0.0/16", Via: "10.1.0.1"}}}, "gateway 10.1.0.1 is in none of its networks"},
		{wire.NIC{MAC: mac, Gateway: "10.0.0.1"}, "gateway 10.0.0.1 is in none of its networks"},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/24", Gateway: "router"}, "gateway: "},
		{wire.NIC{MAC: mac, Address: "10.0.0.2/24", Routes: []wire.Route{{To: "10.8.0.0", Via: "10.0.0.1"}}}, "route: "},
		{wire.NIC{MAC: mac, Address: "10.0.0.2"}, "interface " + mac},
		{wire.NIC{MAC: "lan"}, "interface: "},
	} {
		if err := checkNIC(c.nic); c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%+v: %v", c.nic, err)
		}
	}
}
