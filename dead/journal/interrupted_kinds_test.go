package journal_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// interruptedKinds are file systems that differ in how blocks are counted, where data lies, or
// what orders the writes. Files of the second one are owned by users, groups and a project.
var interruptedKinds = []struct{ name, mkfs string }{
	{"bigalloc", "mkfs.ext4 -qF -b 4096 -O bigalloc -C 16384"},
	{"quota", "mkfs.ext4 -qF -O quota,project"},
	{"inline_data", "mkfs.ext4 -qF -b 4096 -O inline_data -I 256"},
	{"no journal", "mkfs.ext4 -qF -O ^has_journal"},
}

// inherits makes everything that is created in a file system belong to project 7.
const inherits = `; debugfs -w -R 'sif <2> projid 7' $1; debugfs -w -R 'sif <2> flags 0x20080000' $1; e2fsck -fy $1; e2fsck -fn $1`

// crashedKinds is a crash with all of interruptedKinds, as /dev/vda and so on.
func crashedKinds(t *testing.T) *scene.Scene {
	t.Helper()
	spec := scene.Spec{Modules: []string{"ext4", "quota_v2"}, Append: hold.Parameters(), Script: `
fill() { yes "$1" | head -c "$2"; }
each() { for x in vda vdb vdc vdd; do cd /$x; $1; done; cd /; }
saved() {
	fill kept 10000 >kept; fill old 20000 >old; fill over 30000 >over; fill gone 5000 >gone
	fill moved 3000 >moved; fill tiny 40 >tiny; fill grows 50 >grows; mkdir deep; fill in 60 >deep/in
	chown 1000:1000 old
}
unsaved() {
	fill more 9000 >>old; fill t 30 >>tiny; fill g 5000 >>grows
	fill changed 4096 | dd of=over bs=4096 seek=1 conv=notrunc 2>/dev/null
	rm gone; mv moved renamed; fill small 100 >small; fill large 300000 >large; : >empty
	fill far 5000 | dd of=sparse bs=4096 seek=20 2>/dev/null
	mkdir dir
	for n in 0 1 2 3 4 5 6 7 8 9; do fill f$n $((n * 1700 + 1)) >dir/f$n; done
	chown 1000:1000 dir/f1 dir/f3; chown 1000:0 dir/f5; fill own 8000 >>dir/f3
}
mkdir /vda /vdb /vdc /vdd
for x in vda vdb vdc; do mount -t ext4 -o ` + hold.Ext4 + ` /dev/$x /$x; done
mount -t ext4 -o noinit_itable /dev/vdd /vdd
each saved
sync
each unsaved
crash
`}
	for _, k := range interruptedKinds {
		line := k.mkfs + " $1"
		if k.name == "quota" {
			line += inherits
		}
		spec.Disks = append(spec.Disks, scene.Disk{Size: 64 << 20, Mkfs: []string{"sh", "-c", line, "sh"}})
	}
	return scene.Play(t, spec)
}

// tree is the content of files, by path.
type tree map[string]string

func fill(line string, size int) string { return strings.Repeat(line+"\n", size/len(line)+1)[:size] }

// kindTrees are what the script leaves: at its sync, and at the crash.
func kindTrees() (saved, unsaved tree) {
	saved = tree{
		"kept": fill("kept", 10000), "old": fill("old", 20000), "over": fill("over", 30000), "gone": fill("gone", 5000),
		"moved": fill("moved", 3000), "tiny": fill("tiny", 40), "grows": fill("grows", 50), "deep/in": fill("in", 60),
	}
	unsaved = maps.Clone(saved)
	unsaved["old"] += fill("more", 9000)
	unsaved["tiny"] += fill("t", 30)
	unsaved["grows"] += fill("g", 5000)
	unsaved["over"] = saved["over"][:4096] + fill("changed", 4096) + saved["over"][8192:]
	delete(unsaved, "gone")
	unsaved["renamed"] = unsaved["moved"]
	delete(unsaved, "moved")
	unsaved["small"], unsaved["large"], unsaved["empty"] = fill("small", 100), fill("large", 300000), ""
	unsaved["sparse"] = string(make([]byte, 20*4096)) + fill("far", 5000)
	for n := range 10 {
		name := "f" + string(rune('0'+n))
		unsaved["dir/"+name] = fill(name, n*1700+1)
	}
	unsaved["dir/f3"] += fill("own", 8000)
	return saved, unsaved
}

// TestInterruptedKinds does what TestInterrupted does, with other kinds of file systems: whatever
// state a cut leaves, e2fsck finds nothing wrong with it, and either every file is what it was at
// the sync, or every file is what it was at the crash. Without a journal nothing orders the writes:
// there a second run of the rescue must give the same disk, byte for byte.
func TestInterruptedKinds(t *testing.T) {
	tier.Guest(t)
	tier.Full(t, "rescues interrupted on bigalloc, quota, inline_data, and without a journal")
	tier.Programs(t, "debugfs", "e2fsck")
	s := crashedKinds(t)
	c := openCache(t, &fixture.Image{RAM: s.RAM})
	for n, k := range interruptedKinds {
		t.Run(k.name, func(t *testing.T) {
			d := fixture.Disk{Name: k.name, Type: "ext4", Image: s.Disks[n], UUID: uuidOf(t, s.Disks[n])}
			if k.name == "no journal" {
				interruptBare(t, c, d)
				return
			}
			judged(t, c, d, false)
		})
		if k.name == "bigalloc" { // for the others the audit proves a half-done operation only after a check
			t.Run(k.name+", half done", func(t *testing.T) {
				judged(t, c, fixture.Disk{Name: k.name, Type: "ext4", Image: s.Disks[n], UUID: uuidOf(t, s.Disks[n])}, true)
			})
		}
	}
}

