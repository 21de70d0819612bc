package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy.dev/understudy/dead/extract"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/compare"
	"understudy.dev/understudy/internal/lab/fixture"
)

// onTmpfs makes a directory in memory.
func onTmpfs(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "understudy-bench-")
	if err != nil {
		b.Skip("no tmpfs to extract to: ", err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

// run runs a program to its end.
func run(b *testing.B, program string, args ...string) {
	b.Helper()
	cmd := exec.Command(program, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		b.Fatalf("%s: %v: %s", program, err, errs.String())
	}
}

// BenchmarkExtract compares extracting to a tmpfs with copying the result by cp -r on the
// same tmpfs. It measures the whole command, from start to end, and only the writing, when
// it is known where everything is, as it is for cp; and both of them with hashes, too.
func BenchmarkExtract(b *testing.B) {
	if _, err := os.Stat(binary); err != nil {
		b.Skipf("%v: make build makes it", err)
	}
	for name, spec := range map[string]fixture.Spec{"many": fixture.Many, "bulk": fixture.Little} {
		b.Run(name, func(b *testing.B) {
			image := fixture.Get(b, spec)
			dir := onTmpfs(b)
			from := filepath.Join(dir, "from")
			run(b, binary, "salvage", "extract", image.RAM, "-o", from)
			c, err := (&selection{}).open([]string{image.RAM}, true)
			if err != nil {
				b.Fatal(err)
			}
			defer c.close()
			r := compare.Run(b,
				discarding(b, dir, "command", func(to string) { run(b, binary, "salvage", "extract", image.RAM, "-o", to) }),
				discarding(b, dir, "cp", func(to string) { run(b, "cp", "-r", from, to) }),
				discarding(b, dir, "hash", func(to string) { run(b, binary, "salvage", "extract", image.RAM, "-o", to, "--hash") }),
				onlyWriting(b, c, dir, "write", false), onlyWriting(b, c, dir, "write-hash", true),
			)
			for _, way := range []string{"command", "hash", "write", "write-hash"} {
				r.Ratio(b, way+"-of-cp", "cp", way)
			}
		})
	}
}

// onlyWriting measures the extraction of files that are found already.
func onlyWriting(b *testing.B, c *chosen, dir, name string, hash bool) compare.Way {
	return compare.Way{Name: name, Do: func() time.Duration {
		c.report = inventory.NewReport(c.image)
		c.fill()
		jobs := c.jobs(hash)
		return discarding(b, dir, "", func(to string) { writeAll(b, c, jobs, to) }).Do()
	}}
}

// discarding measures do, which makes a directory, and then removes the directory.
func discarding(b *testing.B, dir, name string, do func(to string)) compare.Way {
	return compare.Way{Name: name, Do: func() time.Duration {
		to := filepath.Join(dir, "to")
		start := time.Now()
		do(to)
		took := time.Since(start)
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
		return took
	}}
}

func writeAll(b *testing.B, c *chosen, jobs []extract.Job, to string) {
	sink, err := extract.NewDir(to)
	if err != nil {
		b.Fatal(err)
	}
	if err := extract.Write(context.Background(), c.image, sink, jobs, func(int) {}); err != nil {
		b.Fatal(err)
	}
	manifest, err := json.Marshal(c.report)
	if err == nil {
		err = sink.Finish(manifest)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkList lists 20,000 unsaved files, from the start of the program to its
// end.
func BenchmarkList(b *testing.B) {
	if _, err := os.Stat(binary); err != nil {
		b.Skipf("%v: make build makes it", err)
	}
	image := fixture.Get(b, fixture.Many)
	compare.Run(b, compare.Time(b, "list", func() error {
		run(b, binary, "salvage", "list", image.RAM)
		return nil
	}))
}
