package metal

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// NICOf is an interface of this machine, with the addresses and routes that it has now.
func NICOf(name string) (n wire.NIC, err error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return n, fmt.Errorf("find interface %s: %w", name, err)
	}
	if l.Type() != "device" {
		return n, fmt.Errorf("interface %s is a %s: only a network card can be taken over", name, l.Type())
	}
	n.MAC = l.Attrs().HardwareAddr.String()
	addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addresses {
		switch {
		case a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&unix.IFA_F_SECONDARY != 0:
		case a.IP.To4() != nil && n.Address == "":
			n.Address = a.IPNet.String()
		case a.IP.To4() == nil && n.Address6 == "" && a.Flags&unix.IFA_F_PERMANENT != 0:
			n.Address6 = a.IPNet.String()
		}
	}
	if n.Address == "" && n.Address6 == "" {
		return n, fmt.Errorf("interface %s has no address that could be taken over", name)
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list routes of %s: %w", name, err)
	}
	for _, r := range routes {
		addRoute(&n, r)
	}
	return n, nil
}

// addRoute takes those over that lead through a gateway, but for those that a router
// advertised: others follow from the addresses.
func addRoute(n *wire.NIC, r netlink.Route) {
	v4 := r.Gw.To4() != nil
	switch {
	case r.Gw == nil || r.Protocol == unix.RTPROT_RA || !v4 && n.Address6 == "" || v4 && n.Address == "":
	case r.Dst == nil || r.Dst.IP.IsUnspecified():
		if v4 && n.Gateway == "" {
			n.Gateway = r.Gw.String()
		} else if !v4 && n.Gateway6 == "" {
			n.Gateway6 = r.Gw.String()
		}
	default:
		n.Routes = append(n.Routes, wire.Route{To: r.Dst.String(), Via: r.Gw.String()})
	}
}

// InterfaceOf is the name of the network card that has a MAC.
func InterfaceOf(mac string) (string, error) {
	all, err := netlink.LinkList()
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

// DriversOf are the modules that drive interfaces of this machine and the disks of mounts,
// as guest.Image.Drivers has them: each may be built into another kernel. root is
// os.DirFS("/").
func DriversOf(root fs.FS, interfaces, mounts []string) ([]string, error) {
	var attached []string // directories in sysfs
	attach := func(link string) error {
		at, err := resolve(root, link)
		if err != nil {
			return err
		}
		dirs, err := onPCI(root, at)
		attached = append(attached, dirs...)
		return err
	}
	for _, i := range interfaces {
		if err := attach("sys/class/net/" + i); err != nil {
			return nil, err
		}
	}
	info, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, dir := range mounts {
		m, err := mounted(string(info), dir)
		if err != nil {
			return nil, err
		}
		if err := attach("sys/dev/block/" + m.Device); err != nil {
			return nil, err
		}
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
