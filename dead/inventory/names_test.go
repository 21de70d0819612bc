package inventory

import (
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

func TestNamer(t *testing.T) {
	long := strings.Repeat("x", 300)
	type file struct {
		path, want string
	}
	for name, files := range map[string][]file{
		"plain":            {{"a/b", "vda/a/b"}, {"a/c", "vda/a/c"}, {"d", "vda/d"}},
		"not UTF-8":        {{"\xff\xfe", "vda/\xff\xfe"}},
		"no path":          {{"", "vda/.inode/7-9"}},
		"no path twice":    {{"", "vda/.inode/7-9"}, {"", "vda/.inode/7-9-1"}},
		"up":               {{"../../etc/passwd", "vda/%2E%2E/%2E%2E/etc/passwd"}},
		"here":             {{"./a", "vda/%2E/a"}},
		"absolute":         {{"/etc/passwd", "vda/etc/passwd"}},
		"nothing between":  {{"a//b", "vda/a/%/b"}},
		"zero byte":        {{"a\x00b", "vda/a%00b"}},
		"twice":            {{"a", "vda/a"}, {"a", "vda/.inode/7-9"}},
		"below a file":     {{"a", "vda/a"}, {"a/b", "vda/.inode/7-9"}},
		"above a file":     {{"a/b", "vda/a/b"}, {"a", "vda/.inode/7-9"}},
		"our directory":    {{".inode", "vda/.inode/7-9"}, {"", "vda/.inode/7-9-1"}},
		"in our directory": {{".inode/7-9", "vda/.inode/7-9"}, {"", "vda/.inode/7-9-1"}},
		"escaped alike":    {{"a\x00", "vda/a%00"}, {"a%00", "vda/.inode/7-9"}},
		"overlong":         {{long, "vda/" + component(long)}, {long + "y", "vda/" + component(long+"y")}},
	} {
		n := NewNamer()
		for _, f := range files {
			if got := n.Name("vda", f.path, 7, 9); got != f.want {
				t.Errorf("%s: %q is %q, not %q", name, f.path, got, f.want)
			}
		}
	}
}

// FuzzNamer takes lines as paths. Whatever they are, names stay below the top, are
// unique, and none is a directory in another.
func FuzzNamer(f *testing.F) {
	for _, seed := range []string{"a/b\na", "../x\n..\n.", "\x00\n/\n//\n.inode\n.inode/1-2", strings.Repeat("a", 256), strings.Repeat("../", 2000)} {
		f.Add("vda", seed)
	}
	f.Add("..", "x")
	f.Add("", "x")
	f.Add("a/b", "x")
	f.Fuzz(func(t *testing.T, top, lines string) {
		n := NewNamer()
		files, dirs := make(map[string]bool), make(map[string]bool)
		for i, line := range strings.Split(lines, "\n") {
			name := n.Name(top, line, addr.Ino(i%3), 2)
			if !filepath.IsLocal(name) || strings.Contains(name, "\x00") || filepath.Clean(name) != name {
				t.Fatalf("%q is named %q", line, name)
			}
			if files[name] {
				t.Fatalf("%q is named %q, as another", line, name)
			}
			files[name] = true
			parts := strings.Split(name, "/")
			if len(parts) < 2 || parts[0] != component(top) {
				t.Fatalf("%q is named %q, outside of %q", line, name, top)
			}
			for j, part := range parts {
				if len(part) > 255 || part == "" || part == "." || part == ".." {
					t.Fatalf("%q is named %q", line, name)
				}
				if j > 0 {
					dirs[strings.Join(parts[:j], "/")] = true
				}
			}
		}
		for dir := range dirs {
			if files[dir] {
				t.Fatalf("%q is a file and a directory", dir)
			}
		}
	})
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, path string
		want          bool
	}{
		{"*.log", "var/log/a.log", true},
		{"*.log", "var/log/a.txt", false},
		{"var/*.log", "var/a.log", true},
		{"var/*.log", "var/log/a.log", false},
		{"var/**", "var/log/a.log", true},
		{"var/**/a.log", "var/a.log", true},
		{"var/**/b.log", "var/a.log", false},
		{"**/log/*", "var/x/log/a", true},
		{"**", "x/y", true},
		{"/var/a", "var/a", true},
		{".inode/*", ".inode/12-3", true},
		{"a/**/b/**/c", "a/1/b/2/3/c", true},
		{"a/**/b/**/c", "a/1/2/3/c", false},
	} {
		accept, err := Glob(tc.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := accept(tc.path); got != tc.want {
			t.Errorf("%s accepts %s: %v", tc.pattern, tc.path, got)
		}
	}
	if _, err := Glob("["); err == nil {
		t.Error("a pattern that is none is taken")
	}
}

// TestPrintable checks that no name affects a terminal, or looks like a quoted one.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"a b": "a b", "ä": "ä", "\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`, "a\nb": `"a\nb"`, " a": `" a"`, "\u202e": `"\u202e"`, `"a"`: `"\"a\""`,
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q is %s, not %s", in, got, want)
		}
	}
}
