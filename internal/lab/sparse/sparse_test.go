package sparse

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopy(t *testing.T) {
	const size = 8 << 20
	want := make([]byte, size)
	for _, at := range []int{0, 3 << 20, size - 4096} {
		copy(want[at:], bytes.Repeat([]byte{byte(at>>20 + 1)}, 4096))
	}
	dir := t.TempDir()
	files := make([]*os.File, 2)
	for i, name := range []string{"from", "to"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	from, to := files[0], files[1]
	for _, at := range []int64{0, 3 << 20, size - 4096} {
		if _, err := from.WriteAt(want[at:at+4096], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs (%v)", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &st); err != nil || st.Blocks*512 > size/2 {
		t.Errorf("the copy has %d blocks (%v)", st.Blocks, err)
	}
	closed, err := os.Open(from.Name())
	if err != nil {
		t.Fatal(err)
	}
	if closed.Close(); Copy(to, closed) == nil {
		t.Error("a closed file was copied")
	}
}
