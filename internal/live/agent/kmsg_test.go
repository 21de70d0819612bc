package agent

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// TestMountError: the error quotes what the kernel says, and explains an errno that hides its cause.
func TestMountError(t *testing.T) {
	d := wire.Disk{Name: "data", Type: "ext4", Mount: "/srv"}
	for _, tt := range []struct {
		err  error
		said string
		want []string
	}{
		{unix.EINVAL, "EXT4-fs (vdb): Unsupported blocksize for fs-verity", []string{"mount /dev/vdb (ext4) on /srv: invalid argument", "fs-verity"}},
		{unix.ESRCH, "", []string{"quota_v2", "disk data"}},
		{unix.EEXIST, "BTRFS: error (device vdb: state EA) in btrfs_replay_log:2396: errno=-17 Object already exists (Failed to recover log tree)", []string{"zero-log", "disk data"}},
		{unix.EIO, "", []string{"mount /dev/vdb (ext4) on /srv: input/output error"}},
	} {
		err := mountError(d, "/dev/vdb", tt.said, tt.err)
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) || !errors.Is(err, tt.err) {
				t.Errorf("%v: %v, want %q", tt.err, err, w)
			}
		}
		if strings.Contains(err.Error(), "quota_v2") != errors.Is(tt.err, unix.ESRCH) || strings.Contains(err.Error(), "kernel says") != (tt.said != "") {
			t.Errorf("%v: %v", tt.err, err)
		}
	}
}

func TestKernelText(t *testing.T) {
	for record, want := range map[string]string{
		"3,512,1234567,-;EXT4-fs (vdb): Unsupported blocksize for fs-verity\n SUBSYSTEM=block\n": "EXT4-fs (vdb): Unsupported blocksize for fs-verity",
		"6,1,2,-;a; b": "a; b",
		"6,1,2,-":      "",
		"":             "",
		"3,1,1,-;\xff": "?",
	} {
		if got := kernelText([]byte(record)); got != want {
			t.Errorf("%q: %q, want %q", record, got, want)
		}
	}
}

// TestKernelLog: reading does not wait for a kernel that logs nothing, and without a log nothing is read.
func TestKernelLog(t *testing.T) {
	l := listen()
	if l < 0 {
		t.Skip("no /dev/kmsg here")
	}
	if said := l.said("a word that no kernel says"); said != "" {
		t.Errorf("%q", said)
	}
	if said := kernelLog(-1).said(""); said != "" {
		t.Errorf("without a log: %q", said)
	}
}
