package netns

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"understudy.dev/understudy/internal/live/rtnl"
)

// What the tests in package netns_test need besides the exported names.
var (
	ErrClosed     = errClosed
	ErrNoNeighbor = errNoNeighbor
)

// Release takes a link out of its bridge.
func (n *Namespace) Release(link string) error {
	return n.withLink(link, "release", netlink.LinkSetNoMaster)
}

// Links lists the names of the namespace's links, and for each the name of its bridge, empty if it has none.
func (n *Namespace) Links() (map[string]string, error) {
	masters := map[string]string{}
	err := n.Do(func() error {
		links, err := rtnl.Links()
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		for _, l := range links {
			masters[l.Attrs().Name] = names[l.Attrs().MasterIndex]
		}
		return nil
	})
	return masters, err
}
