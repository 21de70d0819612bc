package rootdisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// labelName is the extended attribute with a file's label, which ends with a zero byte as setfilecon(3) writes it.
const labelName = "security.selinux"

// labels are those that the SELinux policy of a system has for its files (selabel_file(5)).
type labels struct {
	specs   []labelSpec // the last one that a path matches counts
	aliases [2][]alias  // of file_contexts.subs, and then of file_contexts.subs_dist; the last one counts
}

// labelSpec is a line of file_contexts(5).
type labelSpec struct {
	pattern string // a regular expression for the whole path
	stem    string // what a path must begin with to match
	kind    string // -- for files, -d for directories, others; empty: any
	label   string // <<none>>: no label
}

// alias is a line of file_contexts.subs(5): a path below from has the label of the same path below to.
type alias struct{ from, to string }

// readLabels reads the labels of a system; nil if it has no policy, or SELinux is disabled there.
func readLabels(root *os.Root) (*labels, error) {
	config, err := readOptional(root, selinuxPath)
	if err != nil {
		return nil, err
	}
	mode, policy := selinuxMode(config)
	if mode == "" || strings.EqualFold(mode, "disabled") || !fs.ValidPath(policy) {
		return nil, nil
	}
	files := path.Join(path.Dir(selinuxPath), policy, "contexts/files/file_contexts")
	l := new(labels)
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		text, err := readOptional(root, files+suffix)
		switch {
		case err != nil:
			return nil, err
		case text == "" && suffix == "":
			return nil, nil
		}
		l.add(text)
	}
	slices.SortStableFunc(l.specs, func(a, b labelSpec) int { return exactly(a) - exactly(b) })
	for i, suffix := range []string{".subs", ".subs_dist"} {
		text, err := readOptional(root, files+suffix)
		if err != nil {
			return nil, err
		}
		l.aliases[i] = aliasesOf(text)
	}
	return l, nil
}

// readOptional reads a file, which may not be there.
func readOptional(root *os.Root, name string) (string, error) {
	b, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(b), err
}

// selinuxMode returns what the configuration of SELinux says (selinux_config(5)): the mode, of which the first line counts, empty if
// there is none, and the name of the policy, of which the last line counts.
func selinuxMode(config string) (mode, policy string) {
	policy = "targeted"
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "SELINUX="); ok && mode == "" {
			mode = v
		} else if v, ok := strings.CutPrefix(line, "SELINUXTYPE="); ok {
			policy = v
		}
	}
	return mode, policy
}

// enforces reports whether the configuration of SELinux enforces it. Without a mode the kernel's own default holds, which is
// permissive.
func enforces(config string) bool {
	mode, _ := selinuxMode(config)
	return mode != "" && !strings.EqualFold(mode, "permissive") && !strings.EqualFold(mode, "disabled")
}

// add adds the lines of a file_contexts.
func (l *labels) add(text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || len(f) > 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		s := labelSpec{pattern: f[0], label: f[len(f)-1], stem: f[0]}
		if len(f) == 3 {
			s.kind = f[1]
		}
		if i := strings.IndexAny(s.pattern, `.^$?*+|[({\`); i >= 0 {
			switch s.stem = s.pattern[:i]; s.pattern[i] {
			case '?', '*', '{':
				s.stem = s.pattern[:max(i-1, 0)] // the character before it need not be there
			case '|':
				s.stem = ""
			}
		}
		l.specs = append(l.specs, s)
	}
}

// exactly is 1 for the pattern of a single path, 0 for others: the former count more, wherever they stand.
func exactly(s labelSpec) int {
	escaped := false
	for _, c := range s.pattern {
		if !escaped && strings.ContainsRune(`.^$?*+|[({`, c) {
			return 0
		}
		escaped = !escaped && c == '\\'
	}
	return 1
}

func aliasesOf(text string) (all []alias) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && !strings.HasPrefix(f[0], "#") {
			all = append(all, alias{strings.TrimRight(f[0], "/"), strings.TrimRight(f[1], "/")})
		}
	}
	return all
}

// of returns the label of a file or directory, whose name has no leading slash; empty if it has none.
func (l *labels) of(name string, dir bool) (string, error) {
	if l == nil {
		return "", nil
	}
	at := "/" + name
	for _, aliases := range l.aliases {
		for _, a := range slices.Backward(aliases) {
			if rest, ok := strings.CutPrefix(at, a.from); ok && (rest == "" || rest[0] == '/') {
				at = a.to + rest
				break
			}
		}
	}
	kind := "--"
	if dir {
		kind = "-d"
	}
	for _, s := range slices.Backward(l.specs) {
		if s.kind != "" && s.kind != kind || !strings.HasPrefix(at, s.stem) {
			continue
		}
		pattern, err := regexp.Compile("^(?:" + s.pattern + ")$")
		if err != nil {
			return "", fmt.Errorf("the label of %s: %w", at, err)
		}
		if pattern.MatchString(at) {
			return strings.TrimPrefix(s.label, "<<none>>"), nil
		}
	}
	return "", nil
}

// setLabel gives an open file or directory a label, unless that is empty.
func setLabel(f *os.File, label string) error {
	if label == "" {
		return nil
	}
	if err := unix.Fsetxattr(int(f.Fd()), labelName, append([]byte(label), 0), 0); err != nil {
		return &fs.PathError{Op: "label", Path: f.Name(), Err: err}
	}
	return nil
}

// hasLabel reports whether a file has a label. Any does for an empty one.
func hasLabel(root *os.Root, name, label string) bool {
	if label == "" {
		return true
	}
	f, err := root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, len(label)+2)
	n, err := unix.Fgetxattr(int(f.Fd()), labelName, b)
	return err == nil && strings.TrimSuffix(string(b[:n]), "\x00") == label
}
