package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/workload"
	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/wire"
)

// Verbs that the demo asks of the agent in its guests, and the notices that
// they send: a line of a workload.Encoder each.
const (
	verbPrepare = "demo.prepare" // job; notices of truth
	verbRun     = "demo.run"     // job
	verbBusy    = "demo.busy"    // job
	verbDigest  = "demo.digest"  // job; notices of found

	noticeTruth = "demo.truth"
	noticeFound = "demo.found"
)

// job says what to do where.
type job struct {
	Dir     string        `json:"dir"`
	Spec    workload.Spec `json:"spec"`
	Writers int           `json:"writers,omitempty"` // of verbBusy
}

// Verbs are the guest's part of the demo.
func Verbs() map[string]agent.Verb {
	return map[string]agent.Verb{
		verbPrepare: guestVerb(prepare),
		verbRun:     guestVerb(run),
		verbBusy:    guestVerb(busy),
		verbDigest:  guestVerb(digest),
	}
}

func guestVerb(f func(*wire.Conn, job) error) agent.Verb {
	return func(_ context.Context, conn *wire.Conn, body json.RawMessage) (any, error) {
		var j job
		if err := json.Unmarshal(body, &j); err != nil {
			return nil, err
		}
		return nil, f(conn, j)
	}
}

// prepare makes the files and syncs them to the disk; it sends out the hashes of what
// they will hold once the workload has run.
func prepare(conn *wire.Conn, j job) error {
	plan, err := workload.NewPlan(j.Spec)
	if err != nil {
		return err
	}
	out := workload.NewEncoder(notices{conn, noticeTruth})
	if err := plan.Prepare(j.Dir, out.Encode); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := holdBack(j.Dir); err != nil {
		return err
	}
	unix.Sync()
	return nil
}

// holdBack keeps the kernel from saving anything by itself in the file system at dir:
// dirty pages, and, from the next transaction on, its journal.
func holdBack(dir string) error {
	for name, value := range hold.Dirty {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
			return fmt.Errorf("hold data back: %w", err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, hold.Commit); err != nil {
		return fmt.Errorf("hold the journal of %s back: %w", dir, err)
	}
	return nil
}

// run runs the workload, and leaves unsaved what it wrote.
func run(_ *wire.Conn, j job) error {
	plan, err := workload.NewPlan(j.Spec)
	if err != nil {
		return err
	}
	return plan.Run(j.Dir)
}

// busyDir is where the writers of verbBusy work, below the files that are compared.
const busyDir = "at-work"

// busy starts writers that never end, each in a directory of its own. It returns once each
// of them has made all of its files once.
func busy(_ *wire.Conn, j job) error {
	var begun errgroup.Group
	for n := range j.Writers {
		w := writer{dir: filepath.Join(j.Dir, busyDir, strconv.Itoa(n))}
		if err := os.MkdirAll(w.dir, 0o755); err != nil {
			return err
		}
		begun.Go(func() error {
			for turn := range busyFiles {
				if err := w.turn(turn); err != nil {
					return err
				}
			}
			go func() {
				for turn := busyFiles; w.turn(turn) == nil; turn++ {
					time.Sleep(busyPause)
				}
			}()
			return nil
		})
	}
	return begun.Wait()
}

const (
	busyFiles = 32       // per writer
	busySize  = 24 << 10 // of each file at most, in bytes
	// busyPause leaves the service time to answer, even on one emulated CPU: what its
	// client measures must be the takeover.
	busyPause = 10 * time.Millisecond
)

// writer makes files, renames them over older ones, and makes and removes directories and links, so
// that operations of every kind are always in flight while the amount of data stays small.
type writer struct{ dir string }

func (w writer) turn(n int) error {
	name, other := filepath.Join(w.dir, "new"), filepath.Join(w.dir, strconv.Itoa(n%busyFiles))
	if err := os.WriteFile(name, make([]byte, 1+n*4099%busySize), 0o644); err != nil {
		return err
	}
	link, dir := filepath.Join(w.dir, "link"), filepath.Join(w.dir, "dir")
	return errors.Join(os.Rename(name, other), os.Link(other, link), os.Remove(link),
		os.Mkdir(dir, 0o755), os.Symlink(dir, link), os.Remove(link), os.Remove(dir), os.Truncate(other, int64(n%busySize)))
}

// digest sends out what the files hold now.
func digest(conn *wire.Conn, j job) error {
	out := workload.NewEncoder(notices{conn, noticeFound})
	for t, err := range workload.Digest(j.Dir) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(t.Path, busyDir+"/") {
			continue
		}
		if err := out.Encode(t); err != nil {
			return err
		}
	}
	return out.Close()
}

// notices sends each line that is written to it as a notice.
type notices struct {
	conn *wire.Conn
	verb string
}

func (n notices) Write(line []byte) (int, error) {
	if err := n.conn.Notify(n.verb, json.RawMessage(line)); err != nil {
		return 0, err
	}
	return len(line), nil
}
