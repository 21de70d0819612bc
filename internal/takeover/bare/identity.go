package bare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/unit"
)

// identity is the user that a unit runs as, and, if the unit names one, what its environment has of that user
// (systemd.exec(5), "$USER, $LOGNAME, $HOME"). What the unit itself sets takes precedence.
type identity struct {
	uid, gid int
	groups   []int
	login    []string
	ambient  []uintptr // capabilities
}

// identify finds a unit's user among those of the root file system.
func identify(u *unit.Unit) (id identity, err error) {
	for _, c := range u.Ambient {
		id.ambient = append(id.ambient, uintptr(c))
	}
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

// own creates a directory of the unit, with its parents, and makes the unit's user its owner.
func (id identity) own(d unit.Dir) error {
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(d.Path, d.Mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(os.Chmod(d.Path, d.Mode), os.Lchown(d.Path, id.uid, id.gid))
}

// command returns one of the unit's commands, to be run.
func (id identity) command(ctx context.Context, c unit.Command, env []string) *exec.Cmd {
	words := c.Expand(env)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stdout, os.Stderr
	if !c.Root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: id.credential(), AmbientCaps: id.ambient}
	}
	return cmd
}

func (id identity) credential() *syscall.Credential {
	c := &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.gid)}
	for _, g := range id.groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// become replaces this process by a command.
func (id identity) become(c unit.Command, env []string) error {
	words := c.Expand(env)
	path, err := exec.LookPath(words[0])
	if err != nil {
		return err
	}
	if !c.Root {
		keep := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0) // until exec; raise passes them on
		if err := errors.Join(keep, syscall.Setgroups(id.groups), syscall.Setgid(id.gid), syscall.Setuid(id.uid), raise(id.ambient)); err != nil {
			return fmt.Errorf("become user %d: %w", id.uid, err)
		}
	}
	return unix.Exec(path, words, env)
}

// raise makes this thread pass on these capabilities, which it must have, to the program that it becomes
// (capabilities(7), "Ambient").
func raise(all []uintptr) error {
	var sets [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	for _, c := range all {
		set, bit := &sets[c/32], uint32(1)<<(c%32)
		set.Permitted, set.Inheritable, set.Effective = set.Permitted|bit, set.Inheritable|bit, set.Effective|bit
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return err
	}
	for _, c := range all {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}
