package pair

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// reader walks the nodes of a file, collecting the problems it meets and the
// lines of the keys.
type reader struct {
	pair     *Pair
	dir      string // relative paths start here
	problems []error
}

// refuse records a problem with the key at the line of node.
func (r *reader) refuse(node *yaml.Node, key, hint, format string, args ...any) {
	p := &Problem{File: r.pair.file, Key: key, What: fmt.Sprintf(format, args...), Hint: hint}
	if node != nil {
		p.Line = node.Line
	}
	r.problems = append(r.problems, p)
}

// field is a key that a mapping may have, and what reads its value.
type field struct {
	key      string
	required bool
	read     func(node *yaml.Node, key string)
}

// mapping reads a mapping whose keys are fields, each at most once.
func (r *reader) mapping(node *yaml.Node, key string, fields ...field) {
	if !r.is(node, key, yaml.MappingNode) {
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		at := slices.IndexFunc(fields, func(f field) bool { return f.key == name.Value })
		if name.Kind != yaml.ScalarNode || at < 0 {
			r.refuse(name, key, suggest(name.Value, fields), "unknown key %q", name.Value)
			continue
		}
		if line, ok := seen[name.Value]; ok {
			r.refuse(name, join(key, name.Value), "remove one of the two", "given again; first on line %d", line)
			continue
		}
		seen[name.Value] = name.Line
		r.pair.lines[join(key, name.Value)] = name.Line
		fields[at].read(value, join(key, name.Value))
	}
	for _, f := range fields {
		if _, ok := seen[f.key]; f.required && !ok {
			r.refuse(node, key, "add it", "key %q is missing", f.key)
		}
	}
}

// sequence reads a sequence, one call per item.
func (r *reader) sequence(node *yaml.Node, key string, read func(node *yaml.Node, key string)) {
	if !r.is(node, key, yaml.SequenceNode) {
		return
	}
	for i, item := range node.Content {
		at := join(key, strconv.Itoa(i))
		r.pair.lines[at] = item.Line
		read(item, at)
	}
}

var kindNames = map[yaml.Kind]string{
	yaml.MappingNode:  "a mapping (key: value)",
	yaml.SequenceNode: "a list",
	yaml.ScalarNode:   "a single value",
	yaml.AliasNode:    "an alias",
}

// is reports whether node has a kind, and records a problem if not.
func (r *reader) is(node *yaml.Node, key string, kind yaml.Kind) bool {
	switch {
	case node.Kind == yaml.AliasNode:
		r.refuse(node, key, "write the value out", "aliases are not supported")
	case node.Kind != kind:
		r.refuse(node, key, "see the example in the README", "this is %s, and must be %s", kindNames[node.Kind], kindNames[kind])
	default:
		return true
	}
	return false
}

// scalar returns the text of a value that is there and holds no control
// characters but, if multiline, newlines and tabs.
func (r *reader) scalar(node *yaml.Node, key string, multiline bool) (string, bool) {
	if !r.is(node, key, yaml.ScalarNode) {
		return "", false
	}
	if node.ShortTag() == "!!null" {
		r.refuse(node, key, "give one, or remove the key", "has no value")
		return "", false
	}
	bad := func(c rune) bool {
		return unicode.IsControl(c) && !(multiline && (c == '\n' || c == '\t'))
	}
	if !utf8.ValidString(node.Value) || strings.ContainsFunc(node.Value, bad) {
		r.refuse(node, key, "remove it", "has a control character in %q", node.Value)
		return "", false
	}
	return node.Value, true
}

// text, name, path and choice make fields of string values.

func (r *reader) text(name string, to *string) field {
	return field{key: name, read: func(node *yaml.Node, key string) {
		if s, ok := r.scalar(node, key, false); ok {
			*to = s
		}
	}}
}

// namePattern is what may become part of a path or of a device id.
var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

const (
	nameHint = "use a-z, 0-9 and -, at most 32 characters, not beginning with -"
	maxName  = 32
)

func validName(s string) bool { return namePattern.MatchString(s) && len(s) <= maxName }

// name reads the name of something.
func (r *reader) name(to *string) field {
	return field{key: "name", required: true, read: func(node *yaml.Node, key string) {
		s, ok := r.scalar(node, key, false)
		if !ok {
			return
		}
		if !validName(s) {
			r.refuse(node, key, nameHint, "%q is not a valid name", s)
			return
		}
		*to = s
	}}
}

func (r *reader) path(name string, required bool, to *string) field {
	return field{key: name, required: required, read: func(node *yaml.Node, key string) {
		s, ok := r.scalar(node, key, false)
		if !ok {
			return
		}
		if s == "" {
			r.refuse(node, key, "name a file", "is empty")
			return
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(r.dir, s)
		}
		*to = filepath.Clean(s)
	}}
}

func choice[T ~string](r *reader, name string, required bool, to *T, options ...T) field {
	return field{key: name, required: required, read: func(node *yaml.Node, key string) {
		s, ok := r.scalar(node, key, false)
		if !ok {
			return
		}
		if !slices.Contains(options, T(s)) {
			r.refuse(node, key, fmt.Sprintf("use one of %v", options), "%q is not known", s)
			return
		}
		*to = T(s)
	}}
}

// parsed makes a field of a value that parse understands. hint says how to
// write one.
func parsed[T any](r *reader, name string, required bool, to *T, hint string, parse func(string) (T, error)) field {
	return field{key: name, required: required, read: func(node *yaml.Node, key string) {
		s, ok := r.scalar(node, key, false)
		if !ok {
			return
		}
		v, err := parse(s)
		if err != nil {
			r.refuse(node, key, hint, "%v", err)
			return
		}
		*to = v
	}}
}

// suggest returns the hint for an unknown key.
func suggest(name string, fields []field) string {
	best, distance := "", 3 // further than 2 edits is not a typing error
	var known []string
	for _, f := range fields {
		known = append(known, f.key)
		if d := editDistance(name, f.key); d < distance && d < len(f.key) {
			best, distance = f.key, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known here: " + strings.Join(known, ", ")
}

// editDistance is Levenshtein's distance in bytes; for long names it is maxName, which is far.
func editDistance(a, b string) int {
	if len(a) > maxName || len(b) > maxName {
		return maxName
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// join extends the path of a key.
func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}
