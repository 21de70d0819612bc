// Package unit reads systemd services well enough to start them without systemd: their
// commands, environment, user and directories. A setting that it cannot carry out, and that
// the service may depend on, is refused by name; one that is only left out is reported.
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
	Name       string
	Conditions []Command // it is not to start if one of them fails (ExecCondition=)
	Before     []Command // run one after the other before it (ExecStartPre=)
	Main       Command
	Forks      bool      // Main ends, and the processes that it leaves are the service (Type=forking)
	PIDFile    string    // the service that Main leaves writes its process id there; empty: it does not
	Stop       []Command // end a service that forks, one after the other (ExecStop=)
	Ambient    []int     // capabilities that its user has
	Binds      []Bind
	Env        []string // NAME=VALUE
	EnvFiles   []File
	User       string // empty: root
	Group      string // empty: the user's
	Groups     []string
	Dir        string      // to run in; empty: the root directory
	Umask      os.FileMode // of the files that it makes
	Dirs       []Dir       // made before it starts
	Files      uint64      // how many it may have open (LimitNOFILE=); 0: as many as the kernel gives
	Omitted    []string    // settings that are not carried out: sandboxes, limits
}

// Command is a command line. In its words, except the first, $NAME and ${NAME} stand for
// variables of the environment.
type Command struct {
	Words  []string
	Ignore bool // its failure is ignored
	Root   bool // it runs as root, whatever the user of the service is
}

// File is a file of the environment.
type File struct {
	Path     string
	Optional bool // it may be absent
}

// Bind is a part of the file system that the service sees at another path, too.
type Bind struct {
	From, To string
	Optional bool // it may be absent
	ReadOnly bool
}

// Dir is a directory of the service's own, which belongs to its user.
type Dir struct {
	Path string
	Mode os.FileMode
}

// places are the directories of a root file system that have units; the first one that has a unit
// wins (systemd.unit(5), "UNIT FILE LOAD PATH"). What is in /run is lost with the kernel.
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
	base, ok := strings.CutSuffix(name, ".service")
	if !ok || base == "" || base[0] == '@' || strings.Contains(name, "/") {
		return nil, errors.New("it is not the name of a service")
	}
	if strings.HasSuffix(base, "@") {
		return nil, errors.New("it is a template: name a service that is made of it, such as postgresql@15-main.service")
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

// read returns the settings of a unit and of its drop-ins.
func read(root fs.FS, name string) ([]setting, error) {
	files, err := filesOf(root, name)
	if err != nil {
		return nil, err
	}
	var all []setting
	for i, f := range files {
		switch target, err := fs.ReadLink(root, f); {
		case err != nil: // not a symbolic link
		case target == "/dev/null" && i > 0:
			continue // drop-ins of that name in other directories do not count
		case target == "/dev/null":
			return nil, errors.New("it is masked")
		case i == 0 && path.Base(target) != name && path.Base(target) != template(name): // the unit may have drop-ins by that other name
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

// template returns the template of a service whose name has an instance in it, as in template@instance.service; for other services,
// their own name.
func template(name string) string {
	prefix, _, ok := strings.Cut(name, "@")
	if !ok {
		return name
	}
	return prefix + "@.service"
}

// dropIns returns the directories of the drop-ins of a service (systemd.unit(5)): those for all services, for each
// prefix of its name that ends in a dash, and for its template, and its own. The last one with a drop-in of a name wins.
func dropIns(name string) []string {
	dirs := []string{"service.d"}
	prefix, _, instance := strings.Cut(name, "@")
	for i, c := range prefix {
		if c == '-' {
			dirs = append(dirs, prefix[:i+1]+".service.d")
		}
	}
	if instance {
		dirs = append(dirs, template(name)+".d")
	}
	return append(dirs, name+".d")
}

// filesOf returns the unit's file, and then its drop-ins in the order of their names.
func filesOf(root fs.FS, name string) ([]string, error) {
	var main string
	for _, n := range []string{template(name), name} {
		for _, dir := range slices.Backward(places) {
			if _, err := fs.Lstat(root, path.Join(dir, n)); err == nil {
				main = path.Join(dir, n)
			}
		}
	}
	drop := make(map[string]string) // by name
	for _, dir := range slices.Backward(places) {
		for _, of := range dropIns(name) {
			found, err := fs.ReadDir(root, path.Join(dir, of))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			for _, f := range found {
				if strings.HasSuffix(f.Name(), ".conf") {
					drop[f.Name()] = path.Join(dir, of, f.Name())
				}
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
