package agent

import (
	"bytes"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"understudy/link"
)

// setUpNIC gives the interface with that MAC its address and brings it up. In
// the understudy nothing is connected to it yet: the address is ready, and
// live only when the supervisor lets the tap into the bridge.
func setUpNIC(n link.NIC) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return fmt.Errorf("set up interface: %w", err)
	}
	l, err := linkByMAC(mac)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(n.Address)
	if err != nil {
		return fmt.Errorf("set up interface %s: %w", n.MAC, err)
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", n.Address, l.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", l.Attrs().Name, err)
	}
	if n.Gateway == "" {
		return nil
	}
	route := netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(n.Gateway)}
	if err := netlink.RouteReplace(&route); err != nil {
		return fmt.Errorf("add default route by %s: %w", n.Gateway, err)
	}
	return nil
}

func linkByMAC(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
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

// setUpLoopback brings lo up, which PID 1 owes its guest.
func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}
