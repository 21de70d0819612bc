package offline

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// Report is what a run did and refused; its JSON is the output for programs.
type Report struct {
	Image      string             `json:"image"`
	Kernel     string             `json:"kernel"`
	Disk       string             `json:"disk"`
	disk.Where                    // of Disk
	FileSystem FileSystem         `json:"filesystem"`
	DryRun     bool               `json:"dry_run"`
	Resumed    bool               `json:"resumed"` // an earlier run's commit was finished
	Commit     *takeover.Commit   `json:"commit,omitempty"`
	Plan       *Plan              `json:"plan,omitempty"`
	Applied    *Applied           `json:"applied,omitempty"`
	Refused    []takeover.Refusal `json:"refused"`
	Complete   bool               `json:"complete"` // nothing was refused
	// Untouched says that nothing at all was written, since the last commit was refused.
	Untouched bool `json:"untouched,omitempty"`
	// NotDead says that the kernel was not in panic when its memory was taken.
	NotDead bool `json:"not_dead,omitempty"`
	// Dump is advice for the operator about a dump that is incomplete.
	Dump   string      `json:"dump,omitempty"`
	Stages []StageTime `json:"stages"`

	print string // the fingerprint of the disk; empty unless Options.print asked for it
}

// FileSystem says which file system of the dead machine it was.
type FileSystem struct {
	Type   string `json:"type"`
	Device string `json:"device"` // of the dead machine
	UUID   string `json:"uuid"`
}

// Plan is what is to be written.
type Plan struct {
	Files   []File `json:"files"`
	Bytes   int64  `json:"bytes"`
	Deleted int    `json:"deleted"` // unsaved files without a name, for which nothing is written
}

// File is a file of a plan. Path and PathBase64 are as in an inventory.
type File struct {
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

	RawMode uint16 `json:"-"` // with the type of the file, as stat(2) has it
	Bytes   int64  `json:"-"` // to be written
	Label   string `json:"-"` // the path, or a stand-in
}

// Applied is what was written.
type Applied struct {
	Files int         `json:"files"`
	Bytes int64       `json:"bytes"`
	Check *wire.Check `json:"check,omitempty"` // of the file system, if there was one
	Acts  []Act       `json:"acts,omitempty"`
	// MoreActs is the number of further acts that the guest's answer had no room for.
	MoreActs int `json:"more_acts,omitempty"`
}

// Act is something that was done other than writing to a file in its place.
type Act struct {
	Kind        string `json:"kind"` // wire.Act*
	Inode       uint64 `json:"inode"`
	Generation  uint32 `json:"generation"`
	Path        string `json:"path,omitempty"`
	PathBase64  []byte `json:"path_base64,omitempty"`
	Other       string `json:"other,omitempty"`
	OtherBase64 []byte `json:"other_base64,omitempty"`
}

// StageTime is a step of the work, and how long it took.
type StageTime struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

func (a *application) begin() {
	s := a.fsys.Super
	a.report = &Report{
		Image: a.Image, Kernel: a.memory.Kernel.Release, Disk: a.Disk, Where: a.Where, DryRun: a.DryRun,
		FileSystem: FileSystem{Type: s.Type, Device: a.fsys.Device, UUID: s.UUID.String()},
		Refused:    []takeover.Refusal{}, Complete: true, Stages: []StageTime{},
		NotDead: a.memory.NotDead(),
	}
	if i := a.memory.Info(); i.Cut() {
		a.report.Dump = i.Advice()
	}
}

// planned reports a plan, and the files that are no longer in it because they are placed.
func (r *Report) planned(p *salvage.Plan, placed []salvage.File) {
	out := &Plan{Files: []File{}, Bytes: p.Report().Bytes, Deleted: p.Deleted}
	for i := range placed {
		f := plannedOf(&placed[i])
		out.Bytes += f.Bytes
		out.Files = append(out.Files, f)
	}
	for i := range p.Files {
		f := &p.Files[i]
		switch l := f.Metadata; {
		case l != nil && f.NLink == 0: // looked for, and reported if it is back
			out.Deleted++
		case l != nil && l.Committed && f.Mode&pagecache.ModeType == pagecache.ModeDir: // it only keeps its times
		default:
			out.Files = append(out.Files, plannedOf(f))
		}
	}
	if len(placed) > 0 {
		slices.SortFunc(out.Files, func(a, b File) int { return cmp.Compare(a.Inode, b.Inode) })
	}
	r.Plan = out
	r.refuse(morgue.LeftOut(p)...)
}

func plannedOf(f *salvage.File) File {
	out := File{
		Inode: uint64(f.Ino), Generation: f.Generation, Mode: fmt.Sprintf("%04o", f.Mode&0o7777), UID: f.UID, GID: f.GID,
		Size: f.Size, Mtime: f.Mtime.UTC(), Ranges: []inventory.Range{}, RawMode: f.Mode,
		Label: cmp.Or(f.Path, fmt.Sprintf("%s/%d-%d", inventory.NoPath, f.Ino, f.Generation)),
	}
	out.Path, out.PathBase64 = inventory.Text(out.Label)
	for i := range f.Runs {
		run := &f.Runs[i]
		out.Ranges = append(out.Ranges, inventory.Range{run.Off, run.Len()})
		out.Bytes += run.Len()
	}
	return out
}

func (r *Report) refuse(all ...takeover.Refusal) {
	r.Refused = append(r.Refused, all...)
	r.Complete = len(r.Refused) == 0
}

func (r *Report) applied(remains *morgue.Remains, result *Result) {
	r.Applied = &Applied{Files: result.Applied.Files, Bytes: result.Applied.Bytes, Check: result.Check}
	if c := r.Commit; c != nil {
		r.Applied.Files += c.Placed
		r.Applied.Bytes += c.PlacedBytes
	}
	r.Applied.MoreActs = result.Named.MoreActs + result.Applied.MoreActs
	for _, a := range slices.Concat(result.Named.Acts, result.Applied.Acts) {
		act := Act{Kind: a.Kind, Inode: a.Inode, Generation: a.Generation}
		act.Path, act.PathBase64 = inventory.Text(string(a.Path))
		act.Other, act.OtherBase64 = inventory.Text(string(a.Other))
		r.Applied.Acts = append(r.Applied.Acts, act)
	}
	failures, more := result.left()
	for _, f := range failures {
		r.refuse(remains.Refusal(f))
	}
	if more > 0 {
		r.refuse(takeover.Refusal{Reason: fmt.Sprintf("and %d more files, which the guest's answer had no room for", more)})
	}
}

func (r *Report) stages(memory []inventory.Stage, guest []Stage) {
	r.Stages = []StageTime{}
	add := func(name string, took time.Duration) {
		r.Stages = append(r.Stages, StageTime{name, float64(took.Microseconds()) / 1000})
	}
	for _, s := range memory {
		add(s.Name, s.Took)
	}
	for _, s := range guest {
		add(s.Name, s.Took)
	}
}
