package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// DialContext connects from inside the namespace, like net.Dialer.DialContext. The address must be an IP literal with
// a port: a resolver would ask from the host's own network.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s in network namespace: not an IP address and port: %w", address, err)
	}
	var conn net.Conn
	err := n.Do(func() (err error) {
		// One literal address is dialled on the calling goroutine, hence on this thread.
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace, like net.Listen. The address must be an IP literal with a port.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen on %s in network namespace: not an IP address and port: %w", address, err)
	}
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}
