package salvage

import (
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
)

// TestCheckFields checks that the disk may have the UUID that the file system had when it was mounted, or the one that was
// set since, and that everything else that identifies a mount must be the same.
func TestCheckFields(t *testing.T) {
	was, is, other := addr.UUID{1}, addr.UUID{2}, addr.UUID{3}
	p := &Plan{
		Super: pagecache.Superblock{UUID: is, MountUUID: was},
		Ext4:  pagecache.Ext4{Super: ext4.Super{UUID: is, MountCount: 4, MountTime: 5}},
	}
	for name, tc := range map[string]struct {
		on   ext4.Super
		good bool
	}{
		"before":        {ext4.Super{UUID: was, MountCount: 4, MountTime: 5}, true},
		"since":         {ext4.Super{UUID: is, MountCount: 4, MountTime: 5}, true},
		"another":       {ext4.Super{UUID: other, MountCount: 4, MountTime: 5}, false},
		"another mount": {ext4.Super{UUID: was, MountCount: 5, MountTime: 6}, false},
	} {
		if err := p.checkFields(&tc.on); (err == nil) != tc.good || err != nil && !errors.As(err, new(*DiskError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
