package draft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/live/wire"
)

// ErrNoCheck says that this machine cannot check a file system: a guest can.
var ErrNoCheck = errors.New("no check on this machine")

// tooOld is what e2fsck says of a file system with features that it does not know, before it has
// changed anything (e2fsck/unix.c, main, get_newer).
const tooOld = "Get a newer version of e2fsck"

// checker finds e2fsck(8), which is not in the PATH of users other than root.
func checker() (string, error) {
	if path, err := exec.LookPath("e2fsck"); err == nil {
		return path, nil
	}
	return exec.LookPath(wire.Checker)
}

// Check runs this machine's e2fsck(8), which checks and repairs the file system of a draft of size bytes,
// unmounted: e2fsck sees the draft as a file, in a directory that we serve (FUSE). Check fails with ErrNoCheck
// if e2fsck could not begin; after any other error the draft is as e2fsck left it. tell is called with the
// progress of e2fsck; it may be nil.
func (d *Draft) Check(ctx context.Context, size int64, tell func(Progress)) (_ *wire.Check, err error) {
	program, err := checker()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCheck, err)
	}
	dir, err := os.MkdirTemp("", "understudy-check-")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCheck, err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	served := &served{draft: d, size: size}
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, served, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
		MountOptions: fuse.MountOptions{
			FsName: "understudy", Name: "understudy", DirectMount: true,
			DirectMountFlags: syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC, DisableXAttrs: true, MaxWrite: 1 << 20,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCheck, err)
	}
	check := func() (*wire.Check, error) { return run(ctx, program, filepath.Join(dir, "disk"), tell) }
	found, err := check()
	if err == nil {
		found, err = d.withoutValues(found, check)
	}
	err = errors.Join(err, server.Unmount())
	if served.err != nil {
		err = errors.Join(served.err, err)
	}
	return found, err
}

// withoutValues frees the inodes with values of extended attributes (ea_inode) that a check has moved to
// lost+found, and checks once more. They belonged to deleted files that e2fsck cleared without dropping the
// references which their attributes had to these values (e2fsck/super.c, release_orphan_inode; seen in 1.47.0).
// No kernel lets anybody open or remove such a name.
func (d *Draft) withoutValues(found *wire.Check, check func() (*wire.Check, error)) (*wire.Check, error) {
	freed, err := d.freeValues(found.Lost)
	if err != nil || len(freed) == 0 {
		return found, err
	}
	again, err := check()
	if err != nil {
		return nil, err
	}
	lost := slices.DeleteFunc(found.Lost, func(n uint64) bool { return slices.Contains(freed, n) })
	again.Output = found.Output + again.Output
	again.Lost, again.Surplus = append(lost, again.Lost...), append(found.Surplus, again.Surplus...)
	again.Cleared, again.More = append(found.Cleared, again.Cleared...), again.More+found.More
	return again, nil
}

// freeValues frees those of the inodes that hold values of attributes, and returns which these are.
func (d *Draft) freeValues(inodes []uint64) (freed []uint64, err error) {
	if len(inodes) == 0 {
		return nil, nil
	}
	fs, err := ext4.Open(d)
	if err != nil || fs.Super.Incompat&ext4.IncompatEAInode == 0 {
		return nil, err
	}
	for _, n := range inodes {
		i, err := fs.Inode(addr.Ino(n))
		if err != nil {
			return nil, err
		}
		if i.Flags&ext4.InodeEAInode == 0 {
			continue
		}
		if err := d.freeInode(fs, i.Number); err != nil {
			return nil, fmt.Errorf("free inode %d: %w", n, err)
		}
		freed = append(freed, n)
	}
	return freed, nil
}

// freeInode marks an inode as deleted. Its name, its bitmap bit and its blocks are left to a check.
func (d *Draft) freeInode(fs *ext4.FS, n addr.Ino) error {
	group, block, offset, err := fs.Super.InodeLocation(n)
	if err != nil {
		return err
	}
	g, err := fs.Group(group)
	if err != nil {
		return err
	}
	at := g.InodeTable + addr.Block(block)
	b, err := fs.Block(at)
	if err != nil {
		return err
	}
	raw := b[offset:][:fs.Super.InodeSize]
	fs.Super.Free(raw)
	fs.Super.SealInode(n, raw)
	_, err = d.WriteAt(b, int64(at)*int64(len(b)))
	return err
}

func run(ctx context.Context, program, disk string, tell func(Progress)) (*wire.Check, error) {
	cmd := exec.CommandContext(ctx, program, "-f", "-y", disk)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	told := make(chan struct{})
	if tell == nil {
		close(told)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		cmd.Args = slices.Insert(cmd.Args, 1, "-C", "3")
		cmd.ExtraFiles = []*os.File{w}
		go func() {
			defer close(told)
			defer r.Close()
			follow(r, time.Now(), tell)
		}()
		defer w.Close()
	}
	said, err := cmd.CombinedOutput()
	for _, w := range cmd.ExtraFiles {
		w.Close()
	}
	<-told
	found, err := wire.Checked(said, err)
	if err != nil && bytes.Contains(said, []byte(tooOld)) {
		return nil, fmt.Errorf("%w: %w", ErrNoCheck, err)
	}
	if err != nil {
		return nil, fmt.Errorf("check file system: %w", err)
	}
	return found, nil
}

// served is a draft as a file.
type served struct {
	fs.Inode
	mu    sync.Mutex
	draft *Draft
	size  int64
	err   error // the first error of reading or writing
}

var (
	_ fs.NodeGetattrer = (*served)(nil)
	_ fs.NodeSetattrer = (*served)(nil)
	_ fs.NodeOpener    = (*served)(nil)
	_ fs.NodeReader    = (*served)(nil)
	_ fs.NodeWriter    = (*served)(nil)
	_ fs.NodeFsyncer   = (*served)(nil)
)

// Getattr implements fs.NodeGetattrer.
func (s *served) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Nlink = syscall.S_IFREG|0o600, uint64(s.size), 1
	out.Uid, out.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	return 0
}

// Setattr implements fs.NodeSetattrer: neither size nor owner can change.
func (s *served) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && int64(size) != s.size {
		return syscall.EPERM
	}
	return s.Getattr(ctx, h, out)
}

// Open implements fs.NodeOpener. The kernel caches nothing of the file.
func (s *served) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read implements fs.NodeReader.
func (s *served) Read(_ context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b = b[:max(0, min(int64(len(b)), s.size-off))]
	n, err := s.draft.ReadAt(b, off)
	if err != nil {
		return nil, s.fails(err)
	}
	return fuse.ReadResultData(b[:n]), 0
}

// Write implements fs.NodeWriter.
func (s *served) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if off < 0 || off > s.size-int64(len(b)) {
		return 0, syscall.ENOSPC
	}
	// Sectors are written as a whole.
	from, to := off/sector*sector, (off+int64(len(b))+sector-1)/sector*sector
	whole := b
	if from != off || to-from != int64(len(b)) {
		whole = make([]byte, to-from)
		if _, err := s.draft.ReadAt(whole, from); err != nil {
			return 0, s.fails(err)
		}
		copy(whole[off-from:], b)
	}
	if _, err := s.draft.WriteAt(whole, from); err != nil {
		return 0, s.fails(err)
	}
	return uint32(len(b)), 0
}

func (s *served) fails(err error) syscall.Errno {
	if s.err == nil {
		s.err = fmt.Errorf("check file system: %w", err)
	}
	return syscall.EIO
}

// Fsync implements fs.NodeFsyncer.
func (s *served) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }
