package nfsbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/nfslab"
)

// CrashReport is the outcome of one crash while real programs work.
type CrashReport struct {
	Seed     uint64   `json:"seed"`
	FioOn    string   `json:"fio_on"`   // NFS version
	UntarOn  string   `json:"untar_on"` // the other one
	Unpacked int      `json:"unpacked"` // files, when the crash was ordered
	Files    int      `json:"files"`
	TookMS   float64  `json:"took_ms"` // the takeover
	Failures []string `json:"failures"`
}

// fioJobs write each block once, at random, past the client's cache and through
// it, slow enough to last through a crash; then they read all of it back. A block's
// header has its place, its number and the checksum of its content.
const fioJobs = `[global]
rw=randwrite
bs=16k
size=24m
rate=2m
ioengine=psync
fallocate=none
randseed=%d
verify=crc32c
verify_fatal=1
invalidate=1
directory=%s
[direct]
direct=1
[buffered]
fsync=16
`

// programLimit is for programs, crash and verification: long, for a busy machine.
const programLimit = 20 * time.Minute

// crashRun is a crash under way.
type crashRun struct {
	*nfslab.Lab
	report   *CrashReport
	tree     *Tree
	versions [2]string // of fio's mount, and of the unpacker's
	out      io.Writer
	began    time.Time
}

func (c *crashRun) say(what string) {
	fmt.Fprintf(c.out, "%5.1f s  %s\n", time.Since(c.began).Seconds(), what)
}

// Crashes lets a kernel client run fio --verify over one version of NFS and unpack a tree
// over another, and crashes the server meanwhile. It checks that neither program gets an
// error, and that all content is right after the mounts were made anew.
func Crashes(ctx context.Context, o Options, tree *Tree, runs int, seed uint64, out io.Writer) ([]*CrashReport, error) {
	reports := []*CrashReport{}
	held := true
	for i := range runs {
		r, err := crashOnce(ctx, o, tree, seed+uint64(i))
		if err != nil {
			return reports, fmt.Errorf("crash %d, seed %d: %w", i+1, seed+uint64(i), err)
		}
		reports = append(reports, r)
		held = held && len(r.Failures) == 0
		fmt.Fprintf(out, "crash %2d  %s\n", i+1, r.line())
	}
	if !held {
		return reports, ErrNotHeld
	}
	return reports, nil
}

func (r *CrashReport) line() string {
	held := "both without an error, verification clean"
	if len(r.Failures) > 0 {
		held = "FAILED: " + strings.Join(r.Failures, "; ")
	}
	return fmt.Sprintf("seed %-10d  fio by v%-3s  untar by v%-3s  at file %4d of %d  takeover %4.0f ms  %s",
		r.Seed, r.FioOn, r.UntarOn, r.Unpacked, r.Files, r.TookMS, held)
}

func crashOnce(ctx context.Context, o Options, tree *Tree, seed uint64) (_ *CrashReport, err error) {
	c := &crashRun{tree: tree, versions: [2]string{"4.2", "3"}, out: o.Say, began: time.Now()}
	if seed%2 == 1 {
		c.versions = [2]string{"3", "4.2"}
	}
	c.report = &CrashReport{Seed: seed, FioOn: c.versions[0], UntarOn: c.versions[1], Files: tree.Files, Failures: []string{}}
	lab := o.Lab
	lab.Append = hold.Parameters()
	c.say("boot")
	if c.Lab, err = boot(ctx, lab); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Lab.Close()) }()
	if err := c.mountBoth(ctx); err != nil {
		return nil, err
	}
	fio := fmt.Sprintf(fioJobs, seed, c.place(0))
	if err := c.script(ctx, fmt.Sprintf("busybox mkdir -p %s %s && busybox cat > /fio.job <<'END'\n%sEND\n", c.place(0), c.place(1), fio)); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	if err := c.work(limited, seed); err != nil {
		return nil, err
	}
	return c.report, c.verify(limited)
}

// place is the directory that fio (0) or the unpacker (1) works in.
func (c *crashRun) place(i int) string {
	return mounts[c.versions[i]] + "/" + [2]string{"fio", "tree"}[i]
}

func (c *crashRun) mountBoth(ctx context.Context) error {
	for _, v := range c.versions {
		if err := c.Mount(ctx, mounts[v], v); err != nil {
			return err
		}
	}
	return nil
}

