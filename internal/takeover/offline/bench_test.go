package offline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/placement"
	"understudy.dev/understudy/internal/lab/compare"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover/draft"
)

// BenchmarkPlaced measures how unsaved files are brought to a disk without a guest: block placement,
// audit, data, the transaction and its replay, all of it durable. It does so as a takeover does, on
// the disk itself, and as salvage apply does, on a draft first, with the redo file and the commit.
// Only the search in memory is left out (BenchmarkPlan, salvage). For comparison, the same bytes are
// written to a file in the same directory with O_DIRECT, and made durable with fdatasync(2).
func BenchmarkPlaced(b *testing.B) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		b.Skip(err)
	}
	for _, files := range []int{1, 1000, 20000} {
		for _, mib := range []int{16, 96, 400} {
			b.Run(fmt.Sprintf("files=%d/MiB=%d", files, mib), func(b *testing.B) { benchmarkPlaced(b, files, int64(mib)<<20) })
		}
	}
}

func benchmarkPlaced(b *testing.B, files int, size int64) {
	// The size of a file is a multiple of the block size, so the total may be larger than was asked for.
	each := max(4096, (size/int64(files)+4095)&^4095)
	size = each * int64(files)
	dir := b.TempDir()
	path, empty := filepath.Join(dir, "disk"), filepath.Join(dir, "empty")
	wanted := emptyFiles(b, empty, files, each)
	direct, at := directWrites(b, filepath.Join(dir, "direct"), size)
	defer direct.Close()
	buf := content(1 << 20)
	r := compare.Run(b,
		compare.Way{Name: "apply", Do: func() time.Duration {
			copySparse(b, empty, path)
			start := time.Now()
			if err := applyPlaced(b, path, wanted, buf); err != nil {
				b.Fatal(err)
			}
			return time.Since(start)
		}},
		compare.Way{Name: "takeover", Do: func() time.Duration {
			copySparse(b, empty, path)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			start := time.Now()
			if err := placeAll(device.Direct{File: f}, wanted, buf); err != nil {
				b.Fatal(err)
			}
			return time.Since(start)
		}},
		compare.Time(b, "direct", func() error { return at(buf) }),
	)
	r.Ratio(b, "apply-of-direct", "apply", "direct")
	r.Ratio(b, "takeover-of-direct", "takeover", "direct")
}

// emptyFiles makes a disk with empty files, and returns what is to be written to them.
func emptyFiles(b *testing.B, path string, files int, each int64) []placement.File {
	tree := b.TempDir()
	for n := range files {
		sub := filepath.Join(tree, fmt.Sprint(n/500))
		if err := errors.Join(os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, fmt.Sprint("f", n)), nil, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<30)); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-b", "4096", "-N", "32768", "-J", "size=64", "-E", "lazy_itable_init=1", "-d", tree, path).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	fs, err := ext4.Open(f)
	if err != nil {
		b.Fatal(err)
	}
	var out []placement.File
	now := time.Now()
	for ino := fs.Super.FirstInode; len(out) < files; ino++ {
		i, err := fs.Inode(ino)
		if err != nil {
			b.Fatal(err)
		}
		if !i.IsRegular() || i.Links == 0 || ino == fs.Super.JournalInode {
			continue
		}
		out = append(out, placement.File{
			Ino: ino, Generation: i.Generation, Size: each, Atime: now, Mtime: now, Ctime: now,
			Unsaved: []placement.Stretch{{Span: addr.Span{Off: 0, End: each}}},
		})
	}
	return out
}

func content(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		panic(err)
	}
	for i := range b {
		b[i] = byte(i*7 + i>>12)
	}
	return b
}

