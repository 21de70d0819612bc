// Package understudy_test holds the rules about which folder may import which
// (docs/ARCHITECTURE.md).
package understudy_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

const module = "understudy.dev/understudy/"

// folders are the parts of the tree, each with the others that it may import.
var folders = []struct {
	name string
	may  []string
}{
	{"dead/", nil},
	{"internal/live/", nil},
	{"internal/takeover/", []string{"dead/", "internal/live/"}},
	{"internal/lab/", []string{"dead/", "internal/live/", "internal/takeover/"}},
	{"cmd/", []string{"dead/", "internal/live/", "internal/takeover/"}},
}

// storeys are the packages of dead, the lowest first: a package may import those below it.
var storeys = []string{
	"addr", "ram", "ext4", "jbd2", "kernel", "audit", "placement", "pagecache", "journal", "sockets", "nfsd", "salvage", "inventory", "extract", "cachefs",
}

// hostly are the packages of dead that may have code for one system: they map memory, or
// sync or mount a file system.
var hostly = []string{"ram", "extract", "cachefs"}

// foreign are the prefixes of packages that would tie dead to one system, or make it act.
var foreign = []string{"os/exec", "os/signal", "net", "syscall", "plugin", "golang.org/x/sys", "golang.org/x/net"}

// rule returns why a package must not import another one, both without the module's name;
// empty if it may.
func rule(from, to string) string {
	for _, f := range folders {
		if !strings.HasPrefix(from+"/", f.name) {
			continue
		}
		if f.name == "dead/" && strings.HasPrefix(to, "dead/") && slices.Index(storeys, from[5:]) <= slices.Index(storeys, to[5:]) {
			return "in dead, a package imports only those below it"
		}
		for _, may := range append(f.may, f.name) {
			if strings.HasPrefix(to+"/", may) {
				return ""
			}
		}
		return f.name + " may import only " + strings.Join(append(f.may, "itself"), ", ")
	}
	return "package " + from + " has no place in imports_test.go"
}

// ties reports whether a package of another module, or of the standard library, would tie
// dead to one system. Addresses as such do not.
func ties(path string) bool {
	return path != "net/netip" && slices.ContainsFunc(foreign, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
}

// imports returns what the packages of the module import, tests aside.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
			GoFiles    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all[strings.TrimPrefix(p.ImportPath, module)] = p.Imports
		}
	}
}

func TestImports(t *testing.T) {
	all := imports(t)
	for _, s := range storeys {
		if len(all["dead/"+s]) == 0 {
			t.Errorf("dead/%s is not here", s)
		}
	}
	for from, targets := range all {
		isDead := strings.HasPrefix(from, "dead/")
		if isDead && !slices.Contains(storeys, from[5:]) {
			t.Errorf("%s has no storey", from)
		}
		for _, target := range targets {
			if to, ours := strings.CutPrefix(target, module); ours {
				if why := rule(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			} else if isDead && ties(target) && !slices.Contains(hostly, from[5:]) {
				t.Errorf("%s imports %s: dead has no process, network or system of its own", from, target)
			}
		}
	}
}

// TestRule checks that the rule forbids something.
func TestRule(t *testing.T) {
	for _, pair := range [][2]string{
		{"dead/ram", "dead/kernel"}, {"dead/kernel", "dead/kernel"}, {"dead/salvage", "internal/live/agent"}, {"internal/live/agent", "dead/salvage"},
		{"internal/takeover", "internal/lab/demo"}, {"cmd/understudy", "internal/lab/demo"}, {"internal/live/wire", "internal/takeover"}, {"unheard-of", "dead/addr"},
	} {
		if rule(pair[0], pair[1]) == "" {
			t.Errorf("%s may import %s", pair[0], pair[1])
		}
	}
	for path, want := range map[string]bool{"net": true, "net/http": true, "net/netip": false, "errors": false} {
		if ties(path) != want {
			t.Errorf("ties is %v for %s", !want, path)
		}
	}
}

// TestDeadElsewhere checks that dead compiles on other systems than Linux; cachefs, which mounts, is for Linux alone.
func TestDeadElsewhere(t *testing.T) {
	args := []string{"build"} // vet would build the tests, too, whose images are made on Linux
	for _, s := range storeys {
		if s != "cachefs" {
			args = append(args, "./dead/"+s)
		}
	}
	for _, system := range []string{"windows", "darwin"} {
		t.Run(system, func(t *testing.T) {
			if system != "windows" {
				tier.Full(t, "a third system")
			}
			cmd := exec.Command("go", args...)
			cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", cmd, err, out)
			}
		})
	}
}

// TestLayout checks that the figure in docs/ARCHITECTURE.md has each existing folder
// exactly once.
func TestLayout(t *testing.T) {
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, figure, _ := strings.Cut(string(text), "```\n")
	figure, _, _ = strings.Cut(figure, "```")
	drawn := make(map[string]bool)
	parent := ""
	for line := range strings.Lines(figure) {
		names, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "   ")
		if strings.HasPrefix(line, "  ") {
			names, _, _ = strings.Cut(strings.TrimSpace(line), "   ")
		} else if parent, _, _ = strings.Cut(line, " "); parent != "" {
			drawn[strings.TrimSuffix(parent, "/")] = true
			continue
		}
		for _, name := range strings.Fields(names) {
			drawn[parent+name] = true
		}
	}
	for _, f := range []string{"cmd/*", "dead/*", "internal/*", "internal/live/*", "internal/takeover/*", "internal/lab/*"} {
		found, err := filepath.Glob(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if st, err := os.Stat(name); err != nil || !st.IsDir() {
				continue
			}
			if !drawn[name] {
				t.Errorf("%s is not in the figure", name)
			}
			delete(drawn, name)
		}
	}
	delete(drawn, "dead")
	for name := range drawn {
		t.Errorf("the figure has %s, which is not there", name)
	}
}
