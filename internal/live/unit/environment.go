package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// defaultPath is the PATH that a service has by default (systemd.exec(5), "$PATH").
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment returns the service's environment: NAME=VALUE, one for each name. The last
// assignment to a name wins, and those in files win over those in the unit.
func (u *Unit) Environment(root fs.FS) ([]string, error) {
	all := append([]string{defaultPath, "LANG=C.UTF-8"}, u.Env...)
	for _, f := range u.EnvFiles {
		text, err := fs.ReadFile(root, strings.TrimPrefix(f.Path, "/"))
		if errors.Is(err, os.ErrNotExist) && f.Optional {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the environment of %s: %w", u.Name, err)
		}
		more, err := parseEnvironment(string(text))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", f.Path, err)
		}
		all = append(all, more...)
	}
	at := make(map[string]int)
	var out []string
	for _, e := range all {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("the environment of %s has no assignment in %.40q", u.Name, e)
		}
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out, nil
}

// parseEnvironment reads a file of assignments, one a line (systemd.exec(5),
// EnvironmentFile=). A value that is partly quoted, or goes on in the next line, is refused.
func parseEnvironment(text string) ([]string, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has %d bytes, and at most %d are read", len(text), maxFile)
	}
	var out []string
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: no assignment", n+1)
		}
		value = strings.TrimSpace(value)
		if q := strings.TrimLeft(value, `"'`); len(q) == len(value)-1 && len(value) > 1 && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		if strings.ContainsAny(value, "\"'\\") {
			return nil, fmt.Errorf("line %d: a quote or a backslash inside of a value is not understood here", n+1)
		}
		out = append(out, strings.TrimSpace(name)+"="+value)
	}
	return out, nil
}

// Expand puts the environment into the words of a command (systemd.service(5), "COMMAND
// LINES"): ${NAME} is replaced within its word, and a word that is $NAME becomes the words of its value.
func (c Command) Expand(env []string) []string {
	get := func(name string) string {
		for _, e := range env {
			if n, v, _ := strings.Cut(e, "="); n == name {
				return v
			}
		}
		return ""
	}
	out := []string{c.Words[0]}
	for _, w := range c.Words[1:] {
		if name, ok := strings.CutPrefix(w, "$"); ok && isName(name) {
			out = append(out, strings.Fields(get(name))...)
			continue
		}
		out = append(out, expand(w, get))
	}
	return out
}

func expand(w string, get func(string) string) string {
	var out strings.Builder
	for w != "" {
		before, after, ok := strings.Cut(w, "$")
		out.WriteString(before)
		if !ok {
			break
		}
		if rest, ok := strings.CutPrefix(after, "$"); ok {
			out.WriteByte('$')
			w = rest
			continue
		}
		if inner, ok := strings.CutPrefix(after, "{"); ok {
			if name, rest, ok := strings.Cut(inner, "}"); ok && isName(name) {
				out.WriteString(get(name))
				w = rest
				continue
			}
		}
		out.WriteByte('$')
		w = after
	}
	return out.String()
}

func isName(s string) bool {
	for i, c := range s {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
