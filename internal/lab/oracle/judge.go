package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
)

// Verdict is the outcome of a case.
type Verdict string

// The verdicts. All but the first three are failures.
const (
	Exact   Verdict = "exact"   // the tree is as it must be, and the file system clean
	Refused Verdict = "refused" // the rescue refused something; each file is exact, or as it is without a rescue
	Plain   Verdict = "plain"   // there was no rescue; what was durable is there
	Differs Verdict = "differs" // the rescued tree is not as it must be
	Unclean Verdict = "unclean" // e2fsck finds something wrong; with a rescue, in the rescued tree
	Failed  Verdict = "failed"  // the rescue ended with a status that is neither 0 nor 3
	Loss    Verdict = "loss"    // what was durable is not there, in the rescued tree or without a rescue
	Broken  Verdict = "broken"  // the case could not be carried out
)

// Good reports whether the verdict is no failure.
func (v Verdict) Good() bool { return v == Exact || v == Refused || v == Plain }

// Result is the outcome of a case, and why.
type Result struct {
	Seed    uint64  `json:"seed"`
	Config  string  `json:"config"`
	Kernel  string  `json:"kernel"`
	Crash   Crash   `json:"crash"`
	Program string  `json:"program,omitempty"` // if the case has one
	Deaths  int     `json:"deaths,omitempty"`  // in a case of a pair
	Verdict Verdict `json:"verdict"`
	Error   string  `json:"error,omitempty"` // of a broken case
	Threads int     `json:"threads"`
	Ops     int     `json:"ops"`
	Pending int     `json:"pending"` // threads with an operation that was not reported
	// PendingOps are those operations.
	PendingOps string `json:"pending_ops,omitempty"`
	InSync     bool   `json:"in_sync"`   // the crash came within a syncfs(2)
	InCommit   bool   `json:"in_commit"` // the journal's thread waited for the disk
	Writeback  int    `json:"writeback_kib"`

	Rescue   *RescueReport `json:"rescue,omitempty"`
	Tree     *Comparison   `json:"tree,omitempty"`       // the rescued one, whole
	Fsck     string        `json:"fsck,omitempty"`       // what e2fsck said of it, if anything is wrong
	Plain    Comparison    `json:"plain"`                // what was durable, without a rescue
	Undone   int           `json:"undone"`               // findings without a rescue: what a crash costs
	Seconds  float64       `json:"seconds"`              // of everything
	Kept     string        `json:"kept,omitempty"`       // where memory and disks of a failure, or a refusal, are
	Replayed string        `json:"again,omitempty"`      // the command that does it again
	RescueMS int64         `json:"rescue_ms"`            // how long the rescue took
	PlainBad string        `json:"fsck_plain,omitempty"` // as Fsck, without a rescue
	// Unmountable is why the kernel that died cannot mount the disk without a rescue, if the rescue is exact: then nothing is compared without it.
	Unmountable string `json:"unmountable,omitempty"`
}

// Options are how cases are carried out.
type Options struct {
	Dir    string // for the files of a case; a tmpfs. "" is /dev/shm
	Keep   string // where failures and refusals are kept; "" means nowhere
	Rescue Rescue // nil if there is none
	Agent  string // the program that becomes PID 1 of a pair's sides
}

// Judge carries out a case.
func (c Case) Judge(ctx context.Context, o Options) Result {
	begin := time.Now()
	r := Result{Seed: c.Seed, Config: c.Config.Name, Kernel: c.Kernel, Crash: c.Crash}
	if c.Program != nil {
		r.Program = c.Program.Name
	}
	r.Replayed = fmt.Sprintf("go run ./internal/lab/oracle/cmd -seed %d -config %s -kernel %s -crash %s", c.Seed, c.Config.Name, c.Kernel, c.Crash)
	if c.Program != nil {
		r.Replayed += " -seeds 0 -programs 1 -program " + c.Program.Name
	}
	judge := c.judge
	if c.Deaths > 0 {
		r.Deaths, judge = c.Deaths, c.judgeLive
		r.Replayed = fmt.Sprintf("go run ./internal/lab/oracle/cmd -seeds 0 -live 1 -seed %d -config %s -kernel %s", c.Seed, c.Config.Name, c.Kernel)
	}
	err := o.in(func(dir string) error {
		err := judge(ctx, dir, o, &r)
		if err == nil && r.Verdict.Good() && (r.Verdict != Refused || c.Config.Refused != "") {
			return nil
		}
		return o.keep(dir, &r, err)
	})
	if err != nil && r.Verdict == "" {
		r.Verdict, r.Error = Broken, err.Error()
	}
	r.Seconds = time.Since(begin).Seconds()
	return r
}

