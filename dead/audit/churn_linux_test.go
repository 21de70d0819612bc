package audit_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/churn"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// config is a way to make a file system.
type config struct {
	kind, options string
	mkfs          []string
	ops           int
}

var configs = map[string]config{
	"ext4":         {kind: "ext4", mkfs: []string{"mkfs.ext4", "-b", "4096"}},
	"ext3":         {kind: "ext3", mkfs: []string{"mkfs.ext3", "-b", "4096"}},
	"1k":           {kind: "ext4", mkfs: []string{"mkfs.ext4", "-b", "1024"}},
	"no-csum":      {kind: "ext4", mkfs: []string{"mkfs.ext4", "-b", "4096", "-O", "^metadata_csum"}},
	"bigalloc":     {kind: "ext4", mkfs: []string{"mkfs.ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384"}},
	"orphan_file":  {kind: "ext4", mkfs: []string{"mkfs.ext4", "-b", "4096", "-O", "orphan_file"}},
	"data=journal": {kind: "ext4", options: "data=journal", mkfs: []string{"mkfs.ext4", "-b", "4096", "-J", "size=64"}, ops: 700},
}

// few are the configurations that "make test" runs: those that differ most, with extents
// and checksums, without either, and with data in the journal.
var few = []string{"ext4", "ext3", "data=journal"}

func inTier(t *testing.T, name string) {
	t.Helper()
	if !slices.Contains(few, name) {
		tier.Full(t, "transactions of "+name)
	}
}

func (c config) state(t testing.TB, kernel string, seed uint64) *churn.State {
	t.Helper()
	return churn.Get(t, churn.Spec{
		Kernel: kernel, Mkfs: append(slices.Clone(c.mkfs), "-I", "256"),
		Order: churn.Order{Type: c.kind, Options: c.options, Seed: seed, Ops: cmp.Or(c.ops, 1500), Threads: 1},
	})
}

// harmless are messages of e2fsck about what a mount puts in order: it deletes and
// truncates orphans, and counts what the superblock does not.
var harmless = []*regexp.Regexp{
	regexp.MustCompile(`^e2fsck \d`),
	regexp.MustCompile(`^Pass \d\w?: `),
	regexp.MustCompile(`^(Clearing|Truncating) orphaned inode \d+ `),
	regexp.MustCompile(`^Free (blocks|inodes) count wrong \(`),
	regexp.MustCompile(`^Inode \d+ extent tree \(at level \d+\) could be (shorter|narrower)\.`),
	regexp.MustCompile(`^.*: \d+/\d+ files \(`),
	regexp.MustCompile(`^.*: \*\*\*\*\* FILE SYSTEM WAS MODIFIED \*\*\*\*\*`),
	regexp.MustCompile(`^(Fix|Optimize|Clear|Create)\? yes$`),
	// 1.47.0 says so whenever there were orphans in it.
	regexp.MustCompile(`^Orphan file \(inode \d+\) block \d+ is not clean\.$`),
	// A program may remove it.
	regexp.MustCompile(`^/lost\+found not found\.`),
	regexp.MustCompile(`^Feature orphan_present is set but orphan file is clean\.`),
	regexp.MustCompile(`^$`),
}

// fsck returns what e2fsck finds that is not harmless. It repairs the image.
func fsck(t testing.TB, image string) []string {
	t.Helper()
	cmd := exec.Command("e2fsck", "-fy", image)
	cmd.Env = append(os.Environ(), fmt.Sprintf("E2FSCK_TIME=%d", time.Now().Add(48*time.Hour).Unix())) // guests' clocks are ahead
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode()&^7 != 0) {
		return []string{"e2fsck gives up: " + string(out)}
	}
	var found []string
line:
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		for _, h := range harmless {
			if h.MatchString(line) {
				continue line
			}
		}
		found = append(found, line)
	}
	return found
}

// unmounted returns a copy of a transaction in which the superblock says that the
// journal is empty, as it is.
func unmounted(t testing.TB, changed map[addr.Block][]byte) map[addr.Block][]byte {
	out := maps.Clone(changed)
	for _, place := range [][2]int{{0, 1024}, {1, 0}} {
		b, ok := out[addr.Block(place[0])]
		if !ok || len(b) < place[1]+ext4.SuperSize || place[1] > 0 && len(b) == 1024 {
			continue
		}
		if super, err := ext4.SetRecover(b[place[1]:], false); err == nil {
			b = slices.Clone(b)
			copy(b[place[1]:], super)
			out[addr.Block(place[0])] = b
		}
	}
	return out
}

