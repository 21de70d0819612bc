package nfsbench

import (
	"context"
	"errors"
	"fmt"

	"understudy.dev/understudy/internal/lab/nfs3"
)

// Retried is a call that is not idempotent, carried out before the crash and sent again,
// with its number, after it, as by a client that got no reply.
type Retried struct {
	Call string `json:"call"`
	// First, Again and After are the server's answers: to the first call, to the same
	// call sent again before the crash, and to it after the crash.
	First string `json:"first"`
	Again string `json:"again"`
	After string `json:"after"`
	// Holds says whether the call's effect is there in the end.
	Holds bool `json:"holds"`

	send  func(context.Context) error
	holds func(context.Context) (bool, error)
}

const retryDir = "retried"

// repeat returns a call that has the same number each time.
func repeat[T any](r *Remote, q nfs3.Request[T]) func(context.Context) error {
	q.XID = r.NextXID()
	return func(ctx context.Context) error {
		_, err := nfs3.Do(ctx, r.Client, q)
		return err
	}
}

func answer(err error) string {
	var s nfs3.Status
	switch {
	case err == nil:
		return "OK"
	case errors.As(err, &s):
		return s.Error()
	}
	return err.Error()
}

// prepareRetried makes what the calls need, in a directory that exists.
func prepareRetried(ctx context.Context, r *Remote) ([]*Retried, error) {
	for _, name := range []string{"removed", "old", "written"} {
		if _, err := r.create(ctx, retryDir+"/"+name); err != nil {
			return nil, err
		}
	}
	written, err := r.find(ctx, retryDir+"/written")
	if err != nil {
		return nil, err
	}
	dir, err := r.find(ctx, retryDir)
	if err != nil {
		return nil, err
	}
	there := func(name string, want bool) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			_, err := r.find(ctx, retryDir+"/"+name)
			if errors.Is(err, nfs3.ErrNoEnt) {
				return !want, nil
			}
			return want, err
		}
	}
	size, mode := uint64(0), uint32(0o604)
	return []*Retried{
		{Call: "CREATE exclusive", send: repeat(r, nfs3.CreateExclusive(dir, "exclusive", nfs3.Verifier{1, 2, 3, 4, 5, 6, 7, 8})), holds: there("exclusive", true)},
		{Call: "CREATE guarded", send: repeat(r, nfs3.CreateGuarded(dir, "guarded", nfs3.Set{Size: &size})), holds: there("guarded", true)},
		{Call: "REMOVE", send: repeat(r, nfs3.Remove(dir, "removed")), holds: there("removed", false)},
		{Call: "RENAME", send: repeat(r, nfs3.Rename(dir, "old", dir, "new")), holds: there("new", true)},
		{Call: "MKDIR", send: repeat(r, nfs3.Mkdir(dir, "dir", nfs3.Set{})), holds: there("dir", true)},
		{Call: "WRITE", send: repeat(r, nfs3.Write(written, 0, nfs3.FileSync, []byte("twice"))), holds: func(ctx context.Context) (bool, error) {
			b, err := r.readFile(ctx, retryDir+"/written")
			return string(b) == "twice", err
		}},
		{Call: "SETATTR", send: repeat(r, nfs3.Setattr(written, nfs3.Set{Mode: &mode})), holds: func(ctx context.Context) (bool, error) {
			a, err := nfs3.Do(ctx, r.Client, nfs3.Getattr(written))
			return a.Mode == mode, err
		}},
	}, nil
}

// before sends each call twice.
func before(ctx context.Context, calls []*Retried) error {
	for _, c := range calls {
		err := c.send(ctx)
		c.First = answer(err)
		c.Again = answer(c.send(ctx))
		if err != nil {
			return fmt.Errorf("%s: %w", c.Call, err)
		}
	}
	return nil
}

// after sends each call once more.
func after(ctx context.Context, calls []*Retried) (err error) {
	for _, c := range calls {
		c.After = answer(c.send(ctx))
		if c.Holds, err = c.holds(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.Call, err)
		}
	}
	return nil
}
