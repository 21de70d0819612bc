package kernel_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// resource is a resource of a made-up kernel; resources that follow with a greater depth lie below it.
type resource struct {
	depth      int
	name       string
	start, end uint64 // the last byte
}

var resourceType = func() *btf.Struct {
	u64 := &btf.Int{Name: "u64", Size: 8}
	s := &btf.Struct{Name: "resource", Size: 40}
	for i, name := range []string{"name", "sibling", "start", "child", "end"} {
		s.Members = append(s.Members, btf.Member{Name: name, Type: u64, Offset: btf.Bits(64 * i)})
	}
	return s
}()

// putResources makes a tree of resources, and returns where each is, the root first.
func putResources(m *kerneltest.Machine, all []resource) []addr.Virt {
	at := []addr.Virt{m.Image("iomem_resource", 40)}
	last := []addr.Virt{at[0]} // the last resource of each depth
	for _, r := range all {
		v := m.Alloc(40)
		if r.name != "" {
			name := m.Alloc(64)
			m.Put(name, []byte(r.name+"\x00"))
			m.PutU64(v, uint64(name))
		}
		m.PutU64(v+16, r.start)
		m.PutU64(v+32, r.end)
		if r.depth+1 < len(last) {
			m.PutU64(last[r.depth+1]+8, uint64(v))
		} else {
			m.PutU64(last[r.depth]+24, uint64(v))
		}
		last = append(last[:r.depth+1], v)
		at = append(at, v)
	}
	return at
}

// TestAbsent checks that memory that was plugged in is reported, by whatever means it was plugged in, and nothing else.
func TestAbsent(t *testing.T) {
	const size, module = kerneltest.Size, 1 << 32
	usual := []resource{{0, "Reserved", 0, 0xfff}, {0, "System RAM", 0x1000, size - 1}, {1, "Kernel code", 0x10_0000, 0x1f_ffff}, {0, "", 0xfec0_0000, 0xfec0_03ff}}
	for name, c := range map[string]struct {
		more []resource
		want []addr.PhysRange
	}{
		"nothing":    {nil, nil},
		"a device":   {[]resource{{0, "PCI Bus 0000:00", module, module + 1<<30 - 1}, {1, "0000:00:02.0", module, module + 0xfff}}, nil},
		"a module":   {[]resource{{0, "System RAM", module, module + 1<<27 - 1}}, []addr.PhysRange{{Start: module, End: module + 1<<27}}},
		"virtio-mem": {[]resource{{0, "virtio3", module, module + 1<<30 - 1}, {1, "System RAM (virtio_mem)", module, module + 1<<27 - 1}}, []addr.PhysRange{{Start: module, End: module + 1<<27}}},
	} {
		m := kerneltest.New(t)
		putResources(m, append(slices.Clone(usual), c.more...))
		m.Finish(pageType, resourceType)
		k, err := kernel.Find(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Absent(); !slices.Equal(got, c.want) || err != nil {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
	m := kerneltest.New(t)
	at := putResources(m, usual)
	m.PutU64(at[1]+8, uint64(at[1]))
	m.Finish(pageType, resourceType)
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Absent(); err == nil {
		t.Errorf("a ring: %v", got)
	}
}
