package agent

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/unit"
	"understudy.dev/understudy/internal/live/wire"
)

func TestParseShow(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want map[string]string // ActiveState by unit
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

// FuzzParseShow: whatever the text is, each unit has a name, which is the Id that the text gives it.
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

// TestStartsByRole: a unit passes only if it has the conditions of its role, and no other condition that is
// enough to start it.
func TestStartsByRole(t *testing.T) {
	ours := "[Unit]\n" + strings.Join(unit.RoleConditions("dhcp.service"), "\n") + "\n"
	for name, tt := range map[string]struct {
		files []string
		want  string
	}{
		"prepared":           {[]string{"[Unit]\nConditionPathExists=/etc/dhcp\n[Service]\nExecCondition=|/bin/x\n", ours}, ""},
		"not prepared":       {[]string{"[Unit]\n# ConditionPathExists=|/x\n"}, "image prepare --unit"},
		"of its own":         {[]string{"[Unit]\nConditionPathExists = |/etc/ltsp\nConditionPathExists=|!/etc/dhcp\n", ours}, "ConditionPathExists=|/etc/ltsp is enough"},
		"behind ours":        {[]string{"[Unit]\n", ours, "[Unit]\nConditionHost=|a\n"}, "ConditionHost=|a is enough"},
		"its own taken back": {[]string{"[Unit]\nConditionPathExists=|/etc/ltsp\n", "[Unit]\nConditionPathExists=\n", ours}, ""},
		"ours taken back":    {[]string{"[Unit]\n", ours, "[Unit]\nConditionHost=\n"}, "image prepare --unit"},
	} {
		var files []string
		for i, text := range tt.files {
			at := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			files = append(files, at)
		}
		err := startsByRole("dhcp.service", files)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
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
	if err := small.checkSystem(t.Context(), wire.Config{Services: []wire.Service{{Name: "a", Unit: "a.service"}}}); err == nil || !strings.Contains(err.Error(), "this guest has no systemd") {
		t.Errorf("a unit in the small guest: %v", err)
	}
	// A configuration as package bare makes it, which starts units itself.
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
