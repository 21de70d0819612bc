// Command systems has programs work on pairs of Debian guests whose kernel dies, -runs times, and
// writes what became of their data as a table. It fails if anything that was acknowledged is lost.
//
//	go run ./internal/lab/systems/cmd [-runs N] [-table FILE] [-programs git,nginx]
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
	runs := flag.Int("runs", 5, "how often the kernel dies")
	table := flag.String("table", "", "Markdown file to write")
	understudy := flag.String("understudy", "bin/understudy", "the program")
	names := flag.String("programs", "", "only these, with commas")
	flag.Parse()
	if err := run(context.Background(), *runs, *understudy, *names, *table); err != nil {
		fmt.Fprintln(os.Stderr, "systems:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int, understudy, names, table string) error {
	understudy, err := filepath.Abs(understudy)
	if err != nil {
		return err
	}
	programs := systems.Programs
	if names != "" {
		wanted := strings.Split(names, ",")
		programs = slices.DeleteFunc(slices.Clone(programs), func(p systems.Program) bool { return !slices.Contains(wanted, p.Name) })
	}
	var results []*systems.Result
	var wrong []error
	for n := 1; n <= runs; n++ {
		r, err := once(ctx, systems.Options{Understudy: understudy, Suite: "bookworm", Programs: programs, Log: os.Stderr})
		if err != nil {
			return fmt.Errorf("run %d: %w", n, err)
		}
		results = append(results, r)
		for _, o := range r.Of {
			fmt.Printf("run %d: %-18s acknowledged %4d; after the takeover %4d %s; after a boot %4d %s\n", n, o.Name, o.Acknowledged, o.Takeover.Found, o.Takeover.Said, o.Plain.Found, o.Plain.Said)
		}
		for _, w := range r.Exact() {
			wrong = append(wrong, fmt.Errorf("run %d: %s", n, w))
		}
		if table != "" { // what there is stays, if a later run cannot be done
			if err := os.WriteFile(table, []byte(systems.Markdown(results, time.Now())), 0o644); err != nil {
				return err
			}
		}
	}
	return errors.Join(wrong...)
}

// once is one run, whose files are removed.
func once(ctx context.Context, o systems.Options) (_ *systems.Result, err error) {
	if o.Dir, err = netlab.WorkDir("systems-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	return systems.Run(ctx, o)
}
