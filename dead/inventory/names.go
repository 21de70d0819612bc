package inventory

import (
	"fmt"
	"hash/fnv"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// NoPath is the directory of files without a path, at the top of each file
// system.
const NoPath = ".inode"

// Manifest is the name of the file, next to the file systems, that describes them all.
const Manifest = "manifest.json"

// maxComponent is the longest name of a file, in bytes (NAME_MAX).
const maxComponent = 255

// component makes one name of a path harmless: it cannot lead to another directory,
// and any file system of Linux can hold it. Most names stay as they are.
func component(name string) string {
	switch name {
	case "":
		return "%"
	case ".", "..":
		return strings.Repeat("%2E", len(name))
	}
	if strings.ContainsAny(name, "/\x00") {
		name = strings.NewReplacer("/", "%2F", "\x00", "%00").Replace(name)
	}
	if len(name) > maxComponent {
		h := fnv.New64a()
		h.Write([]byte(name)) // never fails
		name = fmt.Sprintf("%s~%016x", name[:maxComponent-17], h.Sum64())
	}
	return name
}

func split(path string) []string { return strings.Split(strings.Trim(path, "/"), "/") }

// Namer gives files of a dead kernel names in a directory tree. Whatever the
// kernel's memory says, no two files get the same name, no name is a directory in
// another, and each is a relative path of harmless components.
type Namer struct {
	taken map[string]bool // true for a file, false for a directory
	dir   string          // of the name taken last
}

// NewNamer returns a namer that has given no names.
func NewNamer() *Namer { return &Namer{taken: make(map[string]bool)} }

// Name returns a name below top for a file.
func (n *Namer) Name(top, path string, ino addr.Ino, generation uint32) string {
	if name, ok := n.Link(top, path); ok {
		return name
	}
	for try := 0; ; try++ {
		last := fmt.Sprintf("%d-%d", ino, generation)
		if try > 0 {
			last = fmt.Sprintf("%s-%d", last, try)
		}
		if name, ok := n.take([]string{component(top), NoPath, last}); ok {
			return name
		}
	}
}

// Link returns a name below top for another path of a file, unless it is taken.
func (n *Namer) Link(top, path string) (string, bool) {
	if path == "" {
		return "", false
	}
	parts := []string{component(top)}
	for _, part := range split(path) {
		parts = append(parts, component(part))
	}
	return n.take(parts)
}

// Links returns names for those of some paths that are not taken.
func (n *Namer) Links(top string, paths []string) []string {
	var out []string
	for _, path := range paths {
		if name, ok := n.Link(top, path); ok {
			out = append(out, name)
		}
	}
	return out
}

// take takes a name, if it and its directories are free.
func (n *Namer) take(parts []string) (string, bool) {
	name := strings.Join(parts, "/")
	if _, taken := n.taken[name]; taken {
		return "", false
	}
	if name == parts[0]+"/"+NoPath {
		return "", false
	}
	dir := name[:len(name)-1-len(parts[len(parts)-1])]
	if dir != n.dir { // else its directories are taken already
		if !n.takeDirs(name, len(parts[0])) {
			return "", false
		}
		n.dir = dir
	}
	n.taken[name] = true
	return name, true
}

// takeDirs takes the directories of a name, from the one that ends at first on, if none
// is a file.
func (n *Namer) takeDirs(name string, first int) bool {
	for end := first; end < len(name); end++ {
		if name[end] == '/' && n.taken[name[:end]] {
			return false
		}
	}
	for end := first; end < len(name); end++ {
		if name[end] == '/' {
			n.taken[name[:end]] = false
		}
	}
	return true
}
