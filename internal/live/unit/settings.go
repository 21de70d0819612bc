package unit

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// refused are settings that a service may depend on, and that only systemd can carry out
// (systemd.exec(5), systemd.service(5)).
var refused = []string{
	"RootDirectory", "RootImage", "MountImages", "ExtensionImages", "Sockets",
	"LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential",
	"PAMName", "NetworkNamespacePath", "PassEnvironment", "OpenFile", "PrivateNetwork", "TTYPath",
}

// managed are settings about what systemd does with a service that runs or has ended: the
// agent does that in its own way.
var managed = []string{
	"Restart", "RestartSec", "ExecReload", "ExecStopPost", "ExecStartPost", "KillMode", "KillSignal", "TimeoutSec", "TimeoutStartSec",
	"TimeoutStopSec", "NotifyAccess", "RemainAfterExit", "SuccessExitStatus", "RestartPreventExitStatus", "StandardOutput",
	"StandardError", "SyslogIdentifier", "OOMScoreAdjust", "WatchdogSec", "Slice", "Delegate", "TasksMax", "SendSIGKILL", "RuntimeDirectoryPreserve",
	"OOMPolicy", "GuessMainPID", "BusName", "KeyringMode", "IgnoreSIGPIPE",
}

// homes maps the settings for a service's directories to where the directories are.
var homes = map[string]string{
	"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "LogsDirectory": "/var/log",
}

// reader makes a Unit from its settings.
type reader struct {
	unit  *Unit
	kind  string
	mains []Command
	stops []string               // command lines
	modes map[string]os.FileMode // by setting of homes
	dirs  []struct{ home, path string }
}

func (r *reader) set(s setting) (err error) {
	u := r.unit
	if home, ok := strings.CutSuffix(s.key, "Mode"); ok && homes[home] != "" {
		r.modes[home], err = parseMode(s.value)
		return err
	}
	if homes[s.key] != "" {
		return r.directories(s)
	}
	switch s.key {
	case "Type":
		r.kind = s.value
	case "ExecStart":
		return addCommand(&r.mains, u.Name, s.value)
	case "ExecStop":
		if r.stops = append(r.stops, s.value); s.value == "" {
			r.stops = nil
		}
	case "PIDFile":
		if u.PIDFile, err = specify(s.value, u.Name); u.PIDFile != "" && u.PIDFile[0] != '/' {
			u.PIDFile = "/run/" + u.PIDFile
		}
	case "AmbientCapabilities":
		return addCapabilities(&u.Ambient, s.value)
	case "BindPaths", "BindReadOnlyPaths":
		return addBinds(&u.Binds, s.value, u.Name, s.key == "BindReadOnlyPaths")
	case "ExecCondition":
		return addCommand(&u.Conditions, u.Name, s.value)
	case "ExecStartPre":
		return addCommand(&u.Before, u.Name, s.value)
	case "Environment":
		return addWords(&u.Env, s.value, u.Name)
	case "EnvironmentFile":
		return u.addFile(s.value)
	case "User":
		u.User, err = specify(s.value, u.Name)
	case "Group":
		u.Group, err = specify(s.value, u.Name)
	case "SupplementaryGroups":
		return addWords(&u.Groups, s.value, u.Name)
	case "WorkingDirectory":
		if strings.HasPrefix(s.value, "-") || s.value == "~" {
			return errors.New("only a path is understood here")
		}
		u.Dir, err = specify(s.value, u.Name)
	case "UMask":
		u.Umask, err = parseMode(s.value)
	case "LimitNOFILE":
		_, most, _ := strings.Cut(s.value, ":")
		if most == "" {
			most = s.value
		}
		if most != "infinity" {
			u.Files, err = strconv.ParseUint(most, 10, 32)
		}
	case "DynamicUser":
		if parseBool(s.value) {
			return errors.New("there is no such user without systemd")
		}
	case "StandardInput":
		if s.value != "null" {
			return errors.New("only null is understood here")
		}
	default:
		return r.leave(s)
	}
	return err
}

// leave handles a setting that is not carried out.
func (r *reader) leave(s setting) error {
	switch {
	case s.value == "" || slices.Contains(managed, s.key):
	case slices.Contains(refused, s.key):
		if b := strings.ToLower(s.value); b != "no" && b != "false" && b != "0" && b != "off" {
			return errors.New("this cannot be done without systemd")
		}
	case !slices.Contains(r.unit.Omitted, s.key):
		r.unit.Omitted = append(r.unit.Omitted, s.key)
	}
	return nil
}

func (r *reader) directories(s setting) error {
	var words []string
	if err := addWords(&words, s.value, r.unit.Name); err != nil {
		return err
	}
	for _, w := range words {
		if strings.HasPrefix(w, "/") || strings.ContainsAny(w, ":") || slices.Contains(strings.Split(w, "/"), "..") {
			return fmt.Errorf("%q is no directory below %s", w, homes[s.key])
		}
		r.dirs = append(r.dirs, struct{ home, path string }{s.key, homes[s.key] + "/" + w})
	}
	return nil
}

