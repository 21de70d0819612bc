package pair

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// Route is a route to a network that is neither the interface's own nor reached
// through the gateway.
type Route struct {
	To  netip.Prefix // no bits set beyond its length
	Via netip.Addr   // of To's family; on the interface's own network
}

// Notify says which clients are told of a takeover: all, those of some local TCP
// ports, or, in the zero value, none.
type Notify struct {
	All   bool
	Ports []int // ascending; empty if All
}

// defaultNotifyRate is how many clients are told per second, unless the file says
// otherwise: a packet to a client and its answer are less than 200 bytes, so this is
// about 3 Mbit/s.
const defaultNotifyRate = 2000

const (
	address6Hint = "write e.g. fd00::2/64"
	gateway6Hint = "write e.g. fd00::1 or fe80::1"
	toHint       = "write e.g. 10.0.0.0/8"
	notifyHint   = "write all, none, or a list of ports such as [2049, 80]"
	rateHint     = "write clients a second, from 1 to 1000000"

	maxNotifyRate = 1_000_000
)

// parseAddress6 is parseAddress for IPv6 alone.
func parseAddress6(s string) (netip.Prefix, error) {
	p, err := parseAddress(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a := p.Addr(); a.Is4() || a.IsLinkLocalUnicast() {
		return netip.Prefix{}, fmt.Errorf("%s is not an IPv6 address that others could use", a)
	}
	return p, nil
}

func parseGateway6(s string) (netip.Addr, error) {
	a, err := parseGateway(s)
	if err == nil && a.Is4() {
		err = fmt.Errorf("%s is not an IPv6 address", a)
	}
	return a, err
}

// parseTo reads the network that a route leads to.
func parseTo(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is not a network", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its length: the network is %s", p, p.Masked())
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%s is the default route: give that as gateway or gateway6", p)
	}
	return p, nil
}

func parseRate(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxNotifyRate {
		return 0, fmt.Errorf("%q is not a rate", s)
	}
	return n, nil
}

func (r *reader) route(node *yaml.Node, key string) (to Route) {
	r.mapping(node, key,
		parsed(r, "to", true, &to.To, toHint, parseTo),
		parsed(r, "via", true, &to.Via, gatewayHint, parseGateway),
	)
	return to
}

// routes is the field of an interface's routes.
func (r *reader) routes(to *[]Route) field {
	return field{key: "routes", read: func(node *yaml.Node, key string) {
		r.sequence(node, key, func(node *yaml.Node, key string) { *to = append(*to, r.route(node, key)) })
	}}
}

// notify is the field that says which clients are told: a word or a list of ports.
func (r *reader) notify(to *Notify) field {
	return field{key: "notify", read: func(node *yaml.Node, key string) {
		if node.Kind == yaml.SequenceNode {
			to.All = false
			r.sequence(node, key, func(node *yaml.Node, key string) { r.notifyPort(node, key, to) })
			slices.Sort(to.Ports)
			if len(node.Content) == 0 {
				r.refuse(node, key, notifyHint, "names no port")
			}
			return
		}
		switch s, ok := r.scalar(node, key, false); {
		case !ok:
		case s == "all" || s == "none":
			to.All = s == "all"
		default:
			r.refuse(node, key, notifyHint, "%q is not known", s)
		}
	}}
}

func (r *reader) notifyPort(node *yaml.Node, key string, to *Notify) {
	s, ok := r.scalar(node, key, false)
	if !ok {
		return
	}
	port, err := parsePort(s)
	switch {
	case err != nil:
		r.refuse(node, key, notifyHint, "%v", err)
	case slices.Contains(to.Ports, port):
		r.refuse(node, key, "remove one of the two", "port %d is named twice", port)
	default:
		to.Ports = append(to.Ports, port)
	}
}

// addressRules checks the addresses, gateways and routes of one interface against
// each other.
func (n *NIC) addressRules(i int, u *unique) {
	at := func(key string) string { return fmt.Sprintf("nics.%d.%s", i, key) }
	if n.Address.IsValid() {
		u.checkAt(at("address"), "address", n.Address.Addr().String())
	}
	if n.Address6.IsValid() {
		u.checkAt(at("address6"), "address", n.Address6.Addr().String())
	}
	n.gatewayRule(at("gateway"), n.Address, n.Gateway, u.add)
	if n.Gateway6.IsValid() && !n.Address6.IsValid() {
		u.add(at("gateway6"), "add address6:, or remove the key", "there is no address6 to reach it from")
	} else {
		n.gatewayRule(at("gateway6"), n.Address6, n.Gateway6, u.add)
	}
	u.oneGateway(at("gateway"), n.Gateway)
	u.oneGateway(at("gateway6"), n.Gateway6)
	for j, route := range n.Routes {
		key := at(fmt.Sprintf("routes.%d", j))
		if !route.To.IsValid() || !route.Via.IsValid() {
			continue
		}
		u.checkAt(key+".to", "to", route.To.String())
		switch {
		case route.To.Addr().Is4() != route.Via.Is4():
			u.add(key+".via", "use addresses of one family", "%s cannot lead to %s", route.Via, route.To)
		case route.Via == n.Address.Addr() || route.Via == n.Address6.Addr():
			u.add(key+".via", "name the router", "is the interface's own address")
		case !n.reaches(route.Via):
			u.add(key+".via", "correct it, or the length of the address's prefix", "%s is on none of the interface's networks", route.Via)
		}
	}
}

// oneGateway reports a second gateway of an address family: its route would replace that of the first.
func (u *unique) oneGateway(at string, gateway netip.Addr) {
	if !gateway.IsValid() {
		return
	}
	if first, taken := u.first(at, "gateway", strconv.FormatBool(gateway.Is4())); taken {
		u.add(at, "keep one, and name the networks behind the other under its routes:", "there is one way to everything else, which is that of line %d", u.p.line(first))
	}
}

// gatewayRule checks that the gateway is on the address's network.
func (n *NIC) gatewayRule(key string, address netip.Prefix, gateway netip.Addr, add addFunc) {
	switch {
	case !address.IsValid() || !gateway.IsValid():
	case gateway == address.Addr():
		add(key, "name the router, or remove the key", "is the address itself")
	case gateway.Is4() != address.Addr().Is4() || !linkLocal6(gateway) && !address.Contains(gateway):
		add(key, "correct the gateway or the prefix length", "%s is not in %s", gateway, address.Masked())
	}
}

// linkLocal6 reports whether an address is an IPv6 link-local one, which is valid on any
// link. Routers are mostly named by link-local addresses.
func linkLocal6(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// reaches reports whether an address is on one of the interface's networks.
func (n *NIC) reaches(a netip.Addr) bool {
	has6 := n.Address6.IsValid() || n.Address.IsValid() && n.Address.Addr().Is6()
	return n.Address.IsValid() && n.Address.Contains(a) || n.Address6.IsValid() && n.Address6.Contains(a) || has6 && linkLocal6(a)
}
