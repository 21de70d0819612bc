package unit

import (
	"fmt"
	"strings"
)

// setting is one assignment of a unit file's section [Service].
type setting struct{ key, value string }

// maxFile bounds a unit file, in bytes, and maxSettings the settings in all files of a unit.
const (
	maxFile     = 1 << 20
	maxSettings = 1 << 12
)

// parse reads the section [Service] of a unit file (systemd.syntax(7)).
func parse(text string) ([]setting, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has %d bytes, and at most %d are read", len(text), maxFile)
	}
	var out []setting
	section, whole := "", ""
	for n, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue // even in the middle of a continued line
		}
		if rest, ok := strings.CutSuffix(trimmed, `\`); ok {
			whole += rest + " "
			continue
		}
		trimmed, whole = strings.TrimSpace(whole+trimmed), ""
		if trimmed == "" {
			continue
		}
		if name, ok := strings.CutPrefix(trimmed, "["); ok {
			if section, ok = strings.CutSuffix(name, "]"); !ok {
				return nil, fmt.Errorf("line %d: a section header without its ]", n+1)
			}
			continue
		}
		key, value, ok := strings.Cut(trimmed, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: no assignment: %.40q", n+1, trimmed)
		}
		if section == "Service" {
			out = append(out, setting{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	if whole != "" {
		return nil, fmt.Errorf("its last line ends in a backslash, and no line follows")
	}
	return out, nil
}

// split splits a value into words, as systemd does with command lines and environments
// (systemd.syntax(7), "Quoting"). It knows the escapes of C that have no number.
func split(value string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false // a word has begun
	var quote byte
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\':
			if i++; i == len(value) {
				return nil, fmt.Errorf("a backslash at the end of %.40q", value)
			}
			at := strings.IndexByte(`abfnrtv\"'s`, value[i])
			if at < 0 {
				return nil, fmt.Errorf(`the escape \%c of %.40q is not known here`, value[i], value)
			}
			word.WriteByte("\a\b\f\n\r\t\v\\\"' "[at])
			in = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote without its end in %.40q", value)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
