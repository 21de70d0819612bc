package metal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// maxThreads is NFSD_MAXSERVS (fs/nfsd/nfssvc.c).
const maxThreads = 8192

// checkNFS says what of an NFS server cannot be taken over: the understudy's kernel serves the
// directories that the role names, each on one of its disks, under the numbers that clients have
// in their handles (option fsid).
func checkNFS(role *wire.Config) error {
	n := role.NFS
	on := func(dir string) bool {
		return slices.ContainsFunc(role.Disks, func(d wire.Disk) bool { return dir == d.Mount || strings.HasPrefix(dir, d.Mount+"/") })
	}
	switch {
	case slices.ContainsFunc(role.Disks, func(d wire.Disk) bool { return d.Mount == "/" }):
		return errors.New("NFS server: it cannot be taken over together with the root file system yet: clients know what is exported by its path")
	case n.Host == "" || len(n.Exports) == 0:
		return errors.New("NFS server: the role needs its host, the name that this machine has towards clients, and its exports")
	case !on(n.State):
		return fmt.Errorf("NFS server: its state directory, %q, is on none of the disks", n.State)
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
	for _, line := range n.Exports {
		e, err := nfsd.ParseExport(line)
		switch {
		case err != nil:
			return fmt.Errorf("NFS server: %w", err)
		case !on(e.Path):
			return fmt.Errorf("NFS server: %s is on none of the disks", e.Path)
		case n.State == e.Path || strings.HasPrefix(n.State, e.Path+"/"):
			return fmt.Errorf("NFS server: its state directory %s lies in %s, where clients could change it", n.State, e.Path)
		}
	}
	return nil
}
