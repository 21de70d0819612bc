package metal

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// maxThreads is NFSD_MAXSERVS (fs/nfsd/nfssvc.c).
const maxThreads = 8192

// states are the directories in which an NFS server keeps what it knows of its clients.
func states(n *wire.NFS) []string {
	if n.Monitor == "" {
		return []string{n.State}
	}
	return []string{n.State, n.Monitor}
}

// imageDirs are the directories that an understudy's own root directory, in which its NFS server runs, needs
// for itself. Exported directories appear there too, at the paths by which clients know them.
var imageDirs = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/sysroot", "/usr", "/var/lib/nfs"}

// checkNFS returns why a role's NFS server cannot be taken over. The understudy's kernel serves the directories
// that the role names, each on one of its disks, under the numbers that clients have in their file handles
// (option fsid).
func checkNFS(role *wire.Config) error {
	n := role.NFS
	on := func(dir string) bool { _, ok := diskAt(role.Disks, dir); return ok }
	switch {
	case n.Host == "" || len(n.Exports) == 0:
		return errors.New("NFS server: the role must give its host (the name that clients know this machine by) and its exports")
	case n.Threads < 1 || n.Threads > maxThreads:
		return fmt.Errorf("NFS server: %d is no number of threads", n.Threads)
	case n.Grace < n.Lease:
		return fmt.Errorf("NFS server: a grace of %v is less than its lease of %v", n.Grace, n.Lease)
	}
	for _, d := range []time.Duration{n.Lease, n.Grace} {
		if d < nfsd.MinLease || d > nfsd.MaxLease || d%time.Second != 0 {
			return fmt.Errorf("NFS server: a lease or grace of %v is no whole number of seconds from %v to %v", d, nfsd.MinLease, nfsd.MaxLease)
		}
	}
	for _, dir := range states(n) {
		switch {
		case !path.IsAbs(dir) || path.Clean(dir) != dir:
			return fmt.Errorf("NFS server: its state directory, %q, is no clean absolute path", dir)
		case !on(dir):
			return fmt.Errorf("NFS server: its state directory, %q, is on none of the disks", dir)
		}
	}
	for _, line := range n.Exports {
		e, err := nfsd.ParseExport(line)
		switch {
		case errors.Is(err, nfsd.ErrNoFSID):
			return hint.New("NFS server: export "+line, err, "add e.g. fsid=1, a number of its own, to its options: both kernels must give a file the same handle; clients mount it anew then")
		case err != nil:
			return fmt.Errorf("NFS server: %w", err)
		case !on(e.Path):
			return fmt.Errorf("NFS server: %s is on none of the disks", e.Path)
		case !handlesStay(role.Disks, e.Path):
			return fmt.Errorf("NFS server: %s is on XFS or btrfs, where files that only memory has are made again with other file handles: serve it from ext4", e.Path)
		case slices.ContainsFunc(imageDirs, func(dir string) bool { return within(dir, e.Path) || within(e.Path, dir) }):
			return fmt.Errorf("NFS server: %s cannot be exported by an understudy, which has files of its own there", e.Path)
		case slices.ContainsFunc(states(n), func(dir string) bool { return within(dir, e.Path) }):
			return fmt.Errorf("NFS server: its state directory (%s) lies in %s, where clients could change it", strings.Join(states(n), ", "), e.Path)
		}
	}
	return nil
}

// handlesStay reports whether the files of an exported directory keep their handles through a takeover: neither it, nor
// anything that is mounted below it, is on a file system whose log is not finished.
func handlesStay(disks []wire.Disk, dir string) bool {
	made := func(d wire.Disk) bool { return d.Type == "xfs" || d.Type == "btrfs" }
	d, _ := diskAt(disks, dir)
	return !made(d) && !slices.ContainsFunc(disks, func(d wire.Disk) bool {
		return made(d) && slices.ContainsFunc(d.Points(), func(p wire.MountPoint) bool { return within(p.Dir, dir) })
	})
}

// NFSOf returns the NFS server that this machine's kernel runs, with the exports that exportfs(8) reads, for a
// role with those disks. What an understudy records of its clients is on the root file system if that is among
// the disks, else on the first of them. root is as for CheckRole.
func NFSOf(root fs.FS, disks []wire.Disk) (*wire.NFS, error) {
	n := new(wire.NFS)
	for _, f := range []struct {
		name string
		take func(text string) error
	}{
		{"proc/sys/kernel/hostname", func(text string) error { n.Host = text; return nil }},
		{"proc/fs/nfsd/threads", func(text string) (err error) { n.Threads, err = strconv.Atoi(text); return err }},
		{"proc/fs/nfsd/nfsv4leasetime", inSeconds(&n.Lease)},
		{"proc/fs/nfsd/nfsv4gracetime", inSeconds(&n.Grace)},
		{"proc/fs/nfsd/portlist", func(text string) error { n.UDP = strings.Contains("\n"+text, "\nudp "); return nil }},
	} {
		b, err := fs.ReadFile(root, f.name)
		if err == nil {
			err = f.take(strings.TrimSpace(string(b)))
		}
		if err != nil {
			return nil, fmt.Errorf("this machine's NFS server, which must run: %w", err)
		}
	}
	// A lease that is longer than the grace would be refused; nfsd has both as 90 s.
	n.Grace = max(n.Grace, n.Lease)
	more, err := fs.Glob(root, "etc/exports.d/*.exports")
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{"etc/exports"}, more...) {
		b, err := fs.ReadFile(root, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		n.Exports = append(n.Exports, exportLines(string(b))...)
	}
	switch {
	case len(n.Exports) == 0:
		return nil, errors.New("this machine's NFS server exports nothing (/etc/exports)")
	case hasPoint(disks, "/"):
		n.State, n.Monitor = "/var/lib/understudy/nfs", monitorOf(root)
	case len(disks) > 0:
		n.State = path.Join(disks[0].Mount, ".understudy-nfs")
	}
	return n, nil
}

// monitorOf is the directory in which rpc.statd(8) has its state, as Debian or Fedora builds it; empty if there
// is none.
func monitorOf(root fs.FS) string {
	for _, dir := range []string{"var/lib/nfs/statd", "var/lib/nfs"} {
		if s, err := fs.Stat(root, dir+"/sm"); err == nil && s.IsDir() {
			return "/" + dir
		}
	}
	return ""
}

func inSeconds(d *time.Duration) func(text string) error {
	return func(text string) error {
		n, err := strconv.Atoi(text)
		*d = time.Duration(n) * time.Second
		return err
	}
}

// exportLines returns the lines of an exports(5) file that export something: continued lines are joined, and
// comments are left out.
func exportLines(text string) (lines []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// checkPaths refuses a role whose NFS server's directories are behind a symbolic link: an understudy has the
// link's target at another path. root is as for CheckRole.
func checkPaths(root fs.FS, n *wire.NFS) error {
	dirs := states(n)
	for _, line := range n.Exports {
		e, err := nfsd.ParseExport(line)
		if err != nil {
			return err
		}
		dirs = append(dirs, e.Path)
	}
	for _, dir := range dirs {
		for at := dir; at != "/"; at = path.Dir(at) {
			if s, err := fs.Lstat(root, at[1:]); err == nil && s.Mode()&fs.ModeSymlink != 0 {
				return fmt.Errorf("NFS server: %s goes through %s, a symbolic link: give its path without", dir, at)
			}
		}
	}
	return nil
}
