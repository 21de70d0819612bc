package bare

import (
	"reflect"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// TestWithin: the root file system is mounted first, the other disks in it, and the
// configured role does not change.
func TestWithin(t *testing.T) {
	role := wire.Config{
		Disks:    []wire.Disk{{Name: "c", Mount: "/srv/deep"}, {Name: "b", Mount: "/srv"}, {Name: "a", Mount: "/"}},
		Services: []wire.Service{{Name: "web", Unit: "web.service"}, {Name: "cat", Command: []string{"cat", "-"}}},
	}
	got := within(role)
	if want := []wire.Disk{{Name: "a", Mount: "/sysroot"}, {Name: "b", Mount: "/sysroot/srv"}, {Name: "c", Mount: "/sysroot/srv/deep"}}; !reflect.DeepEqual(got.Disks, want) {
		t.Errorf("the disks are %+v", got.Disks)
	}
	for i, want := range [][]string{{"/init", "metal", "enter", "--", "web.service"}, {"/init", "metal", "enter", "--", "cat", "-"}} {
		if !slices.Equal(got.Services[i].Command, want) {
			t.Errorf("service %d is %q", i, got.Services[i].Command)
		}
	}
	if role.Disks[0].Mount != "/srv/deep" || role.Services[0].Command != nil {
		t.Errorf("the role has become %+v", role)
	}
	role.Disks = role.Disks[:2]
	if got := within(role); got.Disks[0].Mount != "/srv" || got.Services[1].Command[0] != "cat" {
		t.Errorf("without a root file system it is %+v", got)
	}
}
