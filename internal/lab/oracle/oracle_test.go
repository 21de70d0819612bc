package oracle

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/oracle/script"
	"understudy.dev/understudy/internal/lab/tier"
)

var (
	seeds = flag.Int("oracle.seeds", 3, "seeds of TestRescue")
	more  = flag.Int("oracle.programs", 1, "cases of it with real programs")
	first = flag.Uint64("oracle.first", 1, "the first seed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	CleanUp()
	os.Exit(code)
}

// need skips a test where no guest can run.
func need(t *testing.T, kernels ...string) {
	t.Helper()
	tier.Guest(t)
	for _, tool := range []string{"qemu-system-x86_64", "mkfs.ext4", "e2fsck", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Lacks(t, fmt.Sprintf("%v; run scripts/setup.sh", err))
		}
	}
	for _, k := range kernels {
		fixture.NeedKernel(t, k)
	}
}

// tmpfs returns a directory for a case.
func tmpfs(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "understudy-oracle-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func config(t *testing.T, name string) Config {
	c, err := FindConfig(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestUnrescued checks that a crash costs something that was not durable, and nothing
// that was.
func TestUnrescued(t *testing.T) {
	need(t, fixture.Default)
	// Its journal does not commit by itself before the crash, however long that takes.
	c := Case{Seed: 100, Config: config(t, "commit-300"), Kernel: fixture.Default, Crash: Busy}
	r := c.Judge(t.Context(), Options{Keep: t.ArtifactDir()})
	t.Log(r)
	if r.Verdict != Plain || r.Ops < 100 || r.Plain.Durable == 0 || r.Undone == 0 {
		t.Errorf("%v: %v, %d undone", c, r.Verdict, r.Undone)
	}
}

// TestDetects lets a guest leave a file system that is exact, spoils one thing in each of
// several copies, and checks that each is found.
func TestDetects(t *testing.T) {
	tier.Full(t, "what a guest finds on disks that are not as they must be")
	need(t, fixture.Default)
	ctx := t.Context()
	c, err := Case{Seed: 5, Config: config(t, "ext4"), Kernel: fixture.Default, Crash: Clean}.Run(ctx, tmpfs(t))
	if err != nil {
		t.Fatal(err)
	}
	images := []string{c.Disk}
	names := []string{"nothing"}
	for name, spoil := range diskSpoilers(t, c) {
		image := filepath.Join(c.Dir, fmt.Sprintf("spoiled%d.img", len(images)))
		if err := copyDisk(c.Disk, image); err != nil {
			t.Fatal(err)
		}
		spoil(image)
		images, names = append(images, image), append(names, name)
	}
	found, err := c.Walk(ctx, images...)
	if err != nil {
		t.Fatal(err)
	}
	for i, tree := range found {
		got := c.Compare(tree)
		if t.Log(names[i], got.Findings); (len(got.Findings) == 0) != (i == 0) {
			t.Errorf("%s: %d findings", names[i], len(got.Findings))
		}
	}
	said, err := c.check(images[0])
	if err != nil || said != "" {
		t.Errorf("e2fsck: %v %s", err, said)
	}
}

// diskSpoilers change one thing on a disk. TestCompareDetects covers all kinds of differences.
func diskSpoilers(t *testing.T, c *Crashed) map[string]func(image string) {
	var file, second *script.Node
	var at string
	pick := func(p string, n *script.Node) {
		switch plain := !strings.ContainsAny(p, " \n"); {
		case n.File() && plain && n.Size > 1 && n.Content.At(0) != 0 && n.Xattrs["user.a0"]+n.Xattrs["user.a1"] != "" && file == nil:
			file, at = n, p
		case n.File() && plain && n.Size > 0 && second == nil:
			second = n
		}
	}
	for i := range c.Threads {
		c.Threads[i].Before.Top.Walk(threadDir(i), pick)
	}
	if file == nil || second == nil {
		t.Fatal("nothing to spoil:", file, second)
	}
	debugfs := func(format string, args ...any) func(string) {
		return func(image string) { t.Helper(); debug(t, image, fmt.Sprintf(format, args...)) }
	}
	field := func(n *script.Node, name, value string) func(string) {
		return debugfs("set_inode_field <%d> %s %s", n.Ino, name, value)
	}
	attribute := "user.a0"
	if file.Xattrs[attribute] == "" {
		attribute = "user.a1"
	}
	return map[string]func(string){
		"byte":           func(image string) { flip(t, image, file) },
		"name lost":      debugfs("unlink /%s", at),
		"mtime fraction": field(file, "mtime_extra", "0"),
		"mode":           field(second, "mode", "0100111"),
		"size":           field(file, "size", fmt.Sprint(file.Size-1)),
		"attribute":      debugfs("ea_rm <%d> %s", file.Ino, attribute),
	}
}

// debug lets debugfs(8) change an image. debugfs shows a failure only by what it prints.
func debug(t *testing.T, image, command string) string {
	t.Helper()
	var out, said bytes.Buffer
	cmd := exec.Command("debugfs", "-w", "-R", command, image)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil || strings.Count(said.String(), "\n") > 1 { // one line is its version
		t.Fatalf("debugfs %s: %v: %s%s", command, err, out.String(), said.String())
	}
	return out.String()
}

// flip changes the first byte of a file's data.
func flip(t *testing.T, image string, n *script.Node) {
	t.Helper()
	var block int64
	if _, err := fmt.Sscan(debug(t, image, fmt.Sprintf("bmap <%d> 0", n.Ino)), &block); err != nil || block == 0 {
		t.Fatalf("block %d of inode %d: %v", block, n.Ino, err)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{n.Content.At(0) ^ 1}, block*4096); err != nil {
		t.Fatal(err)
	}
}

// program returns the path of the program that make build has made.
func program(t *testing.T) string {
	t.Helper()
	binary, err := filepath.Abs("../../../bin/understudy")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "salvage", "apply", "--help").Output(); err != nil || !bytes.Contains(out, []byte("--disk")) {
		tier.Lacks(t, "bin/understudy cannot rescue; run make build")
	}
	return binary
}

// TestRescue is the oracle itself, with a few seeds; in make test with one, on the
// default kernel.
func TestRescue(t *testing.T) {
	kernels, seeds, more := Kernels, *seeds, *more
	if !tier.IsFull() {
		kernels, seeds, more = []string{fixture.Default}, 1, 0
	}
	need(t, kernels...)
	binary := program(t)
	cases, err := Cases(*first, seeds, nil, kernels, nil)
	if err != nil {
		t.Fatal(err)
	}
	real, err := Cases(*first, more, nil, kernels, nil)
	if err == nil {
		real, err = WithPrograms(real, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("no real programs: %v; run scripts/setup.sh", err)
			real = nil
		}
	}
	remade, err := Cases(*first, 2*seeds, Names(Remade[:2]), kernels, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(cases, real, remade) {
		r := c.Judge(t.Context(), Options{Keep: "../../../out/oracle", Rescue: Command(binary)})
		if t.Log(r); !r.Verdict.Good() {
			t.Errorf("%v: %s", c, r.Verdict)
		}
	}
}

// TestPage checks that what one run writes leaves the other parts as they are.
func TestPage(t *testing.T) {
	when := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	offline := []Result{{Seed: 1, Config: "ext4", Kernel: "6.1-cloud", Crash: Panic, Verdict: Exact}}
	live := []Result{{Seed: 2, Config: "ext4", Kernel: "6.1-cloud", Crash: Hang, Verdict: Exact, Deaths: 2}}
	remade := []Result{{Seed: 3, Config: "xfs", Kernel: "6.1-cloud", Crash: Panic, Verdict: Refused, Tree: &Comparison{Nodes: 7, Forgiven: 1, Back: 2}}}
	both := []Result{{Seed: 4, Config: "btrfs", Kernel: "6.1-cloud", Crash: Sync, Verdict: Exact, Deaths: 1, InSync: true}}
	all := Page("", slices.Concat(offline, live, remade, both), when)
	if got := Page(Page(Page(Page("", remade, when), both, when), offline, when), live, when); got != all {
		t.Errorf("one after the other:\n%s\nwant\n%s", got, all)
	}
	for _, some := range [][]Result{offline, live, remade, both} {
		if got := Page(all, some, when); got != all {
			t.Errorf("once more:\n%s\nwant\n%s", got, all)
		}
	}
	for _, want := range []string{"| hang | 1 | 2 | 1 exact |", "\n1 cases: 1 exact.", "\n1 cases: 1 refused.", "| xfs | 7 | 0 | 1 | 2 | 0 |", "| sync | 1 | 1 | 1 exact | 1 |\n"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
}

// TestTakeover is the oracle with pairs: in one of the cases both sides die.
func TestTakeover(t *testing.T) {
	kernels := Kernels
	if !tier.IsFull() {
		kernels = []string{fixture.Default}
	}
	need(t, kernels...)
	binary := program(t)
	seeds := 1
	if tier.IsFull() {
		seeds = 4
	}
	cases, err := LiveCases(3, seeds, nil, kernels) // 3 has two takeovers
	if err != nil {
		t.Fatal(err)
	}
	if tier.IsFull() {
		remade, err := LiveCases(3, 6, Names(Remade), kernels)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, remade...)
	}
	for _, c := range cases {
		r := c.Judge(t.Context(), Options{Keep: "../../../out/oracle-live", Agent: binary})
		if t.Log(r); r.Verdict != Exact && r.Verdict != Refused {
			t.Errorf("%v: %s", c, r.Verdict)
		}
	}
}
