package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/offline"
)

// applyReport is what salvage apply says, and its form for programs.
type applyReport struct {
	Image      string           `json:"image"`
	Kernel     string           `json:"kernel"`
	Disk       string           `json:"disk"`
	FileSystem appliedFS        `json:"filesystem"`
	DryRun     bool             `json:"dry_run"`
	Resumed    bool             `json:"resumed"` // an earlier run's commit was finished
	Commit     *takeover.Commit `json:"commit,omitempty"`
	Plan       *planReport      `json:"plan,omitempty"`
	Applied    *appliedReport   `json:"applied,omitempty"`
	Refused    []appliedRefusal `json:"refused"`
	Complete   bool             `json:"complete"` // nothing was refused
	Stages     []stageReport    `json:"stages"`
}

type appliedFS struct {
	Type   string `json:"type"`
	Device string `json:"device"` // of the dead machine
	UUID   string `json:"uuid"`
}

// planReport is what is to be written.
type planReport struct {
	Files   []plannedFile `json:"files"`
	Bytes   int64         `json:"bytes"`
	Deleted int           `json:"deleted"` // unsaved files without a name, which get nothing
}

// plannedFile is a file of a plan. Path and PathBase64 are as in an inventory.
type plannedFile struct {
	Path       string            `json:"path,omitempty"`
	PathBase64 []byte            `json:"path_base64,omitempty"`
	Inode      uint64            `json:"inode"`
	Generation uint32            `json:"generation"`
	Mode       string            `json:"mode"` // permissions, octal
	UID        uint32            `json:"uid"`
	GID        uint32            `json:"gid"`
	Size       int64             `json:"size"`
	Mtime      time.Time         `json:"mtime"`
	Ranges     []inventory.Range `json:"ranges"` // to be written

	mode  uint16
	bytes int64
	label string
}

// appliedReport is what was written.
type appliedReport struct {
	Files int         `json:"files"`
	Bytes int64       `json:"bytes"`
	Check *wire.Check `json:"check,omitempty"` // of the file system, if there was one
	Acts  []actReport `json:"acts,omitempty"`
}

// actReport is something that was done besides writing to a file where it is.
type actReport struct {
	Kind        string `json:"kind"` // wire.Act*
	Inode       uint64 `json:"inode"`
	Generation  uint32 `json:"generation"`
	Path        string `json:"path,omitempty"`
	PathBase64  []byte `json:"path_base64,omitempty"`
	Other       string `json:"other,omitempty"`
	OtherBase64 []byte `json:"other_base64,omitempty"`
}

// actTexts are the kinds of acts as sentences about their paths.
var actTexts = map[string]string{
	wire.ActCreated:   "made again: %s",
	wire.ActLinked:    "named again: %s",
	wire.ActRenamed:   "renamed again: %s, from %s",
	wire.ActUnlinked:  "removed, a name from before a renaming: %s",
	wire.ActDisplaced: "took the name %s: what had it is %s",
	wire.ActBack:      "had been deleted, and the disk still has it: %s",
	wire.ActUndone:    "was being made when the kernel died, and is not: %s",
	wire.ActGone:      "was being removed, or made, when the kernel died, and is gone: %s",
	wire.ActFinished:  "was being removed when the kernel died, and is: %s",
}

// appliedRefusal is data that is in memory and not on the disk.
type appliedRefusal struct {
	Path       string `json:"path,omitempty"`
	PathBase64 []byte `json:"path_base64,omitempty"`
	Inode      uint64 `json:"inode,omitempty"`
	Pages      uint64 `json:"pages,omitempty"` // how many at most; 0: the whole file
	Reason     string `json:"reason"`
}

type stageReport struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

func (r *applyReport) begin(a *application) {
	s := a.fsys.Super
	*r = applyReport{
		Image: a.image, Kernel: a.memory.Kernel.Release, Disk: a.disk, DryRun: a.dryRun,
		FileSystem: appliedFS{Type: s.Type, Device: a.fsys.Device, UUID: s.UUID.String()},
		Refused:    []appliedRefusal{}, Complete: true, Stages: []stageReport{},
	}
}

func (r *applyReport) planned(p *salvage.Plan) {
	out := &planReport{Files: []plannedFile{}, Bytes: p.Report().Bytes, Deleted: p.Deleted}
	for i := range p.Files {
		f := &p.Files[i]
		switch l := f.Loose; {
		case l != nil && f.NLink == 0: // looked for, and reported if it is back
			out.Deleted++
		case l != nil && l.Settled && f.Mode&pagecache.ModeType == pagecache.ModeDir: // it only keeps its times
		default:
			out.Files = append(out.Files, plannedOf(f))
		}
	}
	r.Plan = out
	for _, refusal := range p.Refused {
		r.refuse(appliedRefusal{Inode: uint64(refusal.Inode), Pages: refusal.Pages, Reason: refusal.Error()})
	}
	for _, fault := range p.Faults {
		r.refuse(appliedRefusal{Reason: fault.Error()})
	}
}

func plannedOf(f *salvage.File) plannedFile {
	out := plannedFile{
		Inode: uint64(f.Ino), Generation: f.Generation, Mode: fmt.Sprintf("%04o", f.Mode&0o7777), UID: f.UID, GID: f.GID,
		Size: f.Size, Mtime: f.Mtime.UTC(), Ranges: []inventory.Range{}, mode: f.Mode,
		label: cmp.Or(f.Path, fmt.Sprintf("%s/%d-%d", inventory.NoPath, f.Ino, f.Generation)),
	}
	out.Path, out.PathBase64 = inventory.Text(out.label)
	for i := range f.Runs {
		run := &f.Runs[i]
		out.Ranges = append(out.Ranges, inventory.Range{run.Off, run.Len()})
		out.bytes += run.Len()
	}
	return out
}

