package pagecache

import (
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// TestExt4Internal checks that the value of an attribute is not a file, and that only a file system with ea_inode has any.
func TestExt4Internal(t *testing.T) {
	for name, tc := range map[string]struct {
		ino    addr.Ino
		flags  uint32
		values bool
		want   bool
	}{
		"a file":                       {ino: 12, values: true},
		"a file that is immutable":     {ino: 12, flags: FlagImmutable | FlagNoAtime, values: true},
		"the value of an attribute":    {ino: 12, flags: FlagNoQuota, values: true, want: true},
		"a file of quotas with a name": {ino: 12, flags: FlagNoQuota | FlagNoAtime | FlagImmutable, values: true},
		"no values in inodes":          {ino: 12, flags: FlagNoQuota},
		"the journal":                  {ino: 8, want: true},
		"the orphans":                  {ino: 13, values: true, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := Ext4{Super: ext4.Super{FirstInode: 11, OrphanFile: 13}}
			if tc.values {
				e.Super.Incompat |= ext4.IncompatEAInode
			}
			if got := e.Internal(&Inode{Ino: tc.ino, Flags: tc.flags}); got != tc.want {
				t.Errorf("internal: %t, want %t", got, tc.want)
			}
		})
	}
}

// TestOddBuffer checks in which states no kernel leaves a buffer that is not to be written.
func TestOddBuffer(t *testing.T) {
	const (
		uptodate = 1 << iota // of a buffer: BH_Uptodate, BH_Lock, BH_New
		lock
		fresh
	)
	const filled, locked = 1, 2 // of a page
	c := &Cache{layout: &layout{}}
	c.layout.buffer = bufferLayout{uptodate: 0, lock: 1, fresh: 2}
	c.layout.page.uptodate, c.layout.page.locked = 0, 1
	for _, tc := range []struct {
		page, state uint64
		odd         bool
	}{
		{filled, uptodate, false},
		{filled, 0, true},
		{filled | locked, 0, true},
		{0, 0, false},
		{0, uptodate, false},
		{0, uptodate | fresh, false}, // of data=journal
		{0, lock, true},
		{0, fresh, true},
		{locked, lock, false},  // it is being read
		{locked, fresh, false}, // it is being given its block
		{0, lock | fresh, true},
	} {
		if got := c.odd(&pageState{flags: tc.page}, &bufferState{state: tc.state}); got != tc.odd {
			t.Errorf("state %#x in a page with flags %#x: %v", tc.state, tc.page, got)
		}
	}
}
