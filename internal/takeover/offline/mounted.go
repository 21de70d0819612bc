package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"understudy.dev/understudy/internal/live/filewriter"
)

// Mounted is a file system that this machine has mounted.
type Mounted struct {
	Dir  string // its top directory
	Type string
	// Work is a directory for the staged data, on another file system. It needs as
	// much room as the plan has bytes.
	Work string
	// Died is when the kernel died: files that were changed later are left alone.
	Died time.Time
}

// Apply carries out a job in place: nothing of it can be undone. It fails if the job has
// Raw or Check: what they do to the disk itself must be done already.
func (m Mounted) Apply(ctx context.Context, j Job) (r *Result, err error) {
	if len(j.Raw) > 0 || j.Check {
		return nil, errors.New("apply to a mounted file system: the job has blocks to write or a check to run, which needs it unmounted")
	}
	work, err := os.MkdirTemp(m.Work, "understudy-apply-")
	if err != nil {
		return nil, fmt.Errorf("make work directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	r = &Result{}
	s, err := stage(work, 0, j, r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	staging, err := os.Open(s.Path())
	if err != nil {
		return nil, err
	}
	defer staging.Close()
	dir, err := os.Open(m.Dir)
	if err != nil {
		return nil, fmt.Errorf("open mount: %w", err)
	}
	defer dir.Close()
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	err = r.stage("write files", func() error {
		r.Applied, err = filewriter.Apply(dir, m.Type, staging, s.apply, m.Died)
		return err
	})
	if err != nil {
		return nil, err
	}
	// A file system that was aborted passes the first, and fails the second.
	return r, r.stage("sync", func() error { return errors.Join(filewriter.SyncFS(dir), dir.Sync()) })
}