func (r *reader) finish() error {
	u := r.unit
	if u.Forks = r.kind == "forking"; !u.Forks && !slices.Contains([]string{"simple", "exec", "notify", "notify-reload"}, r.kind) {
		return fmt.Errorf("it is of Type=%s: without systemd, only simple, exec, notify and forking can be started; change its Type= with a drop-in", r.kind)
	}
	if u.Forks {
		for _, line := range r.stops {
			if err := addCommand(&u.Stop, u.Name, line); err != nil {
				return fmt.Errorf("ExecStop=%.80s: %w", line, err)
			}
		}
	}
	if len(r.mains) != 1 {
		return fmt.Errorf("it has %d ExecStart= commands, and must have exactly 1", len(r.mains))
	}
	u.Main = r.mains[0]
	told := make(map[string]string) // the directories that the service is told of, by kind
	for _, d := range r.dirs {
		mode, ok := r.modes[d.home]
		if !ok {
			mode = 0o755
		}
		u.Dirs = append(u.Dirs, Dir{d.path, mode})
		told[d.home] = strings.TrimPrefix(told[d.home]+":"+d.path, ":")
	}
	for _, home := range slices.Sorted(maps.Keys(told)) { // at the beginning: what the unit sets itself wins
		name := strings.ToUpper(strings.TrimSuffix(home, "Directory")) + "_DIRECTORY"
		u.Env = slices.Insert(u.Env, 0, name+"="+told[home])
	}
	return nil
}

// addCommand adds a command line; an empty value removes those before it.
func addCommand(to *[]Command, name, value string) error {
	if value == "" {
		*to = nil
		return nil
	}
	var c Command
	rest := strings.TrimLeft(value, "-@:+!")
	for _, p := range value[:len(value)-len(rest)] {
		switch p {
		case '-':
			c.Ignore = true
		case '+', '!':
			c.Root = true
		default:
			return fmt.Errorf("the prefix %c is not understood here", p)
		}
	}
	if err := addWords(&c.Words, rest, name); err != nil {
		return err
	}
	switch {
	case len(c.Words) == 0:
		return errors.New("no command")
	case slices.Contains(c.Words, ";"):
		return errors.New("more than one command on a line")
	}
	*to = append(*to, c)
	return nil
}

// addWords adds the words of a value; an empty value removes those before it.
func addWords(to *[]string, value, name string) error {
	if value == "" {
		*to = nil
		return nil
	}
	words, err := split(value)
	if err != nil {
		return err
	}
	for _, w := range words {
		if w, err = specify(w, name); err != nil {
			return err
		}
		*to = append(*to, w)
	}
	return nil
}

func (u *Unit) addFile(value string) error {
	if value == "" {
		u.EnvFiles = nil
		return nil
	}
	p, optional := strings.CutPrefix(value, "-")
	if strings.ContainsAny(p, "*?[") {
		return errors.New("a pattern is not understood here")
	}
	p, err := specify(p, u.Name)
	u.EnvFiles = append(u.EnvFiles, File{p, optional})
	return err
}

// addBinds adds parts of the file system that are also seen elsewhere; an empty value removes those before it.
func addBinds(to *[]Bind, value, name string, readOnly bool) error {
	if value == "" {
		*to = nil
		return nil
	}
	var words []string
	if err := addWords(&words, value, name); err != nil {
		return err
	}
	for _, w := range words {
		w, optional := strings.CutPrefix(w, "-")
		parts := strings.SplitN(w, ":", 3) // the third says whether mounts below it are seen, too
		b := Bind{parts[0], parts[len(parts)-1], optional, readOnly}
		if len(parts) > 1 {
			b.To = parts[1]
		}
		if !path.IsAbs(b.From) || !path.IsAbs(b.To) {
			return fmt.Errorf("%q does not name two absolute paths", w)
		}
		*to = append(*to, b)
	}
	return nil
}

// specify replaces the specifiers of the unit's own name and of the system (systemd.unit(5),
// "SPECIFIERS"); others are refused.
func specify(word, name string) (string, error) {
	var out strings.Builder
	base := strings.TrimSuffix(name, ".service")
	prefix, instance, _ := strings.Cut(base, "@")
	for i := 0; i < len(word); i++ {
		if word[i] != '%' {
			out.WriteByte(word[i])
			continue
		}
		if i++; i == len(word) {
			return "", fmt.Errorf("a %% at the end of %.40q", word)
		}
		switch word[i] {
		case '%':
			out.WriteByte('%')
		case 'n':
			out.WriteString(name)
		case 'N':
			out.WriteString(base)
		case 'p':
			out.WriteString(prefix)
		case 'i':
			out.WriteString(instance)
		case 'I':
			plain, err := unescape(instance)
			if err != nil {
				return "", err
			}
			out.WriteString(plain)
		case 'H':
			host, err := os.Hostname()
			if err != nil {
				return "", fmt.Errorf("%%H: %w", err)
			}
			out.WriteString(host)
		case 't':
			out.WriteString("/run")
		case 'S':
			out.WriteString("/var/lib")
		default:
			return "", fmt.Errorf("%%%c is not understood here", word[i])
		}
	}
	return out.String(), nil
}

// unescape undoes the escaping of a string in a unit's name (systemd.unit(5), "STRING ESCAPING FOR INCLUSION IN UNIT NAMES").
func unescape(s string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			out.WriteByte('/')
		case s[i] != '\\':
			out.WriteByte(s[i])
		default:
			c, err := strconv.ParseUint(strings.TrimPrefix(s[i:min(len(s), i+4)], `\x`), 16, 8)
			if err != nil || i+4 > len(s) {
				return "", fmt.Errorf("the escape at the end of %.40q is not one of a unit's name", s[:i+1])
			}
			out.WriteByte(byte(c))
			i += 3
		}
	}
	return out.String(), nil
}
