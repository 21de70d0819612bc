package understudy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a page points at: a file of the tree, a test by its name, a target of make.
var (
	link   = regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	named  = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`)
	called = regexp.MustCompile("`make ([a-z][a-z0-9-]*)")
	tests  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	target = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
)

// TestDocs checks that what the pages point at exists. The changelog is left out, since it tells of what was.
func TestDocs(t *testing.T) {
	tree := tracked(t)
	var sources strings.Builder
	for _, f := range tree {
		if strings.HasSuffix(f, "_test.go") {
			sources.Write(content(t, f))
		}
	}
	known := group(tests, sources.String())
	targets := group(target, string(content(t, "Makefile")))
	for _, f := range tree {
		if filepath.Ext(f) != ".md" || f == "CHANGELOG.md" {
			continue
		}
		page := string(content(t, f))
		for _, to := range group(link, page) {
			if to = filepath.Join(filepath.Dir(f), to); strings.Contains(to, ":/") {
				continue
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s points at %s, which is not there", f, to)
			}
		}
		for _, name := range named.FindAllString(page, -1) {
			if !slices.Contains(known, name) {
				t.Errorf("%s names %s, and there is no such test", f, name)
			}
		}
		for _, name := range group(called, page) {
			if !slices.Contains(targets, name) {
				t.Errorf("%s has make %s, and there is no such target", f, name)
			}
		}
	}
}

// tracked returns the files of the tree, as git has them.
func tracked(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files").Output()
	if err != nil {
		t.Skip("no git checkout")
	}
	return strings.Fields(string(out))
}

func content(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// group returns the first group of each match.
func group(what *regexp.Regexp, text string) []string {
	var found []string
	for _, m := range what.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}
