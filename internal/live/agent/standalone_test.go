package agent

import (
	"reflect"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

func TestRole(t *testing.T) {
	want := wire.Config{
		Partition: "left", Disks: []wire.Disk{{Name: "data", Type: "ext4", Mount: "/srv", Options: "noatime"}},
		NFS: &wire.NFS{Host: "files", Exports: []string{"/srv/a *(rw,fsid=1)"}, Lease: 10 * time.Second},
	}
	word, err := RoleParameter(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := roleIn("console=ttyS0 panic=1 " + word + " quiet\n")
	if err != nil || got == nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	// COMMAND_LINE_SIZE of x86 is 2048, and there are other words.
	if len(word) > 1500 {
		t.Errorf("%d bytes", len(word))
	}
	if got, err := roleIn("console=ttyS0 quiet\n"); got != nil || err != nil {
		t.Errorf("a role from nowhere: %+v, %v", got, err)
	}
	for _, bad := range []string{roleParameter + "!", roleParameter + "AAAA"} {
		if got, err := roleIn(bad); err == nil {
			t.Errorf("%s: %+v", bad, got)
		}
	}
}
