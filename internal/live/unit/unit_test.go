package unit

import (
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// lighttpd is a unit as Debian has it, shortened (lighttpd 1.4.69, lighttpd.service).
const lighttpd = `[Unit]
Description=Lighttpd Daemon
After=network-online.target

[Service]
Type=simple
PIDFile=/run/lighttpd.pid
ExecStartPre=/usr/sbin/lighttpd -tt -f /etc/lighttpd/lighttpd.conf
ExecStart=/usr/sbin/lighttpd -D \
# in the middle
  -f /etc/lighttpd/lighttpd.conf
ExecReload=/bin/kill -USR1 $MAINPID
Restart=on-failure
ProtectSystem=full

[Install]
WantedBy=multi-user.target
`

// tree is a root file system with a unit a.service.
func tree(text string) fstest.MapFS {
	return fstest.MapFS{"usr/lib/systemd/system/a.service": &fstest.MapFile{Data: []byte(text)}}
}

func TestLoad(t *testing.T) {
	root := tree(lighttpd)
	root["etc/systemd/system/a.service.d/20-user.conf"] = &fstest.MapFile{Data: []byte("[Service]\nUser=www-data\nRuntimeDirectory=%N sub/x\nRuntimeDirectoryMode=0750\n")}
	root["usr/lib/systemd/system/a.service.d/10-pre.conf"] = &fstest.MapFile{Data: []byte("[Service]\nExecStartPre=\nExecStartPre=-+/bin/true 'a b'\nLimitNOFILE=100:4096\n")}
	u, err := Load(root, "a.service")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(u.Main.Words, "|"), "/usr/sbin/lighttpd|-D|-f|/etc/lighttpd/lighttpd.conf"; got != want {
		t.Errorf("the command is %s", got)
	}
	if len(u.Before) != 1 || !u.Before[0].Ignore || !u.Before[0].Root || !slices.Equal(u.Before[0].Words, []string{"/bin/true", "a b"}) {
		t.Errorf("before it runs %+v", u.Before)
	}
	if want := []Dir{{"/run/a", 0o750}, {"/run/sub/x", 0o750}}; !slices.Equal(u.Dirs, want) {
		t.Errorf("its directories are %+v", u.Dirs)
	}
	if u.User != "www-data" || u.Files != 4096 || !slices.Equal(u.Omitted, []string{"ProtectSystem"}) {
		t.Errorf("%+v", u)
	}
}

// TestFirstPlace: the administrator's file counts, and not that of the package.
func TestFirstPlace(t *testing.T) {
	root := tree("[Service]\nExecStart=/bin/package\n")
	root["etc/systemd/system/a.service"] = &fstest.MapFile{Data: []byte("[Service]\nExecStart=/bin/ours\n")}
	u, err := Load(root, "a.service")
	if err != nil || u.Main.Words[0] != "/bin/ours" {
		t.Errorf("%+v, %v", u, err)
	}
}

// TestNames: another name of a unit is refused; drop-ins for a part of a unit's name count, and masked drop-ins and
// units do not.
func TestNames(t *testing.T) {
	const main = "usr/lib/systemd/system/a-b.service"
	link := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	for _, c := range []struct {
		name   string
		more   map[string]*fstest.MapFile
		user   string
		refuse string
	}{
		{"alone", nil, "", ""},
		{"part of a name", map[string]*fstest.MapFile{"etc/systemd/system/a-.service.d/1.conf": {Data: []byte("[Service]\nUser=part\n")}}, "part", ""},
		{"more of the name", map[string]*fstest.MapFile{
			"etc/systemd/system/a-.service.d/1.conf": {Data: []byte("[Service]\nUser=part\n")}, "etc/systemd/system/a-b.service.d/1.conf": {Data: []byte("[Service]\nUser=whole\n")},
		}, "whole", ""},
		{"masked drop-in", map[string]*fstest.MapFile{
			"usr/lib/systemd/system/a-b.service.d/1.conf": {Data: []byte("[Service]\nUser=vendor\n")}, "etc/systemd/system/a-b.service.d/1.conf": link("/dev/null"),
		}, "", ""},
		{"another name", map[string]*fstest.MapFile{"etc/systemd/system/a-b.service": link("/usr/lib/systemd/system/real.service")}, "", "another name of real.service"},
		{"masked", map[string]*fstest.MapFile{"etc/systemd/system/a-b.service": link("/dev/null")}, "", "masked"},
	} {
		root := fstest.MapFS{main: {Data: []byte("[Service]\nExecStart=/bin/a\n")}}
		maps.Copy(root, c.more)
		u, err := Load(root, "a-b.service")
		switch {
		case c.refuse != "" && (err == nil || !strings.Contains(err.Error(), c.refuse)), c.refuse == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case err == nil && u.User != c.user:
			t.Errorf("%s: its user is %q", c.name, u.User)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ text, why string }{
		{"[Service]\nType=dbus\nExecStart=/bin/a\n", "Type=dbus"},
		{"[Service]\nType=forking\nExecStart=/bin/a\nExecStop=@/bin/b b\n", "ExecStop"},
		{"[Service]\nType=oneshot\nExecStart=/bin/a\n", "Type=oneshot"},
		{"[Service]\nExecStart=/bin/a\nExecStart=/bin/b\n", "2 ExecStart= commands"},
		{"[Service]\nUser=a\n", "0 ExecStart= commands"},
		{"[Service]\nExecStart=/bin/a ; /bin/b\n", "more than one"},
		{"[Service]\nExecStart=/bin/a %b\n", "%b"},
		{"[Service]\nExecStart=@/bin/a b\n", "prefix @"},
		{"[Service]\nExecStart=/bin/a 'b\n", "quote"},
		{"[Service]\nExecStart=/bin/a\nDynamicUser=yes\n", "DynamicUser"},
		{"[Service]\nExecStart=/bin/a\nAmbientCapabilities=~CAP_NET_BIND_SERVICE\n", "AmbientCapabilities"},
		{"[Service]\nExecStart=/bin/a\nPrivateNetwork=yes\n", "PrivateNetwork"},
		{"[Service]\nExecStart=/bin/a\nBindPaths=/a:b\n", "BindPaths"},
		{"[Service]\nExecStart=/bin/a\nStateDirectory=../x\n", "StateDirectory"},
		{"[Service]\nExecStart=/bin/a \\", "no line follows"},
		{"[Service\nExecStart=/bin/a\n", "section"},
		{"[Service]\nExecStart\n", "assignment"},
	} {
		if u, err := Load(tree(c.text), "a.service"); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%q: %+v, %v", c.text, u, err)
		}
	}
	for _, name := range []string{"b.service", "a@b.service", "a@.service", "@a.service", "../a.service", "a.socket", ".service", ""} {
		if u, err := Load(tree(lighttpd), name); err == nil {
			t.Errorf("%q is %+v", name, u)
		}
	}
}

// TestNot: a setting that turns something off is no reason to refuse a unit.
func TestNot(t *testing.T) {
	u, err := Load(tree("[Service]\nExecStart=/bin/a\nPrivateNetwork=no\nDynamicUser=false\nAmbientCapabilities=\n"), "a.service")
	if err != nil || len(u.Omitted) > 0 {
		t.Errorf("%+v, %v", u, err)
	}
}

// TestForks: more settings of a service that forks are read; for others, ExecStop= is left out.
func TestForks(t *testing.T) {
	const text = "[Service]\nType=%s\nPIDFile=a.pid\nExecStart=-/bin/a start\nExecStop=/bin/old\nExecStop=\nExecStop=-/bin/a stop\nExecStop=/bin/b\n"
	u, err := Load(tree(strings.Replace(text, "%s", "forking", 1)), "a.service")
	if err != nil || !u.Forks || u.PIDFile != "/run/a.pid" || !u.Main.Ignore || len(u.Stop) != 2 || !u.Stop[0].Ignore || u.Stop[1].Words[0] != "/bin/b" {
		t.Errorf("%+v, %v", u, err)
	}
	u, err = Load(tree(strings.Replace(text, "%s", "notify", 1)), "a.service")
	if err != nil || u.Forks || len(u.Stop) != 0 {
		t.Errorf("one that does not: %+v, %v", u, err)
	}
}

// TestTemplate: for a service made from a template, its own file wins over the template's, and both have drop-ins.
func TestTemplate(t *testing.T) {
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	const lib, etc = "usr/lib/systemd/system/", "etc/systemd/system/"
	root := fstest.MapFS{
		lib + "db@.service":                    text("[Service]\nExecStart=/bin/db %p %i %I %n %N\nUser=one\nGroup=one\nUMask=077\n"),
		etc + "db@.service.d/1.conf":           text("[Service]\nUser=two\nGroup=two\n"),
		etc + "db@15-m\\x2dn.service.d/2.conf": text("[Service]\nUser=three\n"),
		etc + "db@other.service":               text("[Service]\nExecStart=/bin/other\n"),
	}
	u, err := Load(root, `db@15-m\x2dn.service`)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/bin/db", "db", `15-m\x2dn`, "15/m-n", `db@15-m\x2dn.service`, `db@15-m\x2dn`}; !slices.Equal(u.Main.Words, want) {
		t.Errorf("the command is %q", u.Main.Words)
	}
	if u.User != "three" || u.Group != "two" || u.Umask != 0o077 {
		t.Errorf("%+v", u)
	}
	if u, err := Load(root, "db@other.service"); err != nil || u.Main.Words[0] != "/bin/other" || u.User != "two" {
		t.Errorf("%+v, %v", u, err)
	}
	for _, name := range []string{"db@.service", "db.service", `db@\x2.service`, `db@\y20.service`} {
		if u, err := Load(root, name); err == nil {
			t.Errorf("%s is %+v", name, u)
		}
	}
}

