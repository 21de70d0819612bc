package jbd2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/internal/lab/dirtylog"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// Sizes of disks with a small journal, in bytes.
const (
	small = 40 << 20
	tiny  = 12 << 20
)

// formats are all kinds of journals that a kernel makes. They are small, so that
// they wrap around.
var formats = []dirtylog.Format{
	{Name: "ext4", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4"}},
	{Name: "ext4-1k", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1"}},
	{Name: "ext4-2k", Type: "ext4", Size: small, Mkfs: []string{"-b", "2048", "-J", "size=2"}, Options: "commit=1"},
	{Name: "nocsum", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4", "-O", "^metadata_csum"}},
	{Name: "nocsum-32bit", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"}},
	{Name: "csum-32bit", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "^64bit"}},
	{Name: "v1", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "^metadata_csum"}, Options: "journal_checksum"},
	{Name: "v1-async", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "^metadata_csum"}, Options: "journal_async_commit,data=writeback"},
	{Name: "v3-async", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1"}, Options: "journal_async_commit,data=writeback"},
	{Name: "ext3", Type: "ext3", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4"}},
	{Name: "ext3-1k", Type: "ext3", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1"}},
	{Name: "ext3-data", Type: "ext3", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1"}, Options: "data=journal"},
	{Name: "data", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4"}, Options: "data=journal"},
	{Name: "nodelalloc", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4"}, Options: "nodelalloc"},
	{Name: "fast", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=6", "-O", "fast_commit"}, Fsyncs: true},
	{Name: "fast-1k", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=2", "-O", "fast_commit"}, Fsyncs: true},
	{Name: "orphans", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4", "-O", "orphan_file"}},
	{Name: "bigalloc", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4", "-O", "bigalloc", "-C", "16384"}},
	{Name: "inline", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "inline_data"}},
	{Name: "meta_bg", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "meta_bg,^resize_inode", "-I", "128"}},
	{Name: "uninit_bg", Type: "ext4", Size: tiny, Mkfs: []string{"-b", "1024", "-J", "size=1", "-O", "^metadata_csum,uninit_bg,^flex_bg"}},
	{Name: "seed", Type: "ext4", Size: small, Mkfs: []string{"-b", "4096", "-J", "size=4", "-O", "metadata_csum_seed,large_dir"}},
}

// orphanFile reports whether a kernel has orphan files: they came with 5.15 (02f310fcf47f).
func orphanFile(kernel string) bool { return !strings.HasPrefix(kernel, "5.10") }

// masked is a field that a mount changes apart from replaying the journal.
type masked struct {
	offset, size int
	why          string
}

// maskedSuper are fields of the superblock of the file system (fs/ext4/super.c).
var maskedSuper = []masked{
	{0x0c, 4, "s_free_blocks_count: counted anew (ext4_update_super)"},
	{0x158, 4, "s_free_blocks_count_hi"},
	{0x10, 4, "s_free_inodes_count: counted anew"},
	{0x178, 8, "s_kbytes_written: what the mount wrote (ext4_update_super)"},
	{0x3a, 2, "s_state: the error flag that we set survives since 6.2 only (ext4_load_journal)"},
	{0x66, 1, "s_feature_ro_compat: orphan_present is cleared (ext4_mark_recovery_complete)"},
	{0x3fc, 4, "s_checksum"},
}

// maskedLog are fields of the superblock of the journal (fs/jbd2/journal.c).
var maskedLog = []masked{
	{0x18, 4, "s_sequence: one more, since the mount had numbered a transaction (jbd2_journal_destroy)"},
	{0x58, 4, "s_head: from 6.5 on, where the log goes on"},
	{0xfc, 4, "s_checksum"},
}

// maskedOurs are fields of the superblock of a journal whose features no kernel has set: a mount
// sets 64 bits if the file system has them, version 3 instead of 2 (ext4_load_and_init_journal), and
// with it how blocks are checked (jbd2_journal_set_features).
var maskedOurs = append([]masked{{0x28, 4, "s_feature_incompat"}, {0x50, 1, "s_checksum_type"}}, maskedLog...)

// maskedOptions are fields of the superblock of a journal whose file system is mounted with journal_checksum or
// journal_async_commit, which may set its features only then (ext4_load_and_init_journal).
var maskedOptions = []masked{{0x24, 4, "s_feature_compat"}, {0x28, 4, "s_feature_incompat"}, {0x50, 1, "s_checksum_type"}}

// maskedDamaged are fields of the superblock of a journal that was damaged, possibly there.
var maskedDamaged = []masked{{0x20, 4, "s_errno: a mount tells it, and clears it (ext4_clear_journal_err)"}}

// setError marks a file system as having errors: a mount then leaves orphans
// alone (fs/ext4/orphan.c, ext4_orphan_cleanup).
func setError(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := ext4.ReadSuper(f)
	if err != nil {
		t.Fatal(err)
	}
	b[0x3a] |= byte(ext4.StateError)
	if b, err = ext4.SetRecover(b, superOf(t, f).NeedsReplay()); err != nil { // for its checksum
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, ext4.SuperOffset); err != nil {
		t.Fatal(err)
	}
}

// file is a recording on top of an image.
type file struct {
	*jbd2.Recording
	size int64
}

func openFile(t testing.TB, path string) *file {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &file{jbd2.NewRecording(f), st.Size()}
}

// write writes the changes to an image.
func (f *file) write(t testing.TB, path string) {
	t.Helper()
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for at, piece := range f.Changed() {
		if _, err := out.WriteAt(piece, at); err != nil {
			t.Fatal(err)
		}
	}
}

// differences returns where two disks differ, except for fields that a mount changes.
// If a mount failed, the superblock is not compared.
func differences(t testing.TB, l *jbd2.Log, ours, kernels io.ReaderAt, size int64, s sample, failed bool) []string {
	t.Helper()
	var found []string
	block := int64(l.Super.BlockSize)
	super, offset := l.FS.Super.Location()
	log, err := l.Where(0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, block), make([]byte, block)
	for at := int64(0); at < size/block; at++ {
		for disk, b := range map[io.ReaderAt][]byte{ours: a, kernels: b} {
			if _, err := disk.ReadAt(b, at*block); err != nil {
				t.Fatal(err)
			}
		}
		fields, from := []masked(nil), 0
		switch {
		case at == int64(super) && failed:
			continue
		case at == int64(super):
			fields, from = maskedSuper, offset
		case at == int64(log):
			if fields = maskedLog; s.ours {
				fields = maskedOurs
			}
			if strings.Contains(s.Options, "journal_") {
				fields = append(slices.Clone(fields), maskedOptions...)
			}
			if s.damaged {
				fields = append(slices.Clone(fields), maskedDamaged...)
			}
		}
		for _, f := range fields {
			clear(a[from+f.offset:][:f.size])
			clear(b[from+f.offset:][:f.size])
		}
		for i := range a {
			if a[i] != b[i] {
				found = append(found, fmt.Sprintf("block %d at %#x: %#x instead of %#x", at, i, a[i], b[i]))
				break
			}
		}
	}
	return found
}

// sample is an image that we and a kernel replay.
type sample struct {
	dirtylog.Image
	name     string
	damaged  bool // the file system may be damaged too
	ours     bool // a mount gives the journal the features of the file system
	stricter bool // we refuse what the kernel accepts
	looser   bool // we accept what some kernels refuse
}

// someFormats are the formats whose journals make test replays: one for each way to check blocks,
// to commit, and to keep orphans.
var someFormats = []string{"ext4", "ext4-1k", "nocsum-32bit", "v1-async", "ext3-1k", "data", "fast-1k", "orphans"}

// TestKernelReplays compares our replay with the kernel's, block for block, of
// journals that a kernel left, that we appended to, and that were damaged.
func TestKernelReplays(t *testing.T) {
	for i, kernel := range fixture.Kernels {
		t.Run(kernel, func(t *testing.T) { testKernelReplays(t, kernel, uint64(i)) })
	}
}

func testKernelReplays(t *testing.T, kernel string, seed uint64) {
	fixture.NeedKernel(t, kernel)
	some := slices.Clone(formats)
	if !tier.IsFull() {
		some = slices.DeleteFunc(some, func(f dirtylog.Format) bool { return !slices.Contains(someFormats, f.Name) })
	}
	if !orphanFile(kernel) {
		some = slices.DeleteFunc(some, func(f dirtylog.Format) bool { return f.Name == "orphans" })
	}
	random := rand.New(rand.NewPCG(seed, 2))
	var samples []sample
	for i, image := range dirtylog.Crash(t, kernel, seed, some, 10, 20, 30) {
		setError(t, image.Path)
		s := sample{Image: image, name: fmt.Sprint(image.Name, "/", i)}
		samples = append(samples, s)
		if i >= len(some) {
			continue
		}
		samples = append(samples, appended(t, s, uint64(i))...)
		if openFile(t, image.Path).size == tiny {
			samples = append(samples, damage(t, s, random)...)
		}
	}
	samples = append(samples, unused(t, some[0])...)
	samples = append(samples, made(t, kernel)...)
	var images []dirtylog.Image
	for _, s := range samples {
		s.Path += ".kernel"
		dirtylog.Copy(t, s.Path, strings.TrimSuffix(s.Path, ".kernel"))
		images = append(images, s.Image)
	}
	found := make(map[string]int)
	for i, m := range dirtylog.Mount(t, kernel, images) {
		t.Run(samples[i].name, func(t *testing.T) { found[compare(t, samples[i], m, images[i].Path)]++ })
	}
	t.Logf("%d journals: %v", len(samples), found)
	for _, want := range []string{"replayed", "refused", "fast commits"} {
		if found[want] == 0 && kernel == fixture.Default {
			t.Errorf("none was %s", want)
		}
	}
}

// compare compares our replay of a journal with a kernel's, and says how it went.
func compare(t *testing.T, s sample, m dirtylog.Mounted, path string) string {
	ours := openFile(t, s.Path)
	l, err := jbd2.Open(ours)
	if err != nil {
		if m.Err == nil {
			t.Errorf("the kernel mounts it, but %v", err)
		}
		return "refused"
	}
	scan, err := l.Scan()
	if err == nil {
		err = scan.Whole()
	}
	t.Log(describe(l, scan), err, m.Err)
	if err == nil && scan.Fast.Tags > 0 || err == nil && scan.Fast.Err != nil {
		return compareFast(t, l, scan, ours, m)
	}
	if err != nil {
		if !m.Refused() && !s.stricter && !stricter(l, err) {
			t.Errorf("the kernel replays it (%v), but %v: %s", m.Err, err, m.Log)
		}
		return "refused"
	}
	if _, err := l.Replay(); err != nil {
		t.Fatal(err)
	}
	// An orphan file that was not empty: the journal was replayed all the same.
	orphans := m.Err != nil && strings.Contains(m.Log, "Orphan file not empty")
	// With journal_async_commit a transaction may have its commit block without all of its blocks: a kernel fails then.
	early := scan.Partial && l.Super.Async
	mended := slices.ContainsFunc(scan.Transactions, func(t jbd2.Logged) bool {
		return t.Mended || slices.ContainsFunc(t.Blocks, func(b jbd2.LoggedBlock) bool { return b.Damaged })
	})
	if m.Refused() && (s.looser || mended || early) {
		return "refused by the kernel"
	}
	if m.Refused() || m.Err != nil && !s.damaged && !orphans {
		t.Fatalf("the kernel: %v: %s", m.Err, m.Log)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, d := range differences(t, l, ours, f, ours.size, s, m.Err != nil) {
		t.Error(d)
	}
	if scan.Empty {
		return "replayed, empty"
	}
	return "replayed"
}

// stricter reports whether we refuse what a kernel replays: a kernel writes anywhere on the
// disk, and goes on after a damaged commit block if commit blocks do not wait for their
// transactions.
func stricter(l *jbd2.Log, err error) bool {
	return strings.Contains(err.Error(), "which is in the journal") || strings.Contains(err.Error(), "of a file system of") ||
		l.Super.Async && strings.Contains(err.Error(), "is not whole")
}

// compareFast checks that we leave fast commits to the kernel, and that the kernel fails
// where we say so.
func compareFast(t *testing.T, l *jbd2.Log, scan *jbd2.Scan, ours *file, m dirtylog.Mounted) string {
	if _, err := l.Replay(); err == nil || scan.Fast.Err == nil && !errors.Is(err, jbd2.ErrFastCommits) || len(ours.Ops()) > 0 {
		t.Errorf("%d writes, %v", len(ours.Ops()), err)
	}
	if scan.Fast.Err != nil && !m.Refused() {
		t.Errorf("the kernel replays it, but %v", scan.Fast.Err)
	}
	return "fast commits"
}

// derive makes a new sample from another one.
func derive(t testing.TB, s sample, name string) (sample, *file) {
	t.Helper()
	out := s
	out.name += "/" + name
	out.Path += "." + name
	dirtylog.Copy(t, out.Path, s.Path)
	return out, openFile(t, out.Path)
}

// appended makes samples with transactions of ours: after those in the log,
// and around the end of a log that a replay has emptied.
func appended(t testing.TB, s sample, seed uint64) []sample {
	t.Helper()
	scanned, err := load(t, openFile(t, s.Path)).Scan()
	if err != nil {
		return nil // compare judges that
	}
	var samples []sample
	more := func(name string, prepare func(*jbd2.Log)) {
		out, d := derive(t, s, name)
		out.ours = scanned.Empty // maybe it was never used
		l := load(t, d)
		prepare(l)
		want := appendSome(t, l, seed)
		d.write(t, out.Path)
		if _, err := load(t, d).Replay(); err != nil {
			t.Fatal(err)
		}
		want.check(t, d, l.Super.BlockSize)
		samples = append(samples, out)
	}
	if !scanned.Empty && scanned.Fast.Err == nil {
		more("appended", func(*jbd2.Log) {})
	}
	if scanned.Fast.Tags == 0 && scanned.Fast.Err == nil {
		more("emptied", func(l *jbd2.Log) {
			if _, err := l.Replay(); err != nil {
				t.Fatal(err)
			}
		})
	}
	return samples
}

// unused makes samples of a journal that no kernel has seen yet.
func unused(t testing.TB, f dirtylog.Format) []sample {
	t.Helper()
	path := filepath.Join(t.TempDir(), "unused")
	f.Make(t, path)
	setError(t, path)
	image := dirtylog.Image{Name: f.Name, Type: f.Type, Path: path, Options: f.Options}
	return appended(t, sample{Image: image, name: "unused"}, 1)
}

// appendSome appends transactions to a log, and returns the content that blocks then have.
func appendSome(t testing.TB, l *jbd2.Log, seed uint64) model {
	t.Helper()
	m, want := newMaker(l, seed), make(model)
	scanned := scan(t, l)
	at := next(scanned)
	if scanned.Empty {
		at = jbd2.Start{Block: l.Super.Last - 60, Sequence: scanned.Next + 1}
	}
	for i, n := range []int{1, 70, 30} {
		txn := m.transaction(n, 10*i)
		if i == 2 && len(scanned.Transactions) > 0 {
			// What the kernel wrote must not come back where we revoke it.
			for _, b := range scanned.Transactions[0].Blocks[:1] {
				if super, _ := l.FS.Super.Location(); b.Home != super && b.Home < m.first {
					txn.Revokes = append(txn.Revokes, b.Home)
				}
			}
		}
		p, err := l.Append(at, txn)
		if errors.Is(err, jbd2.ErrNoRoom) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(); err != nil {
			t.Fatal(err)
		}
		want.apply(txn)
		at = jbd2.Start{Block: p.End, Sequence: at.Sequence + 1}
	}
	return want
}

// damage makes samples with one byte of the log changed, in a block of each kind.
func damage(t testing.TB, s sample, random *rand.Rand) []sample {
	t.Helper()
	scanned, err := load(t, openFile(t, s.Path)).Scan()
	if err != nil || scanned.Empty || len(scanned.Transactions) == 0 {
		return nil
	}
	var samples []sample
	for _, kind := range []string{"header", "commit", "control", "data", "super", "anywhere"} {
		out, d := derive(t, s, kind)
		l := load(t, d)
		txn := scanned.Transactions[random.IntN(len(scanned.Transactions))]
		at, offset := txn.Start, random.IntN(int(l.Super.BlockSize))
		switch kind {
		case "header":
			offset = random.IntN(64)
		case "commit":
			at, offset = wrap(l, txn.End, int(l.Super.Last-l.Super.First)-1), random.IntN(60)
		case "control":
			// the first block: of revokes or tags
		case "data":
			if len(txn.Blocks) > 0 {
				at = txn.Blocks[random.IntN(len(txn.Blocks))].At
			}
		case "super":
			at, offset = 0, random.IntN(0x60)
		case "anywhere":
			at = l.Super.First + jbd2.Pos(random.IntN(int(l.Super.Last-l.Super.First)))
		}
		b, err := l.ReadJournal(at)
		if err != nil {
			t.Fatal(err)
		}
		b[offset] ^= 1 << random.IntN(8)
		if err := l.WriteJournal(at, b); err != nil {
			t.Fatal(err)
		}
		d.write(t, out.Path)
		out.name += fmt.Sprintf("-%d-%#x", at, offset)
		out.damaged = true
		samples = append(samples, out)
	}
	return samples
}

// made makes samples of logs that are wholly ours: with checksums that no kernel
// writes any more, but that all kernels read; and the crafted ones.
func made(t testing.TB, kernel string) []sample {
	t.Helper()
	var samples []sample
	add := func(name string, k kind, b []byte, d *jbd2.Recording) *sample {
		path := save(t, b, d)
		setError(t, path)
		samples = append(samples, sample{
			Image: dirtylog.Image{Name: k.name, Type: "ext4", Path: path, Options: k.options()}, name: "ours/" + name, ours: true,
		})
		return &samples[len(samples)-1]
	}
	for _, k := range kinds {
		b := k.fresh(t)
		d := jbd2.NewRecording(bytes.NewReader(b))
		appendSome(t, load(t, d), 1)
		add(k.name, k, b, d)
	}
	for _, c := range craftedLogs {
		if c.endless || c.stricter && c.fails == "" || c.since510 && strings.HasPrefix(kernel, "5.10") {
			continue
		}
		b, d := c.make(t)
		k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == c.kind })]
		s := add(c.name, k, b, d)
		s.stricter, s.looser, s.damaged = c.stricter, c.looser, true
	}
	return samples
}

// options returns mount options that leave the features of the journal as they are.
func (k kind) options() string {
	switch {
	case k.incompat&jbd2.IncompatAsyncCommit != 0:
		return "journal_async_commit,data=writeback"
	case k.compat&jbd2.CompatChecksum != 0:
		return "journal_checksum"
	}
	return ""
}
