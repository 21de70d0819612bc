// Package unit reads services of systemd well enough to start them without it: their
// commands, environment, user and directories. What it cannot do, and the service may
// depend on, it refuses by name; what it only leaves out, it tells.
package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Unit is a service.
type Unit struct {
	Name     string
	Before   []Command // run one after the other before it (ExecStartPre=)
	Main     Command
	Env      []string // NAME=VALUE
	EnvFiles []File
	User     string // empty: root
	Group    string // empty: the user's
	Groups   []string
	Dir      string      // to run in; empty: the root directory
	Umask    os.FileMode // of the files that it makes
	Dirs     []Dir       // made before it starts
	Files    uint64      // how many it may have open (LimitNOFILE=); 0: as many as the kernel gives
	Omitted  []string    // settings that are not carried out: sandboxes, limits
}

// Command is a command line. In its words, but the first, $NAME and ${NAME} stand for the
// environment.
type Command struct {
	Words  []string
	Ignore bool // that it fails is no failure
	Root   bool // it runs as root whatever the user is
}

// File is a file of the environment.
type File struct {
	Path     string
	Optional bool // it may be absent
}

// Dir is a directory of the service's own, which belongs to its user.
type Dir struct {
	Path string
	Mode os.FileMode
}

// places are where a root file system has units, the first counts (systemd.unit(5), "UNIT
// FILE LOAD PATH"). What is in /run goes with the kernel.
var places = []string{"etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// Load reads a service of a root file system.
func Load(root fs.FS, name string) (*Unit, error) {
	u, err := load(root, name)
	if err != nil {
		return nil, fmt.Errorf("read unit %s: %w", name, err)
	}
	return u, nil
}

func load(root fs.FS, name string) (*Unit, error) {
	if base, ok := strings.CutSuffix(name, ".service"); !ok || base == "" || strings.ContainsAny(name, "/@") {
		return nil, errors.New("it is not the name of a service, or of one made of a template, which cannot be started without systemd")
	}
	settings, err := read(root, name)
	if err != nil {
		return nil, err
	}
	u := &Unit{Name: name, Umask: 0o022}
	r := reader{unit: u, kind: "simple", modes: make(map[string]os.FileMode)}
	for _, s := range settings {
		if err := r.set(s); err != nil {
			return nil, fmt.Errorf("%s=%.80s: %w", s.key, s.value, err)
		}
	}
	return u, r.finish()
}

// read gives the settings of a unit and of what is dropped in.
func read(root fs.FS, name string) ([]setting, error) {
	files, err := filesOf(root, name)
	if err != nil {
		return nil, err
	}
	var all []setting
	for i, f := range files {
		switch target, err := fs.ReadLink(root, f); {
		case err != nil: // no link
		case target == "/dev/null" && i > 0:
			continue // what another directory drops in does not count
		case target == "/dev/null":
			return nil, errors.New("it is masked")
		case i == 0 && path.Base(target) != name: // there may be drop-ins of that name
			return nil, fmt.Errorf("it is another name of %s: give that", path.Base(target))
		}
		text, err := fs.ReadFile(root, f)
		if err != nil {
			return nil, err
		}
		more, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", f, err)
		}
		if all = append(all, more...); len(all) > maxSettings {
			return nil, fmt.Errorf("it has more than %d settings", maxSettings)
		}
	}
	return all, nil
}

// dropIns are the directories of what is dropped in to a service (systemd.unit(5)): those of all services, of each
// beginning of its name that ends in a dash, and its own, the last of which counts.
func dropIns(name string) []string {
	dirs := []string{"service.d"}
	for i, c := range name {
		if c == '-' {
			dirs = append(dirs, name[:i+1]+".service.d")
		}
	}
	return append(dirs, name+".d")
}

// filesOf are the unit's file, and the drop-ins in the order of their names.
func filesOf(root fs.FS, name string) ([]string, error) {
	var main string
	drop := make(map[string]string) // by name
	for _, dir := range slices.Backward(places) {
		if _, err := fs.Lstat(root, path.Join(dir, name)); err == nil {
			main = path.Join(dir, name)
		}
		for _, of := range dropIns(name) {
			found, err := fs.Glob(root, path.Join(dir, of, "*.conf"))
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				drop[path.Base(f)] = f
			}
		}
	}
	if main == "" {
		return nil, errors.New("there is no such unit")
	}
	files := []string{main}
	names := make([]string, 0, len(drop))
	for n := range drop {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		files = append(files, drop[n])
	}
	return files, nil
}

// parseBool reads a boolean (systemd.syntax(7)).
func parseBool(value string) bool {
	return slices.Contains([]string{"1", "yes", "true", "on"}, strings.ToLower(value))
}

// parseMode reads an octal mode.
func parseMode(value string) (os.FileMode, error) {
	v, err := strconv.ParseUint(value, 8, 12)
	return os.FileMode(v), err
}
