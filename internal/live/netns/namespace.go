// Package netns makes the host's side of a pair's network: taps that are ports of a bridge, in the host's network
// namespace or in a separate one, which nothing outside sees and which vanishes when its last descriptor is closed.
//
// # Caveats
//
// A namespace made here has no name under /run/netns: it lives as long as this process holds it open, or as long as
// another process (a QEMU, say) holds a tap of it. Linux only; creating one needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errClosed is returned for any use of a Namespace after its Close.
var errClosed = errors.New("network namespace is closed")

// threadNS is the network namespace of the calling thread, see namespaces(7).
const threadNS = "/proc/thread-self/ns/net"

// Namespace is a network namespace held open by a descriptor. A nil *Namespace stands for the one that the process
// itself runs in, for users who bring a bridge of their own.
type Namespace struct {
	mu sync.RWMutex
	fd int // -1 once closed
}

// New creates an empty namespace: its loopback is up and IPv6 is disabled, so that nothing that a host sends by itself
// disturbs a measurement.
func New() (*Namespace, error) { return create(map[string]string{"disable_ipv6": "1"}) }

// New6 is New with IPv6 enabled: no duplicate address detection delays an address, and no router is asked for.
func New6() (*Namespace, error) {
	return create(map[string]string{"accept_dad": "0", "dad_transmits": "0", "accept_ra": "0", "router_solicitations": "0"})
}

// create makes a namespace with these settings of IPv6.
func create(ipv6 map[string]string) (*Namespace, error) {
	n := &Namespace{fd: -1}
	enter := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace (needs CAP_SYS_ADMIN): %w", err)
		}
		return nil
	}
	err := onThread(enter, func() error {
		fd, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		if err := quieten(ipv6); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		n.fd = fd
		return nil
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// quieten makes the calling thread's new namespace quiet. /proc/sys/net shows the namespace of the thread that opens it.
func quieten(ipv6 map[string]string) error {
	for _, which := range []string{"all", "default"} {
		for knob, value := range ipv6 {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/"+knob, []byte(value), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // no such file: a kernel without IPv6
				return fmt.Errorf("set ipv6 %s: %w", knob, err)
			}
		}
	}
	return linkUp("lo")
}

// Close closes the namespace; the kernel dismantles it, with every link in it, once no tap of it is open any more.
// A second Close is an error.
func (n *Namespace) Close() error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return errClosed
	}
	fd := n.fd
	n.fd = -1
	return unix.Close(fd)
}

// Do runs f on an operating system thread that is inside the namespace, and returns f's error. Sockets that f opens
// and processes that f starts belong to the namespace for good; goroutines that f starts do not run inside it.
func (n *Namespace) Do(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(n.enter, f)
}

// enter moves the calling thread into the namespace.
func (n *Namespace) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.fd < 0 {
		return errClosed
	}
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// onThread runs enter and then f on one locked thread and brings the thread home afterwards. It returns also when f
// ends its goroutine (testing.T.FailNow does).
func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("run in network namespace: the function ended its goroutine")
		defer func() { done <- err }()
		err = lockedThread(enter, f)
	}()
	return <-done
}

func lockedThread(enter, f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go home stays locked: the runtime then ends it with its goroutine. Going home is not
		// just thrift: the process's first thread cannot be ended, and would hold the namespace for ever.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	if err := enter(); err != nil {
		return err
	}
	return f()
}

// linkUp sets a link of the calling thread's namespace up.
func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