// directWrites opens a new file, and returns a function that writes size bytes to it durably.
func directWrites(b *testing.B, path string, size int64) (io.Closer, func([]byte) error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Skipf("no O_DIRECT: %v", err)
	}
	return f, func(buf []byte) error {
		if err := f.Truncate(0); err != nil {
			return err
		}
		for at := int64(0); at < size; at += int64(len(buf)) {
			if _, err := f.WriteAt(buf[:min(int64(len(buf)), size-at)], at); err != nil {
				return err
			}
		}
		return unix.Fdatasync(int(f.Fd()))
	}
}

func copySparse(b *testing.B, from, to string) {
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	if err := exec.Command("sync", to).Run(); err != nil {
		b.Fatal(err)
	}
}

// placeAll carries out the last commit as a rescue does.
func placeAll(out jbd2.Disk, files []placement.File, buf []byte) error {
	log, err := jbd2.Open(out)
	if err != nil {
		return err
	}
	scan, err := log.Scan()
	if err != nil {
		return err
	}
	found, err := placement.Place(out, nil, files, nil)
	if err != nil {
		return err
	}
	if verdict, err := audit.Check(out, found.Blocks); err != nil || !verdict.Clean || len(found.Placed) != len(files) {
		return fmt.Errorf("%v, %w, %d placed", verdict, err, len(found.Placed))
	}
	if err := errors.Join(writePieces(out, found.Placed, buf), out.Sync()); err != nil {
		return err
	}
	t := &jbd2.Transaction{Time: time.Now()}
	for home, data := range found.Blocks {
		t.Blocks = append(t.Blocks, jbd2.Block{Home: home, Data: data})
	}
	pending, err := log.Append(jbd2.Start{Block: scan.End, Sequence: scan.Next}, t)
	if err != nil {
		return err
	}
	if err := pending.Commit(); err != nil {
		return err
	}
	_, err = log.Replay()
	return err
}

// writePieces writes the content of files, sorted by their places on the disk, in stretches of
// at most len(buf) bytes. It uses WriteFree or WriteStretches if the disk has them.
func writePieces(out jbd2.Disk, files []placement.Placed, buf []byte) error {
	var all []jbd2.Stretch
	size := int64(0) // of the last stretch
	for _, f := range files {
		for _, p := range f.Pieces {
			for done := int64(0); done < p.Len(); {
				n := min(int64(len(buf)), p.Len()-done)
				if last := len(all) - 1; last >= 0 && all[last].Off+size == p.Disk+done && size+n <= int64(len(buf)) {
					all[last].Data = append(all[last].Data, buf[:n])
				} else {
					all, size = append(all, jbd2.Stretch{Off: p.Disk + done, Data: [][]byte{buf[:n]}}), 0
				}
				done, size = done+n, size+n
			}
		}
	}
	if later, ok := out.(jbd2.FreeDisk); ok { // all of it is in holes
		return later.WriteFree(len(all), func(i int) (jbd2.Stretch, error) { return all[i], nil })
	}
	if straight, ok := out.(jbd2.StretchDisk); ok {
		return straight.WriteStretches(len(all), func(i int) (int64, [][]byte) { return all[i].Off, all[i].Data })
	}
	for _, s := range all {
		if _, err := out.WriteAt(slices.Concat(s.Data...), s.Off); err != nil {
			return err
		}
	}
	return nil
}

// applyPlaced does the same on a draft, and brings that to the disk with Apply.
func applyPlaced(b *testing.B, path string, files []placement.File, buf []byte) error {
	d, err := Source{}.Open(path, disk.Where{}, "")
	if err != nil {
		return err
	}
	defer d.Close()
	out := draft.New(d, filepath.Dir(path))
	defer out.Close()
	out.PutOff()
	if err := placeAll(out, files, buf); err != nil {
		return err
	}
	changed, err := out.Changed()
	if err != nil {
		return err
	}
	job := Job{Identity: trialID, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}}
	for off, data := range changed {
		job.Raw = append(job.Raw, Raw{Off: off, Data: data})
	}
	job.Free = out.Free()
	_, err = d.Apply(b.Context(), job, nil)
	return err
}
