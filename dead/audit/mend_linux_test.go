package audit_test

import (
	"bytes"
	"io"
	"maps"
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/internal/lab/churn"
)

// mended returns changes together with what Mend adds to them, and false if the outcome is not
// what an audit proves. It checks that the arguments do not change, and that the outcome needs
// no more mending.
func mended(t testing.TB, old io.ReaderAt, changed map[addr.Block][]byte, operations int, memory audit.Memory) (map[addr.Block][]byte, *audit.Mended, bool) {
	t.Helper()
	before := make(map[addr.Block][]byte, len(changed))
	for b, data := range changed {
		before[b] = bytes.Clone(data)
	}
	m, err := memory.Mend(old, changed, operations)
	if !maps.EqualFunc(before, changed, bytes.Equal) {
		t.Fatal("the changes are not as they were")
	}
	if err != nil {
		return nil, &audit.Mended{What: []string{err.Error()}}, false
	}
	all := maps.Clone(changed)
	if all == nil {
		all = make(map[addr.Block][]byte)
	}
	maps.Copy(all, m.Blocks)
	again, err := memory.Mend(old, all, 0)
	if err != nil || len(again.Blocks) > 0 {
		t.Fatalf("mended once more: %+v, %v", again, err)
	}
	v, err := memory.Check(old, all)
	if err != nil {
		t.Fatal(err)
	}
	if !v.Clean {
		m.What = append(m.What, v.Reasons...)
	}
	return all, m, v.Clean
}

// judgeMended mends a state that is not clean, and checks the outcome with e2fsck. It reports
// whether the state can be mended.
func judgeMended(t testing.TB, s *churn.State, changed map[addr.Block][]byte, v audit.Verdict) bool {
	t.Helper()
	if v.Clean {
		return false
	}
	disk, err := os.Open(s.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	all, m, ok := mended(t, disk, changed, max(1, s.Handles), audit.Memory{})
	if !ok {
		t.Logf("%q is not mended: %q", v.Reasons, m.What)
		return false
	}
	if v, found := judge(t, s, all); !v.Clean || len(found) > 0 {
		t.Errorf("mended %q: clean %v, but e2fsck found %q", m.What, v.Clean, found)
	}
	return true
}
