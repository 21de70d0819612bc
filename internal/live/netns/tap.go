package netns

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunPath is the clone device of linux/if_tun.h.
const tunPath = "/dev/net/tun"

// Tap makes a tap in the namespace, sets it up and returns the descriptor that carries its frames, each behind a
// virtio_net_hdr: what QEMU takes as `-netdev tap,fd=N`. The descriptor blocks and is closed on exec unless it is
// passed on. The tap is no port of a bridge yet, and vanishes when its last descriptor is closed.
//
// A nil mac leaves the choice to the kernel. The address is that of the host's end of the cable, so it must differ
// from the guest's: a bridge delivers frames for the address of one of its ports to the host itself.
func (n *Namespace) Tap(name string, mac net.HardwareAddr) (*os.File, error) {
	var tap *os.File
	err := n.Do(func() error {
		f, err := openTap(name)
		if err != nil {
			return err
		}
		if err := raise(name, mac); err != nil {
			f.Close()
			return err
		}
		tap = f
		return nil
	})
	return tap, err
}

// openTap creates a tap in the calling thread's namespace, the one it had when it opened the clone device.
func openTap(name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("name tap %q: %w", name, err)
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("create tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), tunPath+":"+name), nil
}

// raise sets a tap's address, if one is given, and sets it up.
func raise(name string, mac net.HardwareAddr) error {
	if mac != nil {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find tap %s: %w", name, err)
		}
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set address of tap %s: %w", name, err)
		}
	}
	return linkUp(name)
}