// judged is interrupt with a kindJudge.
func judged(t *testing.T, c *pagecache.Cache, d fixture.Disk, half bool) {
	j := &kindJudge{}
	j.saved, j.unsaved = kindTrees()
	interrupt(t, c, d, true, half, j.judge)
	if t.Logf("%d states judged", j.looked); j.looked == 0 {
		t.Error("none was judged")
	}
}

func uuidOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := ext4.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return fs.Super.UUID.String()
}

// kindJudge looks at some of the states that cuts leave.
type kindJudge struct {
	saved, unsaved tree
	seen, looked   int
}

// judge lets other programs read a disk: in the new state if all is set, otherwise in the state of the sync.
func (j *kindJudge) judge(t *testing.T, disk io.ReaderAt, all bool) {
	t.Helper()
	if j.seen++; j.seen%3 != 1 {
		return
	}
	j.looked++
	path := imageOf(t, disk)
	// An empty log may be marked as in use.
	if out, err := exec.Command("e2fsck", "-y", "-E", "journal_only", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	fsck(t, path)
	want := j.saved
	if all {
		want = j.unsaved
	}
	got := treeOf(t, path)
	if !all { // data is written in place before the commit, a sector at a time
		got["over"] = oneOf(got["over"], j.saved["over"], j.unsaved["over"])
	}
	sameTree(t, got, want)
	if t.Failed() {
		t.FailNow()
	}
}

// oneOf returns the first of two states of a file if each sector of it is as in one of them, and got otherwise.
func oneOf(got, a, b string) string {
	if len(got) != len(a) || len(got) != len(b) {
		return got
	}
	for at := 0; at < len(got); at += jbd2.SectorSize {
		end := min(at+jbd2.SectorSize, len(got))
		if s := got[at:end]; s != a[at:end] && s != b[at:end] {
			return got
		}
	}
	return a
}

func sameTree(t *testing.T, got, want tree) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		is, there := got[name]
		if !there {
			t.Errorf("%s is missing", name)
		} else if is != want[name] {
			t.Errorf("%s has %d bytes, not the %d that it should have, or others", name, len(is), len(want[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, known := want[name]; !known {
			t.Errorf("%s is there", name)
		}
	}
}

// imageOf writes a disk to a file.
func imageOf(t *testing.T, disk io.ReaderAt) string {
	t.Helper()
	b := make([]byte, 64<<20)
	if _, err := disk.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// treeOf returns what debugfs(8) reads of all files.
func treeOf(t *testing.T, path string) tree {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("debugfs", "-R", "rdump / "+dir, path).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	out := make(tree)
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		if len(b) == inlineBytes { // debugfs also writes that many bytes of a shorter file (seen in 1.47.0)
			b = b[:sizeOf(t, path, rel)]
		}
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inlineBytes is how much of a file fits into i_block.
const inlineBytes = 60

var statSize = regexp.MustCompile(`(?m)^User:.* Size: (\d+)$`)

// sizeOf returns the size that debugfs(8) gives for a file of at most inlineBytes.
func sizeOf(t *testing.T, path, name string) int {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", "stat /"+name, path).Output()
	m := statSize.FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil || n > inlineBytes {
		t.Fatalf("%s has %s bytes, %v", name, m[1], err)
	}
	return n
}

// interruptBare is interrupt without a journal: e2fsck can repair what a cut leaves, and files that
// were not written are what they were. A second run of the rescue gives the same disk, which is
// whole after e2fsck, once files have their places.
func interruptBare(t *testing.T, c *pagecache.Cache, d fixture.Disk) {
	base, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	s := superOf(t, c, d)
	plan := func(disk jbd2.Disk) *journal.Rescue {
		r, err := journal.Plan(c, s, disk)
		if err != nil {
			t.Fatal(err)
		}
		r.Place = true
		return r
	}
	whole := jbd2.NewRecording(base)
	rescue := plan(whole)
	report, err := rescue.Finish(whole)
	if err != nil || report.Check == "" || report.Data == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	saved, unsaved := kindTrees()
	rng := rand.New(rand.NewPCG(7, 2))
	ops, looked := len(whole.Ops()), 0
	for cut := 0; cut <= ops; cut++ {
		for try := range 3 {
			crashed := whole.Crash(cut, func(int) bool { return try == 0 || try == 1 && rng.IntN(2) == 0 })
			if (cut+try)%7 == 0 || cut == ops {
				looked++
				path := imageOf(t, crashed)
				checked(t, path)
				got := treeOf(t, path)
				sameTree(t, tree{"kept": got["kept"], "deep/in": got["deep/in"]}, tree{"kept": saved["kept"], "deep/in": saved["deep/in"]})
			}
			if _, err := plan(crashed).Finish(crashed); err != nil {
				t.Fatal(err)
			}
			sameBytes(t, whole, crashed)
			if t.Failed() {
				t.Fatalf("cut at write %d of %d, try %d", cut, ops, try)
			}
		}
	}
	t.Logf("%d writes and syncs, %d states looked at; the check: %s", ops, looked, report.Check)
	path := imageOf(t, whole)
	checked(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := rescue.PlaceChecked(f, report)
	if err != nil || p.Err != nil || len(p.Refused) > 0 || len(p.Files) == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	fsck(t, path)
	sameTree(t, treeOf(t, path), unsaved)
}

// checked repairs a disk with e2fsck.
func checked(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fy", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
}

// sameBytes checks that a disk has everything that was written to another.
func sameBytes(t *testing.T, whole, disk *jbd2.Recording) {
	t.Helper()
	for off, data := range whole.Changed() {
		got := make([]byte, len(data))
		if _, err := disk.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("the %d bytes at %d are not what they should be", len(data), off)
		}
	}
}