// script runs a shell script on the client. The shell's commands are busybox's.
func (c *crashRun) script(ctx context.Context, text string) error {
	_, err := c.RunClient(ctx, "/bin/busybox", "sh", "-c", text)
	return err
}

// work runs both programs, and crashes the server meanwhile.
func (c *crashRun) work(ctx context.Context, seed uint64) error {
	var programs errgroup.Group
	ended := make(chan string, 2)
	program := func(name, text string) {
		programs.Go(func() error {
			err := c.script(ctx, text)
			ended <- name
			if err != nil {
				c.report.Failures = append(c.report.Failures, name+": "+err.Error())
			}
			return nil
		})
	}
	c.say("run fio and tar")
	program("fio", "exec fio --output=/fio.out /fio.job")
	program("untar", "exec busybox tar xvf "+tarPath+" -C "+c.place(1)+" > /tar.out 2>&1")
	at := c.tree.Files/10 + rand.New(rand.NewPCG(seed, 0)).IntN(c.tree.Files*6/10)
	if err := c.unpacked(ctx, at, ended); err != nil {
		return err
	}
	c.say("crash")
	if err := c.takeOver(ctx); err != nil {
		return err
	}
	c.say("wait for both programs")
	if len(ended) > 0 {
		c.report.Failures = append(c.report.Failures, <-ended+" had ended before the server was back")
	}
	return programs.Wait()
}

// unpacked waits until that many files were unpacked.
func (c *crashRun) unpacked(ctx context.Context, at int, ended <-chan string) error {
	for {
		// Count on the server: tar's output is buffered.
		lines, err := c.Run(ctx, "/bin/busybox", "sh", "-c", "busybox find "+nfslab.Export+"/tree -type f | busybox wc -l")
		if err != nil {
			return err
		}
		if c.report.Unpacked, err = strconv.Atoi(strings.TrimSpace(lines)); err != nil {
			return fmt.Errorf("count unpacked files: %w", err)
		}
		if c.report.Unpacked >= at {
			return nil
		}
		select {
		case name := <-ended:
			return fmt.Errorf("%s ended before any crash: %s", name, strings.Join(c.report.Failures, "; "))
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *crashRun) takeOver(ctx context.Context) error {
	began := time.Now()
	if err := c.Super.Crash(false); err != nil {
		return err
	}
	v, err := c.Super.Watch(ctx)
	if err != nil {
		return err
	}
	report, err := c.Super.TakeOver(ctx, v.Verdict)
	if err != nil {
		return err
	}
	c.report.TookMS = float64(time.Since(began).Microseconds()) / 1000
	for _, f := range report.Refused {
		c.report.Failures = append(c.report.Failures, "not brought over: "+f.String())
	}
	return nil
}

// verify mounts anew, so that nothing is in the client's cache, and lets fio and
// sha256sum check everything.
func (c *crashRun) verify(ctx context.Context) error {
	c.say("mount anew")
	for _, v := range c.versions {
		if err := c.Client.Call(ctx, nfslab.VerbUnmount, nfslab.MountRequest{Target: mounts[v]}, nil); err != nil {
			return err
		}
	}
	if err := c.mountBoth(ctx); err != nil {
		return err
	}
	c.say("verify")
	for name, text := range map[string]string{
		"fio's verification": "exec fio --output=/fio.out --verify_only /fio.job",
		"check of the tree":  fmt.Sprintf("cd %s && ! busybox sha256sum -c %s 2>&1 | busybox grep -v ': OK$'", c.place(1), sumsPath),
		"count of the tree":  fmt.Sprintf("test $(busybox find %s -type f | busybox wc -l) = %d", c.place(1), c.tree.Files),
		"tar's words":        fmt.Sprintf("test $(busybox wc -l < /tar.out) = %d", c.tree.Files),
	} {
		_, err := c.RunClient(ctx, "/bin/busybox", "sh", "-c", text)
		if err == nil {
			continue
		}
		said, _ := c.RunClient(ctx, "/bin/busybox", "tail", "-n", "20", "/fio.out", "/tar.out") // best effort
		c.report.Failures = append(c.report.Failures, fmt.Sprintf("%s: %v; %s", name, err, said))
	}
	return nil
}
