package nfsbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/nfs3"
	"understudy.dev/understudy/internal/live/netns"
)

// mountPort is where the server's mountd listens.
const mountPort = 20048

// Remote is an export as our own client sees it.
type Remote struct {
	*nfs3.Client
	root nfs3.Handle
}

// dial mounts an export with our own client, from inside a network namespace.
func dial(ctx context.Context, in *netns.Namespace, network, server, export string, retransmit time.Duration) (*Remote, error) {
	address, err := netip.ParseAddr(server)
	if err != nil {
		return nil, err
	}
	o := nfs3.Options{
		Network: "tcp", Server: netip.AddrPortFrom(address, mountPort), In: in.Do,
		Who: nfs3.Credential{Machine: "bench"},
	}
	m, err := nfs3.New(o)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	root, err := nfs3.Do(ctx, m, nfs3.Mount(export))
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", export, err)
	}
	o.Network, o.Server, o.Retransmit = network, netip.AddrPortFrom(address, nfs3.Port), retransmit
	c, err := nfs3.New(o)
	if err != nil {
		return nil, err
	}
	return &Remote{c, root}, nil
}

// find returns the handle of a path below the export's root.
func (r *Remote) find(ctx context.Context, name string) (nfs3.Handle, error) {
	h := r.root
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		f, err := nfs3.Do(ctx, r.Client, nfs3.Lookup(h, part))
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		h = f.Handle
	}
	return h, nil
}

// create returns the handle of a file, which it makes if there is none.
func (r *Remote) create(ctx context.Context, name string) (nfs3.Handle, error) {
	dir, err := r.find(ctx, path.Dir(name))
	if err != nil {
		return nil, err
	}
	f, err := nfs3.Do(ctx, r.Client, nfs3.Create(dir, path.Base(name), nfs3.Set{}))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	if f.Handle == nil {
		return r.find(ctx, name)
	}
	return f.Handle, nil
}

// read reads n bytes, or up to the file's end.
func (r *Remote) read(ctx context.Context, h nfs3.Handle, at int64, n int) ([]byte, error) {
	var out []byte
	for n > 0 {
		d, err := nfs3.Do(ctx, r.Client, nfs3.Read(h, uint64(at), uint32(n)))
		if err != nil {
			return nil, err
		}
		out = append(out, d.Data...)
		at, n = at+int64(len(d.Data)), n-len(d.Data)
		if d.EOF || len(d.Data) == 0 {
			break
		}
	}
	return out, nil
}

// size returns a file's size in bytes.
func (r *Remote) size(ctx context.Context, h nfs3.Handle) (int64, error) {
	a, err := nfs3.Do(ctx, r.Client, nfs3.Getattr(h))
	return int64(a.Size), err
}

// readFile reads a whole file.
func (r *Remote) readFile(ctx context.Context, name string) ([]byte, error) {
	h, err := r.find(ctx, name)
	if err != nil {
		return nil, err
	}
	size, err := r.size(ctx, h)
	if err != nil {
		return nil, err
	}
	var out []byte
	for int64(len(out)) < size {
		b, err := r.read(ctx, h, int64(len(out)), 64<<10)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if len(b) == 0 {
			return nil, fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
		}
		out = append(out, b...)
	}
	return out, nil
}

// readDir reads all files of a directory; a directory in it gives nil.
func (r *Remote) readDir(ctx context.Context, name string) (map[string][]byte, error) {
	h, err := r.find(ctx, name)
	if err != nil {
		return nil, err
	}
	got := make(map[string][]byte)
	var cookie uint64
	var v nfs3.Verifier
	for {
		l, err := nfs3.Do(ctx, r.Client, nfs3.ReaddirPlus(h, cookie, v, 16<<10))
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", name, err)
		}
		for _, e := range l.Entries {
			cookie = e.Cookie
			if e.Name == "." || e.Name == ".." {
				continue
			}
			b := []byte{}
			if e.Attr != nil && e.Attr.Type == nfs3.Directory {
				b = nil
			} else if more, err := r.readFile(ctx, path.Join(name, e.Name)); err != nil {
				return nil, err
			} else if len(more) > 0 {
				b = more
			}
			got[e.Name] = b
		}
		if v = l.Verifier; l.EOF || len(l.Entries) == 0 {
			return got, nil
		}
	}
}

// remoteFile is a file as an appender uses it: each write asks to be on the disk before
// it is answered.
type remoteFile struct {
	ctx context.Context
	r   *Remote
	h   nfs3.Handle
}

func (r *Remote) open(ctx context.Context, name string) func() (file, error) {
	return func() (file, error) {
		h, err := r.create(ctx, name)
		return &remoteFile{ctx, r, h}, err
	}
}

func (f *remoteFile) WriteAt(b []byte, at int64) (int, error) {
	w, err := nfs3.Do(f.ctx, f.r.Client, nfs3.Write(f.h, uint64(at), nfs3.FileSync, b))
	return int(w.Count), errno(err)
}

func (f *remoteFile) ReadAt(b []byte, at int64) (int, error) {
	got, err := f.r.read(f.ctx, f.h, at, len(b))
	return copy(b, got), errno(err)
}

func (f *remoteFile) Close() error { return nil }

// errno adds to a status the error that the kernel's client would return for it.
func errno(err error) error {
	var s nfs3.Status
	switch {
	case !errors.As(err, &s):
		return err
	case s == nfs3.ErrStale:
		return fmt.Errorf("%w: %w", err, unix.ESTALE)
	}
	return fmt.Errorf("%w: %w", err, unix.Errno(s)) // the numbers are those of Unix
}
