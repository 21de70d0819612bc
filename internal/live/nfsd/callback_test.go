package nfsd

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestRecall compares the call with one written down word by word from RFC 5531, 9 and 11, and RFC 8881, 20.
func TestRecall(t *testing.T) {
	want := strings.Join(strings.Fields(`
		8000007c 00000007 00000000 00000002 40000000 00000001 00000001
		00000001 00000014 00000000 00000000 00000000 00000000 00000000 00000000 00000000
		00000000 00000002 00000000 00000002
		0000000b 000102030405060708090a0b0c0d0e0f 00000007 00000000 00000000 00000000 00000000
		0000000a 0000001d`), "")
	var session [16]byte
	for i := range session {
		session[i] = byte(i)
	}
	if got := hex.EncodeToString(Recall(0x40000000, 2, session, 7, 30)); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if got := Recall(1, 1, session, 1, 0); got[len(got)-1] != 0 {
		t.Errorf("without slots: % x", got)
	}
}
