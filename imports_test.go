// Package understudy_test holds the rules about which package may import which
// (docs/ARCHITECTURE.md).
package understudy_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// dead is the column about what a corpse says. Each package may import those
// with a smaller number.
var dead = map[string]int{
	"addr": 0, "ram": 1, "ram/ramtest": 1, "ext4": 1, "jbd2": 2, "kernel": 2, "kernel/kerneltest": 3, "audit": 2, "pagecache": 3, "journal": 4, "sockets": 4, "salvage": 5,
	"inventory": 6, "extract": 7, "cachefs": 8,
}

// hostly are those of the dead column that may have code for one system: memory
// is mapped, a file system is synced or mounted.
var hostly = []string{"ram", "extract", "cachefs"}

// living is the column about what a running machine does.
var living = []string{
	"qmp", "partition", "liveness", "fence", "link", "announce", "agent", "device", "netlab", "pair", "initramfs", "workload", "probe", "nfsd",
}

// above may import of the living column what is named, and nothing of the dead.
var above = map[string][]string{
	"takeover":   {"link", "liveness"}, // the types on the wire, and verdicts
	"supervisor": append([]string{"takeover"}, living...),
	"offline":    {"agent", "device", "fence", "link", "partition", "supervisor"},
}

// top may import anything.
var top = []string{"cmd/understudy", "demo", "nfslab", "nfsbench"}

// rule says why package from must not import to, both without the module's
// name; empty if it may.
func rule(from, to string) string {
	level, isDead := dead[from]
	toLevel, toDead := dead[to]
	allowed, isAbove := above[from]
	switch {
	case strings.HasPrefix(from, "internal/") || slices.Contains(top, from):
		return ""
	case strings.HasPrefix(to, "internal/"):
		return "internal packages are for tests"
	case to == "kernel/kerneltest" || to == "ram/ramtest":
		return "it is for tests"
	case isDead && toDead && toLevel < level:
		return ""
	case isDead:
		return "the dead column imports only what is below in it"
	case slices.Contains(living, from) && slices.Contains(living, to):
		return ""
	case slices.Contains(living, from):
		return "the living column imports only itself"
	case isAbove && slices.Contains(allowed, to):
		return ""
	case isAbove:
		return "it sees only " + strings.Join(allowed, ", ")
	}
	return "package " + from + " has no place in imports_test.go"
}

// foreign are packages of the standard library and others that would tie the
// dead column to one system, or have it act. Addresses as such are pure.
func foreign(path string) bool {
	if path == "net/netip" {
		return false
	}
	for _, p := range []string{"os/exec", "os/signal", "net", "syscall", "plugin", "golang.org/x/sys", "golang.org/x/net"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// imports returns what the packages of the module import, tests aside.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != "." && (strings.HasPrefix(name, ".") || name == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		from := filepath.ToSlash(filepath.Dir(path))
		for _, i := range file.Imports {
			to, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			all[from] = append(all[from], to)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImports(t *testing.T) {
	all := imports(t)
	if len(all["kernel"]) == 0 || len(all["takeover"]) == 0 {
		t.Fatal("the module's packages are not here")
	}
	for from, targets := range all {
		for _, target := range targets {
			if to, ours := strings.CutPrefix(target, "understudy/"); ours {
				if why := rule(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
				continue
			}
			if _, isDead := dead[from]; isDead && foreign(target) && !slices.Contains(hostly, from) {
				t.Errorf("%s imports %s: the dead column has no process, network or system of its own", from, target)
			}
		}
	}
}

// TestRule wants the rule to forbid something.
func TestRule(t *testing.T) {
	for _, pair := range [][2]string{
		{"ram", "kernel"}, {"kernel", "kernel"}, {"salvage", "agent"}, {"agent", "salvage"}, {"takeover", "partition"},
		{"supervisor", "salvage"}, {"link", "supervisor"}, {"kernel", "internal/fixture"}, {"unheard-of", "addr"},
	} {
		if rule(pair[0], pair[1]) == "" {
			t.Errorf("%s may import %s", pair[0], pair[1])
		}
	}
	for path, want := range map[string]bool{"net": true, "net/http": true, "net/netip": false, "errors": false} {
		if foreign(path) != want {
			t.Errorf("foreign is %v for %s", !want, path)
		}
	}
}

// TestDeadColumnElsewhere wants the dead column to compile, with its tests, on
// other systems than Linux.
func TestDeadColumnElsewhere(t *testing.T) {
	var packages []string
	for name := range imports(t) {
		if _, isDead := dead[name]; isDead && name != "cachefs" {
			packages = append(packages, "./"+name)
		}
	}
	if len(packages) < 5 {
		t.Fatalf("the dead column is only %v", packages)
	}
	slices.Sort(packages)
	for _, system := range []string{"windows", "darwin"} {
		t.Run(system, func(t *testing.T) {
			cmd := exec.Command("go", append([]string{"vet"}, packages...)...)
			cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("go vet: %v\n%s", err, out)
			}
		})
	}
}
