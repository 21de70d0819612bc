package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover"
)

// newNFSLab boots a pair that serves NFS, and its client, with one of the kernels in the
// cache, and with this lease and grace period.
func newNFSLab(t *testing.T, kernel, lease string) *nfslab.Lab {
	t.Helper()
	vm(t)
	if kernel != "default" {
		tier.Full(t, "NFS on kernel "+kernel)
	}
	cache, err := dirs.Cache()
	if err != nil {
		t.Fatal(err)
	}
	return bootNFSLab(t, nfslab.Options{
		Kernel: filepath.Join(cache, "kernels", kernel),
		Append: hold.Parameters(), // the disk has nothing but what the clients were promised
		NFS:    strings.NewReplacer("lease: 10s", "lease: "+lease, "grace: 10s", "grace: "+lease).Replace(nfslab.DefaultNFS),
	})
}

func bootNFSLab(t *testing.T, o nfslab.Options) *nfslab.Lab {
	t.Helper()
	o.Program, o.Log = labBinary, t.Output()
	if _, _, err := dirs.Kernel(o.Kernel); err != nil {
		tier.Lacks(t, err)
	}
	l, err := nfslab.New(t.Context(), o)
	if err != nil {
		keepConsoles(t)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepConsoles(t)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// keepConsoles logs what the guests said.
func keepConsoles(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(os.Getenv("UNDERSTUDY_RUN"), "*", "*.console.log"))
	for _, f := range logs {
		b, _ := os.ReadFile(f)
		t.Logf("%s:\n%s", filepath.Base(f), b)
	}
}

// TestNFSThroughCrash checks that kernel clients of versions 3 and 4.2 write through a
// crash of their server, with none of the data on a disk, and notice nothing but a wait.
// Both keep their locks, and the grace period ends as soon as they have reclaimed them.
func TestNFSThroughCrash(t *testing.T) {
	// The oldest and the newest kernel keep track of their clients in the same way as the
	// default one; the newest has no other way.
	for _, kernel := range []string{"default", "5.10-cloud", "newest-cloud"} {
		// On a busy machine an outage can be longer than the shortest lease and grace period.
		// The first lock waits for one grace period to end.
		t.Run(kernel, func(t *testing.T) { throughCrash(t, newNFSLab(t, kernel, "30s")) })
	}
}

// TestNFSOlderVersions does the same for 4.0 and 4.1. A client of 4.0 cannot say that it
// has reclaimed everything, so that new files wait for the end of the grace period.
func TestNFSOlderVersions(t *testing.T) {
	tier.Full(t, "older versions of NFS")
	l := newNFSLab(t, "default", "30s")
	ctx, cancel := context.WithTimeout(t.Context(), nfsLimit)
	defer cancel()
	locks, streams := workOn(ctx, t, l, 300_000, "4.0", "4.1")
	writeThrough(ctx, t, l, streams, crash)
	checkLocks(ctx, t, l, locks)
	if err := l.Super.Stop(ctx); err != nil {
		t.Errorf("planned stop: %v", err)
	}
}

// workOn lets the client mount the export with each of the versions, hold a lock there, and prepare a stream of files
// of a size.
func workOn(ctx context.Context, t *testing.T, l *nfslab.Lab, size int, versions ...string) (locks []nfslab.LockRequest, streams map[string]*nfslab.WriteRequest) {
	t.Helper()
	streams = make(map[string]*nfslab.WriteRequest)
	for _, version := range versions {
		name, _, _ := strings.Cut(version, ",")
		target := "/mnt/v" + name
		if err := l.Mount(ctx, target, version); err != nil {
			t.Fatal(err)
		}
		dir := target + "/of" + name
		if _, err := l.RunClient(ctx, "/bin/busybox", "mkdir", dir); err != nil {
			t.Fatal(err)
		}
		lock := nfslab.LockRequest{Path: target + "/lock" + name}
		if err := l.Client.Call(ctx, nfslab.VerbLock, lock, nil); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, lock)
		streams[version] = &nfslab.WriteRequest{Dir: dir, Seed: uint64(len(locks)), Size: size}
	}
	return locks, streams
}

