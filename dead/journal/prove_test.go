package journal

import (
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// TestExceptPlaced: an inode whose file was given a place has in its block what we wrote there, and not what memory has.
func TestExceptPlaced(t *testing.T) {
	f := finisher{
		placed:     placed{files: []addr.Ino{12, 14}},
		remembered: audit.Memory{Inode: func(n addr.Ino) ([]byte, int64, bool) { return nil, int64(n), n != 13 }},
	}
	m := f.exceptPlaced()
	for n, want := range map[addr.Ino]bool{11: true, 12: false, 13: false, 14: false, 15: true} {
		if _, size, known := m.Inode(n); known != want || known && size != int64(n) {
			t.Errorf("inode %d: %d, %v", n, size, known)
		}
	}
}
