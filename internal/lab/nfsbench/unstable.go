package nfsbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"understudy.dev/understudy/internal/lab/nfs3"
)

// Unstable is a write that was answered UNSTABLE before the crash and not committed. The
// server may lose it if its verifier changes.
type Unstable struct {
	Before   string `json:"before"` // the server's verifier
	After    string `json:"after"`  // empty if the file is gone
	Survived bool   `json:"survived"`

	file nfs3.Handle
}

const unstableFile = retryDir + "/unstable"

func (u *Unstable) content() []byte {
	b := make([]byte, 3*RecordBytes)
	record(b, 77, 0)
	return b
}

func (u *Unstable) write(ctx context.Context, r *Remote) (err error) {
	if u.file, err = r.create(ctx, unstableFile); err != nil {
		return err
	}
	w, err := nfs3.Do(ctx, r.Client, nfs3.Write(u.file, 0, nfs3.Unstable, u.content()))
	u.Before = fmt.Sprintf("%x", w.Verifier)
	return err
}

// commit does what a client does after the crash: it asks for a commit, and sees by the
// verifier that it must write again.
func (u *Unstable) commit(ctx context.Context, r *Remote) error {
	got, err := r.readFile(ctx, unstableFile)
	if errors.Is(err, nfs3.ErrNoEnt) {
		return nil // its name is gone, too
	}
	if err != nil {
		return err
	}
	u.Survived = bytes.Equal(got, u.content())
	v, err := nfs3.Do(ctx, r.Client, nfs3.Commit(u.file, 0, 0))
	u.After = fmt.Sprintf("%x", v)
	return err
}
