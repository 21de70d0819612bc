package wire_test

import (
	"errors"
	"io"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// TestNameless finds in e2fsck's output the inodes without a name, and those with too many.
func TestNameless(t *testing.T) {
	const said = `Pass 1: Checking inodes, blocks, and sizes
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
`
	found, err := wire.Checked([]byte(said), nil)
	if want := (&wire.Check{Output: said, Lost: []uint64{618, 171}, Surplus: []uint64{12}, Cleared: []uint64{30}}); err != nil || !reflect.DeepEqual(found, want) {
		t.Errorf("%+v instead of %+v, %v", found, want, err)
	}
}

// TestLongLine: what follows a line of any length is found.
func TestLongLine(t *testing.T) {
	said := "Multiply-claimed block(s) in inode 12:" + strings.Repeat(" 123456", 1<<14) + "\nUnattached inode 171\n"
	if found, err := wire.Checked([]byte(said), nil); err != nil || !slices.Equal(found.Lost, []uint64{171}) {
		t.Errorf("%v, %v", found.Lost, err)
	}
}

// TestCheckEnded: a run of e2fsck that corrected all errors is good; one that could not, or that was
// killed, is not.
func TestCheckEnded(t *testing.T) {
	for command, status := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 3": 3, "exit 4": -1, "exit 8": -1, "kill -9 $$": -1} {
		found, err := wire.Checked([]byte("said"), exec.Command("sh", "-c", command).Run())
		if status < 0 && (err == nil || found != nil) || status >= 0 && (err != nil || found.Status != status) {
			t.Errorf("%s: %+v, %v", command, found, err)
		}
	}
	if _, err := wire.Checked(nil, io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
