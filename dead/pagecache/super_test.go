package pagecache_test

import (
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
)

// TestMountUUID checks that the UUID of an ext file system is that of its superblock, which may have been changed since the
// mount, and that the file system is found by either.
func TestMountUUID(t *testing.T) {
	id := func(letter byte) (id pagecache.UUID) {
		for i := range id {
			id[i] = letter
		}
		return id
	}
	super := func(w *world) addr.Virt { return w.u64(w.u64(w.sb + sbInfo)) }
	change := func(w *world) {
		for i := range addr.Virt(16) {
			w.Put(super(w)+0x68+i, []byte{9})
		}
	}
	for name, tc := range map[string]struct {
		change func(*world)
		is     pagecache.UUID
		bad    bool // Ext4 fails
	}{
		"as it was": {func(*world) {}, id(7), false},
		"changed":   {change, id(9), false},
		"changed, with a seed": {func(w *world) {
			change(w)
			w.PutU32(super(w)+0x60, uint32(ext4.IncompatCsumSeed))
			w.PutU32(super(w)+0x64, uint32(ext4.ROCompatMetadataCsum))
		}, id(9), false},
		"changed, with checksums of it": {func(w *world) {
			change(w)
			w.PutU32(super(w)+0x64, uint32(ext4.ROCompatMetadataCsum))
		}, id(7), true},
		"no ext4": {func(w *world) { w.kind("xfs") }, id(7), true},
		"damaged": {func(w *world) { w.PutU32(super(w)+0x38, 0) }, id(7), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.change(w)
			w.Finish(types()...)
			c, s := w.open(t) // by the UUID of the mount
			if s.UUID != tc.is || s.MountUUID != id(7) {
				t.Errorf("it is %v, and was %v", s.UUID, s.MountUUID)
			}
			if again, err := c.Superblock(tc.is); err != nil || again.Addr != s.Addr {
				t.Errorf("%+v, %v", again, err)
			}
			if _, err := c.Superblock(id(5)); !errors.Is(err, pagecache.ErrNotMounted) {
				t.Errorf("another: %v", err)
			}
			if _, err := c.Ext4(s); (err != nil) != tc.bad {
				t.Errorf("%v; bad: %v", err, tc.bad)
			}
		})
	}
}
