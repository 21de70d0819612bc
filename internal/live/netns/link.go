package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/rtnl"
)

// errNoNeighbor says that the namespace knows no link address for an IP address.
var errNoNeighbor = errors.New("no neighbour entry")

// Bridge makes a bridge that forwards from the moment a port joins it: spanning tree off and no forward delay (the
// kernel's default is 15 s). It is up on return.
func (n *Namespace) Bridge(name string) error {
	return n.Do(func() error {
		// The attributes are those of linux/if_link.h; netlink.Bridge has no fields for them.
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
		data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
		req.AddData(info)
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("create bridge %s: %w", name, err)
		}
		return nil
	})
}

// Bridges returns the existing bridges by name, each with the time for which it keeps a port that joins it from
// forwarding: with the spanning tree protocol a port first listens and then learns, each for one forward delay
// (net/bridge/br_stp.c, br_make_forwarding and br_forward_delay_timer_expired).
func (n *Namespace) Bridges() (map[string]time.Duration, error) {
	var links [][]byte
	err := n.Do(func() (err error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		links, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	bridges := make(map[string]time.Duration)
	for _, l := range links {
		if name, delay, err := bridge(l); err != nil {
			return nil, fmt.Errorf("list bridges: %w", err)
		} else if name != "" {
			bridges[name] = delay
		}
	}
	return bridges, nil
}

// clockTick is the unit in which the kernel reports times (USER_HZ).
const clockTick = time.Second / 100

// bridge reads an ifinfomsg with its attributes (linux/if_link.h); name is empty if the link is not a bridge.
func bridge(link []byte) (name string, delay time.Duration, err error) {
	if len(link) < unix.SizeofIfInfomsg {
		return "", 0, fmt.Errorf("netlink message of %d bytes is too short", len(link))
	}
	attrs, err := nl.ParseRouteAttrAsMap(link[unix.SizeofIfInfomsg:])
	if err != nil {
		return "", 0, err
	}
	info, err := nl.ParseRouteAttrAsMap(attrs[unix.IFLA_LINKINFO].Value)
	if err != nil || string(bytes.TrimRight(info[nl.IFLA_INFO_KIND].Value, "\x00")) != "bridge" {
		return "", 0, err
	}
	data, err := nl.ParseRouteAttrAsMap(info[nl.IFLA_INFO_DATA].Value)
	if err != nil {
		return "", 0, err
	}
	if stp, forward := data[nl.IFLA_BR_STP_STATE].Value, data[nl.IFLA_BR_FORWARD_DELAY].Value; len(stp) == 4 && len(forward) == 4 && binary.NativeEndian.Uint32(stp) != 0 {
		delay = 2 * clockTick * time.Duration(binary.NativeEndian.Uint32(forward))
	}
	return string(bytes.TrimRight(attrs[unix.IFLA_IFNAME].Value, "\x00")), delay, nil
}

// Veth makes a cable with one end, name, in n and the other, peerName, in peer; both are up on return. Neither
// namespace may be the host's own.
func (n *Namespace) Veth(name string, peer *Namespace, peerName string) error {
	if n == nil || peer == nil {
		return fmt.Errorf("create veth %s: the host's own namespace is not to be cabled", name)
	}
	err := n.Do(func() error {
		peer.mu.RLock()
		defer peer.mu.RUnlock()
		if peer.fd < 0 {
			return errClosed
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.fd)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("create veth %s: %w", name, err)
		}
		return linkUp(name)
	})
	if err != nil {
		return err
	}
	return peer.Do(func() error { return linkUp(peerName) })
}

// AddAddr gives a link an address with its prefix length. The address can be used at once, even an IPv6 one.
func (n *Namespace) AddAddr(link string, addr netip.Prefix) error {
	return n.withLink(link, "add address to", func(l netlink.Link) error {
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
		a := &netlink.Addr{IPNet: ip}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(l, a)
	})
}

// Enslave makes a link a port of a bridge, and sets it up: from then on frames pass.
func (n *Namespace) Enslave(link, bridge string) error {
	_, err := n.Join(link, bridge)
	return err
}

// Join is Enslave; there reports that the link was already a port of the bridge, and up.
func (n *Namespace) Join(link, bridge string) (there bool, err error) {
	err = n.withLink(link, "enslave", func(l netlink.Link) error {
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", bridge, err)
		}
		there = l.Attrs().MasterIndex == b.Attrs().Index && l.Attrs().Flags&net.FlagUp != 0
		if there {
			return nil
		}
		return errors.Join(netlink.LinkSetMaster(l, b), netlink.LinkSetUp(l))
	})
	return there, err
}

// Has reports whether the namespace has a link of that name.
func (n *Namespace) Has(link string) (bool, error) {
	err := n.Do(func() error {
		_, err := netlink.LinkByName(link)
		return err
	})
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return false, nil
	}
	return err == nil, err
}

// withLink runs act on the named link inside the namespace; verb is what act does, for its error.
func (n *Namespace) withLink(name, verb string, act func(netlink.Link) error) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if err := act(l); err != nil {
			return fmt.Errorf("%s link %s: %w", verb, name, err)
		}
		return nil
	})
}

// Neighbor returns the link address that the namespace has for an IP address in its neighbour table (ARP or ND). It
// returns an error when there is no entry, or none that is resolved.
func (n *Namespace) Neighbor(ip netip.Addr) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	err := n.Do(func() error {
		known, err := rtnl.Neighbours(0, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, e := range known {
			if a, ok := netip.AddrFromSlice(e.IP); ok && a.Unmap() == ip.Unmap() && len(e.HardwareAddr) > 0 {
				mac = e.HardwareAddr
				return nil
			}
		}
		return fmt.Errorf("look up neighbour %s: %w", ip, errNoNeighbor)
	})
	return mac, err
}
