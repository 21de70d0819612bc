// Package packaging_test checks what is handed to other programs: the unit to systemd, the
// rules to Prometheus.
package packaging_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// promtool is that of scripts/setup.sh.
func promtool(t *testing.T) string {
	t.Helper()
	cache, err := dirs.Cache()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "tools", "usr", "bin", "promtool")
	if _, err := os.Stat(path); err != nil {
		tier.Lacks(t, err)
	}
	return path
}

func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestRules: Prometheus takes the rules for alerts, and they fire when they should.
func TestRules(t *testing.T) {
	tool := promtool(t)
	run(t, "prometheus", tool, "check", "rules", "--lint=all", "--lint-fatal", "understudy.rules.yml")
	run(t, "prometheus", tool, "test", "rules", "understudy.test.yml")
	rules, err := os.ReadFile("prometheus/understudy.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("prometheus/understudy.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rules)) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "- alert: "); ok && !strings.Contains(string(tests), "alertname: "+name+"\n") {
			t.Errorf("alert %s has no test in which it fires", name)
		}
	}
}

// TestBoard: the board is JSON, and each of its panels asks for something.
func TestBoard(t *testing.T) {
	b, err := os.ReadFile("grafana/understudy.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	if board.Title != "Understudy" || len(board.Panels) < 8 {
		t.Errorf("%q has %d panels", board.Title, len(board.Panels))
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, "understudy_") {
				t.Errorf("panel %q asks for %q", p.Title, target.Expr)
			}
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
	}
}

// taken is what takes away from a unit what it works with (systemd.exec(5)): modules, of which
// guests are made; images, which may be anywhere; KVM; real-time threads; the code that emulation makes.
var taken = []string{
	"ProtectKernelModules=", "ProtectHome=", "ProtectSystem=strict", "PrivateTmp=", "PrivateDevices=", "DevicePolicy=", "DeviceAllow=", "ProtectClock=",
	"InaccessiblePaths=", "PrivateUsers=", "PrivateMounts=", "ProtectProc=", "ProcSubset=", "RestrictRealtime=", "MemoryDenyWriteExecute=",
}

// TestUnit: systemd takes the unit without a warning. The program that it names is a stand-in
// here: the package puts it there.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		tier.Lacks(t, err)
	}
	text, err := os.ReadFile("systemd/understudy@.service")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unit := strings.ReplaceAll(string(text), "/usr/bin/understudy", "/bin/true")
	if err := os.WriteFile(filepath.Join(dir, "understudy@web.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(t, dir, "systemd-analyze", "verify", "--man=no", filepath.Join(dir, "understudy@web.service")); strings.Contains(out, "understudy@") {
		t.Errorf("systemd says: %s", out)
	}
	spoilt := strings.Replace(unit, "KillMode=process", "KilMode=process", 1)
	if err := os.WriteFile(filepath.Join(dir, "understudy@bad.service"), []byte(spoilt), 0o644); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, "understudy@bad.service")).CombinedOutput()
	if !strings.Contains(string(out), "KilMode") {
		t.Errorf("systemd does not look at the unit: %s", out)
	}
	watch, err := os.ReadFile("systemd/understudy-watch.service")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "understudy-watch.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(watch), "/usr/bin/understudy", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(t, dir, "systemd-analyze", "verify", "--man=no", path); strings.Contains(out, "understudy-watch") {
		t.Errorf("systemd says: %s", out)
	}
	for name, unit := range map[string]string{"understudy@": string(text), "understudy-watch": string(watch)} {
		for _, line := range taken {
			if strings.Contains(unit, "\n"+line) {
				t.Errorf("%s has %s", name, line)
			}
		}
	}
	// Either would end the guests with the supervisor.
	for _, line := range []string{"\nKillMode=process\n", "\nRestart=on-failure\n"} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the unit has no %q", strings.TrimSpace(line))
		}
	}
	if strings.Contains(string(text), "\nExecStop=") {
		t.Error("systemd would run ExecStop when the supervisor ends by itself")
	}
}

// TestPackage: the package is the same each time that it is made; it installs, over one that is
// there, too, and leaves nothing but what an operator wrote.
func TestPackage(t *testing.T) {
	tier.Full(t, "the packer is built from source")
	if _, err := exec.LookPath("dpkg"); err != nil {
		tier.Lacks(t, err)
	}
	var packages [2][]byte
	var path string
	for i := range packages {
		dir := t.TempDir()
		run(t, "..", "scripts/deb.sh", dir)
		found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(found) != 1 {
			t.Fatalf("made %v, %v", found, err)
		}
		path = found[0]
		if packages[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if string(packages[0]) != string(packages[1]) {
		t.Error("two packages of the same files differ")
	}
	root := t.TempDir()
	dpkg := func(args ...string) {
		t.Helper()
		run(t, root, "dpkg", append([]string{"--root=" + root, "--force-depends", "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	}
	for _, dir := range []string{"var/lib/dpkg/updates", "var/lib/dpkg/info"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg("-i", path)
	dpkg("-i", path)
	run(t, root, filepath.Join(root, "usr/bin/understudy"), "check", "--text", filepath.Join(root, "usr/share/doc/understudy/examples/web.yaml"))
	mine := filepath.Join(root, "etc/understudy/web.yaml")
	log := filepath.Join(root, "var/lib/understudy/web/events.jsonl")
	left := []string{mine}
	for _, work := range []string{"vdb.understudy", "vdc.understudy-123"} { // what a disk lacks (offline.WorkOf)
		left = append(left, filepath.Join(root, "var/lib/understudy/web", work, "redo"))
	}
	for _, file := range append([]string{log}, left...) {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	enabled := filepath.Join(root, "etc/systemd/system/multi-user.target.wants/understudy@web.service")
	if err := os.MkdirAll(filepath.Dir(enabled), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib/systemd/system/understudy@.service", enabled); err != nil {
		t.Fatal(err)
	}
	dpkg("--remove", "understudy")
	if _, err := os.Stat(log); err != nil {
		t.Errorf("the log went with the package: %v", err)
	}
	dpkg("--purge", "understudy")
	for _, dir := range []string{"usr", "etc", "var/lib/understudy"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !slices.Contains(left, path) {
				t.Errorf("%s is left", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for _, file := range left {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("what the operator wrote, or what a disk lacks, is gone: %v", err)
		}
	}
}
