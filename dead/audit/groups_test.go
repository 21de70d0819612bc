package audit

import (
	"errors"
	"testing"
)

// TestMiscounts: a count of a group that was wrong before a transaction by as much as after it is not the
// transaction's fault: the file system needs a check, and did before.
func TestMiscounts(t *testing.T) {
	for name, tt := range map[string]struct {
		free, counts, freeBefore, countsBefore uint64
		foreign                                bool
	}{
		"right before":        {10, 9, 12, 12, false},
		"as wrong before":     {10, 13, 12, 15, true},
		"as wrong, downwards": {10, 7, 12, 9, true},
		"otherwise before":    {10, 13, 12, 13, false},
	} {
		err := miscounts("blocks", 3, tt.free, tt.counts, tt.freeBefore, tt.countsBefore)
		if foreign := errors.As(err, new(*foreignError)); err == nil || foreign != tt.foreign {
			t.Errorf("%s: %v", name, err)
		}
	}
}
