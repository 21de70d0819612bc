package draft

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDraftChecked lets e2fsck repair a draft of a damaged file system: the disk stays as it is, and e2fsck
// finds nothing wrong with the draft.
func TestDraftChecked(t *testing.T) {
	if _, err := checker(); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-b", "1024", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command("debugfs", "-w", "-f", "-", path)
	cmd.Stdin = strings.NewReader("mkdir a\nmkdir a/b\nunlink a/b\nset_inode_field a links_count 9\nfreei lost+found\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &Draft{base: bytes.NewReader(before), dir: t.TempDir()}
	defer d.Close()
	found, err := d.Check(t.Context(), int64(len(before)), nil)
	if errors.Is(err, ErrNoCheck) {
		t.Skip(err) // no FUSE
	}
	if err != nil || found.Status != 1 || len(found.Lost) != 1 || !found.Names() {
		t.Fatalf("%+v, %v", found, err)
	}
	changed, err := d.Changed()
	if err != nil {
		t.Fatal(err)
	}
	after := bytes.Clone(before)
	for off, b := range changed {
		copy(after[off:], b)
	}
	if err := os.WriteFile(path, after, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestDraftUncheckable checks a draft that e2fsck cannot repair: that is an error, and no verdict.
func TestDraftUncheckable(t *testing.T) {
	if _, err := checker(); err != nil {
		t.Skip(err)
	}
	d := &Draft{base: bytes.NewReader(make([]byte, 1<<20)), dir: t.TempDir()}
	defer d.Close()
	if found, err := d.Check(t.Context(), 1<<20, nil); err == nil || found != nil {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestDraftTooNew: a file system with a feature that this machine's e2fsck does not know is left to a guest,
// whose own may be newer, and the draft is as it was.
func TestDraftTooNew(t *testing.T) {
	if _, err := checker(); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-O", "^metadata_csum", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	disk[1024+0x5c+2] |= 0x80 // a bit of s_feature_compat (fs/ext4/ext4.h) that no feature has
	d := &Draft{base: bytes.NewReader(disk), dir: t.TempDir()}
	defer d.Close()
	found, err := d.Check(t.Context(), int64(len(disk)), nil)
	if !errors.Is(err, ErrNoCheck) || found != nil {
		t.Fatalf("%+v, %v", found, err)
	}
	if !strings.Contains(err.Error(), tooOld) {
		t.Skip(err) // no FUSE
	}
	changed, err := d.Changed()
	if err != nil {
		t.Fatal(err)
	}
	for off, b := range changed {
		if !bytes.Equal(disk[off:off+int64(len(b))], b) {
			t.Errorf("%d bytes at %d are others", len(b), off)
		}
	}
}

// TestValuesGo: when e2fsck clears a deleted file, the inodes with values of its attributes go as well, instead
// of staying in lost+found, to which e2fsck moves them.
func TestValuesGo(t *testing.T) {
	if _, err := checker(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	path, value := filepath.Join(dir, "disk"), filepath.Join(dir, "value")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 16<<20), os.WriteFile(value, bytes.Repeat([]byte("large"), 2000), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-b", "1024", "-O", "ea_inode", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command("debugfs", "-w", "-f", "-", path)
	cmd.Stdin = strings.NewReader("write " + value + " a\nwrite " + value + " b\nea_set -f " + value + " a user.l\nunlink a\nset_inode_field <12> links_count 0\nset_super_value last_orphan 12\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &Draft{base: bytes.NewReader(before), dir: t.TempDir()}
	defer d.Close()
	found, err := d.Check(t.Context(), int64(len(before)), nil)
	if errors.Is(err, ErrNoCheck) {
		t.Skip(err) // no FUSE
	}
	if err != nil || found.Names() || !strings.Contains(found.Output, "Unattached inode 14") {
		t.Fatalf("%+v, %v", found, err)
	}
	changed, err := d.Changed()
	if err != nil {
		t.Fatal(err)
	}
	for off, b := range changed {
		copy(before[off:], b)
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	out, err := exec.Command("debugfs", "-R", "ls -p /lost+found", path).Output()
	if err != nil || strings.Contains(string(out), "/14/0") {
		t.Errorf("%s, %v", out, err)
	}
}
