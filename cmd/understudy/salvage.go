package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/takeover/morgue"
)

func salvageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "salvage",
		Short: "Get unsaved files out of the memory of a dead Linux kernel",
		Long: `Get unsaved files out of the memory of a dead Linux kernel.

IMAGE is the memory of a machine: the RAM file of a guest or a crash dump. What it
is follows from its content. It is opened read-only, and needs no symbols. A dump that
makedumpfile --split wrote is named with all of its files.

The exit status is 0 if all was found, 1 if the command failed, and 3 if it did its
work, but some of what is in memory was refused; what and why is on standard error.`,
	}
	cmd.AddCommand(listCommand(), extractCommand(), mountCommand(), applyCommand(), saveCommand(), salvageWatchCommand())
	return cmd
}

// selection says which files of an image are selected; the verbs of salvage share its
// flags.
type selection struct {
	fs, path string
	all      bool
}

func (s *selection) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.fs, "fs", "", "only this file system: a device (vda), a UUID, or a type (tmpfs); default: all with a disk")
	cmd.Flags().StringVar(&s.path, "path", "", "only files whose path matches this `GLOB`; without a slash, whose last name does; ** crosses directories")
}

// chosen is what a selection has found.
type chosen struct {
	image  *inventory.Image
	report *inventory.Report
	found  []located
	// faults has the errors of file systems that could not be read.
	faults error
}

// hurry lets garbage be collected later, for a verb that works for a moment and then ends:
// with 20,000 files, collection takes an eighth of its time. Above 4 GiB it goes on as usual.
func hurry() {
	debug.SetGCPercent(800)
	debug.SetMemoryLimit(min(4<<30, debug.SetMemoryLimit(-1)))
}

// located is what was found in one file system.
type located struct {
	*inventory.FileSystem
	inventory.Found
}

// open opens an image, which may be in several files, and finds the selected files.
func (s *selection) open(images []string, clean bool) (*chosen, error) {
	accept := func(string) bool { return true }
	if s.path != "" {
		var err error
		if accept, err = inventory.Glob(s.path); err != nil {
			return nil, err
		}
	}
	m, err := inventory.OpenFiles(images, morgue.Builds()...)
	if err != nil {
		return nil, err
	}
	if clean && m.Info().Live {
		return nil, errors.Join(fmt.Errorf("read %s: %w", images[0], errLive), m.Close())
	}
	c := &chosen{image: m, report: inventory.NewReport(m)}
	all, _, err := m.FileSystems()
	c.faults = err
	c.report.Complete = err == nil
	wanted, err := inventory.Choose(all, s.fs)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	for _, f := range wanted {
		_ = m.Stage("walk "+f.Device, func() error {
			c.found = append(c.found, located{f, f.Find(inventory.Query{All: s.all, Clean: clean, Accept: accept})})
			return nil
		})
	}
	return c, nil
}

// errLive refuses to extract data that may be from different moments.
var errLive = errors.New("this is the memory of a machine that is alive: inspect and list can look at it, but its files are better read from itself")

// fill adds all that was found to the report.
func (c *chosen) fill() {
	for _, l := range c.found {
		c.report.Add(l.FileSystem, l.Found)
	}
}

func (c *chosen) close() error { return c.image.Close() }

// incomplete says that a verb did its work, but not with everything in memory.
type incomplete struct{ what []string }

func (i *incomplete) Error() string { return strings.Join(i.what, "\nunderstudy: ") }

// exitRefused is the exit status for work that was done only in part.
const exitRefused = 3

// exitCode returns the exit status for an error.
func exitCode(err error) int {
	var i *incomplete
	if errors.As(err, &i) {
		return exitRefused
	}
	var a *alarm
	if errors.As(err, &a) {
		return a.code
	}
	return 1
}

// maxNamed bounds how many refusals are reported one by one.
const maxNamed = 10

// firstRefusals returns the first refusals, and how many more there are of a total, with what tells about those.
func firstRefusals[T any](all []T, total int, tells string) []string {
	var out []string
	for _, r := range all[:min(len(all), maxNamed)] {
		out = append(out, fmt.Sprint(r))
	}
	if more := total - len(out); more > 0 {
		out = append(out, fmt.Sprintf("and %d more refusals; %s", more, tells))
	}
	return out
}

// excludedHint says what to do about a dump without the page cache, if the dump
// itself does not say why (makedumpfile(8): level 2 leaves out cache pages, 4
// those with private data).
const excludedHint = "dump again at a level without 2 and 4, such as makedumpfile -d 25: -d 31, a usual default, leaves out all file data"

// excluded returns a sentence about pages of files that are not in the image.
func (c *chosen) excluded(pages int64) string {
	hint := c.image.Info().Advice()
	if hint == "" {
		hint = excludedHint
	}
	if pages == 0 {
		return hint
	}
	return fmt.Sprintf("%d pages of file data are not in this image: %s", pages, hint)
}

// verdict returns nil if everything in memory was taken.
func (c *chosen) verdict() error {
	var out incomplete
	excluded := 0
	if c.faults != nil {
		out.what = append(out.what, c.faults.Error())
	}
	var single []string
	for _, l := range c.found {
		excluded += l.Excluded()
		for _, err := range l.Faults {
			out.what = append(out.what, fmt.Sprintf("%s: %v", l.Device, err))
		}
		for _, r := range l.Refused {
			single = append(single, fmt.Sprintf("%s: %v", l.Device, r))
		}
		for _, f := range l.Files {
			for _, r := range f.Refused {
				if inventory.LeftOut(r) {
					continue // counted
				}
				single = append(single, fmt.Sprintf("%s: %s: %v", l.Device, inventory.Printable(f.Label()), r.Why()))
			}
		}
	}
	if info := c.image.Info(); excluded > 0 || info.MissesCache() || info.Cut() {
		out.what = append(out.what, c.excluded(int64(excluded)))
	}
	out.what = append(out.what, firstRefusals(single, len(single), "--json tells all")...)
	if len(out.what) == 0 {
		return nil
	}
	return &out
}

// bytesText returns a number of bytes as text for people.
func bytesText(n int64) string {
	if n < 10000 {
		return strconv.FormatInt(n, 10) + " bytes"
	}
	for _, u := range []struct {
		name string
		size float64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if v := float64(n) / u.size; v >= 1 {
			return strconv.FormatFloat(v, 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// ageText returns a duration as text for people, in at most four characters.
func ageText(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Minute:
		return rounded(d.Seconds(), "s")
	case d < time.Hour:
		return rounded(d.Minutes(), "m")
	case d < 48*time.Hour:
		return rounded(d.Hours(), "h")
	}
	return rounded(d.Hours()/24, "d")
}

func rounded(v float64, unit string) string { return strconv.FormatFloat(v, 'f', 0, 64) + unit }

// plural returns a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// devices returns the names of the file systems that were searched.
func (c *chosen) devices() string {
	var names []string
	for _, l := range c.found {
		names = append(names, l.Device)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
