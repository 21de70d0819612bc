//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/oracle/page"
)

// tools is where the programs see their root directory.
const tools = "/mnt/tools"

// mountTools mounts what programs need.
func mountTools(m page.Mount) error {
	root, err := mount(m)
	if err != nil {
		return err
	}
	for _, k := range []string{"proc", "dev", "tmp"} {
		if err := unix.Mount("/"+k, filepath.Join(root, k), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s for programs: %w", k, err)
		}
	}
	return nil
}

// command returns a program that runs among the tools, on a disk that is mounted at root,
// and what to call when it has ended.
func command(argv []string, root string) (*exec.Cmd, func() error, error) {
	if err := unix.Mount(root, tools+"/disk", "", unix.MS_BIND, ""); err != nil {
		return nil, nil, fmt.Errorf("mount disk for programs: %w", err)
	}
	cmd := &exec.Cmd{
		Path: argv[0], Args: argv, Dir: "/disk", SysProcAttr: &syscall.SysProcAttr{Chroot: tools},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "DPKG_COLORS=never"},
	}
	return cmd, func() error { return unix.Unmount(tools+"/disk", 0) }, nil
}

// program runs programs until the kernel dies.
func program(p page.Page, w *page.Program) error {
	if err := mountTools(w.Tools); err != nil {
		return err
	}
	root, err := mount(w.Mount)
	if err != nil {
		return err
	}
	p.Store(page.State, page.Running)
	for p.Load(page.Go) == 0 {
		time.Sleep(time.Millisecond)
	}
	done := make(chan error, 1)
	go func() { done <- steps(p, w, root) }()
	if w.Until > 0 {
		for int(p.Load(page.Progress)) < w.Until {
			select {
			case err := <-done: // the steps may end before they come that far
				if err != nil {
					return err
				}
				w.Until = 0
			case <-time.After(time.Millisecond):
			}
		}
	} else {
		var out bytes.Buffer
		err := errors.Join(<-done, walkTree(json.NewEncoder(&out), w.Mount.Disk, root, nil))
		if err == nil {
			err = p.Tell(out.Bytes())
		}
		if err != nil {
			return err
		}
	}
	p.Store(page.State, page.Crashing)
	if w.Panic {
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	select {} // the host ends it
}

// steps runs the programs.
func steps(p page.Page, w *page.Program, root string) error {
	for _, argv := range w.Steps {
		cmd, end, err := command(argv, root)
		if err != nil {
			return err
		}
		var said tail
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return fmt.Errorf("%v: %w", argv, err)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.Store(page.Progress, p.Load(page.Progress)+1)
		}
		if err := errors.Join(cmd.Wait(), end()); err != nil {
			return fmt.Errorf("%v: %w: %s", argv, err, said.b)
		}
	}
	if w.Talk != nil {
		return talk(p, w.Talk, root)
	}
	return nil
}

// tail keeps the end of what a program prints.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-2000):]
	return len(b), nil
}

// talk writes line after line to a program, as fast as it answers.
func talk(p page.Page, t *page.Talk, root string) error {
	cmd, _, err := command(t.Command, root)
	if err != nil {
		return err
	}
	var said tail
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("%v: %w", t.Command, err)
	}
	answers := bufio.NewReader(out)
	if _, err := io.WriteString(in, t.Setup); err != nil {
		return err
	}
	for i := 1; ; i++ {
		if _, err := fmt.Fprintf(in, t.Line, i); err != nil {
			return fmt.Errorf("%v: line %d: %w: %s", t.Command, i, err, said.b)
		}
		want := fmt.Sprintf(t.Answer, i)
		for {
			line, err := answers.ReadString('\n')
			if err != nil {
				return fmt.Errorf("%v: answer %d: %w: %s", t.Command, i, err, said.b)
			}
			if strings.Contains(line, want) {
				break
			}
		}
		p.Store(page.Progress, uint32(i))
	}
}

// ask runs a program on a disk and returns what it printed.
func ask(disk string, argv []string, root string) page.Entry {
	e := page.Entry{Disk: disk, Command: argv}
	cmd, end, err := command(argv, root)
	if err == nil {
		e.Output, err = cmd.CombinedOutput()
		exit, ended := errors.AsType[*exec.ExitError](err)
		if ended {
			e.Exit, err = exit.ExitCode(), nil
		}
		err = errors.Join(err, end())
	}
	if err != nil {
		e.Error = err.Error()
	}
	return e
}
