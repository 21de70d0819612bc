package nfsd_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/nfsd"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// The offsets of the made-up kernel's structures, in bytes.
const (
	opList, opID, opSize, opBytes = 0, 16, 24, 32
	netGen, netBytes              = 8, 64
	nnEnded, nnTable, nnLRU       = 8, 16, 24
	nnBytes                       = 96
	clLRU, clName, clFlags        = 8, 24, 48
	clBytes                       = 128
	crChain, crName, crBytes      = 0, 24, 64
)

func types() []btf.Type {
	u8, u32, u64 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	blob := func(n uint32) btf.Type { return &btf.Array{Index: u32, Type: u8, Nelems: n} }
	field := func(name string, off uint32, t btf.Type) btf.Member {
		return btf.Member{Name: name, Type: t, Offset: btf.Bits(off * 8)}
	}
	st := func(name string, size uint32, m ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: name, Size: size, Members: m}
	}
	owner := st("xdr_netobj", 16, field("len", 0, u32), field("data", 8, u64))
	return []btf.Type{
		st("page", kerneltest.PageStruct, field("flags", 0, u64)), owner,
		st("pernet_operations", opBytes, field("list", opList, blob(16)), field("id", opID, u64), field("size", opSize, u64)),
		st("net", netBytes, field("gen", netGen, u64)),
		st("net_generic", 24, field("s", 0, st("net_generic_s", 24, field("len", 0, u32)))),
		st("nfsd_net", nnBytes, field("client_lru", nnLRU, blob(16)), field("grace_ended", nnEnded, u8), field("reclaim_str_hashtbl", nnTable, u64)),
		st("nfs4_client_reclaim", crBytes, field("cr_strhash", crChain, blob(16)), field("cr_name", crName, owner)),
		st("nfs4_client", clBytes, field("cl_lru", clLRU, blob(16)), field("cl_name", clName, owner), field("cl_flags", clFlags, u64)),
	}
}

// world is a machine with an NFS server that has clients.
type world struct {
	*kerneltest.Machine
	ops, id, parts, server addr.Virt
	clients                []addr.Virt
}

// newWorld makes a world whose server is number 3 among the parts of its namespace.
func newWorld(t testing.TB) *world {
	w := &world{Machine: kerneltest.New(t)}
	head, net := w.Image("pernet_list", 16), w.Image("init_net", netBytes)
	w.id, w.ops, w.parts, w.server = w.Alloc(8), w.Alloc(2*opBytes), w.Alloc(8*5), w.Alloc(nnBytes)
	w.chain(head, w.ops, w.ops+opBytes)
	w.PutU64(w.ops+opSize, 8) // not that of nfsd
	w.PutU64(w.ops+opBytes+opID, uint64(w.id))
	w.PutU64(w.ops+opBytes+opSize, nnBytes)
	w.PutU32(w.id, 3)
	w.PutU64(net+netGen, uint64(w.parts))
	w.PutU32(w.parts, 5)
	w.PutU64(w.parts+8*3, uint64(w.server))
	return w
}

// chain makes a list of its members.
func (w *world) chain(head addr.Virt, members ...addr.Virt) {
	before := head
	for _, m := range append(members, head) {
		w.PutU64(before, uint64(m))
		w.PutU64(m+8, uint64(before))
		before = m
	}
}

// join gives the server clients with these names. A client is recorded unless its name begins with a minus.
func (w *world) join(names ...string) {
	var links []addr.Virt
	for _, name := range names {
		c, text := w.Alloc(clBytes), w.Alloc(len(name))
		name, absent := strings.CutPrefix(name, "-")
		w.Put(text, []byte(name))
		w.PutU32(c+clName, uint32(len(name)))
		w.PutU64(c+clName+8, uint64(text))
		w.PutU64(c+clFlags, 1<<2|1<<4)
		if absent {
			w.PutU64(c+clFlags, 1<<4)
		}
		w.clients, links = append(w.clients, c), append(links, c+clLRU)
	}
	w.chain(w.server+nnLRU, links...)
}

// expect puts the server in its grace period, in which it waits for a client with this name.
func (w *world) expect(name string) {
	table, r, text := w.Alloc(16*16), w.Alloc(crBytes), w.Alloc(len(name))
	for i := range addr.Virt(16) {
		w.chain(table + 16*i)
	}
	w.chain(table+16*5, r+crChain)
	w.Put(text, []byte(name))
	w.PutU32(r+crName, uint32(len(name)))
	w.PutU64(r+crName+8, uint64(text))
	w.PutU64(w.server+nnTable, uint64(table))
	w.clients = append(w.clients, r, table)
}

// read returns the name of each client that is found, with a question mark if the client is expected.
func (w *world) read(t testing.TB) (names []string, err error) {
	t.Helper()
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	for c, err := range nfsd.Clients(k) {
		if err != nil {
			return names, err
		}
		name := string(c.Name)
		if c.Expected {
			name += "?"
		}
		names = append(names, name)
	}
	return names, nil
}

