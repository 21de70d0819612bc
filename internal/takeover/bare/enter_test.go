package bare

import (
	"os/user"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/live/unit"
)

// TestIdentify: a unit that names its user has that user's name and home directory in its environment.
func TestIdentify(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	id, err := identify(&unit.Unit{User: me.Username})
	want := []string{"USER=" + me.Username, "LOGNAME=" + me.Username, "HOME=" + me.HomeDir}
	if err != nil || !slices.Equal(id.login, want) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := identify(new(unit.Unit)); err != nil || id.login != nil {
		t.Errorf("without a user: %+v, %v", id, err)
	}
}
