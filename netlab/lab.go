package netlab

import (
	"errors"
	"fmt"
	"net/netip"
)

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
	Services *Namespace // holds BridgeName; the taps go here
	Client   *Namespace
}

// NewLab makes a Lab whose client has the given IPv4 address.
func NewLab(client netip.Prefix) (*Lab, error) {
	l := &Lab{}
	if err := l.build(client); err != nil {
		return nil, errors.Join(fmt.Errorf("build network: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(client netip.Prefix) (err error) {
	if l.Services, err = New(); err != nil {
		return err
	}
	if l.Client, err = New(); err != nil {
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
	return l.Client.AddAddr(clientLink, client)
}

// Close gives up both namespaces.
func (l *Lab) Close() error {
	return errors.Join(l.Services.Close(), l.Client.Close())
}
