package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/nfs3"
	"understudy.dev/understudy/internal/lab/tier"
)

// Programs that measure; scripts/kernels.sh installs them.
var meters = []string{"/usr/bin/fio", "/usr/bin/cyclictest"}

// metalTurns is how many times we measure with an understudy beside the kernel, and without, in turns.
const metalTurns = 5

var metalTurnsList = strings.TrimSpace(strings.Repeat("turn ", metalTurns))

// metalCostScript measures in turns. The fields of fio's line are described in its HOWTO, "Terse output".
const metalCostScript = `
PATH=$PATH:/usr/bin
while [ ! -e /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /srv || echo "FAILED mount"
start() {
` + metalRun + `
}
measured() { echo "MEASURED $*"; }
measure() {
  f() { fio --name=x --filename=/srv/measured --size=48m --output-format=terse --terse-version=3 "$@"; }
  measured $1 random $(f --rw=randwrite --bs=4k --direct=1 --time_based --runtime=6 | busybox cut -d ';' -f 49)
  measured $1 sequential $(f --rw=write --bs=1m --end_fsync=1 --loops=6 | busybox cut -d ';' -f 48)
  rm /srv/measured
  began=$(cut -d ' ' -f 1 /proc/uptime)
  for n in 1 2 3; do COMPILE -p unicode -o /srv/unicode.a SOURCES || echo "FAILED compile"; done
  measured $1 compile $(echo $(cut -d ' ' -f 1 /proc/uptime) $began | awk '{ print ($1 - $2) * 1000 }')
  set -- $1 $(cyclictest --quiet --mlockall --priority=80 --interval=2000 --duration=6 | busybox sed -n 's/.*Avg: *\([0-9]*\) .*Max: *\([0-9]*\).*/\1 \2/p')
  measured $1 mean $2
  measured $1 worst $3
}
measure warm
for n in TURNS; do
  measure without
  start
  measure with
  kill $RUN
  wait $RUN
done
drain
poweroff -f
`

// compileSources are the sources of a Go package that imports none, and takes seconds to compile.
var compileSources = []string{"casetables.go", "digit.go", "graphic.go", "letter.go", "tables.go"}

// metalCosts is what is measured: the name, and the text for the table.
var metalCosts = []struct{ what, text string }{
	{"random", "fio, 4 KiB written at random past the cache, a second"},
	{"sequential", "fio, 1 MiB written after the other, with an fsync, KiB a second"},
	{"compile", "a compile (Go's package unicode, three times), ms"},
	{"nfs", "files of 32 MiB over NFSv3, written, committed, and read, MiB a second (Debian)"},
	{"mean", "cyclictest, a real-time thread wakes up late by, mean, us"},
	{"worst", "the same, at most, us"},
}

// metalCost has the results of one measurement in turns, on a small machine.
type metalCost struct {
	Active  string    `json:"active"`
	Beside  string    `json:"beside"`
	What    string    `json:"what"` // a name in metalCosts
	With    []float64 `json:"with"`
	Without []float64 `json:"without"`
}