// TestGiven: further settings that a service has without systemd.
func TestGiven(t *testing.T) {
	u, err := Load(tree("[Service]\nExecCondition=/bin/is a\nExecStart=/bin/a %H\nPrivateUsers=yes\nAmbientCapabilities=CAP_CHOWN CAP_NET_RAW\n"+
		"BindPaths=/a\nBindPaths=-/b:/c:rbind\nBindReadOnlyPaths=/dev/log:/d\n"), "a.service")
	host, hostErr := os.Hostname()
	if err != nil || hostErr != nil {
		t.Fatal(err, hostErr)
	}
	if len(u.Conditions) != 1 || u.Conditions[0].Words[1] != "a" || u.Main.Words[1] != host || !slices.Equal(u.Ambient, []int{0, 13}) || !slices.Equal(u.Omitted, []string{"PrivateUsers"}) {
		t.Errorf("%+v", u)
	}
	if want := []Bind{{"/a", "/a", false, false}, {"/b", "/c", true, false}, {"/dev/log", "/d", false, true}}; !slices.Equal(u.Binds, want) {
		t.Errorf("%+v", u.Binds)
	}
}

func TestEnvironment(t *testing.T) {
	root := tree("[Service]\nExecStart=/bin/a $OPTIONS ${A}-$$ $NONE '$A b'\nEnvironment=A=1 \"B=2 3\"\nEnvironmentFile=/etc/default/a\nEnvironmentFile=-/etc/none\n")
	root["etc/default/a"] = &fstest.MapFile{Data: []byte("# options\nOPTIONS=\"-x -y\"\nA=4\n")}
	u, err := Load(root, "a.service")
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment(root)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(env[2:], "|"); got != "A=4|B=2 3|OPTIONS=-x -y" {
		t.Errorf("the environment is %s", got)
	}
	if got := strings.Join(u.Main.Expand(env), "|"); got != "/bin/a|-x|-y|4-$|$A b" {
		t.Errorf("the command is %s", got)
	}
	delete(root, "etc/default/a")
	if env, err := u.Environment(root); err == nil {
		t.Errorf("without a file that must be there the environment is %v", env)
	}
}