// judge returns the verdicts of the audit and of e2fsck on a state.
func judge(t testing.TB, s *churn.State, changed map[addr.Block][]byte) (audit.Verdict, []string) {
	t.Helper()
	disk, err := os.Open(s.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	v, err := audit.Check(disk, changed)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "understudy-audit-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "disk")
	if err := s.Copy(image, unmounted(t, changed)); err != nil {
		t.Fatal(err)
	}
	return v, fsck(t, image)
}

// plausible checks that a state is one that a kernel leaves.
func plausible(t testing.TB, s *churn.State) {
	t.Helper()
	disk, err := os.Open(s.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := (audit.Memory{}).Plausible(disk, s.Changed, s.Handles); err != nil {
		t.Errorf("with %d handles: %v", s.Handles, err)
	}
}

// TestWhole checks that transactions without open handles are proven.
func TestWhole(t *testing.T) {
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			inTier(t, name)
			s := c.state(t, fixture.Default, 1)
			begin := time.Now()
			v, found := judge(t, s, maps.Clone(s.Changed))
			plausible(t, s)
			t.Logf("%d blocks, %d handles, %+v, %v", len(s.Changed), s.Handles, v, time.Since(begin))
			if s.Handles != 0 || len(found) > 0 {
				t.Fatalf("%d handles; e2fsck: %q", s.Handles, found)
			}
			if !v.Clean {
				t.Errorf("%q", v.Reasons)
			}
		})
	}
}

var (
	crashes      = flag.Int("audit.crashes", 2, "crashes of TestHalf for each configuration; make test has one each")
	crashFirst   = flag.Uint64("audit.crash", 1, "the first of them")
	crashKernels = flag.String("audit.kernels", fixture.Default, "kernels of TestHalf, with commas")
)

// TestHalf judges the states of guests that died in the midst of their work, with operations
// half done. A state in which e2fsck finds something must not be clean.
func TestHalf(t *testing.T) {
	var matrix [2][2]int
	mended := 0
	for kernel := range strings.SplitSeq(*crashKernels, ",") {
		for _, name := range slices.Sorted(maps.Keys(configs)) {
			if name == "orphan_file" && strings.HasPrefix(kernel, "5.10") {
				continue // the feature is there since 5.15
			}
			n := uint64(*crashes)
			if !tier.IsFull() {
				if n = 1; !slices.Contains(few, name) {
					continue
				}
			}
			for seed := *crashFirst; seed < *crashFirst+n; seed++ {
				c := configs[name]
				s := churn.Get(t, churn.Spec{
					Kernel: kernel, Mkfs: append(slices.Clone(c.mkfs), "-I", "256"),
					Order: churn.Order{
						Type: c.kind, Options: c.options, Seed: seed, Ops: 1 << 20, Threads: 2 + int(seed%3)*3,
						After: 200 + int(seed*7919%2000),
					},
				})
				v, found := judge(t, s, s.Changed)
				plausible(t, s)
				matrix[b2i(len(found) == 0)][b2i(v.Clean)]++
				t.Logf("%s %s %d: %d blocks, %d handles, clean %v %q; e2fsck %q", kernel, name, seed, len(s.Changed), s.Handles, v.Clean, v.Reasons, found)
				if v.Clean && len(found) > 0 {
					t.Errorf("%s %s %d: clean, but e2fsck found %q", kernel, name, seed, found)
				}
				mended += b2i(judgeMended(t, s, s.Changed, v))
			}
		}
	}
	t.Logf("e2fsck found something: audit too %d, not %d; nothing: audit neither %d, but audit %d; clean once mended %d",
		matrix[0][0], matrix[0][1], matrix[1][1], matrix[1][0], mended)
}

// BenchmarkCheck measures how long an audit takes.
func BenchmarkCheck(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		b.Run(name, func(b *testing.B) {
			s := configs[name].state(b, fixture.Default, 1)
			disk, err := os.Open(s.Disk)
			if err != nil {
				b.Fatal(err)
			}
			defer disk.Close()
			for b.Loop() {
				if v, err := audit.Check(disk, s.Changed); err != nil || !v.Clean {
					b.Fatal(v, err)
				}
			}
			b.ReportMetric(float64(len(s.Changed)), "blocks")
		})
	}
}
