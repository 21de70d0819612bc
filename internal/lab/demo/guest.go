package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

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
	verbDigest  = "demo.digest"  // job; notices of found

	noticeTruth = "demo.truth"
	noticeFound = "demo.found"
)

// job says what to do where.
type job struct {
	Dir  string        `json:"dir"`
	Spec workload.Spec `json:"spec"`
}

// Verbs are the guest's part of the demo.
func Verbs() map[string]agent.Verb {
	return map[string]agent.Verb{
		verbPrepare: guestVerb(prepare),
		verbRun:     guestVerb(run),
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

// prepare makes the files and has them on the disk; it sends out, as hashes,
// what they will hold once the workload has run.
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

// holdBack has the kernel save nothing by itself in the file system at dir: neither
// dirty pages nor, from the next one on, transactions of its journal.
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

// run writes, and leaves unsaved what it wrote.
func run(_ *wire.Conn, j job) error {
	plan, err := workload.NewPlan(j.Spec)
	if err != nil {
		return err
	}
	return plan.Run(j.Dir)
}

// digest sends out what the files hold now.
func digest(conn *wire.Conn, j job) error {
	out := workload.NewEncoder(notices{conn, noticeFound})
	for t, err := range workload.Digest(j.Dir) {
		if err != nil {
			return err
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
