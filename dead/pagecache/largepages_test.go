package pagecache_test

import (
	"fmt"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestLargePages reads files of kernels whose pages have 16 and 64 KiB, each of several blocks of
// 4 KiB: a whole page, one with two changed blocks, one with a wrong index, and one whose buffers do
// not fill it.
func TestLargePages(t *testing.T) {
	for _, unit := range []addr.Pages{addr.Pages16K, addr.Pages64K} {
		size := unit.Size()
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w := newWorldOn(kerneltest.NewPages(t, unit))
			file := w.file(17, "file", 5*size-4096)
			states := make([]uint64, size/4096)
			states[1], states[3] = 1<<bhUptodate|1<<bhDirty, 1<<bhUptodate|1<<bhDirty
			whole, partly := w.page(file, 1, good, 'a'), w.page(file, 2, 1<<pgDirty|1<<pgPrivateBit, 'b')
			w.buffersOf(partly, w.data(partly), 4096, states)
			w.Put(w.data(partly)+4096, []byte("c"))
			w.Put(w.data(partly)+3*4096, []byte("d"))
			wrong, short := w.page(file, 2, good, 'e'), w.page(file, 4, 1<<pgDirty|1<<pgPrivateBit, 'f')
			w.buffersOf(short, w.data(short), 4096, states[:len(states)-1])
			w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{1: whole, 2: partly, 3: wrong, 4: short}, 1, 2, 3, 4))
			w.Finish(types()...)
			w.PutU64(file+inPages, 4)
			want := []string{
				fmt.Sprintf("a[%d,%d)", size, 2*size),
				fmt.Sprintf("c[%d,%d)", 2*size+4096, 2*size+8192), fmt.Sprintf("d[%d,%d)", 2*size+3*4096, 2*size+4*4096),
				"3+1 page of another index", "4+1 implausible buffers",
			}
			c, s := w.open(t)
			for i, err := range c.Dirty(s) {
				if err != nil {
					t.Fatal(err)
				}
				if got := unsaved(c, s, i, w.Mem); !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if _, bytes, err := c.Waiting(s); bytes != 3*size || err != nil {
					t.Errorf("%d bytes wait, %v", bytes, err)
				}
			}
		})
	}
}
