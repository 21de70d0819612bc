// Command cmd runs the oracle: seeds of random work, each with a crash, and a
// rescue, which must bring back everything.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/oracle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	good, err := run(ctx)
	oracle.CleanUp()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(2)
	case !good:
		os.Exit(1)
	}
}

func run(ctx context.Context) (bool, error) {
	seed := flag.Uint64("seed", 1, "the first seed")
	seeds := flag.Int("seeds", 1, "how many seeds")
	configs := flag.String("config", "", "only these configurations, by comma; none: all in turn")
	rare := flag.Bool("rare", false, "without -config: the rare configurations in turn, instead of the others")
	remade := flag.Bool("remade", false, "without -config: those of XFS and btrfs in turn, instead of the others")
	kernels := flag.String("kernel", "", "only these kernels")
	crashes := flag.String("crash", "", "only these crashes")
	more := flag.Int("programs", 0, "how many cases with real programs as the workload, after the seeds")
	programs := flag.String("program", "", "only these programs")
	live := flag.Int("live", 0, "how many cases of pairs, in which the rescue is a takeover, after the others")
	binary := flag.String("rescue", "bin/understudy", "the program that does the rescue; empty: none is done")
	keep := flag.String("keep", "out/oracle", "keep memory and disks of failures and refusals below this directory, and all results as results.json")
	table := flag.String("table", "", "write a table to this file")
	with := flag.String("with", "", "put the results in these files (results.json of other runs), by comma, into the table, too; of one case, the last counts")
	history := flag.String("history", "", "instead, tell what was done in the case that was kept in this directory")
	inode := flag.Uint64("inode", 0, "to this inode; 0: only what was pending")
	again := flag.String("again", "", "instead, rescue and judge once more the case that was kept in this directory")
	flag.Parse()
	if *history != "" {
		return true, oracle.History(os.Stdout, *history, *inode)
	}
	var o oracle.Options
	if *binary != "" {
		o.Rescue = oracle.Command(*binary)
	}
	if *again != "" {
		r, err := oracle.Again(ctx, *again, o)
		fmt.Println(r)
		return r.Verdict.Good(), err
	}

	switch {
	case *configs != "":
	case *rare:
		*configs = strings.Join(oracle.Names(oracle.Rare), ",")
	case *remade:
		*configs = strings.Join(oracle.Names(oracle.Remade), ",")
	}
	cases, err := oracle.Cases(*seed, *seeds, split(*configs), split(*kernels), split(*crashes))
	if err != nil {
		return false, err
	}
	real, err := oracle.Cases(*seed, *more, split(*configs), split(*kernels), split(*crashes))
	if err == nil {
		real, err = oracle.WithPrograms(real, split(*programs))
	}
	if err != nil {
		return false, err
	}
	cases = append(cases, real...)
	pairs, err := oracle.LiveCases(*seed, *live, split(*configs), split(*kernels))
	if err != nil {
		return false, err
	}
	cases = append(cases, pairs...)
	o.Keep, o.Agent = *keep, *binary
	results, good, err := earlier(split(*with))
	if err != nil {
		return false, err
	}
	if len(cases) == 0 {
		return good, write(*keep, *table, results)
	}
	for _, c := range cases {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		r := c.Judge(ctx, o)
		fmt.Println(r)
		if ctx.Err() != nil { // the case was interrupted, and its result means nothing
			return false, context.Cause(ctx)
		}
		results = append(results, r)
		good = good && r.Verdict.Good()
		if err := write(*keep, *table, results); err != nil {
			return false, err
		}
	}
	return good, nil
}

// earlier reads results of other runs.
func earlier(files []string) (all []oracle.Result, good bool, err error) {
	good = true
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, false, err
		}
		var some []oracle.Result
		if err := json.Unmarshal(b, &some); err != nil {
			return nil, false, fmt.Errorf("decode %s: %w", path, err)
		}
		for _, r := range some {
			same := func(o oracle.Result) bool {
				return o.Seed == r.Seed && o.Config == r.Config && o.Kernel == r.Kernel && o.Program == r.Program
			}
			all = append(slices.DeleteFunc(all, same), r)
		}
	}
	for _, r := range all {
		good = good && r.Verdict.Good()
	}
	return all, good, nil
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// write writes the results so far, so that they are there if the run is ended early.
func write(keep, table string, results []oracle.Result) error {
	b, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(keep, "results.json"), b, 0o644); err != nil || table == "" {
		return err
	}
	was, err := os.ReadFile(table)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(table, []byte(oracle.Page(string(was), results, time.Now())), 0o644)
}
