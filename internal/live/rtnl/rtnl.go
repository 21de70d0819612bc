// Package rtnl lists the interfaces, addresses, neighbours and routes of the kernel completely: a list that changes while the
// kernel dumps it is marked as interrupted (NLM_F_DUMP_INTR, include/uapi/linux/netlink.h) and may lack an entry or have it
// twice, so it is requested again.
package rtnl

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"
)

// tries and pause bound how long requests are repeated: interfaces do not change that often, but a large table of neighbours or
// routes may.
const (
	tries = 100
	pause = time.Millisecond
)

// Whole calls list, such as netlink.LinkList, until it is not interrupted. After some tenths of a second it gives up with
// netlink.ErrDumpInterrupted.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		time.Sleep(pause)
	}
	return nil, err
}

// Links returns all interfaces.
func Links() ([]netlink.Link, error) { return Whole(netlink.LinkList) }

// Addresses returns the addresses of a family (netlink.FAMILY_ALL: of any) on an interface, or on all of them if l is nil.
func Addresses(l netlink.Link, family int) ([]netlink.Addr, error) {
	return Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, family) })
}

// Neighbours returns the neighbours of a family on the interface with that index, or on all of them if index is 0.
func Neighbours(index, family int) ([]netlink.Neigh, error) {
	return Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
}

// Routes returns the routes of all tables.
func Routes() ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE) // RT_TABLE_UNSPEC
	})
}
