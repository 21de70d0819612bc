package device_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/device"
)

// TestRehearsalWithout: a newer mkfs is told to leave out what the disk does not have. An older one, which
// does not know the option, is not.
func TestRehearsalWithout(t *testing.T) {
	without := map[string][]string{"xfs": {"-inrext64=0", "-iexchange=0", "-nparent=0"}, "btrfs": {"-O^block-group-tree"}, "ext4": nil}
	for _, tt := range []struct{ kind, knows, want string }{
		{"xfs", "", ""}, {"xfs", "projid32bit=0|1,sparse=0|1,nrext64=0|1]", " -inrext64=0"},
		{"xfs", "nrext64=0|1,\n exchange=0|1] [-n size=num,version=2|ci,ftype=0|1,parent=0|1]]", " -inrext64=0 -iexchange=0 -nparent=0"},
		{"btrfs", "free-space-tree - (default=5.15)", ""}, {"btrfs", "block-group-tree - (default=6.19)", " -O^block-group-tree"}, {"ext4", "", ""},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "disk")
		script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n*%s) echo \"$*\" >%s/args;;\n*) echo '%s' >&2; exit 1;;\nesac\n", path, dir, tt.knows)
		if err := os.WriteFile(filepath.Join(dir, "mkfs."+tt.kind), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		if err := device.MakeRehearsal(t.Context(), path, tt.kind, []string{"-m", "crc=1"}, without[tt.kind]); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "args")); err != nil || !strings.HasSuffix(string(got), " -m crc=1"+tt.want+" "+path+"\n") {
			t.Errorf("mkfs.%s that knows %q: %q, %v", tt.kind, tt.knows, got, err)
		}
	}
}
