package bare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/unit"
)

// Enter becomes a service of the root file system that was taken over: a command, or that of a unit, whose name
// ends in .service. It returns only an error.
func Enter(args []string) error {
	runtime.LockOSThread() // what it is given belongs to this thread
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

// becomeUnit does what comes before a unit's command, and becomes that command.
func becomeUnit(name string) error {
	root := os.DirFS("/")
	u, err := unit.Load(root, name)
	if err != nil {
		return err
	}
	who, env, err := prepare(u, root)
	if err == nil {
		err = who.start(u, env)
	}
	if err != nil {
		return fmt.Errorf("start unit %s: %w", name, err)
	}
	return nil
}

// prepare gives this process what a unit has, except its user, and returns that user and the unit's
// environment.
func prepare(u *unit.Unit, root fs.FS) (who identity, env []string, err error) {
	if who, err = identify(u); err != nil {
		return who, nil, err
	}
	u.Env = append(who.login, u.Env...)
	if env, err = u.Environment(root); err != nil {
		return who, nil, err
	}
	for _, d := range u.Dirs {
		if err := who.own(d); err != nil {
			return who, nil, err
		}
	}
	if err := bind(u.Binds); err != nil {
		return who, nil, err
	}
	if u.Files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: u.Files, Max: u.Files}); err != nil {
			return who, nil, err
		}
	}
	unix.Umask(int(u.Umask))
	if u.Dir != "" {
		if err := unix.Chdir(u.Dir); err != nil {
			return who, nil, fmt.Errorf("go to %s: %w", u.Dir, err)
		}
	}
	return who, env, nil
}

// bind lets this process, and no other, see parts of the file system at other paths too. A part that is not
// there is reported: without systemd it may be the socket of its log.
func bind(all []unit.Bind) error {
	if len(all) == 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mount propagation of / slave: %w", err)
	}
	for _, b := range all {
		err := bindOne(b)
		if errors.Is(err, fs.ErrNotExist) {
			if !b.Optional {
				say("%s, which it is to see at %s, is not there", b.From, b.To)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("bind mount %s on %s: %w", b.From, b.To, err)
		}
	}
	return nil
}

func bindOne(b unit.Bind) error {
	from, err := os.Stat(b.From)
	if err != nil {
		return err
	}
	dir := b.To
	if !from.IsDir() {
		dir = filepath.Dir(b.To)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if !from.IsDir() {
		f, err := os.OpenFile(b.To, os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := unix.Mount(b.From, b.To, "", unix.MS_BIND|unix.MS_REC, ""); err != nil || !b.ReadOnly {
		return err
	}
	return unix.Mount("", b.To, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// start runs what comes before a unit's command, and becomes that command, or attends to what it leaves
// running.
func (id identity) start(u *unit.Unit, env []string) error {
	for _, c := range u.Conditions {
		if err := id.command(context.Background(), c, env).Run(); err != nil && !c.Ignore {
			return fmt.Errorf("skipped, as its ExecCondition= says: %s: %w", strings.Join(c.Words, " "), err)
		}
	}
	for _, c := range u.Before {
		if err := id.command(context.Background(), c, env).Run(); err != nil && !c.Ignore {
			return fmt.Errorf("%s: %w", strings.Join(c.Words, " "), err)
		}
	}
	if u.Forks {
		return attend(u, id, env)
	}
	return id.become(u.Main, env)
}
