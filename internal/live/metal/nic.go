package metal

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/rtnl"
	"understudy.dev/understudy/internal/live/wire"
)

// NICOf returns an interface of this machine, with the addresses and routes that it has now.
func NICOf(name string) (n wire.NIC, err error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return n, fmt.Errorf("find interface %s: %w", name, err)
	}
	if l.Type() != "device" {
		return n, fmt.Errorf("interface %s is a %s: only a network card can be taken over", name, l.Type())
	}
	n.MAC, n.MTU = l.Attrs().HardwareAddr.String(), l.Attrs().MTU
	if own := l.Attrs().PermHWAddr; len(own) > 0 && !slices.Equal(own, l.Attrs().HardwareAddr) {
		return n, fmt.Errorf("interface %s has MAC %s, and the permanent address of its card is %s, the only one that an understudy finds it by: set its MAC back to that", name, n.MAC, own)
	}
	addresses, err := rtnl.Addresses(l, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	left := carryAddresses(&n, l.Attrs().HardwareAddr, addresses)
	if n.Address == "" && n.Address6 == "" {
		return n, fmt.Errorf("interface %s has no address that could be taken over", name)
	}
	// The routes of all tables; only those of the main table can be carried over.
	routes, err := rtnl.Routes()
	if err != nil {
		return n, fmt.Errorf("list routes of %s: %w", name, err)
	}
	left = append(left, carryRoutes(&n, l.Attrs().Index, routes)...)
	links, err := rtnl.Links()
	if err != nil {
		return n, fmt.Errorf("list interfaces: %w", err)
	}
	left = append(left, onTop(l.Attrs().Index, links)...)
	if len(left) > 0 {
		return n, fmt.Errorf("interface %s has settings that an understudy would not restore: %s; remove them, or give a role without them (--role)", name, strings.Join(left, ", "))
	}
	return n, nil
}

// onTop names the interfaces that are on top of another, such as VLANs, with their types. It leaves out an
// interface whose other end is in another network namespace, such as a container's: its ParentIndex is a number
// of that namespace.
func onTop(index int, all []netlink.Link) (left []string) {
	for _, l := range all {
		if a := l.Attrs(); a.ParentIndex == index && a.NetNsID < 0 {
			left = append(left, fmt.Sprintf("interface %s (%s)", a.Name, l.Type()))
		}
	}
	return left
}

// carryAddresses puts the addresses of an interface into n, one of each family, and names the others. It passes
// over IPv6 addresses that are link-local, those that are temporary, and those that a kernel makes of the MAC
// when a router advertises their network (RFC 4862): the understudy's kernel has its own.
func carryAddresses(n *wire.NIC, mac net.HardwareAddr, addresses []netlink.Addr) (left []string) {
	lasting := func(a netlink.Addr) int { return a.Flags & unix.IFA_F_PERMANENT }
	for _, a := range slices.SortedStableFunc(slices.Values(addresses), func(a, b netlink.Addr) int { return lasting(b) - lasting(a) }) {
		v4 := a.IP.To4() != nil
		into := &n.Address
		if !v4 {
			into = &n.Address6
		}
		made := lasting(a) == 0 && slices.Equal(a.IP[len(a.IP)-8:], eui64(mac))
		switch {
		case !v4 && (a.IP.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_TEMPORARY != 0 || made):
		case *into != "" || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Peer != nil && !a.Peer.IP.Equal(a.IP):
			left = append(left, "address "+a.IPNet.String())
		default:
			*into = a.IPNet.String()
		}
	}
	return left
}

