//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/churn"
)

// prepare makes what exists before the work begins: small files, a large directory, files
// in many pieces, links, and attributes that several files share.
func prepare(root string, order churn.Order) error {
	for n := range order.Threads {
		w := newWorker(root, order, n)
		for _, dir := range []string{"", "/a", "/b", "/a/sub", "/a/sub/sub", "/large"} {
			if err := os.Mkdir(w.root+dir, 0o755); err != nil {
				return err
			}
		}
		for i := range 60 {
			w.write(w.name("/a"), 0, 1+w.rand.IntN(40000))
			w.write(fmt.Sprintf("%s/b/old%d", w.root, i), 0, 100*i)
		}
		for i := range 900 / order.Threads {
			w.write(w.long(i), 0, i%3)
		}
		for _, name := range []string{"/pieces", "/more"} {
			if err := w.pieces(w.root+name, 1500/order.Threads); err != nil {
				return err
			}
		}
		for range 30 {
			w.attribute(w.some("/a"), "user.shared", 200)
			w.symlink()
			w.link()
		}
	}
	return nil
}

type worker struct {
	root string
	rand *rand.Rand
	made int
	open []int // descriptors of deleted files
}

// churning is the number of the first file after prepare.
const churning = 1000

func newWorker(root string, order churn.Order, n int) *worker {
	return &worker{root: fmt.Sprintf("%s/t%d", root, n), rand: rand.New(rand.NewPCG(order.Seed, uint64(n)))}
}

func (w *worker) name(dir string) string {
	w.made++
	return fmt.Sprintf("%s%s/f%d", w.root, dir, w.made)
}

func (w *worker) long(n int) string {
	return fmt.Sprintf("%s/large/%d%s", w.root, n, strings.Repeat("x", 20+n*7%180))
}

// some returns the path of a file that may or may not exist.
func (w *worker) some(dir string) string {
	return fmt.Sprintf("%s%s/f%d", w.root, dir, 1+w.rand.IntN(w.made+1))
}

func (w *worker) write(path string, off int64, size int) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b := make([]byte, size) // zeros while preparing, which take no room on the host
	for i := range b {
		if w.made >= churning {
			b[i] = byte(w.rand.Uint32())
		}
	}
	_, _ = unix.Pwrite(fd, b, off)
	if w.rand.IntN(2) == 0 {
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) // so that its blocks are allocated
	}
}

// pieces makes a file of n pieces, with holes between them.
func (w *worker) pieces(path string, n int) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range n {
		if _, err := unix.Pwrite(fd, make([]byte, 500), int64(i)*8192); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) attribute(path, name string, size int) {
	_ = unix.Setxattr(path, name, []byte(strings.Repeat("v", size)), 0)
}

func (w *worker) symlink() {
	w.made++
	_ = os.Symlink(strings.Repeat("target/", 1+w.rand.IntN(30)), fmt.Sprintf("%s/b/s%d", w.root, w.made))
}

func (w *worker) link() {
	w.made++
	_ = os.Link(w.some("/a"), fmt.Sprintf("%s/b/l%d", w.root, w.made))
}

func (w *worker) run(ops int, done *atomic.Int64) {
	w.made = churning
	for range ops {
		w.operation()
		done.Add(1)
	}
}

// operation does one random operation, which may fail.
func (w *worker) operation() {
	old := fmt.Sprintf("%s/b/old%d", w.root, w.rand.IntN(60))
	switch w.rand.IntN(24) {
	case 0, 1, 2:
		w.write(w.name("/a"), int64(w.rand.IntN(3))*50000, w.rand.IntN(30000))
	case 3:
		w.write(w.long(1000+w.rand.IntN(500)), 0, 10)
	case 4, 5:
		_ = os.Remove(w.long(w.rand.IntN(1500)))
	case 6:
		_ = os.Remove(w.some("/a"))
	case 7:
		_ = os.Remove(old)
	case 8:
		_ = os.Rename(w.some("/a"), w.name("/b"))
	case 9:
		_ = os.Rename(w.some("/a"), old)
	case 10:
		w.link()
	case 11:
		w.symlink()
	case 12:
		_ = os.Mkdir(w.name("/a/sub"), 0o755)
	case 13:
		_ = unix.Rmdir(w.some("/a/sub"))
	case 14: // a directory moves
		_ = os.Rename(w.some("/a/sub"), w.name("/a/sub/sub"))
	case 15:
		_ = unix.Truncate(w.some("/a"), int64(w.rand.IntN(60000)))
	case 16:
		w.attribute(w.some("/a"), "user.shared", 200)
	case 17:
		w.attribute(w.some("/a"), fmt.Sprintf("user.a%d", w.rand.IntN(4)), w.rand.IntN(300))
	case 18:
		_ = unix.Removexattr(w.some("/a"), "user.shared")
	case 19: // more pieces, or fewer
		w.write(w.root+"/pieces", int64(w.rand.IntN(3000))*4096, 5000)
	case 20:
		w.hole(w.root + "/more")
	case 21: // deleted while open
		if fd, err := unix.Open(w.some("/a"), unix.O_RDWR, 0); err == nil && len(w.open) < 10 {
			w.open = append(w.open, fd)
			_ = os.Remove(fmt.Sprintf("/proc/self/fd/%d", fd))
			if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
				_ = os.Remove(path)
			}
		}
	case 22:
		_ = unix.Chmod(w.some("/a"), w.rand.Uint32()&0o777)
		_ = unix.Mkfifo(w.name("/b"), 0o600)
	case 23: // more entries in the large directory
		for i := range 5 {
			w.write(w.long(2000+w.rand.IntN(300)), 0, i)
		}
	}
}

func (w *worker) hole(path string) {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	off, n := int64(w.rand.IntN(2000))*4096, int64(1+w.rand.IntN(40))*4096
	mode := []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[w.rand.IntN(4)]
	_ = unix.Fallocate(fd, mode, off, n)
}
