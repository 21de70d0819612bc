package audit_test

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// TestHash compares with debugfs(8): dx_hash -h KIND -s
// 01020304-0506-0708-090a-0b0c0d0e0f10 NAME, of e2fsprogs 1.47.0 on x86-64.
func TestHash(t *testing.T) {
	seeded := ext4.Super{HashSeed: [4]uint32{0x04030201, 0x08070605, 0x0c0b0a09, 0x100f0e0d}}
	long := strings.Repeat("x", 70)
	for _, tc := range []struct {
		super ext4.Super
		kind  byte
		name  string
		want  uint32
	}{
		{seeded, 0, "a", 0xe74b53e2}, {seeded, 0, "hello", 0x32252546}, {seeded, 0, long, 0x4b65d2c4}, {seeded, 0, "Grüße", 0x7bba20ce},
		{seeded, 1, "a", 0x8d08ec4c}, {seeded, 1, "hello", 0xe2ddf968}, {seeded, 1, long, 0xfd5b0756}, {seeded, 1, "Grüße", 0x8d78a142},
		{seeded, 2, "a", 0xf53528f0}, {seeded, 2, "hello", 0x1a5692b6}, {seeded, 2, long, 0x919cf676}, {seeded, 2, "Grüße", 0x15e8c8dc},
		{ext4.Super{}, 1, "hello", 0x1746da32},
	} {
		if got := audit.Hash(&tc.super, tc.kind, []byte(tc.name)); got != tc.want {
			t.Errorf("hash %d of %q: %#x instead of %#x", tc.kind, tc.name, got, tc.want)
		}
	}
}
