package demo

import (
	"fmt"
	"io"
	"strings"

	"understudy.dev/understudy/internal/lab/workload"
	"understudy.dev/understudy/internal/takeover"
)

// Report is the outcome of one run.
type Report struct {
	Kernel  string `json:"kernel"`
	Accel   string `json:"accel"`
	FS      string `json:"fs"`
	Seed    uint64 `json:"seed"`
	Verdict string `json:"verdict"`

	// OutageMS is the client's own measure: from its last good answer to its
	// first good one, whose bytes were unsaved at the crash. Null if no such
	// answer came.
	OutageMS *float64 `json:"outage_ms"`

	// ServedMS is when the client's first good answer came, on the timeline.
	ServedMS float64 `json:"served_ms"`
	// Flushes is how often the understudy made its disk durable.
	Flushes int64 `json:"flushes"`

	UnsavedBytes   int64              `json:"unsaved_bytes"` // in memory only when the kernel died
	WriteMS        float64            `json:"write_ms"`      // how long it took to write that
	Files          int                `json:"files"`         // brought over
	BytesRecovered int64              `json:"bytes_recovered"`
	Commits        []takeover.Commit  `json:"commits"`
	InFlight       int                `json:"in_flight"` // operations, when the kernel died
	Checked        bool               `json:"checked"`   // by e2fsck, before the mount
	BytesWrong     int64              `json:"bytes_wrong"`
	FilesWrong     int                `json:"files_wrong"`
	FilesMissing   int                `json:"files_missing"`
	FilesCompared  int                `json:"files_compared"`
	SyncedWrong    int                `json:"synced_wrong"` // of those fsynced before the crash
	Refused        int                `json:"refused"`
	Refusals       []takeover.Refusal `json:"refusals"`
	Notified       takeover.Notified  `json:"notified"`

	WithoutSalvage *Contrast `json:"without_salvage,omitempty"`

	// FenceError is why nothing was taken over, in a run in which the fence has to fail.
	FenceError string `json:"fence_error,omitempty"`

	MAC      string          `json:"mac"` // of the service's address, seen from the client
	Steps    []takeover.Step `json:"steps"`
	Failures []string        `json:"failures"` // what did not hold
}

// Contrast is what a guest finds on the disk as it was at the fence.
type Contrast struct {
	BytesWrong   int64 `json:"bytes_wrong"`
	FilesWrong   int   `json:"files_wrong"`
	FilesMissing int   `json:"files_missing"`
	SyncedWrong  int   `json:"synced_wrong"`
}

// Held reports whether everything that the demo promises held.
func (r *Report) Held() bool { return len(r.Failures) == 0 }

func (r *Report) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// compare counts what differs from what the guest had said. If lossy, what was not
// fsynced is expected to be lost.
func (r *Report) compare(want, got []workload.Truth, lossy bool) {
	c := workload.Compare(want, got)
	r.FilesCompared = c.Files
	r.BytesWrong, r.FilesWrong, r.FilesMissing, r.SyncedWrong = c.BytesWrong, c.FilesWrong, c.FilesMissing, c.SyncedWrong
	if c.SyncedWrong > 0 {
		r.fail("%d files that were fsynced before the crash are not as they were", c.SyncedWrong)
	}
	if lossy {
		return
	}
	for i, f := range c.Findings {
		if i == 10 {
			r.fail("and %d more files", len(c.Findings)-i)
			break
		}
		r.fail("%s: %s", f.Path, f.Fault)
	}
}

// Write prints the report for people.
func (r *Report) Write(w io.Writer) error {
	if len(r.Steps) > 0 {
		fmt.Fprintln(w)
		if err := takeover.WriteSteps(w, r.Steps, 50); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nverdict          %s\n", r.Verdict)
	if r.FenceError != "" {
		fmt.Fprintf(w, "not taken over   %s\n", r.FenceError)
		return r.writeEnd(w)
	}
	if r.OutageMS != nil {
		fmt.Fprintf(w, "outage           %.0f ms, last good answer to first good answer, seen by the client\n", *r.OutageMS)
	}
	fmt.Fprintf(w, "brought over     %d files, %s; refused: %d\n", r.Files, mib(r.BytesRecovered), r.Refused)
	for i := range r.Commits {
		fmt.Fprintf(w, "%s\n", strings.Replace(r.Commits[i].String(), "last commit: ", "last commit      ", 1))
	}
	for _, f := range r.Refusals {
		fmt.Fprintf(w, "                 %v\n", f)
	}
	fmt.Fprintf(w, "told             %s\n", &r.Notified)
	fmt.Fprintf(w, "compared         %d files by SHA-256: %d wrong, %d missing, %d bytes wrong\n",
		r.FilesCompared, r.FilesWrong, r.FilesMissing, r.BytesWrong)
	if c := r.WithoutSalvage; c != nil {
		fmt.Fprintf(w, "without salvage  %d files wrong, %d missing, %s lost; of the fsynced files %d\n",
			c.FilesWrong, c.FilesMissing, mib(c.BytesWrong), c.SyncedWrong)
	}
	fmt.Fprintf(w, "address          %s at %s, before and after\n", serviceAddress, r.MAC)
	return r.writeEnd(w)
}

func (r *Report) writeEnd(w io.Writer) error {
	for _, f := range r.Failures {
		fmt.Fprintf(w, "FAILED           %s\n", f)
	}
	if r.Held() {
		fmt.Fprintln(w, "all of it held")
	}
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