func TestClients(t *testing.T) {
	w := newWorld(t)
	w.join("one", "-two", "three")
	w.Finish(types()...)
	got, err := w.read(t)
	if err != nil || strings.Join(got, ", ") != "one, three" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestGrace checks that clients that are expected to come back are found as long as the grace period lasts: they may
// reclaim from the next server.
func TestGrace(t *testing.T) {
	for ended, want := range map[byte]string{0: "one, three, four?", 1: "one, three"} {
		w := newWorld(t)
		w.join("one", "-two", "three")
		w.expect("four")
		w.Put(w.server+nnEnded, []byte{ended})
		w.Finish(types()...)
		if got, err := w.read(t); err != nil || strings.Join(got, ", ") != want {
			t.Errorf("ended %d: %q, %v", ended, got, err)
		}
	}
}

// TestGraceInFlags is TestGrace for newer kernels, which keep the end of the grace period in flags.
func TestGraceInFlags(t *testing.T) {
	for flags, want := range map[uint64]string{0: "one, two?", 1 << 1: "one, two?", 1 << 2: "one"} {
		all := types()
		for _, typ := range all {
			if s, ok := typ.(*btf.Struct); ok && s.Name == "nfsd_net" {
				s.Members[1] = btf.Member{Name: "flags", Type: &btf.Int{Name: "u64", Size: 8}, Offset: 8 * nnEnded}
			}
		}
		all = append(all, &btf.Enum{Name: "nfsd_net_flag", Size: 4, Values: []btf.EnumValue{{Name: "OTHER", Value: 1}, {Name: "NFSD_NET_GRACE_ENDED", Value: 2}}})
		w := newWorld(t)
		w.join("one")
		w.expect("two")
		w.PutU64(w.server+nnEnded, flags)
		w.Finish(all...)
		if got, err := w.read(t); err != nil || strings.Join(got, ", ") != want {
			t.Errorf("flags %d: %q, %v", flags, got, err)
		}
	}
}

// TestEnough checks that the walk ends when the caller wants no more.
func TestEnough(t *testing.T) {
	w := newWorld(t)
	w.join("one", "two")
	w.expect("three")
	w.Finish(types()...)
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	for most := range 3 {
		n := 0
		for _, err := range nfsd.Clients(k) {
			if err != nil {
				t.Error(err)
			}
			if n++; n > most {
				break
			}
		}
		if n != most+1 {
			t.Errorf("%d clients, of at most %d", n, most+1)
		}
	}
}

// TestNoClients checks that a server without clients is no error, nor one that never started, whose list was never
// initialized.
func TestNoClients(t *testing.T) {
	for name, change := range map[string]func(*world){"none": func(w *world) { w.join() }, "never started": func(*world) {}} {
		w := newWorld(t)
		change(w)
		w.Finish(types()...)
		if got, err := w.read(t); err != nil || len(got) > 0 {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestDamaged checks that a contradiction is an error, and that what was found before it is right.
func TestDamaged(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*world)
		want   string
		found  int
	}{
		"cycle":        {func(w *world) { w.PutU64(w.clients[2]+clLRU, uint64(w.clients[1]+clLRU)) }, "points back", 3},
		"link":         {func(w *world) { w.PutU64(w.clients[1]+clLRU+8, 7) }, "points back", 1},
		"name":         {func(w *world) { w.PutU32(w.clients[1]+clName, 1025) }, "a name of 1025 bytes", 1},
		"no name":      {func(w *world) { w.PutU32(w.clients[0]+clName, 0) }, "a name of 0 bytes", 0},
		"number":       {func(w *world) { w.PutU32(w.id, 5) }, "nfsd_net_id is 5, but", 0},
		"two as large": {func(w *world) { w.PutU64(w.ops+opSize, nnBytes); w.PutU64(w.ops+opID, uint64(w.id)) }, "2 pernet_operations", 0},
		"no nfsd":      {func(w *world) { w.PutU64(w.ops+opBytes+opSize, 9) }, "0 pernet_operations", 0},
	} {
		w := newWorld(t)
		w.join("one", "two", "three")
		tc.change(w)
		w.Finish(types()...)
		got, err := w.read(t)
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(got) != tc.found {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// FuzzClients checks that, whatever memory says, the walk ends, and that each name is in memory.
func FuzzClients(f *testing.F) {
	w := newWorld(f)
	w.join("one", "two", "three")
	w.expect("four")
	w.Finish(types()...)
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := world{Machine: w.Clone(t)}
		m.Damage(script, append(w.clients, w.ops, w.id, w.parts, w.server)...)
		k, err := kernel.Find(m)
		if err != nil {
			t.Skip()
		}
		n := 0
		for c, err := range nfsd.Clients(k) {
			if n++; err == nil && (len(c.Name) == 0 || !bytes.Contains(m.Mem, c.Name)) {
				t.Errorf("a client is called %q", c.Name)
			}
		}
		if n > 17<<16+1 {
			t.Errorf("%d clients", n)
		}
	})
}
