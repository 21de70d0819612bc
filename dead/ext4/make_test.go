package ext4

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMakeOptions: a file system made with the options of another one has the same features and sizes.
func TestMakeOptions(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip(err)
	}
	for _, how := range [][]string{
		{"-t", "ext4"}, {"-t", "ext3"}, {"-t", "ext2"}, {"-t", "ext4", "-b", "1024"},
		{"-t", "ext4", "-O", "^has_journal,^metadata_csum,uninit_bg"},
		{"-t", "ext4", "-O", "bigalloc,quota,project", "-C", "65536", "-I", "512"},
		{"-t", "ext4", "-O", "inline_data,ea_inode,large_dir,encrypt,verity,casefold,fast_commit,orphan_file,metadata_csum_seed,sparse_super2"},
		{"-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg,^64bit"},
	} {
		want := made(t, how)
		got := made(t, want.MakeOptions())
		if got.Compat != want.Compat || got.Incompat != want.Incompat || got.ROCompat != want.ROCompat ||
			got.BlockSize != want.BlockSize || got.ClusterSize != want.ClusterSize || got.InodeSize != want.InodeSize {
			t.Errorf("%q: %q gave %+v, want %+v", how, want.MakeOptions(), got, want)
		}
	}
}

func made(t *testing.T, options []string) *Super {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{"-q", "-F"}, options...), path)
	if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %q: %v: %s", args, err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return &fs.Super
}