// CheckNICs refuses a role with an address that its card no longer has, if the card has another one in its
// place, such as one of a new lease: the role's address may be another machine's now. A card that is not there,
// or has no address yet, passes.
func CheckNICs(role wire.Config) error {
	for _, n := range role.NICs {
		name, err := InterfaceOf(n.MAC)
		if err != nil {
			continue
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		addresses, err := rtnl.Addresses(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		if err := readdressed(n, addresses); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	return nil
}

// readdressed returns an error if an interface with these addresses lacks one of the role's, and has another
// that would be taken over.
func readdressed(n wire.NIC, addresses []netlink.Addr) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	var now wire.NIC
	carryAddresses(&now, mac, addresses)
	for _, a := range []struct{ want, got string }{{n.Address, now.Address}, {n.Address6, now.Address6}} {
		ip, _, err := net.ParseCIDR(a.want)
		if a.got == "" || a.want == "" {
			continue
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(addresses, func(has netlink.Addr) bool { return has.IP.Equal(ip) }) {
			return fmt.Errorf("it has address %s now, and %s in the role, which may be another machine's: change the role, or move it away and run understudy metal install again", a.got, a.want)
		}
	}
	return nil
}

// eui64 is the interface identifier that is made of a MAC (RFC 4291, appendix A).
func eui64(mac net.HardwareAddr) []byte {
	if len(mac) != 6 {
		return nil
	}
	return []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
}

// carryRoutes puts the routes through an interface into n, and names those that a role cannot have. It passes
// over routes that follow from the addresses, and those that a router advertised.
func carryRoutes(n *wire.NIC, link int, routes []netlink.Route) (left []string) {
	known := make(map[string]bool) // by destination
	for _, r := range routes {
		by := r.LinkIndex == link || slices.ContainsFunc(r.MultiPath, func(h *netlink.NexthopInfo) bool { return h.LinkIndex == link })
		if !by || r.Table == unix.RT_TABLE_LOCAL || r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA {
			continue
		}
		to := destination(r)
		if !carries(n, r) || known[to] {
			left = append(left, fmt.Sprintf("route to %s in table %d", to, r.Table))
			continue
		}
		known[to] = true
		via, onLink := "", r.Flags&int(netlink.FLAG_ONLINK) != 0
		if r.Gw != nil {
			via = r.Gw.String()
		}
		switch {
		case to == "0.0.0.0/0" && via != "" && !onLink:
			n.Gateway = via
		case to == "::/0" && via != "" && !onLink:
			n.Gateway6 = via
		default:
			n.Routes = append(n.Routes, wire.Route{To: to, Via: via, OnLink: onLink})
		}
	}
	return left
}

// destination is where a route leads.
func destination(r netlink.Route) string {
	switch {
	case r.Dst != nil:
		return r.Dst.String()
	case r.Family == netlink.FAMILY_V4:
		return "0.0.0.0/0"
	}
	return "::/0"
}

// carries says whether a role with these addresses can have a route.
func carries(n *wire.NIC, r netlink.Route) bool {
	address := n.Address
	if r.Family != netlink.FAMILY_V4 {
		address = n.Address6
	}
	from, _, err := net.ParseCIDR(address) // it fails if there is none
	return err == nil && (r.Src == nil || r.Src.Equal(from)) && r.Table == unix.RT_TABLE_MAIN && r.Type == unix.RTN_UNICAST &&
		len(r.MultiPath) == 0 && r.Via == nil && r.Encap == nil && r.MPLSDst == nil && r.Tos == 0 && r.MTU == 0
}

// checkNIC refuses an interface of a role that could not come up.
func checkNIC(n wire.NIC) error {
	if _, err := net.ParseMAC(n.MAC); err != nil {
		return fmt.Errorf("interface: %w", err)
	}
	var reached []netip.Prefix // without a gateway
	for _, text := range []string{n.Address, n.Address6} {
		p, err := netip.ParsePrefix(text)
		if err != nil && text != "" {
			return fmt.Errorf("interface %s: %w", n.MAC, err)
		}
		reached = append(reached, p.Masked())
	}
	routes := n.Routes
	for _, via := range []string{n.Gateway, n.Gateway6} {
		if via != "" {
			routes = append(routes[:len(routes):len(routes)], wire.Route{Via: via})
		}
	}
	for _, r := range n.Routes {
		to, err := netip.ParsePrefix(r.To)
		if err != nil {
			return fmt.Errorf("interface %s: route: %w", n.MAC, err)
		}
		if r.Via == "" {
			reached = append(reached, to)
		}
	}
	for _, r := range routes {
		if r.Via == "" {
			continue
		}
		via, err := netip.ParseAddr(r.Via)
		if err != nil {
			return fmt.Errorf("interface %s: gateway: %w", n.MAC, err)
		}
		if !r.OnLink && !via.IsLinkLocalUnicast() && !slices.ContainsFunc(reached, func(p netip.Prefix) bool { return p.Contains(via) }) {
			return fmt.Errorf("interface %s: gateway %s is in none of its networks: give the interface a route to it without \"via\", or one with \"on_link\"", n.MAC, via)
		}
	}
	return nil
}

// InterfaceOf is the name of the network card that has a MAC.
func InterfaceOf(mac string) (string, error) {
	all, err := rtnl.Links()
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		if l.Type() == "device" && strings.EqualFold(l.Attrs().HardwareAddr.String(), mac) {
			return l.Attrs().Name, nil
		}
	}
	return "", fmt.Errorf("no network card has MAC %s", mac)
}

// DriversOf returns the modules that drive interfaces of this machine, the disks of mounts, and the disk for a
// dump (empty: none), in the form of guest.Image.Drivers: each may be built into another kernel. root is
// os.DirFS("/").
func DriversOf(root fs.FS, interfaces, mounts []string, dump string) ([]string, error) {
	var attached []string // directories in sysfs
	for _, i := range interfaces {
		at, err := resolve(root, "sys/class/net/"+i)
		if err != nil {
			return nil, err
		}
		dirs, err := cardOf(root, at)
		if err != nil {
			return nil, err
		}
		attached = append(attached, dirs...)
	}
	var disks []string // directories in sysfs too
	for _, dir := range mounts {
		_, device, err := mountAt(root, dir)
		if err != nil {
			return nil, err
		}
		below, _, err := underneath(root, device)
		if err != nil {
			return nil, err
		}
		at, err := resolve(root, "sys/dev/block/"+below)
		if err != nil {
			return nil, err
		}
		disks = append(disks, at)
	}
	if dump != "" {
		all, err := bySerial(root)
		if err != nil {
			return nil, err
		}
		disks = append(disks, named(all, dump)...)
	}
	for _, at := range disks {
		dirs, err := onPCI(root, at)
		if err != nil {
			return nil, err
		}
		attached = append(attached, dirs...)
	}
	var drivers []string
	for _, at := range attached {
		for ; at != "sys/devices"; at = path.Dir(at) {
			target, err := fs.ReadLink(root, at+"/driver/module")
			if err != nil {
				continue // no device, or its driver is built in
			}
			if d := path.Base(target) + "|"; !slices.Contains(drivers, d) {
				drivers = append(drivers, d)
			}
		}
	}
	return drivers, nil
}