// TestDirectories: a service is told of its directories, unless its unit says otherwise.
func TestDirectories(t *testing.T) {
	root := tree("[Service]\nExecStart=/bin/a --data ${STATE_DIRECTORY}\nEnvironment=CACHE_DIRECTORY=/tmp\nStateDirectory=a\nRuntimeDirectory=%N b/c\nCacheDirectory=a\n")
	u, err := Load(root, "a.service")
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"STATE_DIRECTORY=/var/lib/a", "RUNTIME_DIRECTORY=/run/a:/run/b/c", "CACHE_DIRECTORY=/tmp"}; !slices.Equal(env[2:], want) {
		t.Errorf("the environment is %q", env)
	}
	if got := u.Main.Expand(env); !slices.Equal(got, []string{"/bin/a", "--data", "/var/lib/a"}) {
		t.Errorf("the command is %q", got)
	}
}

// FuzzLoad: a unit that is accepted has a command, and the environment does not change its first word.
func FuzzLoad(f *testing.F) {
	f.Add(lighttpd, "A=1\n")
	f.Add("[Service]\nExecStart=/bin/a \"b \\\" c\" ${X} $Y\nEnvironment=X=%n\nEnvironmentFile=-/e\n", "Y='1 2'\n")
	f.Fuzz(func(t *testing.T, text, env string) {
		root := tree(text)
		root["e"] = &fstest.MapFile{Data: []byte(env)}
		u, err := Load(root, "a.service")
		if err != nil {
			return
		}
		if len(u.Main.Words) == 0 {
			t.Fatal("no command")
		}
		for _, d := range u.Dirs {
			if slices.Contains(strings.Split(d.Path, "/"), "..") {
				t.Fatalf("a directory is %s", d.Path)
			}
		}
		all, err := u.Environment(root)
		if err != nil {
			return
		}
		if words := u.Main.Expand(all); words[0] != u.Main.Words[0] {
			t.Fatalf("the command became %q", words)
		}
	})
}
