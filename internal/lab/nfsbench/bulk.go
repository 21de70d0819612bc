package nfsbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/nfs3"
)

// Bulk is data that the server acknowledges and does not write: files that are
// written unstable and committed, on an async export.
type Bulk struct {
	Dir       string
	Seed      uint64
	Files     int
	FileBytes int // a multiple of bulkPiece
}

const (
	bulkPiece   = 128 << 10 // bytes of a write, and of a read
	bulkWriters = 4
)

// bulk is 90 MiB.
func bulk(seed uint64) Bulk { return Bulk{Dir: "bulk", Seed: seed, Files: 90, FileBytes: 1 << 20} }

// Bytes is the sum of its files' sizes.
func (b Bulk) Bytes() int64 { return int64(b.Files) * int64(b.FileBytes) }

func (b Bulk) name(i int) string { return fmt.Sprintf("%s/b%04d", b.Dir, i) }

// piece fills p with the content of file i from record at on.
func (b Bulk) piece(p []byte, i, at int) {
	for n := 0; n < len(p); n += RecordBytes {
		record(p[n:n+RecordBytes], b.Seed+uint64(i), at+n/RecordBytes)
	}
}

// each calls f for every file, several at once.
func (b Bulk) each(ctx context.Context, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(bulkWriters)
	for i := range b.Files {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}

// write writes and commits all files. It fails if the server's verifier changes between
// the writes of a file and its commit.
func (b Bulk) write(ctx context.Context, r *Remote) error {
	return b.each(ctx, func(ctx context.Context, i int) error {
		h, err := r.create(ctx, b.name(i))
		if err != nil {
			return err
		}
		p := make([]byte, bulkPiece)
		var verifier nfs3.Verifier
		for at := 0; at < b.FileBytes; at += bulkPiece {
			b.piece(p, i, at/RecordBytes)
			w, err := nfs3.Do(ctx, r.Client, nfs3.Write(h, uint64(at), nfs3.Unstable, p))
			if err != nil {
				return fmt.Errorf("write %s: %w", b.name(i), err)
			}
			if int(w.Count) != len(p) || at > 0 && w.Verifier != verifier {
				return fmt.Errorf("write %s: %d of %d bytes, verifier %x after %x", b.name(i), w.Count, len(p), w.Verifier, verifier)
			}
			verifier = w.Verifier
		}
		v, err := nfs3.Do(ctx, r.Client, nfs3.Commit(h, 0, 0))
		if err == nil && v != verifier {
			err = errors.New("the server began anew while it was written to")
		}
		if err != nil {
			return fmt.Errorf("commit %s: %w", b.name(i), err)
		}
		return nil
	})
}

// check reads all files, and returns how many bytes are not as they were written.
func (b Bulk) check(ctx context.Context, r *Remote) (lost int64, err error) {
	losses := make([]int64, b.Files)
	err = b.each(ctx, func(ctx context.Context, i int) error {
		h, err := r.find(ctx, b.name(i))
		if errors.Is(err, nfs3.ErrNoEnt) {
			losses[i] = int64(b.FileBytes)
			return nil
		}
		if err != nil {
			return err
		}
		want := make([]byte, bulkPiece)
		for at := 0; at < b.FileBytes; at += bulkPiece {
			got, err := r.read(ctx, h, int64(at), bulkPiece)
			if err != nil {
				return fmt.Errorf("read %s: %w", b.name(i), err)
			}
			b.piece(want, i, at/RecordBytes)
			for n := 0; n < bulkPiece; n += RecordBytes {
				if n+RecordBytes > len(got) || !bytes.Equal(got[n:n+RecordBytes], want[n:n+RecordBytes]) {
					losses[i] += RecordBytes
				}
			}
		}
		return nil
	})
	for _, n := range losses {
		lost += n
	}
	return lost, err
}
