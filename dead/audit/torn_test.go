package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// TestTornTree checks that a node that was being written counts, and gets its right checksum,
// if its entries are in order. Otherwise, or if the node was not changed, it is an error.
func TestTornTree(t *testing.T) {
	const block, extents = 4096, 6 // more than the inode has room for
	_, image, fs := made(t, func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "f"))
		if err != nil {
			return err
		}
		for i := range int64(extents) {
			_, failed := f.WriteAt(bytes.Repeat([]byte{1}, block), 3*i*block)
			err = errors.Join(err, failed)
		}
		return errors.Join(err, f.Close())
	})
	const ino = 12
	i, err := fs.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := audit.Tree(bytes.NewReader(image), nil, ino)
	if err != nil || len(whole.New) != extents || len(whole.Torn) > 0 {
		t.Fatalf("%+v, %v", whole, err)
	}
	leaf := addr.Block(i.Block[16]) | addr.Block(i.Block[17])<<8 // ei_leaf_lo of the first entry
	good := image[int(leaf)*block:][:block]

	bad := bytes.Clone(good)
	bad[12*(extents+1)] ^= 1 // behind the entries, but covered by the checksum
	got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: bad}, ino)
	if err != nil || !got.Touched || !reflect.DeepEqual(got.New, whole.New) || len(got.Torn) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := fs.Super.CheckExtentBlock(i, got.Torn[leaf]); err != nil {
		t.Error(err)
	}
	short := bytes.Clone(good)
	short[2]-- // eh_entries
	if got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: short}, ino); err != nil || len(got.New) != extents-1 || len(got.Old) != extents {
		t.Errorf("%+v, %v", got, err)
	}
	double := bytes.Clone(good)
	copy(double[24:], good[12:24]) // the first entry twice
	if got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: double}, ino); err == nil {
		t.Errorf("out of order: %+v", got)
	}
	copy(good, bad)
	if got, err := audit.Tree(bytes.NewReader(image), nil, ino); err == nil {
		t.Errorf("not changed: %+v", got)
	}
}