// Again judges a case that was kept in a directory: its memory and its disk are the kept
// ones, and the rescue is done anew.
func Again(ctx context.Context, kept string, o Options) (Result, error) {
	c, _, err := Kept(kept)
	if err != nil {
		return Result{}, err
	}
	begin := time.Now()
	r := Result{Seed: c.Seed, Config: c.Config.Name, Kernel: c.Kernel, Crash: c.Crash}
	err = o.in(func(dir string) error {
		c.Dir = dir
		return c.judge(ctx, o, &r)
	})
	r.Seconds = time.Since(begin).Seconds()
	return r, err
}

// in calls do with a directory that it removes afterwards.
func (o Options) in(do func(dir string) error) error {
	dir := o.Dir
	if dir == "" {
		dir = "/dev/shm"
	}
	dir, err := os.MkdirTemp(dir, "understudy-oracle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return do(dir)
}

func (c Case) judge(ctx context.Context, dir string, o Options, r *Result) error {
	crashed, err := c.Run(ctx, dir)
	if crashed == nil {
		return err
	}
	if err == nil {
		err = crashed.judge(ctx, o, r)
	}
	return err
}

// keep keeps what is needed to look into a failure, or into a refusal that no configuration asks for.
func (o Options) keep(dir string, r *Result, err error) error {
	if o.Keep == "" {
		return err
	}
	r.Kept = filepath.Join(o.Keep, fmt.Sprintf("%d-%s-%s-%s", r.Seed, r.Config, r.Kernel, r.Crash))
	b, _ := json.MarshalIndent(r, "", "\t") // it is only numbers and text
	return errors.Join(err, keepFiles(dir, r.Kept), os.WriteFile(filepath.Join(r.Kept, "result.json"), b, 0o644))
}

// judge runs the rescue on the crashed disk, and compares.
func (c *Crashed) judge(ctx context.Context, o Options, r *Result) error {
	r.PendingOps = c.pendingText()
	r.Threads, r.Ops = len(c.Threads), c.Ops
	r.InSync, r.InCommit, r.Writeback = c.InSync, c.InCommit, c.Writeback
	r.Pending = c.pendingCount()
	plain, rescued := filepath.Join(c.Dir, "plain.img"), filepath.Join(c.Dir, "rescued.img")
	disks := []string{plain}
	if err := copyDisk(c.Disk, plain); err != nil {
		return err
	}
	if o.Rescue != nil {
		if err := copyDisk(c.Disk, rescued); err != nil {
			return err
		}
		begin := time.Now()
		kernel, err := fixture.Kernel(c.Kernel)
		if err != nil {
			return err
		}
		report, err := o.Rescue(ctx, kernel, c.RAM, rescued)
		r.RescueMS = time.Since(begin).Milliseconds()
		r.Rescue = &report
		if err != nil {
			return fmt.Errorf("rescue: %w", err)
		}
		disks = append(disks, rescued)
	}
	if c.Config.Refused != "" {
		return c.judgeRefused(plain, rescued, r)
	}
	if c.Config.NoJournal && c.Crash != Clean {
		// Only e2fsck makes such a file system whole after a crash.
		if err := repair(plain); err != nil {
			return err
		}
	}
	untouched := false
	if c.Config.remakes() && r.Rescue != nil && r.Rescue.Exit == 1 {
		var err error
		if untouched, err = sameBytes(c.Disk, rescued); err != nil {
			return err
		}
	}
	trees, err := c.Walk(ctx, disks...)
	if err != nil {
		return err
	}
	if untouched && trees[0].Error != "" {
		first, _, _ := strings.Cut(trees[0].Error, "\n")
		r.Verdict, r.Error = Refused, "the kernel that died cannot mount the disk without a rescue either, and the rescue left it as it was: "+first
		return nil
	}
	if c.ran == nil {
		r.Plain = c.CompareDurable(trees[0])
	}
	whole := c.Compare(trees[0])
	r.Undone = len(whole.Findings)
	if r.PlainBad, err = c.check(plain); err != nil {
		return err
	}
	if o.Rescue != nil {
		if c.Config.remakes() {
			c.remade = remadeOf(trees[0], r.Rescue, "")
		}
		tree := c.Compare(trees[1])
		if r.Tree = &tree; r.Rescue.Exit != 0 && !c.Config.remakes() {
			tree.forgive(trees[0], trees[1])
		}
		if r.Fsck, err = c.check(rescued); err != nil {
			return err
		}
	} else if c.Crash == Clean {
		r.Tree, r.Fsck = &whole, r.PlainBad
	}
	if c.Config.NoJournal {
		// fsync(2) promises little there: an inode is written only if something other
		// than ext4 itself marked it (ext4_fsync_nojournal, I_DIRTY_ALL), so an inode
		// that was only created or chmoded is not.
		r.Plain.Findings = nil
	}
	if refuse := trees[0].Error; refuse != "" && r.Tree != nil && len(r.Tree.Findings) == 0 && r.Fsck == "" && r.Rescue != nil && r.Rescue.Exit == 0 {
		r.Unmountable, _, _ = strings.Cut(refuse, "; the kernel said")
		r.Plain.Findings = nil
	}
	r.Verdict = verdict(r)
	return nil
}

// judgeRefused checks that the rescue is refused with the reason Config.Refused, and leaves the disk as it was.
func (c *Crashed) judgeRefused(plain, rescued string, r *Result) error {
	if r.Rescue == nil {
		r.Verdict = Plain
		return nil
	}
	same, err := sameBytes(plain, rescued)
	switch {
	case err != nil:
		return err
	case !same:
		r.Verdict, r.Error = Differs, "the rescue changed the disk"
	case r.Rescue.Exit == 0 || !strings.Contains(r.Rescue.Said, c.Config.Refused):
		r.Verdict, r.Error = Failed, fmt.Sprintf("status %d, and not refused by name: %s", r.Rescue.Exit, r.Rescue.Said)
	default:
		r.Verdict = Refused
	}
	return nil
}

// sameBytes compares two files.
func sameBytes(a, b string) (bool, error) {
	out, err := exec.Command("cmp", a, b).CombinedOutput()
	if exit, ended := errors.AsType[*exec.ExitError](err); ended && exit.ExitCode() == 1 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cmp: %w: %s", err, out)
	}
	return true, nil
}

