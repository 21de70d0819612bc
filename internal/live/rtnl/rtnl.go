// Package rtnl lists what the kernel's network has, whole: a list that changes while the kernel gives it out is said to be interrupted
// (NLM_F_DUMP_INTR, include/uapi/linux/netlink.h), may lack something or have it twice, and is asked for again.
package rtnl

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"
)

// tries and pause bound how long that goes on: what changes so often is not interfaces, but a large table of neighbours or routes.
const (
	tries = 100
	pause = time.Millisecond
)

// Whole calls list, such as netlink.LinkList, until it is not interrupted any more. After some tenths of a second the error is
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

// Links are the interfaces.
func Links() ([]netlink.Link, error) { return Whole(netlink.LinkList) }

// Addresses are those of an interface, or of all if it is nil, of a family (netlink.FAMILY_ALL: of any).
func Addresses(l netlink.Link, family int) ([]netlink.Addr, error) {
	return Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, family) })
}

// Neighbours are those on an interface, or on all if it is 0, of a family.
func Neighbours(index, family int) ([]netlink.Neigh, error) {
	return Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
}

// Routes are those of all tables.
func Routes() ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE) // RT_TABLE_UNSPEC
	})
}
