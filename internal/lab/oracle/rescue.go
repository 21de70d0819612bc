package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
)

// Rescue brings a disk to the state at the crash, from the memory of a kernel that died; kernel is
// that kernel's directory, as fixture.Kernel returns it. The report is kept with the result.
type Rescue func(ctx context.Context, kernel, ram, disk string) (RescueReport, error)

// RescueReport is the outcome of a rescue.
type RescueReport struct {
	Exit   int             `json:"exit"`             // 0: done; 3: something was refused
	Report json.RawMessage `json:"report,omitempty"` // without its plan
	Said   string          `json:"said,omitempty"`   // on standard error
}

// Command is the rescue by a program: BINARY salvage apply RAM --disk DISK --json. If it
// says that its guest's kernel is too old, it is run once more with the kernel that died.
func Command(binary string) Rescue {
	return func(ctx context.Context, kernel, ram, disk string) (RescueReport, error) {
		r, err := apply(ctx, binary, ram, "--disk", disk)
		if err == nil && r.Exit == 1 && strings.Contains(r.Said, "--guest DIR") {
			r, err = apply(ctx, binary, ram, "--disk", disk, "--guest", kernel)
		}
		return r, err
	}
}

func apply(ctx context.Context, binary string, args ...string) (RescueReport, error) {
	cmd := exec.CommandContext(ctx, binary, append([]string{"salvage", "apply", "--json"}, args...)...)
	out, err := cmd.Output()
	r := RescueReport{Report: without(out, "plan")}
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return r, nil
	case !ended || ctx.Err() != nil:
		return r, err
	}
	r.Exit, r.Said = exit.ExitCode(), string(exit.Stderr)
	return r, nil
}

// without returns a JSON object without a field, or, if b is no object, b as a string.
func without(b []byte, field string) json.RawMessage {
	var all map[string]json.RawMessage
	var v any = &all
	if json.Unmarshal(b, v) != nil {
		v = string(b)
	}
	delete(all, field)
	b, _ = json.Marshal(v) // of strings, and of what was JSON before
	return b
}

// commit is what the rescue's report says about the last commit.
type commit struct {
	Case  string `json:"case"`  // how it went on from what was on the disk
	Check string `json:"check"` // why the file system was checked
	// Open is how many operations were in flight, and Proven says that the transaction
	// was found sound nevertheless.
	Open   int  `json:"open"`
	Proven bool `json:"proven"`
	// Mended is what was completed to that end.
	Mended []string `json:"mended"`
	// Moved and Cut are how many files are mended after the check (takeover.Commit).
	Moved int `json:"moved"`
	Cut   int `json:"cut"`
	// Placed is how many files got their places with the commit, and Unplaced why others did not.
	Placed   int    `json:"placed"`
	Unplaced string `json:"unplaced"`
	// Refused says that the commit was not written.
	Refused bool `json:"-"`
}

// road returns how the rescued file system came to be mounted; empty if no report says.
func (r *RescueReport) road() string {
	c := r.commit()
	switch {
	case c.Refused:
		return roadNone
	case c.Case == "":
		return ""
	case c.Placed > 0 && c.Unplaced == "":
		return roadPlaced
	case c.Open > 0 && c.Proven:
		return roadProven
	case c.Open > 0:
		return roadChecked
	case c.Check != "":
		return roadPlain
	}
	return roadQuiet
}

// The roads to a mount.
const (
	roadPlaced  = "all that was unsaved got its place: nothing was left for a mount"
	roadQuiet   = "no handle was open: mounted at once"
	roadProven  = "handles were open, the audit proved the transaction: mounted at once"
	roadChecked = "handles were open, the audit proved nothing: e2fsck before the mount"
	roadPlain   = "no journal: e2fsck before the mount"
	roadNone    = "the last commit was refused: an ordinary recovery"
)

var roads = []string{roadPlaced, roadQuiet, roadProven, roadChecked, roadPlain, roadNone}

// commit returns what the report says about the last commit; it is zero if the report says nothing.
func (r *RescueReport) commit() commit {
	var report struct {
		Commit  commit `json:"commit"`
		Refused []struct {
			Reason string `json:"reason"`
		} `json:"refused"`
	}
	if r == nil || json.Unmarshal(r.Report, &report) != nil {
		return commit{}
	}
	for _, refused := range report.Refused {
		report.Commit.Refused = report.Commit.Refused || strings.HasPrefix(refused.Reason, "the last commit: ")
	}
	return report.Commit
}