// forgive removes findings about files that are the same without a rescue: a rescue that
// refuses something may leave them so.
func (c *Comparison) forgive(plain, rescued Tree) {
	c.Findings = slices.DeleteFunc(c.Findings, func(f Finding) bool {
		was, is := plain.Entries[f.Path], rescued.Entries[f.Path]
		was.Disk, is.Disk = "", ""
		if since := is.Sec - was.Sec; since > 0 && since < 60 {
			// A mount truncates files that were being truncated, and so sets their mtime, on one disk after
			// the other.
			was.Sec, was.Nsec = is.Sec, is.Nsec
		}
		same := f.Path != "" && reflect.DeepEqual(was, is)
		if same {
			c.Forgiven++
		}
		return same
	})
}

// verdict returns the verdict for the findings: the gravest come first.
func verdict(r *Result) Verdict {
	refused := r.Rescue != nil && r.Rescue.Exit != 0
	switch {
	case len(r.Plain.Findings) > 0 || r.Tree != nil && r.Tree.Lost() > 0:
		return Loss
	case r.Fsck != "" || r.Rescue == nil && r.PlainBad != "":
		return Unclean
	case refused && r.Rescue.Exit != 3:
		return Failed
	case r.Tree == nil:
		return Plain
	case len(r.Tree.Findings) > 0:
		return Differs
	case refused:
		return Refused
	}
	return Exact
}
