// Package netlab is a network for a demonstration or a test: a bridge for the taps of
// partitions, and a client beside it, each in its own network namespace.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/netns"
)

// WorkDir makes a directory for what a lab needs besides guests' memory, below the
// cache: its disks are too large for a tmpfs. Its name is PREFIX, this process's number, and a word.
func WorkDir(prefix string) (string, error) {
	cache, err := dirs.Cache()
	if err != nil {
		return "", err
	}
	runs := filepath.Join(cache, "runs")
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(runs, fmt.Sprintf("%s%d-", prefix, os.Getpid()))
}

// BridgeName is the bridge of a Lab, in its Services namespace.
const BridgeName = "br0"

// Names of the cable between a Lab's client and its bridge, at either end.
const (
	clientLink = "eth0"
	clientPort = "client"
)

// Lab is the demo's network: the bridge that the partitions' taps join in one namespace, a client in another, and a
// cable between them.
type Lab struct {
	Services *netns.Namespace // holds BridgeName; the taps go here
	Client   *netns.Namespace
}

// NewLab makes a Lab whose client has the given addresses. IPv6 is enabled at the client if one of them is an
// IPv6 address.
func NewLab(client ...netip.Prefix) (*Lab, error) {
	l := &Lab{}
	if err := l.build(client); err != nil {
		return nil, errors.Join(fmt.Errorf("build network: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(client []netip.Prefix) (err error) {
	if l.Services, err = netns.New(); err != nil {
		return err
	}
	newClient := netns.New
	if slices.ContainsFunc(client, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		newClient = netns.New6
	}
	if l.Client, err = newClient(); err != nil {
		return err
	}
	if err := l.Services.Bridge(BridgeName); err != nil {
		return err
	}
	if err := l.Services.Veth(clientPort, l.Client, clientLink); err != nil {
		return err
	}
	if err := l.Services.Enslave(clientPort, BridgeName); err != nil {
		return err
	}
	for _, p := range client {
		if err := l.Client.AddAddr(clientLink, p); err != nil {
			return err
		}
	}
	return nil
}

// Close gives up both namespaces.
func (l *Lab) Close() error {
	return errors.Join(l.Services.Close(), l.Client.Close())
}
