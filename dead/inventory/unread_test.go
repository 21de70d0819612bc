package inventory

import (
	"errors"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// TestUnread checks that a file system that is not understood is named, and never counts as completely saved: one
// with a disk always, one without if pages of it wait, or if pages do not show what waits.
func TestUnread(t *testing.T) {
	const disk addr.Dev = 254 << 20
	for _, tt := range []struct {
		kind   string
		dev    addr.Dev
		always bool
	}{
		{"exfat", disk, true}, {"f2fs", disk, true}, {"ntfs3", disk, true}, {"nilfs2", disk, true}, {"minix", disk, true}, {"fuseblk", disk, true},
		{"gfs2", disk, true}, {"ocfs2", disk, true}, {"hfsplus", disk, true}, {"jffs2", 31 << 20, true},
		{"ubifs", 9, true}, {"bcachefs", 9, true}, {"zfs", 9, true}, {"lustre", 9, true},
		{"9p", 9, false}, {"ceph", 9, false}, {"afs", 9, false}, {"fuse", 9, false}, {"virtiofs", 9, false}, {"ecryptfs", 9, false},
		{"overlay", 9, false}, {"orangefs", 9, false}, {"vboxsf", 9, false},
		{"nfs", 9, false}, {"cifs", 9, false}, {"smb3", 9, false}, // whose server is not known
	} {
		f := &FileSystem{Super: &pagecache.Superblock{Type: tt.kind, Dev: tt.dev}, Device: tt.kind}
		if f.HasDevice() != tt.always {
			t.Errorf("%s: is listed: %v", tt.kind, f.HasDevice())
		}
		for _, waiting := range []FileSystem{{waitingFiles: 2, waitingBytes: 4097}, {waitingErr: errors.New("damaged list")}} {
			waiting.Super, waiting.Device = f.Super, f.Device
			found := waiting.Find(Query{})
			_, _, unread := waiting.Unread()
			if !waiting.HasDevice() || !unread || found.Complete() || len(found.Faults) != 1 {
				t.Fatalf("%s: %+v", tt.kind, found)
			}
			said := found.Faults[0].Error()
			if !strings.Contains(said, tt.kind) || !strings.Contains(said, "4097 bytes") && !strings.Contains(said, "damaged list") {
				t.Errorf("%s: %s", tt.kind, said)
			}
		}
		if found := f.Find(Query{}); found.Complete() {
			t.Errorf("%s: nothing is missed", tt.kind)
		}
	}
	f := &FileSystem{Super: &pagecache.Superblock{Type: "zfs"}}
	if said := f.Find(Query{}).Faults[0].Error(); !strings.Contains(said, "not known") {
		t.Error(said)
	}
}
