package offline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"understudy.dev/understudy/internal/live/hint"
)

// The steps of a run, as a record has them.
const (
	stepApply  = "apply"  // the overlay is being written; the disk is untouched (there is no record yet for a redo file)
	stepCommit = "commit" // the overlay is complete; the disk is about to be veiled
	stepVeiled = "veiled" // the disk is veiled, and in between
	stepDone   = "done"   // of older programs: the disk is complete; the overlay is of no use
)

// record is what a run leaves durably beside the overlay, so that another can
// tell how far it came.
type record struct {
	Version  int      `json:"version"`
	Step     string   `json:"step"`
	Identity Identity `json:"identity"`
	Disk     string   `json:"disk"` // path
	Size     int64    `json:"size"` // of the disk, bytes
	// Veil is the text of the veil. It is empty in records of older programs, which used the same veil for
	// all disks of one memory.
	Veil string `json:"veil,omitempty"`
	// Before is the superblock of the disk as it was, and After as it is to be: in the
	// overlay and on the disk, the veil takes its place.
	Before []Region `json:"before"`
	After  []Region `json:"after"`
	// Redo describes the file that takes the place of an overlay; nil if there is an overlay.
	Redo *redo `json:"redo,omitempty"`
	// Refused says that some data of the memory was refused and is not in the commit, so that the memory
	// is still needed after the commit. It is nil in records of older programs, which did not say.
	Refused *bool `json:"refused"`

	began bool // of a record that was found: the commit had begun, so the disk is in between
	other bool // likewise: the commit was to another disk
}

// lacks returns why the memory is still needed after the commit; empty if it is not.
func (r *record) lacks() string {
	switch {
	case r.Refused == nil:
		return "the run that was broken off was of an older version, which did not record whether it had refused anything; what it refused, if anything, is in memory only: `salvage list` and `salvage extract` have all that was unsaved"
	case *r.Refused:
		return "the run that was broken off had refused some of it, which is in memory only: `salvage list` and `salvage extract` have it"
	}
	return ""
}

// Region is a stretch of a disk, in whole sectors.
type Region struct {
	Off  int64  `json:"off"`  // bytes
	Data []byte `json:"data"` // where a Region is a request, only the length counts
}

// The versions of a record. Older programs must not read one with Veil: they would take its disk for one that was
// written to.
const (
	recordVersion = 1
	redoVersion   = 2
	veilVersion   = 3
)

// version returns the version of the format that a record needs.
func (r *record) version() int {
	switch {
	case r.Veil != "":
		return veilVersion
	case r.Redo != nil:
		return redoVersion
	}
	return recordVersion
}

// maxRecord bounds the size of a record of any kind, in bytes.
const maxRecord = 1 << 20

// readRecord returns the record in a work directory, or fs.ErrNotExist.
func readRecord(work string) (*record, error) {
	return readJSON(filepath.Join(work, recordName), parseRecord)
}

// readJSON reads a record of any kind.
func readJSON[T any](path string, parse func([]byte) (*T, error)) (*T, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	r, err := parse(b)
	if err != nil {
		return nil, hint.New("record "+path, err,
			"It is not of this version of the program. If it is of an older one, finish with that.")
	}
	return r, nil
}

// writeJSON makes a record of any kind durable, in place of the previous one.
func writeJSON(path string, r any) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func parseRecord(b []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	if r.Version != r.version() {
		return nil, fmt.Errorf("version %d", r.Version)
	}
	if r.Redo != nil {
		if err := r.Redo.check(); err != nil {
			return nil, err
		}
	}
	switch r.Step {
	case stepApply, stepCommit, stepVeiled, stepDone:
	default:
		return nil, fmt.Errorf("unknown step %q", r.Step)
	}
	for _, g := range slices.Concat(r.Before, r.After) {
		n := int64(len(g.Data))
		if g.Off < 0 || n == 0 || g.Off%sector != 0 || n%sector != 0 || g.Off > r.Size-n {
			return nil, fmt.Errorf("impossible superblock region: %d bytes at %d of a disk of %d", n, g.Off, r.Size)
		}
	}
	if r.Step == stepCommit || r.Step == stepVeiled {
		same := func(a, b Region) bool { return a.Off == b.Off && len(a.Data) == len(b.Data) }
		if len(r.Before) == 0 || !slices.EqualFunc(r.Before, r.After, same) {
			return nil, errors.New("it has no superblock contents to recognize the disk by")
		}
	}
	return r, nil
}

// write makes the record durable, in place of the previous one.
func (r *record) write(work string) error {
	r.Version = r.version()
	return writeJSON(filepath.Join(work, recordName), r)
}
