// Package extract writes the files of a dead kernel's memory to a directory or an
// archive, and promises that no name from that memory leads out of it, that what
// was written is described byte range by byte range, and that unfinished output
// does not look finished.
package extract

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
)

// Sink is where files go.
type Sink interface {
	// Put writes one file. An error that wraps ErrSkip is about this file only.
	Put(name string, f *inventory.File, body Body) error
	// Link gives another name to a file that was written by Put.
	Link(name, to string) error
	// Finish adds the manifest and makes everything appear under its final
	// name, after it is durable.
	Finish(manifest []byte) error
	// Abort removes what was written. It does nothing after Finish.
	Abort() error
	// Parallel returns how many calls of Put may run at once.
	Parallel() int
}

// ErrSkip is wrapped by errors of one file after which others can be written.
var ErrSkip = errors.New("file left out")

// Body yields the bytes of a file from memory, in ascending order.
type Body func(data func(off int64, b []byte) error) error

// Job is one file to be written.
type Job struct {
	File *inventory.File
	Name string // below the output directory, from inventory.Namer
	// Links are more names, for which hard links are made.
	Links []string
	// Holes are spans known to be zeros; nil if that is unknown.
	Holes []addr.Span
	// Report is filled in with what was written.
	Report *inventory.FileReport
	// Hash makes the report contain the SHA-256 of the file: for large files that takes
	// longer than writing them.
	Hash bool
}

// hashLimit bounds how many zeros are hashed for holes of one file, in bytes: the
// size of a file is not to be trusted, while its bytes in memory are at most all of memory.
const hashLimit = 1 << 30

// Write writes all jobs. wrote is called with the number of bytes from memory
// whenever some were written, from several goroutines.
func Write(ctx context.Context, m *inventory.Image, to Sink, jobs []Job, wrote func(n int)) error {
	workers := max(1, min(to.Parallel(), len(jobs)))
	return spread(workers, len(jobs), func(i int) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("extract: %w", context.Cause(ctx))
		}
		return write(m, to, &jobs[i], wrote)
	})
}

func write(m *inventory.Image, to Sink, j *Job, wrote func(n int)) error {
	w := &writing{image: m, job: j, wrote: wrote}
	if j.Hash {
		w.sum = sha256.New()
		w.whole = j.File.Size-j.File.UnsavedBytes()-j.File.CleanBytes() <= hashLimit
	}
	written := &inventory.WrittenReport{}
	j.Report.Written = written
	err := to.Put(j.Name, j.File, w.body)
	if errors.Is(err, ErrSkip) {
		written.Problem = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	written.Name, written.NameBase64 = inventory.Text(j.Name)
	if j.Hash {
		written.SHA256, written.Of = w.hashed()
	}
	w.account()
	for _, link := range j.Links {
		switch err := to.Link(link, j.Name); {
		case errors.Is(err, ErrSkip):
			written.Problem = err.Error()
		case err != nil:
			return err
		default:
			written.Links++
		}
	}
	return nil
}

// writing is one file on its way.
type writing struct {
	image *inventory.Image
	job   *Job
	wrote func(n int)
	sum   hash.Hash // nil if it is not wanted
	whole bool      // zeros are hashed, too
	done  int64     // how much of the file is hashed
	gone  []addr.Span
}

func (w *writing) body(data func(off int64, b []byte) error) error {
	for _, e := range w.job.File.Extents() {
		err := w.image.Each(e, func(off int64, b []byte) error {
			var hashed sync.WaitGroup
			switch {
			case w.sum == nil:
			case len(b) >= hashedAside:
				hashed.Go(func() { w.hash(off, b) })
			default:
				w.hash(off, b)
			}
			err := data(off, b)
			hashed.Wait()
			if err != nil {
				return err
			}
			w.wrote(len(b))
			return nil
		}, w.missing)
		if err != nil {
			return err
		}
	}
	return nil
}

// hashedAside is from how many bytes on they are hashed while they are written.
const hashedAside = 256 << 10

func (w *writing) hash(off int64, b []byte) {
	w.zeros(off)
	w.sum.Write(b) // never fails
	w.done = off + int64(len(b))
}

// hashed returns the hash in hexadecimal, and what it is the hash of (inventory.WrittenReport).
func (w *writing) hashed() (sum, of string) {
	of = "ranges"
	if w.whole {
		of = "file"
		w.zeros(w.job.File.Size)
	}
	return hex.EncodeToString(w.sum.Sum(nil)), of
}

// missing records that memory does not hold bytes that it seemed to hold.
func (w *writing) missing(s addr.Span, err error) error {
	w.gone = append(w.gone, s)
	w.job.Report.Refused = append(w.job.Report.Refused, inventory.RefusedReport{
		Offset: s.Off, Length: s.Len(), Reason: "unreadable", Detail: err.Error(),
	})
	return nil
}

var zeroPage [64 << 10]byte

// zeros hashes the zeros up to an offset.
func (w *writing) zeros(to int64) {
	for w.whole && w.done < to {
		n := min(to-w.done, int64(len(zeroPage)))
		w.sum.Write(zeroPage[:n]) // never fails
		w.done += n
	}
}

// account writes to the report which bytes of the file are missing.
func (w *writing) account() {
	f, r := w.job.File, w.job.Report
	if len(w.gone) > 0 {
		r.Ranges, r.Clean = without(r.Ranges, w.gone), without(r.Clean, w.gone)
		r.UnsavedBytes = 0
		for _, u := range r.Ranges {
			r.UnsavedBytes += u[1]
		}
	}
	known := inventory.Spans(f.Extents())
	for _, refused := range r.Refused {
		known = append(known, addr.Span{Off: refused.Offset, End: refused.Offset + refused.Length})
	}
	r.Holes = inventory.Ranges(Both(inventory.Without(f.Size, known), w.job.Holes))
	r.Absent = inventory.Ranges(inventory.Without(f.Size, append(known, w.job.Holes...)))
}

// Both returns the intersection of two ascending lists of spans.
func Both(a, b []addr.Span) []addr.Span {
	var out []addr.Span
	for len(a) > 0 && len(b) > 0 {
		s := addr.Span{Off: max(a[0].Off, b[0].Off), End: min(a[0].End, b[0].End)}
		if s.Len() > 0 {
			out = append(out, s)
		}
		if a[0].End < b[0].End {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

func without(in []inventory.Range, gone []addr.Span) []inventory.Range {
	var spans []addr.Span
	end := int64(0)
	for _, r := range in {
		spans = append(spans, addr.Span{Off: r[0], End: r[0] + r[1]})
		end = max(end, r[0]+r[1])
	}
	return inventory.Ranges(Both(spans, inventory.Without(end, gone)))
}

// Problems counts the files that could not be written, or of which anything is
// refused, as are pages that memory did not hold after all.
func Problems(jobs []Job) (files int) {
	for _, j := range jobs {
		if j.Report.Written == nil || j.Report.Written.Problem != "" || len(j.Report.Refused) > 0 {
			files++
		}
	}
	return files
}