func (r *applyReport) refuse(why appliedRefusal) {
	r.Refused = append(r.Refused, why)
	r.Complete = false
}

func (r *applyReport) applied(p *salvage.Plan, result *offline.Result) {
	r.Applied = &appliedReport{Files: result.Applied.Files, Bytes: result.Applied.Bytes, Check: result.Check}
	for _, a := range slices.Concat(result.Named.Acts, result.Applied.Acts) {
		act := actReport{Kind: a.Kind, Inode: a.Inode, Generation: a.Generation}
		act.Path, act.PathBase64 = inventory.Text(string(a.Path))
		act.Other, act.OtherBase64 = inventory.Text(string(a.Other))
		r.Applied.Acts = append(r.Applied.Acts, act)
	}
	type id struct {
		ino        uint64
		generation uint32
	}
	paths := make(map[id]string)
	for i := range p.Files {
		paths[id{uint64(p.Files[i].Ino), p.Files[i].Generation}] = p.Files[i].Path
	}
	for _, f := range slices.Concat(result.Named.Failures, result.Named.Left(result.Applied.Failures)) {
		why := appliedRefusal{Inode: f.Inode, Reason: f.Reason}
		why.Path, why.PathBase64 = inventory.Text(paths[id{f.Inode, f.Generation}])
		r.refuse(why)
	}
}

func (r *applyReport) stages(memory []inventory.Stage, guest []offline.Stage) {
	r.Stages = []stageReport{}
	add := func(name string, took time.Duration) {
		r.Stages = append(r.Stages, stageReport{name, float64(took.Microseconds()) / 1000})
	}
	for _, s := range memory {
		add(s.Name, s.Took)
	}
	for _, s := range guest {
		add(s.Name, s.Took)
	}
}

// verdict is nil if everything in memory is on the disk.
func (r *applyReport) verdict() error {
	if r.Complete {
		return nil
	}
	var out incomplete
	for i, why := range r.Refused {
		if i == maxNamed {
			out.what = append(out.what, fmt.Sprintf("and %d more refusals; --json tells all", len(r.Refused)-i))
			break
		}
		what := ""
		if path := inventory.TextOf(why.Path, why.PathBase64); path != "" {
			what = printable(path) + ": "
		} else if why.Inode != 0 && why.Pages == 0 {
			what = fmt.Sprintf("inode %d: ", why.Inode)
		}
		out.what = append(out.what, what+why.Reason)
	}
	return &out
}

// Write prints the report for people.
func (r *applyReport) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "%s %s, which Linux %s had as %s\n", r.FileSystem.Type, r.FileSystem.UUID, r.Kernel, printable(r.FileSystem.Device))
	switch {
	case r.Resumed:
		fmt.Fprintf(out, "the commit that was broken off is finished: %s has all of it\n", r.Disk)
	case r.DryRun:
		r.Plan.table(out)
		if r.Commit != nil {
			fmt.Fprintln(out, r.Commit)
		}
		fmt.Fprintf(out, "nothing was written to %s\n", r.Disk)
	case r.Applied != nil:
		if r.Commit != nil {
			fmt.Fprintln(out, r.Commit)
		}
		if c := r.Applied.Check; c != nil {
			fmt.Fprintf(out, "checked before it was mounted: e2fsck ended with status %d\n", c.Status)
		}
		r.Applied.acts(out)
		total := 0.0
		for _, s := range r.Stages {
			total += s.MS
		}
		fmt.Fprintf(out, "%s with %s written to %s in %.1fs\n", plural(r.Applied.Files, "file"), bytesText(r.Applied.Bytes), r.Disk, total/1000)
	}
	return out.Flush()
}

// acts prints what was done besides writing to files where they are.
func (a *appliedReport) acts(w io.Writer) {
	for _, act := range a.Acts {
		paths := []any{printable(inventory.TextOf(act.Path, act.PathBase64))}
		if other := inventory.TextOf(act.Other, act.OtherBase64); other != "" {
			paths = append(paths, printable(other))
		}
		fmt.Fprintf(w, actTexts[act.Kind]+"\n", paths...)
	}
}

func (p *planReport) table(w *bufio.Writer) {
	rows := [][]string{{"MODE", "OWNER", "SIZE", "WRITE", "INODE", "GENERATION", "PATH"}}
	for _, f := range p.Files {
		rows = append(rows, []string{
			modeText(f.mode), fmt.Sprintf("%d:%d", f.UID, f.GID), fmt.Sprint(f.Size), fmt.Sprint(f.bytes),
			fmt.Sprint(f.Inode), fmt.Sprint(f.Generation), printable(f.label),
		})
	}
	if len(p.Files) > 0 {
		columns(w, rows, "llrrrrl")
	}
	fmt.Fprintf(w, "%s to bring up to date, %s to write", plural(len(p.Files), "file"), bytesText(p.Bytes))
	if p.Deleted > 0 {
		fmt.Fprintf(w, "; left alone, without a name: %s", plural(p.Deleted, "file"))
	}
	fmt.Fprintln(w)
}
