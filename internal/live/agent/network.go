package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/announce"
	"understudy.dev/understudy/internal/live/rtnl"
	"understudy.dev/understudy/internal/live/wire"
)

// setUpNIC gives the interface with that MAC its addresses and routes and brings it
// up. In the understudy nothing is connected to it yet: the addresses are ready,
// and live only when the supervisor lets the tap into the bridge.
func setUpNIC(n wire.NIC) (nic, error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return nic{}, fmt.Errorf("set up interface: %w", err)
	}
	if len(mac) != len(announce.MAC{}) {
		return nic{}, fmt.Errorf("set up interface: %s is not an Ethernet MAC", mac)
	}
	l, err := linkByMAC(mac)
	if err != nil {
		return nic{}, err
	}
	out := nic{index: l.Attrs().Index, name: l.Attrs().Name, mac: announce.MAC(mac)}
	for _, text := range []string{n.Address, n.Address6} {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("set up interface %s: %w", n.MAC, err)
		}
		out.prefixes = append(out.prefixes, p)
	}
	if err := out.trustAddresses(); err != nil {
		return out, err
	}
	if n.MTU != 0 {
		if err := netlink.LinkSetMTU(l, n.MTU); err != nil {
			return out, fmt.Errorf("set the MTU of %s to %d: %w", out.name, n.MTU, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return out, fmt.Errorf("bring up %s: %w", out.name, err)
	}
	for _, p := range out.prefixes {
		if err := out.addAddress(l, p); err != nil {
			return out, err
		}
	}
	return out, out.addRoutes(n)
}

// trustAddresses turns off the detection of duplicate IPv6 addresses (RFC 4862,
// 5.4), which holds an address back for a second: the other side has the same
// addresses on purpose, and the two are never on one link. The interface must be down.
func (n *nic) trustAddresses() error {
	for _, p := range n.prefixes {
		if p.Addr().Is4() {
			continue
		}
		for _, knob := range []string{"accept_dad", "dad_transmits"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+n.name+"/"+knob, []byte("0"), 0); err != nil {
				return fmt.Errorf("disable IPv6 duplicate address detection on %s: %w", n.name, err)
			}
		}
	}
	return nil
}

func (n *nic) addAddress(l netlink.Link, p netip.Prefix) error {
	address := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(l, address); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, n.name, err)
	}
	return nil
}

// addRoutes adds the routes without a gateway first, since a gateway may be reached by one of them.
// The routes by Gateway and Gateway6 are the default routes.
func (n *nic) addRoutes(c wire.NIC) error {
	routes := slices.Clone(c.Routes)
	for _, via := range []string{c.Gateway, c.Gateway6} {
		if via != "" {
			routes = append(routes, wire.Route{Via: via})
		}
	}
	for _, direct := range []bool{true, false} {
		for _, r := range routes {
			if (r.Via == "") != direct {
				continue
			}
			if err := n.addRoute(r); err != nil {
				return fmt.Errorf("add route to %q by %q: %w", r.To, r.Via, err)
			}
		}
	}
	return nil
}

func (n *nic) addRoute(r wire.Route) error {
	route := netlink.Route{LinkIndex: n.index, Gw: net.ParseIP(r.Via)}
	switch {
	case r.Via == "":
		route.Scope = netlink.SCOPE_LINK
	case route.Gw == nil:
		return errors.New("the gateway is not an IP address")
	case r.OnLink:
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if r.To != "" {
		to, err := netip.ParsePrefix(r.To)
		if err != nil {
			return err
		}
		route.Dst = ipNet(to)
	}
	return netlink.RouteReplace(&route)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// AwaitNIC waits, within a limit, until there is an interface of that MAC.
func AwaitNIC(ctx context.Context, mac string, limit time.Duration) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	var last error
	err = poll(ctx, limit, func() (bool, error) {
		_, last = linkByMAC(hw)
		return last == nil, nil
	})
	return cmp.Or(last, err)
}

func linkByMAC(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := rtnl.Links()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no interface has MAC %s", mac)
}

// setUpLoopback brings lo up, which is the job of PID 1.
func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}
