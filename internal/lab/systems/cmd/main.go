// Command systems lets programs work on pairs of Debian guests whose kernel dies, -runs times, and
// writes what became of their data as a table. It fails if anything that was acknowledged is lost.
//
//	go run ./internal/lab/systems/cmd [-runs N] [-table FILE] [-suites bookworm] [-programs git,nginx]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/systems"
)

func main() {
	var b batch
	flag.IntVar(&b.runs, "runs", 5, "how often the kernel of each suite dies")
	flag.StringVar(&b.table, "table", "", "Markdown file to write")
	flag.StringVar(&b.understudy, "understudy", "bin/understudy", "the program")
	flag.StringVar(&b.programs, "programs", "", "only these, with commas")
	flag.StringVar(&b.suites, "suites", "", "only these, with commas")
	flag.Parse()
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "systems:", err)
		os.Exit(1)
	}
}

// batch is what is asked for, and the results.
type batch struct {
	runs                                int
	table, understudy, programs, suites string

	results []*systems.Result
	wrong   []error
}

// wanted reports whether a name is in a list with commas, or the list is empty.
func wanted(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

func (b *batch) run(ctx context.Context) (err error) {
	if b.understudy, err = filepath.Abs(b.understudy); err != nil {
		return err
	}
	for _, s := range systems.Suites {
		programs := slices.DeleteFunc(s.Programs(), func(p systems.Program) bool { return !wanted(b.programs, p.Name) })
		for n := 1; n <= b.runs && wanted(b.suites, s.Name); n++ {
			o := systems.Options{Understudy: b.understudy, Suite: s, Programs: programs, Log: os.Stderr}
			if err := b.one(ctx, fmt.Sprintf("%s, run %d", s.Title, n), o); err != nil {
				return err
			}
		}
	}
	return errors.Join(b.wrong...)
}

// one does one run, and writes the table of all runs so far, so that it stays if a later
// run cannot be done.
func (b *batch) one(ctx context.Context, name string, o systems.Options) error {
	r, err := once(ctx, o)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b.results = append(b.results, r)
	for _, o := range r.Of {
		fmt.Printf("%s: %-18s acknowledged %4d; after the takeover %4d %s; after a boot %4d %s\n", name, o.Name, o.Acknowledged, o.Takeover.Found, o.Takeover.Said, o.Plain.Found, o.Plain.Said)
	}
	for _, w := range r.Exact() {
		b.wrong = append(b.wrong, fmt.Errorf("%s: %s", name, w))
	}
	if b.table == "" {
		return nil
	}
	return os.WriteFile(b.table, []byte(systems.Markdown(b.results, time.Now())), 0o644)
}

// once does one run, and removes its files.
func once(ctx context.Context, o systems.Options) (_ *systems.Result, err error) {
	if o.Dir, err = netlab.WorkDir("systems-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	return systems.Run(ctx, o)
}
