package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/live/rtnl"
	"understudy.dev/understudy/internal/live/wire"
)

// inNamespace runs f in its own network namespace, with an interface eth0 that has the
// MAC which f is given and is cabled to another namespace.
func inNamespace(t *testing.T, f func(mac string) error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: no network namespaces")
	}
	host, err := netns.New6()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	other, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	if err := host.Veth("eth0", other, "eth0"); err != nil {
		t.Fatal(err)
	}
	err = host.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// The kernel's default, and down, as an interface is at boot.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("1"), 0); err != nil {
			return err
		}
		if err := netlink.LinkSetDown(l); err != nil {
			return err
		}
		return f(l.Attrs().HardwareAddr.String())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func identity(mac string) []wire.NIC {
	return []wire.NIC{{
		MAC: mac, Address: "10.77.0.2/24", Gateway: "10.77.0.1", Address6: "fd00::2/64", Gateway6: "fe80::1",
		Routes: []wire.Route{{To: "10.0.0.0/8", Via: "10.77.0.9"}, {To: "fd01::/48", Via: "fd00::9"}},
	}}
}

// TestSetUp: addresses can be used at once, and routes lead where they should. A second
// setUp changes nothing.
func TestSetUp(t *testing.T) {
	inNamespace(t, func(mac string) error {
		var n network
		for range 2 {
			if err := n.setUp(identity(mac)); err != nil {
				return err
			}
		}
		l, err := netlink.LinkByIndex(n.nics[0].index)
		if err != nil {
			return err
		}
		addresses, err := rtnl.Addresses(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var have []string
		for _, a := range addresses {
			if a.Flags&unix.IFA_F_TENTATIVE == 0 { // it can be used
				have = append(have, a.IPNet.String())
			}
		}
		for _, want := range []string{"10.77.0.2/24", "fd00::2/64"} {
			if !slices.Contains(have, want) {
				t.Errorf("no address %s among %v", want, have)
			}
		}
		for to, via := range map[string]string{
			"192.0.2.1": "10.77.0.1", "10.1.2.3": "10.77.0.9", "2001:db8::1": "fe80::1", "fd01::5": "fd00::9", "fd00::5": "",
		} {
			routes, err := netlink.RouteGet(net.ParseIP(to))
			if err != nil || len(routes) != 1 || !routes[0].Gw.Equal(net.ParseIP(via)) || routes[0].LinkIndex != n.nics[0].index {
				t.Errorf("to %s: %v, %v; want by %q", to, routes, err, via)
			}
		}
		return nil
	})
}

// TestSetUpOffLink: a gateway outside of the networks of the interface's addresses is reached by a route to
// it, or as one that is on the link; and the MTU is the configured one.
func TestSetUpOffLink(t *testing.T) {
	inNamespace(t, func(mac string) error {
		var n network
		for range 2 {
			if err := n.setUp([]wire.NIC{{
				MAC: mac, Address: "10.77.0.2/32", Gateway: "10.1.0.1", Address6: "fd00::2/128", Gateway6: "fd05::1", MTU: 1400,
				Routes: []wire.Route{
					{To: "10.5.0.0/16", Via: "10.2.0.1", OnLink: true}, {To: "fd07::/48", Via: "fd06::1", OnLink: true},
					{To: "10.1.0.1/32"}, {To: "fd05::1/128"},
				},
			}}); err != nil {
				return err
			}
		}
		for to, via := range map[string]string{
			"192.0.2.1": "10.1.0.1", "10.1.0.1": "", "10.5.1.2": "10.2.0.1", "2001:db8::1": "fd05::1", "fd05::1": "", "fd07::1": "fd06::1",
		} {
			routes, err := netlink.RouteGet(net.ParseIP(to))
			if err != nil || len(routes) != 1 || !routes[0].Gw.Equal(net.ParseIP(via)) || routes[0].LinkIndex != n.nics[0].index {
				t.Errorf("to %s: %v, %v; want by %q", to, routes, err, via)
			}
		}
		l, err := netlink.LinkByIndex(n.nics[0].index)
		if err == nil && l.Attrs().MTU != 1400 {
			t.Errorf("its MTU is %d", l.Attrs().MTU)
		}
		return err
	})
}

func TestSetUpRefuses(t *testing.T) {
	inNamespace(t, func(mac string) error {
		for want, nic := range map[string]wire.NIC{
			"no interface has MAC":       {MAC: "02:00:00:00:00:01"},
			"invalid MAC":                {MAC: "lan"},
			"is not an Ethernet MAC":     {MAC: "02:00:00:00:00:00:00:01"},
			"set up interface":           {MAC: mac, Address: "10.0.0.1"},
			"network is unreachable":     {MAC: mac, Address: "10.0.0.1/24", Gateway: "10.1.0.1"},
			`add route to "10.0.0.0/99"`: {MAC: mac, Address: "10.0.0.1/24", Routes: []wire.Route{{To: "10.0.0.0/99", Via: "10.0.0.2"}}},
		} {
			if err := new(network).setUp([]wire.NIC{nic}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", nic, err, want)
			}
		}
		return nil
	})
}

func encode(t *testing.T, p wire.Peers) wire.AcquaintRequest {
	t.Helper()
	r, err := wire.NewAcquaintRequest(p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAcquaint: neighbours on the role's networks become known, others are left out,
// and a MAC that no host can have is refused.
func TestAcquaint(t *testing.T) {
	inNamespace(t, func(mac string) error {
		a := New(nil)
		if err := a.network.setUp(identity(mac)); err != nil {
			return err
		}
		good := [6]byte{2, 0, 0, 0, 0, 7}
		r, err := a.acquaint(context.Background(), encode(t, wire.Peers{Neighbours: []wire.Neighbour{
			{Address: netip.MustParseAddr("10.77.0.1"), MAC: good},
			{Address: netip.MustParseAddr("fd00::1"), MAC: good},
			{Address: netip.MustParseAddr("fe80::1"), MAC: good, Interface: "ens3"},
			{Address: netip.MustParseAddr("10.78.0.1"), MAC: good},                      // on none of the networks
			{Address: netip.MustParseAddr("10.77.0.2"), MAC: good},                      // the role's own address
			{Address: netip.MustParseAddr("10.77.0.8"), MAC: [6]byte{1, 0, 0, 0, 0, 7}}, // a multicast MAC
			{Address: netip.MustParseAddr("fd00::8"), MAC: [6]byte{}},                   // no MAC
		}}))
		if err != nil || r.Neighbours != 3 || !strings.Contains(r.Failure, "fd00::8") {
			t.Errorf("%+v, %v", r, err)
		}
		known, err := rtnl.Neighbours(a.network.nics[0].index, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var have []string
		for _, n := range known {
			if n.HardwareAddr.String() == "02:00:00:00:00:07" && n.State == netlink.NUD_STALE {
				have = append(have, n.IP.String())
			}
		}
		slices.Sort(have)
		if want := []string{"10.77.0.1", "fd00::1", "fe80::1"}; !slices.Equal(have, want) {
			t.Errorf("neighbours %v of %v, want %v", have, known, want)
		}
		if _, err := a.acquaint(context.Background(), wire.AcquaintRequest{Peers: []byte("peers")}); err == nil {
			t.Error("damaged peers are taken")
		}
		return nil
	})
}

// offline returns an agent with an interface from which no router is reached.
func offline(mac string) (*Agent, error) {
	a := New(nil)
	nics := identity(mac)
	nics[0].Gateway, nics[0].Gateway6 = "", ""
	return a, a.network.setUp(nics)
}

// TestTell: each peer is counted once, under what was done about it.
func TestTell(t *testing.T) {
	inNamespace(t, func(mac string) error {
		a, err := offline(mac)
		if err != nil {
			return err
		}
		connection := func(local, remote string, exact bool) wire.Connection {
			return wire.Connection{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), Exact: exact}
		}
		peers := wire.Peers{Connections: []wire.Connection{
			connection("10.77.0.2:80", "10.77.0.1:4000", true),
			connection("10.77.0.2:80", "10.77.0.1:4001", false),
			connection("[fd00::2]:80", "[fd00::1]:4001", false),
			connection("[fd00::2]:80", "[fe80::7]:4001", true),
			connection("10.77.0.2:80", "192.0.2.1:4001", true), // no way there
		}}
		if _, err := a.acquaint(context.Background(), encode(t, peers)); err != nil {
			return err
		}
		r, err := a.tell(context.Background(), wire.TellRequest{Rate: 1000, Limit: time.Minute})
		want := wire.TellResult{Reset: 2, Tickled: 2, Untold: 1, Failure: "tell 192.0.2.1: network is unreachable"}
		if err != nil || r != want {
			t.Errorf("%+v, %v, want %+v", r, err, want)
		}
		if r, err = a.tell(context.Background(), wire.TellRequest{Rate: 1000, Limit: time.Minute}); err != nil || r != (wire.TellResult{}) {
			t.Errorf("told again: %+v, %v", r, err)
		}
		if _, err := a.acquaint(context.Background(), encode(t, peers)); err != nil {
			return err
		}
		r, err = a.tell(context.Background(), wire.TellRequest{Rate: 1, Limit: 10 * time.Millisecond})
		want = wire.TellResult{Reset: 1, Untold: 4, Failure: "5 clients at 1 a second take more than 10ms"}
		if err != nil || r != want {
			t.Errorf("at 1 a second for 10 ms: %+v, %v, want %+v", r, err, want)
		}
		return nil
	})
}

// TestCalled: a peer that is to be called is called, and told as any other if it cannot be.
func TestCalled(t *testing.T) {
	inNamespace(t, func(mac string) error {
		a, err := offline(mac)
		if err != nil {
			return err
		}
		connection := func(local string, port uint16, exact bool) wire.Connection {
			return wire.Connection{
				Local:  netip.MustParseAddrPort(local),
				Remote: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.1"), port), SndUna: 5, SndNxt: 7, RcvNxt: 9, Exact: exact, Call: []byte("call"),
			}
		}
		peers := wire.Peers{Connections: []wire.Connection{
			connection("10.77.0.2:2049", 700, true), connection("10.77.0.2:2049", 701, false),
			connection("10.77.0.9:2049", 702, true), connection("10.77.0.9:2049", 703, false), // not our address
		}}
		if _, err := a.acquaint(context.Background(), encode(t, peers)); err != nil {
			return err
		}
		r, err := a.tell(context.Background(), wire.TellRequest{Rate: 1000, Limit: time.Minute})
		want := wire.TellResult{Called: 2, Reset: 1, Tickled: 1, Failure: "call 10.77.0.1: bind: cannot assign requested address"}
		if err != nil || r != want {
			t.Errorf("%+v, %v, want %+v", r, err, want)
		}
		peers.Connections = nil
		for port := range uint16(maxCalls + 3) {
			peers.Connections = append(peers.Connections, connection("10.77.0.2:2049", 1000+port, true))
		}
		if _, err := a.acquaint(context.Background(), encode(t, peers)); err != nil {
			return err
		}
		r, err = a.tell(context.Background(), wire.TellRequest{Rate: 1 << 20, Limit: time.Minute})
		want = wire.TellResult{Called: maxCalls, Reset: 3, Failure: "more than 2048 clients to call at a time"}
		if err != nil || r != want {
			t.Errorf("%+v, %v, want %+v", r, err, want)
		}
		return nil
	})
}

// TestReadyAtAddress: a service that listens at an address of the role only is ready.
func TestReadyAtAddress(t *testing.T) {
	for _, host := range []string{"10.77.0.2", "fd00::2"} {
		inNamespace(t, func(mac string) error {
			a := New(nil)
			if err := a.network.setUp(identity(mac)); err != nil {
				return err
			}
			l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
			if err != nil {
				return err
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			return a.awaitReady(ctx, wire.Service{Name: "web", Ready: l.Addr().(*net.TCPAddr).Port})
		})
	}
}

// TestAddressesAgain: what the guest's own system has done to the addresses since is undone before the role's
// services start.
func TestAddressesAgain(t *testing.T) {
	for name, request := range map[string]wire.StartRequest{"at the start": {}, "in a takeover": {Within: time.Minute}} {
		inNamespace(t, func(mac string) error {
			a := New(nil)
			a.system, a.config.NICs = true, identity(mac)
			if err := a.network.setUp(a.config.NICs); err != nil {
				return err
			}
			l, err := netlink.LinkByIndex(a.network.nics[0].index)
			if err != nil {
				return err
			}
			before, err := rtnl.Addresses(l, netlink.FAMILY_V4)
			if err != nil || len(before) != 1 {
				return fmt.Errorf("addresses %v: %w", before, err)
			}
			if err := errors.Join(netlink.AddrDel(l, &before[0]), netlink.LinkSetDown(l)); err != nil {
				return err
			}
			if _, err := a.start(t.Context(), request); err != nil {
				return err
			}
			after, err := rtnl.Addresses(l, netlink.FAMILY_V4)
			routes, e := netlink.RouteList(l, netlink.FAMILY_V4)
			if err := errors.Join(err, e); err != nil {
				return err
			}
			if len(after) != 1 || !after[0].Equal(before[0]) || len(routes) < 3 {
				t.Errorf("%s: addresses %v, routes %v", name, after, routes)
			}
			return nil
		})
	}
}
