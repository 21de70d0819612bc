package pair

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"understudy.dev/understudy/internal/live/nfsd"
)

// NFS is the kernel's NFS server, which runs where the active role is.
type NFS struct {
	Exports []string      // lines of exports(5), each with an fsid
	State   string        // directory on a shared disk, with the records of who may reclaim what
	Lease   time.Duration // of NFSv4 state, whole seconds
	Grace   time.Duration // after a start, whole seconds, at least the lease from before the start
	Threads int
	UDP     bool // NFSv3 over UDP too
}

const (
	nfsSpan    = 90 * time.Second // the kernel's own lease and grace (NFSD_LEASE_TIME, fs/nfsd/state.h)
	nfsThreads = 8                // the kernel's own (formerly NFSD_NRSERVS)
	maxThreads = 8192             // NFSD_MAXSERVS, fs/nfsd/nfssvc.c
	exportHint = `write e.g. "/srv/export *(rw,async,no_root_squash,fsid=1)"`
	spanHint   = "write whole seconds from 10s to 1h"
)

func (r *reader) nfs(node *yaml.Node, key string) {
	n := &NFS{Lease: nfsSpan, Grace: nfsSpan, Threads: nfsThreads}
	export := func(node *yaml.Node, key string) {
		line, ok := r.scalar(node, key, false)
		if !ok {
			return
		}
		n.Exports = append(n.Exports, line)
		if _, err := nfsd.ParseExport(line); errors.Is(err, nfsd.ErrNoFSID) {
			r.refuse(node, key, "add e.g. fsid=1 to its options: both sides must give a file the same handle", "%v", err)
		} else if err != nil {
			r.refuse(node, key, exportHint, "%v", err)
		}
	}
	r.mapping(node, key,
		field{"exports", true, func(node *yaml.Node, key string) { r.sequence(node, key, export) }},
		parsed(r, "state", true, &n.State, "write a directory on a shared disk, e.g. /srv/.nfs", parseMount),
		parsed(r, "lease", false, &n.Lease, spanHint, parseSpan),
		parsed(r, "grace", false, &n.Grace, spanHint, parseSpan),
		parsed(r, "threads", false, &n.Threads, "write a number from 1 to 8192", parseThreads),
		parsed(r, "udp", false, &n.UDP, "write true or false", parseBool),
	)
	r.pair.NFS = n
}

// parseSpan reads a lease or grace period within nfsd's bounds.
func parseSpan(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err != nil {
		return 0, err
	}
	if d < nfsd.MinLease || d > nfsd.MaxLease || d%time.Second != 0 {
		return 0, fmt.Errorf("%v is not a whole number of seconds from %v to %v", d, nfsd.MinLease, nfsd.MaxLease)
	}
	return d, nil
}

func parseThreads(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxThreads {
		return 0, fmt.Errorf("%q is not a number of threads", s)
	}
	return n, nil
}

// directories returns all directories that the server uses.
func (n *NFS) directories() []string {
	dirs := []string{n.State}
	for _, line := range n.Exports {
		if e, err := nfsd.ParseExport(line); err == nil {
			dirs = append(dirs, e.Path)
		}
	}
	return dirs
}

func (p *Pair) nfsRules(add addFunc) {
	n := p.NFS
	if n == nil {
		return
	}
	if len(n.Exports) == 0 {
		add("nfs.exports", exportHint, "exports nothing")
	}
	shared := func(dir string) bool {
		return slices.ContainsFunc(p.Disks, func(d Disk) bool { return dir == d.Mount || below(dir, d.Mount) })
	}
	if n.State != "" && !shared(n.State) {
		add("nfs.state", "put it below the mount of one of the disks", "%s is on no shared disk, so a takeover would find nothing there", n.State)
	}
	for i, d := range p.Disks {
		if !d.Type.Ext() && slices.ContainsFunc(n.directories(), func(dir string) bool { return dir == d.Mount || below(dir, d.Mount) }) {
			add(fmt.Sprintf("disks.%d.type", i), "serve from ext4", "an NFS server on %s is not supported: files that only memory has are made again, with other file handles", d.Type)
		}
	}
	ids := make(map[string]string)
	for i, line := range n.Exports {
		key := "nfs.exports." + strconv.Itoa(i)
		e, err := nfsd.ParseExport(line)
		if err != nil {
			continue // reported
		}
		if !shared(e.Path) {
			add(key, "export a directory of one of the disks", "%s is on no shared disk, so its files would be others after a takeover", e.Path)
		}
		if n.State == e.Path || below(n.State, strings.TrimSuffix(e.Path, "/")) {
			add(key, "export a directory beside it", "the state directory %s lies in %s, where clients could change it", n.State, e.Path)
		}
		for _, c := range e.Clients {
			if path, ok := ids[c.FSID]; ok && path != e.Path {
				add(key, "give each directory its own", "fsid %s is that of %s already", c.FSID, path)
			}
			ids[c.FSID] = e.Path
		}
	}
	if n.Grace < n.Lease {
		add("nfs.grace", "make it at least as long as the lease: a client may need that long to notice a restart",
			"%v is less than the lease of %v", n.Grace, n.Lease)
	}
}
