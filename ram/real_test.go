package ram_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/addr"
	"understudy/ram"
)

func TestTmpReal(t *testing.T) {
	dir := os.Getenv("DUMPS")
	if dir == "" {
		t.Skip()
	}
	raw, err := ram.OpenFile(filepath.Join(dir, "ram"))
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		switch filepath.Ext(filepath.Base(f)) {
		case ".img", ".txt":
			continue
		}
		st, _ := os.Stat(f)
		if st.Size() < 10<<20 || !st.Mode().IsRegular() {
			continue
		}
		start := time.Now()
		m, err := ram.OpenFile(f)
		if err != nil {
			t.Logf("%s: %v", filepath.Base(f), err)
			continue
		}
		opened := time.Since(start)
		start = time.Now()
		var n, bad, extra, miss uint64
		for _, r := range m.Ranges() {
			for part := range m.(ram.Sparse).Touched(r) {
				for pa := part.Start; pa < part.End; {
					k := min(1<<20, int(part.End-pa))
					b, err := m.View(pa, k)
					if err != nil {
						t.Fatal(err)
					}
					for o := 0; o < k; o += addr.PageSize {
						e := min(k, o+addr.PageSize)
						w, err := raw.View(pa+addr.Phys(o), e-o)
						if err != nil {
							extra++
						} else if !bytes.Equal(w, b[o:e]) {
							bad++
							if bad < 4 {
								t.Logf("differs at %v", pa+addr.Phys(o))
							}
						}
						n++
					}
					pa += addr.Phys(k)
				}
			}
		}
		info := m.(ram.Described).Info()
		note, ok := m.(ram.Noted).VMCoreInfo()
		t.Logf("%s: %+v, %d ranges, %d pages, %d differ, %d not in RAM, %d miss, note %d %v, open %v, read %v; %s", filepath.Base(f), info, len(m.Ranges()), n, bad, extra, miss, len(note), ok, opened, time.Since(start), info.Advice())
		m.Close()
	}
}
