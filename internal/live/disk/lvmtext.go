package disk

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// section is a part of LVM's text (lvm.conf(5), "Syntax"). Its values are int64, string, []any and section.
type section map[string]any

// Bounds on LVM's text, whose content may be anything.
const (
	maxText   = 16 << 20
	maxDepth  = 8
	maxValues = 1 << 20
)

// parseText reads LVM's text.
func parseText(text string) (section, error) {
	p := &textParser{rest: text}
	s, err := p.section(0)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", 1+strings.Count(text[:len(text)-len(p.rest)], "\n"), err)
	}
	return s, nil
}

type textParser struct {
	rest   string
	values int
}

// next skips white space and comments, and returns the byte that follows, or 0 at the end.
func (p *textParser) next() byte {
	for {
		p.rest = strings.TrimLeft(p.rest, " \t\r\n")
		if p.rest == "" {
			return 0
		}
		if p.rest[0] != '#' {
			return p.rest[0]
		}
		_, p.rest, _ = strings.Cut(p.rest, "\n")
	}
}

// take skips c, if it is next.
func (p *textParser) take(c byte) bool {
	if p.next() != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// word takes everything up to the next byte with a meaning of its own.
func (p *textParser) word() (string, error) {
	p.next()
	n := strings.IndexAny(p.rest, " \t\r\n={}[]\"#,")
	if n < 0 {
		n = len(p.rest)
	}
	if n == 0 {
		return "", errors.New("a name or a number is missing")
	}
	if p.values++; p.values > maxValues {
		return "", fmt.Errorf("more than %d values", maxValues)
	}
	w := p.rest[:n]
	p.rest = p.rest[n:]
	return w, nil
}

// section reads a section up to its end, which is that of the text at depth 0.
func (p *textParser) section(depth int) (section, error) {
	if depth > maxDepth {
		return nil, errors.New("sections are nested too deep")
	}
	s := make(section)
	for {
		switch c := p.next(); {
		case c == 0 && depth == 0, depth > 0 && p.take('}'):
			return s, nil
		case c == 0:
			return nil, errors.New("a section does not end")
		}
		name, err := p.word()
		if err != nil {
			return nil, err
		}
		if _, twice := s[name]; twice {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		switch {
		case p.take('{'):
			s[name], err = p.section(depth + 1)
		case p.take('='):
			s[name], err = p.value(0)
		default:
			err = fmt.Errorf("%q has no value", name)
		}
		if err != nil {
			return nil, err
		}
	}
}

// value reads a value. Arrays, of depth 1, have no arrays in them.
func (p *textParser) value(depth int) (any, error) {
	switch {
	case p.take('"'):
		return p.text()
	case depth == 0 && p.take('['):
		all := []any{}
		for !p.take(']') {
			if len(all) > 0 && !p.take(',') {
				return nil, errors.New("a comma is missing in an array")
			}
			v, err := p.value(1)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	}
	w, err := p.word()
	if err != nil {
		return nil, err
	}
	return strconv.ParseInt(w, 10, 64)
}

// text reads a string up to its end. A backslash stands before a quote or a backslash in it.
func (p *textParser) text() (string, error) {
	if p.values++; p.values > maxValues {
		return "", fmt.Errorf("more than %d values", maxValues)
	}
	var out strings.Builder
	for i := 0; i < len(p.rest); i++ {
		c := p.rest[i]
		switch {
		case c == '"':
			p.rest = p.rest[i+1:]
			return out.String(), nil
		case c == '\\' && i+1 < len(p.rest):
			i++
			c = p.rest[i]
		}
		out.WriteByte(c)
	}
	return "", errors.New("a string does not end")
}

// section returns the section of that name, which is empty if there is none.
func (s section) section(name string) section {
	sub, _ := s[name].(section)
	return sub
}

// number returns the number of that name. It fails if there is none, or if it is negative.
func (s section) number(name string) (int64, error) {
	n, ok := s[name].(int64)
	if !ok || n < 0 {
		return 0, fmt.Errorf("%s is %v, which is no size or number", name, s[name])
	}
	return n, nil
}

// has reports whether the array of that name has a string.
func (s section) has(name, want string) bool {
	all, _ := s[name].([]any)
	for _, v := range all {
		if v == want {
			return true
		}
	}
	return false
}
