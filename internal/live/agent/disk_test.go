package agent

import (
	"golang.org/x/sys/unix"
	"os/exec"
	"reflect"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

func TestNameless(t *testing.T) {
	var found wire.Check
	nameless(&found, []byte(`Pass 1: Checking inodes, blocks, and sizes
Inode 133, i_blocks is 16, should be 8.  Fix? yes

Pass 3: Checking directory connectivity
Unconnected directory inode 618 (was in /t2)
Connect to /lost+found? yes

Pass 4: Checking reference counts
Unattached zero-length inode 30.  Clear? yes

Unattached inode 171
Connect to /lost+found? yes

Inode 171 ref count is 2, should be 1.  Fix? yes

Inode 618 ref count is 3, should be 2.  Fix? yes

Inode 12 ref count is 1, should be 2.  Fix? yes

Inode 18446744073709551616 ref count is 1, should be 2.  Fix? yes
`))
	if want := (wire.Check{Lost: []uint64{618, 171}, Surplus: []uint64{12}, Cleared: []uint64{30}}); !reflect.DeepEqual(found, want) {
		t.Errorf("%+v instead of %+v", found, want)
	}
}

func TestMountOptions(t *testing.T) {
	flags, data := mountOptions("noatime,data=journal,,nosuid,commit=1")
	if flags != unix.MS_NOATIME|unix.MS_NOSUID || data != "data=journal,commit=1" {
		t.Errorf("flags %#x, data %q", flags, data)
	}
}

func TestChildren(t *testing.T) {
	c := newChildren()
	cmd := exec.Command("true")
	if err := c.start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(cmd); err != nil || len(c.ours) != 0 {
		t.Errorf("%v, %v left", err, c.ours)
	}
}
