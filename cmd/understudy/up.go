package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/sdnotify"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

func upCommand() *cobra.Command {
	var (
		file         string
		detach, tell bool
	)
	cmd := &cobra.Command{
		Use:   "up -f pair.yaml",
		Short: "Boot a pair and stand guard over it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := keepFiles(); err != nil {
				return err
			}
			name, p, err := loadPair(file, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if detach {
				return upDetached(cmd.Context(), name, file)
			}
			ready := func() error { return nil }
			if tell {
				ready = tellReady
			}
			out := newPatient(withTimes(cmd.OutOrStdout()))
			defer out.close(lastWords)
			return up(cmd.Context(), name, p, out, ready)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "pair.yaml", "description of the pair")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return once the pair is protected, and stand guard in the background")
	cmd.Flags().BoolVar(&tell, "tell-ready", false, "say on descriptor 3 that the pair is protected")
	_ = cmd.Flags().MarkHidden("tell-ready") // the flag exists
	return cmd
}

// lastWords is how long a supervisor that ends waits for its last output to be taken.
const lastWords = time.Second

// keepFiles prevents anything that this process starts from inheriting the files that it was
// given, except for the standard ones: a supervisor in the background, and guests that outlive
// it, would otherwise hold a lock of the caller, or the end of a pipe, for as long as they run.
func keepFiles() error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// loadPair reads a pair's description and checks it against this machine, unless the pair's
// guests run already: they go on as they were started, and need a supervisor whatever has
// become of the file. The pair is nil then, if the file is not valid.
func loadPair(file string, errs io.Writer) (name string, p *pair.Pair, err error) {
	p, err = pair.Load(file)
	if name = pair.NameIn(file); name != "" && guestsRun(name) {
		if err != nil {
			fmt.Fprintf(errs, "understudy: not looked at, since the pair runs: %v\n", err)
		}
		return name, p, nil
	}
	if err != nil {
		return "", nil, err
	}
	m, err := pair.ThisMachine()
	if err != nil {
		return "", nil, err
	}
	return p.Name, p, errors.Join(p.Check(m), checkBridges(p), partition.Installed())
}

// guestsRun reports whether a pair's guests go on without a supervisor.
func guestsRun(name string) bool {
	d, err := supervisor.OpenRunDir(dirs.Run(name))
	if err != nil {
		return false
	}
	defer d.Close()
	return d.HasGuests()
}

// checkBridges checks that this machine has the bridges that a pair names.
func checkBridges(p *pair.Pair) error {
	if len(p.NICs) == 0 {
		return nil
	}
	var host *netns.Namespace
	bridges, err := host.Bridges()
	if err != nil {
		return err
	}
	return p.CheckBridges(bridges)
}

// up runs the pair until ctx ends, somebody asks for its end, or nothing of it is left to
// guard. p is nil if the pair runs already, and its description cannot be read. ready is called
// once the pair is protected.
func up(ctx context.Context, name string, p *pair.Pair, out io.Writer, ready func() error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	notifier, err := sdnotify.Open()
	if err != nil {
		return err
	}
	defer notifier.Close()
	c := &control{end: cancel}
	o := supervisor.Options{
		Dir: dirs.Run(name), Log: out, Outlive: true, Rescue: rescueRoot(name), Settle: settle(name, out),
		Held:    func(understudy bool, why string) { c.held(out, understudy, why) },
		Trouble: func(t wire.TroubleNotice) { c.trouble(out, t) },
	}
	why := "its guests were booted"
	if c.s, err = reconnect(ctx, o); c.s == nil && err == nil {
		if p == nil {
			return fmt.Errorf("the guests of pair %s have just ended: correct its description, and run this again", name)
		}
		c.s, err = supervisor.Start(ctx, p, o)
	} else {
		why = "its guests went on, and have a supervisor again"
	}
	if err != nil {
		return err
	}
	defer func() { err = c.ended(out, err) }()
	told := openOutlets(c.s.Pair, out, notifier, c.snapshot)
	c.mu.Lock()
	c.told = told
	c.mu.Unlock()
	if err := c.serve(ctx, dirs.Run(name)); err != nil {
		return errors.Join(err, c.stopAlone(downRequest{Force: true}))
	}
	defer c.close()
	fmt.Fprintf(out, "pair %s is %s\n", name, c.role())
	if err := errors.Join(ready(), notifier.Tell(sdnotify.Ready)); err != nil {
		fmt.Fprintf(out, "tell that it is: %v\n", err) // the pair is up in any case
	}
	c.tell(events.Up, "", why, nil)
	c.tell(events.Kind(c.role()), "", "", nil)
	go c.feed(ctx)
	return c.guard(ctx, out)
}

