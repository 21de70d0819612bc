package nfsd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// clientsDir is where the records are, below the state directory: one file for
// each client, named after the SHA-256 of its name.
const clientsDir = "clients"

// Bounds on what is read back: the records may have been through a crash, or
// changed by anyone.
const (
	maxRecord  = 4 << 10 // bytes of one
	maxClients = 1 << 16
)

// records are the NFSv4 clients that may reclaim after the next start, as files.
// A record is made durable before its client is given anything to reclaim, and
// is durably removed before anybody else can be given what the client had.
type records struct {
	dir string
	// seen are the clients of this start: new ones, and those known from before that have
	// reclaimed or are reclaiming. When the grace period ends, the other records are removed.
	seen  map[string]bool
	known map[string]client // by the names of their files
	// unsaved are the changes that could not be made durable: clients to be recorded, and nil for records to be removed.
	unsaved map[string]*client
}

// openRecords reads the records in a state directory, which it makes if
// needed. Files that are not valid records, which a crash can leave, are skipped;
// skipped has an error for each.
func openRecords(state string) (r *records, skipped []error, err error) {
	r = &records{dir: filepath.Join(state, clientsDir), seen: make(map[string]bool), known: make(map[string]client), unsaved: make(map[string]*client)}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make directory of client records: %w", err)
	}
	names, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read client records: %w", err)
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), ".") {
			continue // a record that was being written
		}
		if len(r.known) == maxClients {
			return nil, nil, fmt.Errorf("more than %d client records in %s", maxClients, r.dir)
		}
		c, err := readRecord(filepath.Join(r.dir, n.Name()))
		if err != nil {
			skipped = append(skipped, err)
			continue
		}
		r.known[n.Name()] = c
	}
	return r, skipped, nil
}

func readRecord(path string) (client, error) {
	f, err := os.Open(path)
	if err != nil {
		return client{}, fmt.Errorf("read client record: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return client{}, fmt.Errorf("read client record: %w", err)
	}
	c, err := decodeRecord(b)
	if err == nil && recordName(c) != filepath.Base(path) {
		err = errors.New("it is the record of another client")
	}
	if err != nil {
		return client{}, fmt.Errorf("read client record %s: %w", filepath.Base(path), err)
	}
	return c, nil
}

// decodeRecord reads the content of a record's file.
func decodeRecord(b []byte) (c client, err error) {
	if len(b) > maxRecord {
		return c, fmt.Errorf("more than %d bytes", maxRecord)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, err
	}
	if len(c.Name) == 0 || len(c.Name) > maxClientName || len(c.Principal) > principalSize {
		return c, fmt.Errorf("a name of %d bytes and a principal's hash of %d", len(c.Name), len(c.Principal))
	}
	return c, nil
}

func recordName(c client) string {
	sum := sha256.Sum256(c.Name)
	return hex.EncodeToString(sum[:])
}

// create writes the record of a client, durably, unless it is there already.
func (r *records) create(c client) error {
	name := recordName(c)
	r.seen[name] = true
	_, unsaved := r.unsaved[name]
	if old, ok := r.known[name]; ok && !unsaved && bytes.Equal(old.Principal, c.Principal) {
		return nil
	}
	return r.save(map[string]*client{name: &c})
}

// Replace makes the clients of these names, and no others, the ones that may reclaim after the next start of a server
// with this state directory. It is for when the last server was another one with its own records: it may have given to
// others what older records here stand for. The new records are written before the others are removed.
func Replace(state string, names [][]byte) error {
	if err := replace(filepath.Join(state, clientsDir), names); err != nil {
		return fmt.Errorf("replace client records: %w", err)
	}
	return nil
}

func replace(dir string, names [][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	keep := make(map[string]bool)
	for _, name := range names {
		c := client{Name: name}
		b, err := json.Marshal(c)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, recordName(c)), b, 0o600)
		}
		if err != nil {
			return err
		}
		keep[recordName(c)] = true
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range there {
		if keep[f.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// remove removes the record of a client, durably.
func (r *records) remove(c client) error {
	name := recordName(c)
	delete(r.seen, name)
	_, known := r.known[name]
	if _, unsaved := r.unsaved[name]; !known && !unsaved {
		return nil
	}
	return r.save(map[string]*client{name: nil})
}

// endGrace removes the records of clients that did not come back in the grace period.
func (r *records) endGrace() error {
	gone := make(map[string]*client)
	for name := range r.known {
		if !r.seen[name] {
			gone[name] = nil
		}
	}
	if len(gone) == 0 {
		return nil // without a sync: it is slow on a disk with much dirty data
	}
	return r.save(gone)
}

// retry tries to make the changes durable that could not be.
func (r *records) retry() error { return r.save(maps.Clone(r.unsaved)) }

// save makes changes durable. Those that it cannot make stay in unsaved.
func (r *records) save(changes map[string]*client) error {
	maps.Copy(r.unsaved, changes)
	var errs []error
	for name, c := range changes {
		if err := r.put(name, c); err != nil {
			errs = append(errs, err)
			delete(changes, name)
		}
	}
	if err := syncDir(r.dir); err != nil {
		return errors.Join(append(errs, fmt.Errorf("sync client records: %w", err))...)
	}
	for name := range changes {
		delete(r.unsaved, name)
	}
	return errors.Join(errs...)
}

// put writes a record, or removes it if there is no client.
func (r *records) put(name string, c *client) error {
	if c == nil {
		delete(r.known, name)
		if err := os.Remove(filepath.Join(r.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove client record: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(c)
	if err == nil {
		err = writeWhole(r.dir, name, b)
	}
	if err != nil {
		return fmt.Errorf("write client record: %w", err)
	}
	r.known[name] = *c
	return nil
}

// writeWhole writes a complete file, or nothing. It has its name for good once the directory has been synced.
func writeWhole(dir, name string, b []byte) (err error) {
	tmp := filepath.Join(dir, "."+name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
