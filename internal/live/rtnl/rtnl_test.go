package rtnl

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	other := errors.New("no such device")
	for name, tc := range map[string]struct {
		interrupted int
		then        error
		want        []int
	}{
		"at once":       {0, nil, []int{1}},
		"after some":    {3, nil, []int{4}},
		"another error": {2, other, []int{3}},
		"never":         {tries, nil, nil},
	} {
		n := 0
		got, err := Whole(func() ([]int, error) {
			if n++; n <= tc.interrupted {
				return []int{n}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
			}
			return []int{n}, tc.then
		})
		want := tc.then
		if tc.want == nil {
			want = netlink.ErrDumpInterrupted
		}
		if !slices.Equal(got, tc.want) || !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestLists: there is always a loopback interface, and no list fails, even if it is empty.
func TestLists(t *testing.T) {
	links, err := Links()
	if err != nil || !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == "lo" }) {
		t.Errorf("%v, %v", links, err)
	}
	_, addresses := Addresses(nil, netlink.FAMILY_ALL)
	_, neighbours := Neighbours(0, netlink.FAMILY_ALL)
	_, routes := Routes()
	if err := errors.Join(addresses, neighbours, routes); err != nil {
		t.Error(err)
	}
}
