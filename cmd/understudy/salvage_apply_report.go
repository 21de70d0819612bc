package main

import (
	"bufio"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/offline"
)

// actTexts are the kinds of acts as sentences about their paths.
var actTexts = map[string]string{
	wire.ActCreated:   "made again: %s",
	wire.ActLinked:    "named again: %s",
	wire.ActRenamed:   "renamed again: %s, from %s",
	wire.ActUnlinked:  "removed, a name from before a renaming: %s",
	wire.ActDisplaced: "took the name %s: what had it is %s",
	wire.ActRemoved:   "had been removed or renamed, and the disk still had it: %s, which is %s now",
	wire.ActDeleted:   "had been deleted while it was open, and is: %s",
	wire.ActBack:      "had been deleted, and the disk still has it: %s",
	wire.ActUndone:    "was being made when the kernel died, and is not: %s",
	wire.ActGone:      "was being removed, or made, when the kernel died, and is gone: %s",
	wire.ActFinished:  "was being removed when the kernel died, and is: %s",
}

// notInPanic is reported for a memory whose kernel was not in panic.
const notInPanic = "its kernel was in no panic when this memory was taken: if it ran on after that, what it wrote since is newer than memory, and must not be overwritten"

// applyVerdict returns nil if everything in memory is on the disk.
func applyVerdict(r *offline.Report) error {
	if r.Complete {
		return nil
	}
	return &incomplete{what: firstRefusals(r.Refused, len(r.Refused), "--json tells all")}
}

// writeApplied prints a report for people.
func writeApplied(w io.Writer, r *offline.Report) error {
	out := bufio.NewWriter(w)
	if r.FileSystem.Device == "" { // the memory was not read
		fmt.Fprintf(out, "file system %s, from %s, Linux %s\n", r.FileSystem.UUID, inventory.Printable(r.Image), r.Kernel)
	} else {
		fmt.Fprintf(out, "%s %s, which Linux %s had as %s\n", r.FileSystem.Type, r.FileSystem.UUID, r.Kernel, inventory.Printable(r.FileSystem.Device))
	}
	if r.NotDead {
		fmt.Fprintln(out, notInPanic)
	}
	if r.Dump != "" {
		fmt.Fprintln(out, r.Dump)
	}
	switch {
	case r.Untouched:
		fmt.Fprintf(out, "the last commit was refused: nothing was written to %s; salvage extract takes the files out of memory, --give-up brings the disk to what an ordinary crash leaves\n", r.Disk)
	case r.Resumed:
		fmt.Fprintf(out, "the commit that was broken off is finished: %s has all of it\n", r.Disk)
	case r.DryRun:
		writePlan(out, r.Plan)
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
		writeActs(out, r.Applied.Acts)
		if r.Applied.MoreActs > 0 {
			fmt.Fprintf(out, "and %s more\n", plural(r.Applied.MoreActs, "thing"))
		}
		total := 0.0
		for _, s := range r.Stages {
			total += s.MS
		}
		fmt.Fprintf(out, "%s with %s written to %s in %.1fs\n", plural(r.Applied.Files, "file"), bytesText(r.Applied.Bytes), r.Disk, total/1000)
	}
	return out.Flush()
}

// writeActs prints what was done other than writing to files in their place.
func writeActs(w io.Writer, acts []offline.Act) {
	for _, act := range acts {
		paths := []any{inventory.Printable(inventory.TextOf(act.Path, act.PathBase64))}
		if other := inventory.TextOf(act.Other, act.OtherBase64); other != "" {
			paths = append(paths, inventory.Printable(other))
		}
		fmt.Fprintf(w, actTexts[act.Kind]+"\n", paths...)
	}
}

func writePlan(w *bufio.Writer, p *offline.Plan) {
	rows := [][]string{{"MODE", "OWNER", "SIZE", "WRITE", "INODE", "GENERATION", "PATH"}}
	for _, f := range p.Files {
		rows = append(rows, []string{
			modeText(f.RawMode), fmt.Sprintf("%d:%d", f.UID, f.GID), fmt.Sprint(f.Size), fmt.Sprint(f.Bytes),
			fmt.Sprint(f.Inode), fmt.Sprint(f.Generation), inventory.Printable(f.Label),
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
