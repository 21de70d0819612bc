package rootdisk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/disk"
)

func TestEnforces(t *testing.T) {
	for config, want := range map[string]bool{
		"": false, "SELINUX=enforcing\n": true, "#SELINUX=enforcing\n\nSELINUX=permissive\nSELINUXTYPE=targeted\n": false,
		"SELINUXTYPE=targeted": false, "  SELINUX=Disabled": false, "SELINUX=what": true, "SELINUX=enforcing\nSELINUX=disabled\n": true,
	} {
		if got := enforces(config); got != want {
			t.Errorf("%q: %v", config, got)
		}
	}
}

// policy is the part of a policy that labels depend on, by path. Its lines are in the syntax of Debian's and Fedora's.
var policy = map[string]string{
	"config": "SELINUX=enforcing\nSELINUXTYPE=other\nSELINUXTYPE=ours\n",
	"ours/contexts/files/file_contexts": `
# a comment
/.*	system_u:object_r:default_t:s0
/usr(/.*)?	system_u:object_r:usr_t:s0
/usr/lib/systemd/system(/.*)?	system_u:object_r:systemd_unit_t:s0
/usr/libexec(/.*)?	system_u:object_r:bin_t:s0
/usr/libexec/understudy	--	system_u:object_r:exact_t:s0
/etc/fst[ab]{2}?	--	system_u:object_r:etc_t:s0
/etc/udev/rules\.d/60-understudy\.rules	--	system_u:object_r:udev_rules_t:s0
/etc/udev(/.*)?	system_u:object_r:etc_t:s0
/proc	-d	<<none>>
/proc/.*	<<none>>
/a(?<name>b)\k<name>	system_u:object_r:backward_t:s0
bad line with many fields
`,
	"ours/contexts/files/file_contexts.local":     "/usr/local/x.*	system_u:object_r:local_t:s0\n",
	"ours/contexts/files/file_contexts.homedirs":  "/home/[^/]+	-d	system_u:object_r:user_home_dir_t:s0\n",
	"ours/contexts/files/file_contexts.subs_dist": "# comment\n/etc/systemd/system /usr/lib/systemd/system\n/lib64 /usr/wrong\n/lib64/ /usr/lib\n/one two three\n",
	"ours/contexts/files/file_contexts.subs":      "/opt/site /etc/systemd/system\n",
}

// putPolicy puts a policy into a system.
func putPolicy(t testing.TB, system string, policy map[string]string) {
	t.Helper()
	for name, text := range policy {
		at := filepath.Join(system, "etc/selinux", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLabels(t *testing.T) {
	system := t.TempDir()
	putPolicy(t, system, policy)
	root, err := os.OpenRoot(system)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l, err := readLabels(root)
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	for name, want := range map[string]string{
		"x": "default_t", "usr": "usr_t", "usrs": "default_t", "usr/libexec/a": "bin_t", "usr/libexec/understudy": "exact_t", "etc/fstab": "etc_t",
		"etc/systemd/system": "systemd_unit_t", "etc/systemd/system/a": "systemd_unit_t", "etc/systemd/systems": "default_t", // an alias
		"opt/site/a": "systemd_unit_t", "opt/sites": "default_t", "lib64/systemd/system": "systemd_unit_t", // two of them
		"etc/udev/rules.d/60-understudy.rules": "udev_rules_t", "etc/udev/rules.d/60-understudyxrules": "etc_t", // the exact one, wherever it stands
		"usr/local/xyz": "local_t", "home/me": "default_t", "proc/1": "", "proc": "default_t",
	} {
		if want != "" {
			want = "system_u:object_r:" + want + ":s0"
		}
		if got, err := l.of(name, false); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"home/me": "user_home_dir_t", "usr/libexec/understudy": "bin_t"} {
		if got, err := l.of(name, true); got != "system_u:object_r:"+want+":s0" || err != nil {
			t.Errorf("directory %s: %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := l.of("abb", false); err == nil { // no expression that we understand: no label is made up
		t.Errorf("abb: %q", got)
	}
	for config, none := range map[string]bool{"SELINUX=disabled\nSELINUXTYPE=ours": true, "": true, "SELINUX=permissive\nSELINUXTYPE=none": true, "SELINUX=enforcing\nSELINUXTYPE=../x": true} {
		putPolicy(t, system, map[string]string{"config": config})
		if l, err := readLabels(root); err != nil || (l == nil) != none {
			t.Errorf("%q: %v, %v", config, l, err)
		}
	}
}

// TestPrepareLabels: all that is written into a system with a policy has the label that the policy says, also what was written there
// without one before; a directory that was there keeps what it has.
func TestPrepareLabels(t *testing.T) {
	system := tree(t)
	putPolicy(t, system, policy)
	path := image(t, system, false)
	program := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(program, []byte("the agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	content := Content{Program: program, Units: []string{"nginx.service"}, Mounts: []string{"/srv"}}
	prepare := func() (told []string) {
		t.Helper()
		d, err := Open(path, disk.Where{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Prepare(content, func(what string) { told = append(told, what) }); err != nil {
			t.Fatal(err)
		}
		return told
	}
	if told := prepare(); len(told) == 0 {
		t.Error("nothing was changed")
	}
	inside := func(act func(root *os.Root)) {
		t.Helper()
		d, err := Open(path, disk.Where{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.on(d.root, change, func(root *os.Root) error { act(root); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	check := func(root *os.Root) {
		for name, want := range map[string]string{
			programPath: "bin_t", "usr/libexec/understudy": "bin_t", "usr/libexec": "bin_t", unitPath: "systemd_unit_t", rulePath: "udev_rules_t", networkPath: "default_t",
			dropInPath("nginx.service"): "systemd_unit_t", fstabPath: "etc_t",
		} {
			if !hasLabel(root, name, "system_u:object_r:"+want+":s0") {
				t.Errorf("%s is not labelled %s", name, want)
			}
		}
		if hasLabel(root, "usr", "system_u:object_r:usr_t:s0") {
			t.Error("/usr has got a label")
		}
	}
	inside(check)
	if told := prepare(); len(told) > 0 {
		t.Errorf("the second time changed %q", told)
	}
	inside(func(root *os.Root) {
		f, err := root.Open(programPath)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Fremovexattr(int(f.Fd()), labelName), f.Close()); err != nil {
			t.Fatal(err)
		}
	})
	if told := prepare(); len(told) != 1 || told[0] != "renewed /"+programPath {
		t.Errorf("without the label of the program, %q was changed", told)
	}
	inside(check)
}

// FuzzLabels: no policy makes a label that it does not have.
func FuzzLabels(f *testing.F) {
	const in = "ours/contexts/files/file_contexts"
	f.Add(policy[in], policy[in+".subs_dist"], "etc/systemd/system/a.service")
	f.Fuzz(func(t *testing.T, specs, aliases, name string) {
		l := new(labels)
		l.add(specs)
		l.aliases[1] = aliasesOf(aliases)
		if label, err := l.of(name, false); err == nil && !strings.Contains(specs, label) {
			t.Errorf("%q is not in %q", label, specs)
		}
	})
}
