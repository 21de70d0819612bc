package bare

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/unit"
)

// Enter becomes a service of the root file system that was taken over: a command, or the one
// of a unit, whose name ends in .service. It returns only an error.
func Enter(args []string) error {
	if err := errors.Join(unix.Chroot(rootDir), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter %s: %w", rootDir, err)
	}
	if len(args) == 1 && strings.HasSuffix(args[0], ".service") {
		return becomeUnit(args[0])
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

// becomeUnit does what comes before a unit's command, and becomes that.
func becomeUnit(name string) error {
	root := os.DirFS("/")
	u, err := unit.Load(root, name)
	if err != nil {
		return err
	}
	who, err := identify(u)
	if err != nil {
		return fmt.Errorf("start unit %s: %w", name, err)
	}
	u.Env = append(who.login, u.Env...)
	env, err := u.Environment(root)
	if err != nil {
		return err
	}
	for _, d := range u.Dirs {
		if err := who.own(d); err != nil {
			return fmt.Errorf("start unit %s: %w", name, err)
		}
	}
	if u.Files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: u.Files, Max: u.Files}); err != nil {
			return fmt.Errorf("start unit %s: %w", name, err)
		}
	}
	unix.Umask(int(u.Umask))
	if u.Dir != "" {
		if err := unix.Chdir(u.Dir); err != nil {
			return fmt.Errorf("start unit %s: go to %s: %w", name, u.Dir, err)
		}
	}
	for _, c := range u.Before {
		if err := who.run(c, env); err != nil && !c.Ignore {
			return fmt.Errorf("start unit %s: %s: %w", name, strings.Join(c.Words, " "), err)
		}
	}
	return who.become(u.Main, env)
}

// identity is the user that a unit runs as, and what its environment has of a user that it names
// (systemd.exec(5), "$USER, $LOGNAME, $HOME"): what the unit says itself counts.
type identity struct {
	uid, gid int
	groups   []int
	login    []string
}

// identify finds a unit's user among those of the root file system.
func identify(u *unit.Unit) (id identity, err error) {
	if u.User != "" {
		found, err := user.Lookup(u.User)
		if err != nil {
			if found, err = user.LookupId(u.User); err != nil {
				return id, fmt.Errorf("find user %s: %w", u.User, err)
			}
		}
		all, err := found.GroupIds()
		if err != nil {
			return id, fmt.Errorf("find groups of %s: %w", u.User, err)
		}
		for _, text := range append([]string{found.Uid, found.Gid}, all...) {
			n, err := strconv.Atoi(text)
			if err != nil {
				return id, fmt.Errorf("find user %s: %w", u.User, err)
			}
			id.groups = append(id.groups, n)
		}
		id.uid, id.gid, id.groups = id.groups[0], id.groups[1], id.groups[2:]
		id.login = []string{"USER=" + found.Username, "LOGNAME=" + found.Username}
		if found.HomeDir != "" && found.HomeDir != "/" {
			id.login = append(id.login, "HOME="+found.HomeDir)
		}
	}
	group := func(name string) (int, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			if g, err = user.LookupGroupId(name); err != nil {
				return 0, fmt.Errorf("find group %s: %w", name, err)
			}
		}
		return strconv.Atoi(g.Gid)
	}
	if u.Group != "" {
		if id.gid, err = group(u.Group); err != nil {
			return id, err
		}
	}
	for _, name := range u.Groups {
		g, err := group(name)
		if err != nil {
			return id, err
		}
		id.groups = append(id.groups, g)
	}
	return id, nil
}

// own makes a directory of the unit's, with what is above it, and gives it to its user.
func (id identity) own(d unit.Dir) error {
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(d.Path, d.Mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(os.Chmod(d.Path, d.Mode), os.Lchown(d.Path, id.uid, id.gid))
}

// run runs a command of the unit's to its end.
func (id identity) run(c unit.Command, env []string) error {
	words := c.Expand(env)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stdout, os.Stderr
	if !c.Root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: id.credential()}
	}
	return cmd.Run()
}

func (id identity) credential() *syscall.Credential {
	c := &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.gid)}
	for _, g := range id.groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// become replaces this process.
func (id identity) become(c unit.Command, env []string) error {
	words := c.Expand(env)
	path, err := exec.LookPath(words[0])
	if err != nil {
		return err
	}
	if !c.Root {
		if err := errors.Join(syscall.Setgroups(id.groups), syscall.Setgid(id.gid), syscall.Setuid(id.uid)); err != nil {
			return fmt.Errorf("become user %d: %w", id.uid, err)
		}
	}
	return unix.Exec(path, words, env)
}