// ended ends the supervisor, with or without the guests, and its outlets.
func (c *control) ended(out io.Writer, err error) error {
	last := events.Down
	if c.isLeaving() && err == nil {
		last, err = events.Left, c.s.Leave()
	} else {
		err = errors.Join(err, c.s.Close())
	}
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	c.mu.Lock()
	if c.status.State = string(last); last == events.Down {
		c.status.Active, c.status.Understudy = "", ""
	}
	c.mu.Unlock()
	c.tell(last, "", detail, nil)
	if err := c.told.close(last == events.Left); err != nil {
		fmt.Fprintln(out, err)
	}
	return c.verdict(out, err)
}

// verdict returns the error that up ends with. An end that down asked for is not a failure,
// whatever is left or went wrong before: a service manager would otherwise start the pair again.
func (c *control) verdict(out io.Writer, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil || !c.downed {
		return err
	}
	fmt.Fprintln(out, err)
	return nil
}

// reconnect takes charge of a pair whose supervisor has ended and whose guests go on. It
// returns nil if there is none.
func reconnect(ctx context.Context, o supervisor.Options) (*supervisor.Supervisor, error) {
	d, err := supervisor.OpenRunDir(o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !d.HasGuests() {
		return nil, d.Close()
	}
	fmt.Fprintln(o.Log, "the pair runs, without a supervisor: it goes on as it was started, whatever its description says now")
	return supervisor.Reconnect(ctx, d, o)
}

// readyFD is the descriptor of the pipe on which a supervisor in the background reports
// that its pair is protected.
const readyFD = 3

const readyWord = "protected"

// tellReady writes to that pipe.
func tellReady() error {
	f := os.NewFile(readyFD, "ready")
	if f == nil {
		return errors.New("no pipe was given")
	}
	_, err := f.WriteString(readyWord)
	return errors.Join(err, f.Close())
}

// upDetached starts this program again in the background, and waits until that reports that
// the pair is protected.
func upDetached(ctx context.Context, name, file string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// A new name is needed, since everybody may be able to write to the directory.
	log, err := os.CreateTemp(filepath.Dir(dirs.Run(name)), filepath.Base(dirs.Run(name))+"-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	ready, word, err := os.Pipe()
	if err != nil {
		return errors.Join(err, os.Remove(log.Name()))
	}
	defer ready.Close()
	cmd := exec.Command(self, "up", "-f", file, "--tell-ready")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{word}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(cmd.Start(), word.Close()); err != nil {
		return errors.Join(err, os.Remove(log.Name()))
	}
	said := make(chan string, 1)
	go func() {
		b := make([]byte, len(readyWord))
		n, _ := io.ReadFull(ready, b) // it ends when the process does, at the latest
		said <- string(b[:n])
	}()
	select {
	case word := <-said:
		if word == readyWord {
			kept := filepath.Join(dirs.Run(name), "supervisor.log") // removed with the rest of the run directory
			if err := os.Rename(log.Name(), kept); err != nil {
				return err
			}
			fmt.Printf("pair %s is protected; its supervisor logs to %s\n", name, kept)
			return nil
		}
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err = context.Cause(ctx)
	}
	_ = cmd.Wait() // the log says how it ended
	text, _ := os.ReadFile(log.Name())
	return errors.Join(err, fmt.Errorf("pair %s did not come up:\n%s", name, text), os.Remove(log.Name()))
}
