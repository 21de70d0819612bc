package agent

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

func TestParseShow(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want map[string]string // state of activity by unit
	}{
		"two":          {"Result=success\nId=a.service\nActiveState=active\n\nId=b@1.service\nActiveState=failed\nResult=exit-code\n", map[string]string{"a.service": "active", "b@1.service": "failed"}},
		"a value with": {"Id=a.service\nDropInPaths=/x=y /z\nActiveState=inactive\n", map[string]string{"a.service": "inactive"}},
		"no name":      {"ActiveState=active\n", map[string]string{}},
		"nothing":      {"", map[string]string{}},
		"words":        {"Failed to connect\n\n\nId=c.service\n", map[string]string{"c.service": ""}},
	} {
		got := make(map[string]string)
		for unit, s := range parseShow(tt.text) {
			got[unit] = s["ActiveState"]
		}
		if !maps.Equal(got, tt.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzParseShow: whatever systemd says, a unit is known by the name that it was given.
func FuzzParseShow(f *testing.F) {
	f.Add("Id=a.service\nActiveState=active\n\nId=b.service\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, s := range parseShow(text) {
			if name == "" || s["Id"] != name || !strings.Contains(text, "Id="+name) {
				t.Errorf("%q: %v", name, s)
			}
		}
	})
}

func TestLiteral(t *testing.T) {
	got := literal([]string{"sh", "-c", "echo $x ${y} $$", "$z"})
	if want := []string{"sh", "-c", "echo $$x $${y} $$$$", "$$z"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestCheckSystem: what a guest cannot do is refused when it is configured.
func TestCheckSystem(t *testing.T) {
	small := New(nil)
	if err := small.checkSystem(t.Context(), wire.Config{Services: []wire.Service{{Name: "a", Unit: "a.service"}}}); err == nil || !strings.Contains(err.Error(), "this guest has none") {
		t.Errorf("a unit in the small guest: %v", err)
	}
	// As package bare has it, which starts units itself.
	if err := small.checkSystem(t.Context(), wire.Config{Services: []wire.Service{{Name: "a", Unit: "a.service", Command: []string{"/init"}}}}); err != nil {
		t.Errorf("a unit that a command starts: %v", err)
	}
	service := New(nil)
	service.system = true
	if err := service.checkSystem(t.Context(), wire.Config{NFS: &wire.NFS{}}); err == nil || !strings.Contains(err.Error(), "NFS") {
		t.Errorf("NFS in a system of its own: %v", err)
	}
	if err := service.checkSystem(t.Context(), wire.Config{Services: []wire.Service{{Name: "a", Command: []string{"a"}}}}); err != nil {
		t.Errorf("a command: %v", err)
	}
}
