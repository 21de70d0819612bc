package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"understudy.dev/understudy/dead/extract"
	"understudy.dev/understudy/dead/inventory"
)

type extraction struct {
	selection
	dir, archive string
	json, hash   bool
}

func extractCommand() *cobra.Command {
	var x extraction
	cmd := &cobra.Command{
		Use:   "extract IMAGE... {-o DIR | --archive FILE.tar.zst}",
		Short: "Write the files that a dead kernel had not saved to a directory or an archive",
		Long: `Write the files that a dead kernel had not saved to a directory or an archive.

A file goes to DIR/DEVICE/PATH. What of it memory does not hold is a hole there, and
reads as zeros: manifest.json tells for each file which bytes came from memory
("ranges" unsaved, "clean" saved), which are absent, and which were refused and why.
The manifest appears last: without it, an extraction did not finish.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return x.run(cmd, args) },
	}
	x.flags(cmd)
	cmd.Flags().BoolVar(&x.all, "all", false, "also files of which nothing is unsaved: whatever is cached")
	cmd.Flags().StringVarP(&x.dir, "output", "o", "", "write to this `DIR`, which must be empty or not exist")
	cmd.Flags().StringVar(&x.archive, "archive", "", "write to this `FILE`, a tar archive compressed with zstd; - is standard output")
	cmd.Flags().BoolVar(&x.hash, "hash", false, "have the manifest say the SHA-256 of each file, which of large files takes longer than to write them")
	cmd.Flags().BoolVar(&x.json, "json", false, "print the manifest to standard output, too")
	cmd.MarkFlagsMutuallyExclusive("output", "archive")
	cmd.MarkFlagsOneRequired("output", "archive")
	return cmd
}

func (x *extraction) run(cmd *cobra.Command, images []string) (err error) {
	if x.archive == "-" && x.json {
		return errors.New("extract to standard output: --json needs it, too: the manifest is in the archive")
	}
	hurry()
	c, err := x.open(images, true)
	if err != nil {
		return err
	}
	defer c.close()
	c.fill()
	var jobs []extract.Job
	_ = c.image.Stage("map", func() error { jobs = c.jobs(x.hash); return nil })
	sink, err := x.sink(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	start := time.Now()
	if err := x.write(cmd, c, sink, jobs); err != nil {
		return errors.Join(err, sink.Abort())
	}
	if err := x.finish(cmd, c, sink, jobs, start); err != nil {
		return err
	}
	return errors.Join(c.problems(jobs))
}

func (x *extraction) sink(stdout io.Writer) (extract.Sink, error) {
	switch {
	case x.dir != "":
		return extract.NewDir(x.dir)
	case x.archive == "-":
		if f, ok := stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, errors.New("extract to standard output: it is a terminal: redirect it to a file or a program")
		}
		return extract.StreamArchive(stdout)
	}
	return extract.NewArchive(x.archive)
}

// jobs gives each file its name, and the entry of the report for it.
func (c *chosen) jobs(hash bool) []extract.Job {
	var jobs []extract.Job
	names := inventory.NewNamer()
	for i, l := range c.found {
		backing, _ := l.Backing(nil) // cannot fail without a disk
		for j, f := range l.Files {
			job := extract.Job{
				File: f, Name: names.Name(l.Device, f.Path, f.Ino, f.Generation), Holes: backing.Of(f).Holes,
				Report: &c.report.FileSystems[i].Files[j], Hash: hash,
			}
			job.Links = names.Links(l.Device, f.Links)
			jobs = append(jobs, job)
		}
	}
	return jobs
}

func (x *extraction) write(cmd *cobra.Command, c *chosen, sink extract.Sink, jobs []extract.Job) error {
	total := int64(0)
	for _, j := range jobs {
		total += j.File.UnsavedBytes() + j.File.CleanBytes()
	}
	show, done := progress(cmd.ErrOrStderr(), total)
	defer done()
	return c.image.Stage("write", func() error { return extract.Write(cmd.Context(), c.image, sink, jobs, show) })
}

// progress shows a bar on a terminal, and nothing anywhere else.
func progress(w io.Writer, total int64) (show func(n int), done func()) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func(int) {}, func() {}
	}
	bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription("extracting"),
		progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	var pending atomic.Int64
	show = func(n int) {
		// Small files would otherwise spend more time on the bar than on data.
		if v := pending.Add(int64(n)); v > 1<<20 && pending.CompareAndSwap(v, 0) {
			_ = bar.Add64(v) // a bar that cannot be drawn does not matter
		}
	}
	return show, func() { _ = bar.Finish() }
}

func (x *extraction) finish(cmd *cobra.Command, c *chosen, sink extract.Sink, jobs []extract.Job, start time.Time) error {
	if extract.Problems(jobs) > 0 {
		c.report.Complete = false
	}
	c.report.Time(c.image)
	manifest, err := json.Marshal(c.report)
	if err == nil {
		err = sink.Finish(append(manifest, '\n'))
	}
	if err != nil {
		return errors.Join(err, sink.Abort())
	}
	if x.json {
		return writeJSON(cmd.OutOrStdout(), c.report)
	}
	files, unsaved, clean := 0, int64(0), int64(0)
	for _, j := range jobs {
		if w := j.Report.Written; w != nil && w.Problem == "" {
			files++
			unsaved += j.Report.UnsavedBytes
			clean += j.File.CleanBytes()
		}
	}
	where, out := x.dir, cmd.OutOrStdout()
	if x.archive != "" {
		where = x.archive
	}
	if x.archive == "-" {
		where, out = "standard output", cmd.ErrOrStderr()
	}
	_, err = fmt.Fprintf(out, "%s with %s unsaved and %s saved, to %s in %v\n", plural(files, "file"),
		bytesText(unsaved), bytesText(clean), where, time.Since(start).Round(time.Millisecond))
	if d, ok := sink.(*extract.Dir); ok && !d.OwnersKept() && err == nil {
		_, err = fmt.Fprintln(cmd.ErrOrStderr(), "owners and set-user-ID bits were not set, only root can: they are in", inventory.Manifest)
	}
	return err
}

// problems returns the verdict, with what went wrong while writing.
func (c *chosen) problems(jobs []extract.Job) error {
	var out incomplete
	if err := c.verdict(); err != nil && !errors.As(err, new(*incomplete)) {
		return err
	} else if err != nil {
		out.what = append(out.what, err.Error())
	}
	gone := int64(0)
	for _, j := range jobs {
		if w := j.Report.Written; w != nil && w.Problem != "" {
			out.what = append(out.what, w.Problem)
		}
		for _, r := range j.Report.Refused[len(j.File.Refused):] {
			gone += (r.Length + 4095) / 4096
		}
	}
	if gone > 0 {
		out.what = append(out.what, c.excluded(gone))
	}
	if len(out.what) == 0 {
		return nil
	}
	return &out
}
