package nfsd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// nfsdFS is the file system through which the kernel's server is controlled (fs/nfsd/nfsctl.c).
const nfsdFS = "/proc/fs/nfsd"

// Ports. They are fixed, so that no client needs to ask for them and a firewall
// can know them. 2049 is NFS's own (RFC 8881, 2.9.3), 4045 is the one that Solaris uses
// for lockd, 20048 is assigned to mountd; none is assigned to the status monitor, whose
// ports are those of Debian's wiki.
const (
	Port       = 2049 // where clients of NFSv4 find a server (RFC 8881, 2.9.3)
	mountPort  = 20048
	lockPort   = 4045
	statusPort = 32765
	notifyPort = 32766
)

// Bounds on lease and grace, from __nfsd4_write_time.
const (
	MinLease = 10 * time.Second
	MaxLease = time.Hour
)

// write writes to one of the server's files. A short value is one write(2), which
// is what these files want.
func write(name, value string) error {
	if err := os.WriteFile(filepath.Join(nfsdFS, name), []byte(value+"\n"), 0); err != nil {
		return fmt.Errorf("set nfsd's %s to %q: %w", name, value, err)
	}
	return nil
}

func mountServer() error {
	if _, err := os.Stat(filepath.Join(nfsdFS, "threads")); err == nil {
		return nil
	}
	if err := unix.Mount("nfsd", nfsdFS, "nfsd", 0, ""); err != nil {
		return fmt.Errorf("mount nfsd's file system: %w (is module nfsd loaded?)", err)
	}
	return nil
}

// maxLockGrace is the longest grace that lockd takes: nlm_grace_period_max, fs/lockd/svc.c.
const maxLockGrace = 240 * time.Second

// setLocks gives lockd, which starts with the server, its ports and its grace
// (fs/lockd/svc.c). It reads both when it starts. The grace is the longest: it begins long before the
// server has its disk, and boundLockGrace ends it.
func setLocks() error {
	for name, value := range map[string]string{
		"nlm_tcpport": strconv.Itoa(lockPort), "nlm_udpport": strconv.Itoa(lockPort),
		"nlm_grace_period": seconds(maxLockGrace),
	} {
		if err := os.WriteFile("/sys/module/lockd/parameters/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set lockd's %s: %w", name, err)
		}
	}
	return nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// arm sets everything that the kernel keeps only until its last thread has ended.
// Times can be set only before the first port (EBUSY).
func arm(c wire.NFS) error {
	// Version 2 has no large files and no COMMIT; newer kernels are without it.
	if err := write("versions", "+3 +4 +4.1 +4.2"); err != nil {
		return err
	}
	if err := write("nfsv4leasetime", seconds(c.Lease)); err != nil {
		return err
	}
	if err := write("nfsv4gracetime", seconds(c.Grace)); err != nil {
		return err
	}
	for _, transport := range []string{"tcp", "udp"} {
		if transport == "udp" && !c.UDP {
			continue
		}
		if err := write("portlist", transport+" "+strconv.Itoa(Port)); err != nil {
			return err
		}
	}
	return nil
}

// longLockGrace is the longest grace that is sure to be left for lockd's clients when the server starts.
const longLockGrace = 3 * time.Minute

// graceSpent reports whether lockd, if it began its grace that long ago, ends the grace too early for a server that
// starts now.
func graceSpent(ago, grace time.Duration) bool { return ago > maxLockGrace-min(grace, longLockGrace) }

// boundLockGrace ends lockd's grace when a grace has passed from now on, unless ctx ends before.
func boundLockGrace(ctx context.Context, grace time.Duration, end func() error) error {
	select {
	case <-time.After(grace):
		return end()
	case <-ctx.Done():
		return nil
	}
}

// endLockGrace ends lockd's grace period, in which nobody gets a new lock, not even
// over NFSv4. Linux has had the file since 3.18.
func endLockGrace() error {
	err := os.WriteFile("/proc/fs/lockd/nlm_end_grace", []byte("Y"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end lockd's grace: %w", err)
	}
	return nil
}
