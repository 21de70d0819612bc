package pagecache

import (
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

func openKernel(t *testing.T, spec fixture.Spec) *kernel.Kernel {
	t.Helper()
	mem, err := ram.OpenFile(fixture.Get(t, spec).RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestModuleTypesAsCloud checks that moduleTypes agrees with the types of the kernel of the same version
// whose image includes ext4 and jbd2.
func TestModuleTypesAsCloud(t *testing.T) {
	k := openKernel(t, fixture.Everything("5.10-cloud"))
	for name, want := range moduleTypes {
		l := k.Types().Layout(name)
		for path, field := range want.members {
			if got := l.Field(path); got != field {
				t.Errorf("%s.%s is %+v, and %+v is written down", name, path, got, field)
			}
		}
		if l.Err() != nil || l.Size != want.size {
			t.Errorf("%s has %d bytes, and %d are written down; %v", name, l.Size, want.size, l.Err())
		}
	}
	for name, size := range moduleTypesFor {
		if l := k.Types().Layout(name); l.Size != size {
			t.Errorf("%s has %d bytes, not %d", name, l.Size, size)
		}
	}
}

// TestModuleTypesSizes checks that the sizes in moduleTypes are those of the objects that the modules
// of the generic kernel allocate, as its allocator knows them.
func TestModuleTypesSizes(t *testing.T) {
	k := openKernel(t, fixture.Untyped)
	if moduleLayout(k, "journal_s") == nil {
		t.Error("nothing is written down for this kernel")
	}
	sizes := objectSizes(t, k)
	checked := 0
	// fs/ext4/super.c and fs/jbd2. The allocator may merge a cache with others,
	// under another name; it does not merge the first two.
	for cache, of := range map[string]string{
		"ext4_inode_cache": "ext4_inode_info", "jbd2_journal_head": "journal_head", "jbd2_inode": "jbd2_inode",
		"jbd2_transaction_s": "transaction_s", "jbd2_revoke_table_s": "jbd2_revoke_table_s", "jbd2_revoke_record_s": "jbd2_revoke_record_s",
	} {
		if size, ok := sizes[cache]; ok {
			checked++
			if size != moduleTypes[of].size {
				t.Errorf("%s has %d bytes, and %d are written down", of, size, moduleTypes[of].size)
			}
		}
	}
	if sizes["ext4_inode_cache"] == 0 || sizes["jbd2_journal_head"] == 0 {
		t.Errorf("nothing to compare with among %v", sizes)
	}
	t.Logf("%d sizes are as written down", checked)
}

// objectSizes returns the size of the objects of each of the kernel's slab caches
// (mm/slab_common.c).
func objectSizes(t *testing.T, k *kernel.Kernel) map[string]int {
	t.Helper()
	l := k.Types().Layout("kmem_cache")
	name, size, list := l.Field("name", 8), l.Field("object_size", 4), l.Field("list", 16)
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	head, err := k.Symbol("slab_caches")
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(map[string]int)
	for at, err := range (&Cache{k: k}).List(head) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := k.Bytes(at-addr.Virt(list.Off), l.Size)
		if err != nil {
			t.Fatal(err)
		}
		called, err := k.CString(name.Pointer(b), 64)
		if err != nil {
			t.Fatal(err)
		}
		sizes[called] = int(size.Uint(b))
	}
	return sizes
}