func throughCrash(t *testing.T, l *nfslab.Lab) {
	ctx, cancel := context.WithTimeout(t.Context(), nfsLimit)
	defer cancel()
	for target, version := range map[string]string{"/mnt/v3": "3", "/mnt/v4": "4.2"} {
		if err := l.Mount(ctx, target, version); err != nil {
			t.Fatal(err)
		}
		if _, err := l.RunClient(ctx, "/bin/busybox", "mkdir", target+"/of"+version); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Monitor(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Mount(ctx, "/mnt/v3lock", "3,lock"); err != nil {
		t.Fatal(err)
	}
	locks := []nfslab.LockRequest{{Path: "/mnt/v4/lock4"}, {Path: "/mnt/v3lock/lock3"}}
	for _, lock := range locks {
		if err := l.Client.Call(ctx, nfslab.VerbLock, lock, nil); err != nil {
			t.Fatal(err)
		}
	}
	streams := map[string]*nfslab.WriteRequest{
		"3":   {Dir: "/mnt/v3/of3", Seed: 3, Size: 300_000},
		"4.2": {Dir: "/mnt/v4/of4.2", Seed: 4, Size: 300_000},
	}
	writeThrough(ctx, t, l, streams, crash)
	checkGraceEnded(ctx, t, l)
	checkLocks(ctx, t, l, locks)
	// The clients still have everything mounted.
	if err := l.Super.Stop(ctx); err != nil {
		t.Errorf("planned stop: %v", err)
	}
}

// TestNFSIdleClient tests a client that holds a lock, and has nothing to do. It would find out that its server is
// another one only when it renews its lease, after two thirds of it, and until then the other client could create no
// file.
func TestNFSIdleClient(t *testing.T) {
	for _, kernel := range []string{"default", "6.12-cloud", "newest-cloud"} {
		t.Run(kernel, func(t *testing.T) { idleThroughCrash(t, newNFSLab(t, kernel, "20m")) })
	}
}

func idleThroughCrash(t *testing.T, l *nfslab.Lab) {
	const long = 5 * time.Minute // for a machine of any speed, and long before a renewal
	ctx, cancel := context.WithTimeout(t.Context(), nfsLimit)
	defer cancel()
	for target, version := range map[string]string{"/mnt/idle": "4.1", "/mnt/busy": "4.2"} {
		if err := l.Mount(ctx, target, version); err != nil {
			t.Fatal(err)
		}
	}
	var locks []nfslab.LockRequest
	for _, path := range []string{"/mnt/idle/lock", "/mnt/busy/lock2"} {
		lock := nfslab.LockRequest{Path: path}
		if err := l.Client.Call(ctx, nfslab.VerbLock, lock, nil); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, lock)
	}
	crash(t, l)
	began := time.Now()
	within, enough := context.WithTimeout(ctx, long)
	defer enough()
	if _, err := l.RunClient(within, "/bin/busybox", "touch", "/mnt/busy/new"); err != nil {
		t.Fatalf("a new file after %v: %v", time.Since(began), err)
	}
	t.Logf("a new file was made after %v", time.Since(began))
	checkGraceEnded(ctx, t, l)
	checkLocks(ctx, t, l, locks)
}

// nfsLimit is how long a client's work, a crash and its verification may take, on a
// busy machine.
const nfsLimit = 15 * time.Minute

// filesWritten is how many files of each stream are written before a crash, and how
// many more after it.
const filesWritten = 10

// writeMore waits until each stream has written filesWritten more files.
func writeMore(ctx context.Context, t *testing.T, l *nfslab.Lab, streams map[string]*nfslab.WriteRequest) {
	t.Helper()
	written := func() map[string]int {
		var n map[string]int
		if err := l.Client.Call(ctx, nfslab.VerbWritten, struct{}{}, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := written()
	await(t, fmt.Sprintf("%d files more of each stream", filesWritten), nfsLimit, func() bool {
		now := written()
		for _, s := range streams {
			if now[s.Dir] < first[s.Dir]+filesWritten {
				return false
			}
		}
		return true
	})
}

// writeThrough lets streams of files be written, crashes the server meanwhile, and checks
// that every file is complete.
func writeThrough(ctx context.Context, t *testing.T, l *nfslab.Lab, streams map[string]*nfslab.WriteRequest, crash func(*testing.T, *nfslab.Lab)) {
	t.Helper()
	var g errgroup.Group
	results := make(map[string]*nfslab.WriteResult)
	for version, s := range streams {
		r := new(nfslab.WriteResult)
		results[version] = r
		g.Go(func() error { return l.Client.Call(ctx, nfslab.VerbWrite, s, r) })
	}
	writeMore(ctx, t, l, streams)
	crash(t, l)
	writeMore(ctx, t, l, streams)
	if err := l.Client.Call(ctx, nfslab.VerbStop, struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for version, s := range streams {
		r := results[version]
		t.Logf("version %s: %d files, the longest took %v, at %v", version, r.Files, r.Worst, r.At)
		if r.Files < 2 || len(r.Errors) > 0 {
			t.Errorf("version %s: %d files written, errors %q", version, r.Files, r.Errors)
		}
		s.Files = r.Files
		var found nfslab.WriteResult
		if err := l.Client.Call(ctx, nfslab.VerbVerify, s, &found); err != nil || len(found.Errors) > 0 {
			t.Errorf("version %s: %v, %q", version, err, found.Errors)
		}
	}
}

// checkLocks checks that clients still have the locks that they held, and gives the locks up.
func checkLocks(ctx context.Context, t *testing.T, l *nfslab.Lab, locks []nfslab.LockRequest) {
	t.Helper()
	for _, lock := range locks {
		checkLocked(ctx, t, l, nfslab.Export+"/"+filepath.Base(lock.Path))
		giveUp(ctx, t, l, lock)
	}
}

// giveUp checks that the client still has a lock, by a write under it, and gives it up.
func giveUp(ctx context.Context, t *testing.T, l *nfslab.Lab, lock nfslab.LockRequest) {
	t.Helper()
	if err := l.Client.Call(ctx, nfslab.VerbUnlock, lock, nil); err != nil {
		t.Errorf("%s: the lock was lost: %v", lock.Path, err)
	}
}

// checkLocked checks that the server holds a lock on a file for a client: a line of
// /proc/locks ends with the device, inode and range (proc(5)).
func checkLocked(ctx context.Context, t *testing.T, l *nfslab.Lab, path string) {
	t.Helper()
	inode, err := l.Run(ctx, "/bin/busybox", "stat", "-c", "%i", path)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := l.Run(ctx, "/bin/busybox", "cat", "/proc/locks")
	if err != nil || !strings.Contains(locks, ":"+strings.TrimSpace(inode)+" ") {
		t.Errorf("%s, inode %s, is not locked: %v\n%s", path, inode, err, locks)
	}
}

// crash kills the server, and lets its understudy take over.
func crash(t *testing.T, l *nfslab.Lab) {
	t.Helper()
	if err := l.Super.Crash(false); err != nil {
		t.Fatal(err)
	}
	v, err := l.Super.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	report, err := l.Super.TakeOver(t.Context(), v.Verdict)
	if err != nil {
		t.Fatal(err)
	}
	if err := takeover.WriteSteps(t.Output(), report.Timeline.Steps(), 50); err != nil {
		t.Error(err)
	}
	t.Logf("recovered %d bytes of %d files; %v", report.Bytes, report.Files, &report.Notified)
}

// checkGraceEnded checks that the grace period ended because all clients had reclaimed.
func checkGraceEnded(ctx context.Context, t *testing.T, l *nfslab.Lab) {
	t.Helper()
	said, err := l.Run(ctx, "/bin/busybox", "dmesg")
	if err != nil || !strings.Contains(said, "all clients done reclaiming") {
		t.Errorf("the grace was not ended by its clients: %v\n%s", err, said)
	}
	keepConsoles(t)
}