// measureCost measures what a small machine's kernel does with an understudy beside it, and without.
func measureCost(t *testing.T, active, beside string) (all []metalCost) {
	for _, p := range meters {
		if _, err := os.Stat(p); err != nil {
			tier.Lacks(t, err)
		}
	}
	tools, err := exec.Command("go", "env", "GOTOOLDIR", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	where := strings.Fields(string(tools))
	compile := filepath.Join(where[0], "compile")
	var files []string
	for _, name := range compileSources {
		files = append(files, filepath.Join(where[1], "src/unicode", name))
	}
	script := strings.NewReplacer("TURNS", metalTurnsList, "SOURCES", strings.Join(compileSources, " "), "COMPILE", compile).Replace(metalCostScript)
	m := bareMachine{active: active, beside: beside, script: parametersFirst + script, programs: append(slices.Clone(meters), compile), files: files}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	virtio.attach(t, m, disk)
	console := bootToEnd(t, ctx, m)
	t.Logf("it said:\n%s", console)
	if strings.Contains(console, "FAILED") {
		t.Error("something failed")
	}
	for _, c := range metalCosts {
		if c.what == "nfs" {
			continue // measureCopies
		}
		r := metalCost{Active: active, Beside: beside, What: c.what, With: measured(t, console, "with "+c.what), Without: measured(t, console, "without "+c.what)}
		if len(r.With) != metalTurns || len(r.Without) != metalTurns {
			t.Errorf("%s was measured %d and %d times", c.what, len(r.With), len(r.Without))
		}
		all = append(all, r)
	}
	return all
}

// copyTurns makes a machine with Debian serve NFS without an understudy and with it, in turns.
const copyTurns = `
copies=0
for n in TURNS; do
  for way in without with; do
    if [ $way = with ]; then
      systemctl start understudy-metal
      until understudy metal status | grep -q '^protected'; do sleep 0.5; done
    else
      systemctl stop understudy-metal
    fi
    copies=$((copies + 1))
    echo "COPY $copies."
    until [ -e /srv/files/next ]; do sleep 0.1; done
    rm /srv/files/next
  done
done
systemctl poweroff
`

// measureCopies measures how fast a machine with Debian serves NFS with an understudy beside its kernel, and without.
func measureCopies(t *testing.T, active, beside string) metalCost {
	script := debianStart + nfsStart + debianFirst + debianProtected + strings.Replace(copyTurns, "TURNS", metalTurnsList, 1)
	d := debianCase{bookworm, active, beside, virtio, false}.install(t, script, debianOptions)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	r, end := startMetal(t, ctx, d.Machine)
	defer end()
	cost := metalCost{Active: active, Beside: beside, What: "nfs"}
	var c *nfs3.Client
	var root nfs3.Handle
	for n := range 2 * metalTurns {
		if err := r.Await(ctx, fmt.Sprintf("COPY %d.", n+1)); err != nil {
			t.Fatal(err)
		}
		if c == nil {
			c, root = dialNFS(t, d.network, "tcp", 2049), do(t, ctx, dialNFS(t, d.network, "tcp", 20048), nfs3.Mount("/srv/files"))
			copyOver(t, ctx, c, root) // the first copy is slower
		}
		rate := copyOver(t, ctx, c, root)
		if n%2 == 0 {
			cost.Without = append(cost.Without, rate)
		} else {
			cost.With = append(cost.With, rate)
		}
		do(t, ctx, c, nfs3.Create(root, "next", nfs3.Set{}))
	}
	return cost
}

// copyOver writes a file, commits it, and reads it, eight calls at a time. It returns MiB a second.
func copyOver(t *testing.T, ctx context.Context, c *nfs3.Client, root nfs3.Handle) float64 {
	t.Helper()
	const size, piece = 32 << 20, 64 << 10
	content := make([]byte, piece)
	_, _ = rand.Read(content) // it does not fail
	each := func(f func(at uint64) error) {
		var g errgroup.Group
		g.SetLimit(8)
		for at := uint64(0); at < size; at += piece {
			g.Go(func() error { return f(at) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	h := do(t, ctx, c, nfs3.Create(root, "copy", nfs3.Set{})).Handle
	each(func(at uint64) error {
		_, err := nfs3.Do(ctx, c, nfs3.Write(h, at, nfs3.Unstable, content))
		return err
	})
	do(t, ctx, c, nfs3.Commit(h, 0, 0))
	each(func(at uint64) error {
		r, err := nfs3.Do(ctx, c, nfs3.Read(h, at, piece))
		if err == nil && !bytes.Equal(r.Data, content) {
			err = fmt.Errorf("%d bytes at %d are others", len(r.Data), at)
		}
		return err
	})
	rate := 2 * size / (1 << 20) / time.Since(began).Seconds()
	do(t, ctx, c, nfs3.Remove(root, "copy"))
	return rate
}

// measured returns the values that a console has for a name.
func measured(t *testing.T, console, name string) (all []float64) {
	t.Helper()
	for line := range strings.Lines(console) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "MEASURED "+name+" ")
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || v <= 0 {
			t.Errorf("%s is %q", name, text)
		}
		all = append(all, v)
	}
	return all
}

// writeCosts writes the table of the last measurements.
func writeCosts(w io.Writer, all []metalCost) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nWhat a small machine, or one with Debian, (kernel %s, virtio) does with an understudy (%s) beside its kernel and without, %d times in turns in one run:\nthe least, the median and the most.\n\n",
		release(all[0].Active), release(all[0].Beside), len(all[0].With))
	fmt.Fprintln(w, "| what | without | with | ratio of the medians |")
	fmt.Fprintln(w, "|---|---|---|---|")
	for _, c := range metalCosts {
		i := slices.IndexFunc(all, func(r metalCost) bool { return r.What == c.what })
		if i >= 0 && len(all[i].With) > 0 && len(all[i].Without) > 0 {
			fmt.Fprintf(w, "| %s | %s | %s | %.2f |\n", c.text, spread(all[i].Without), spread(all[i].With), median(all[i].With)/median(all[i].Without))
		}
	}
}

func median(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }
