package draft

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	for line, want := range map[string]string{
		"1 0 8192 /dev/vda":    "pass 1, 0 %",
		"1 4096 8192 /dev/vda": "pass 1, 35 %, some 19s more",
		"5 8192 8192 /dev/vda": "pass 5, 100 %, some 0s more",
		"2 99 8 /dev/vda":      "pass 2, 90 %, some 1s more",
		"0 1 8 x":              "", "6 1 8 x": "", "1 1 0 x": "", "-1 1 2 x": "", "": "", "Pass 1: Checking inodes": "", "1 2": "",
	} {
		p, ok := progress(line, 10*time.Second)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%q: %v, %v", line, p, ok)
		}
	}
	var told []Progress
	follow(strings.NewReader("1 1 4 d\n1 2 4 d\n"+strings.Repeat("x", 1<<20)), time.Now(), func(p Progress) { told = append(told, p) })
	if !slices.ContainsFunc(told, func(p Progress) bool { return p.Pass == 1 }) || len(told) != 1 {
		t.Errorf("told %v", told)
	}
}

func FuzzProgress(f *testing.F) {
	f.Add("1 4096 8192 /dev/vda")
	f.Fuzz(func(t *testing.T, line string) {
		if p, ok := progress(line, time.Second); ok && (p.Done < 0 || p.Done > 1) {
			t.Errorf("%q: %+v", line, p)
		}
	})
}
