package nfsd_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/nfsd"
)

// The offsets of the members that a client's backchannel is read from.
const (
	clMinor, clSession, clTransport        = 56, 64, 72
	seClient, seID, seProgram, seSequence  = 0, 8, 24, 28
	seSlots, seBytes                       = 40, 48
	xpMutex, xpLocal, xpLocalLen, xpRemote = 0, 8, 136, 144
	xpRemoteLen, xpBytes                   = 272, 280
	sequences                              = 2
)

// channelTypes returns the types including those of backchannels.
func channelTypes() []btf.Type {
	u8, u32, u64 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	field := func(name string, off uint32, t btf.Type) btf.Member {
		return btf.Member{Name: name, Type: t, Offset: btf.Bits(off * 8)}
	}
	st := func(name string, size uint32, m ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: name, Size: size, Members: m}
	}
	all := types()
	for _, t := range all {
		if s, ok := t.(*btf.Struct); ok && s.Name == "nfs4_client" {
			s.Members = append(s.Members, field("cl_minorversion", clMinor, u32), field("cl_cb_session", clSession, u64),
				field("cl_cb_conn", clTransport, st("nfs4_cb_conn", 8, field("cb_xprt", 0, u64))))
		}
	}
	storage := st("sockaddr_storage", 128, field("bytes", 0, &btf.Array{Index: u32, Type: u8, Nelems: 128}))
	return append(all,
		st("nfsd4_session", seBytes, field("se_client", seClient, u64),
			field("se_sessionid", seID, st("nfs4_sessionid", 16, field("data", 0, &btf.Array{Index: u32, Type: u8, Nelems: 16}))),
			field("se_cb_prog", seProgram, u32), field("se_cb_seq_nr", seSequence, &btf.Array{Index: u32, Type: u32, Nelems: sequences}),
			field("se_fchannel", seSlots, st("nfsd4_channel_attrs", 8, field("maxreqs", 4, u32)))),
		st("svc_xprt", xpBytes, field("xpt_mutex", xpMutex, st("mutex", 8, field("owner", 0, st("atomic64_t", 8, field("counter", 0, u64))))),
			field("xpt_local", xpLocal, storage), field("xpt_locallen", xpLocalLen, u64),
			field("xpt_remote", xpRemote, storage), field("xpt_remotelen", xpRemoteLen, u64)),
	)
}

// call gives a client a backchannel, and returns where its session and its transport are.
func (w *world) call(client addr.Virt, local, remote []byte) (session, transport addr.Virt) {
	session, transport = w.Alloc(seBytes), w.Alloc(xpBytes)
	w.PutU32(client+clMinor, 2)
	w.PutU64(client+clSession, uint64(session))
	w.PutU64(client+clTransport, uint64(transport))
	w.PutU64(session+seClient, uint64(client))
	w.Put(session+seID, []byte("sixteen letters."))
	w.PutU32(session+seProgram, 0x40000000)
	w.PutU32(session+seSequence, 7)
	w.PutU32(session+seSlots+4, 30)
	w.Put(transport+xpLocal, local)
	w.PutU64(transport+xpLocalLen, uint64(len(local)))
	w.Put(transport+xpRemote, remote)
	w.PutU64(transport+xpRemoteLen, uint64(len(remote)))
	return session, transport
}

// ip4 and ip6 are a struct sockaddr_in of 10.0.0.2, and a sockaddr_in6 of fd00::2, with a port of two bytes.
func ip4(port string) []byte {
	return []byte("\x02\x00" + port + "\x0a\x00\x00\x02" + strings.Repeat("\x00", 8))
}

func ip6(port string) []byte {
	return []byte("\x0a\x00" + port + strings.Repeat("\x00", 4) + "\xfd" + strings.Repeat("\x00", 14) + "\x02" + strings.Repeat("\x00", 4))
}

// channels returns the two ends of each backchannel that is found, or its error.
func (w *world) channels(t testing.TB) (found []string) {
	t.Helper()
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	for b, err := range nfsd.Backchannels(k) {
		what := fmt.Sprintf("%v %v", b.Local, b.Remote)
		if err != nil {
			what = err.Error()
		} else if want := (nfsd.Backchannel{
			Local: b.Local, Remote: b.Remote, Session: [16]byte([]byte("sixteen letters.")), Sequence: 7, Program: 0x40000000, Minor: 2, Slots: 30, Idle: b.Idle,
		}); b != want {
			t.Errorf("%+v, want %+v", b, want)
		}
		if !b.Idle && err == nil {
			what += " busy"
		}
		found = append(found, what)
	}
	return found
}

func TestBackchannels(t *testing.T) {
	w := newWorld(t)
	w.join("one", "none", "three", "four", "five", "six", "seven", "old")
	var sessions, transports []addr.Virt
	for i, ends := range [][2][]byte{
		{ip4("\x08\x01"), ip4("\x00\x01")}, {}, {ip6("\x08\x01"), ip6("\x00\x03")}, {ip4("\x08\x01"), ip4("\x00\x04")},
		{ip4("\x08\x01"), ip4("\x00\x05")[:8]}, {ip4("\x08\x01"), ip4("\x00\x06")}, {ip4("\x08\x01"), []byte("\x01\x00")}, {ip4("\x08\x01"), ip4("\x00\x08")},
	} {
		if ends[0] == nil {
			sessions, transports = append(sessions, 0), append(transports, 0)
			continue
		}
		s, x := w.call(w.clients[i], ends[0], ends[1])
		sessions, transports = append(sessions, s), append(transports, x)
	}
	w.PutU64(sessions[3]+seClient, uint64(w.clients[0])) // of another client
	w.PutU64(transports[5]+xpMutex, 8)                   // a thread is writing
	w.PutU32(w.clients[7]+clMinor, 0)                    // a client of 4.0
	w.Finish(channelTypes()...)
	got := w.channels(t)
	for i, want := range []string{
		"10.0.0.2:2049 10.0.0.2:1", "[fd00::2]:2049 [fd00::2]:3", "is that of the client at", "an address of family 2, of 8 bytes",
		"10.0.0.2:2049 10.0.0.2:6 busy", "an address of family 1, of 2 bytes",
	} {
		if i >= len(got) || !strings.Contains(got[i], want) {
			t.Fatalf("%q, want at %d %q", got, i, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%q", got)
	}
}

// FuzzBackchannels checks that the walk ends, whatever memory says.
func FuzzBackchannels(f *testing.F) {
	w := newWorld(f)
	w.join("one", "two")
	at := append([]addr.Virt(nil), w.clients...)
	for _, c := range w.clients {
		s, x := w.call(c, ip4("\x08\x01"), ip6("\x00\x01"))
		at = append(at, s, x)
	}
	w.Finish(channelTypes()...)
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := world{Machine: w.Clone(t)}
		m.Damage(script, append(at, w.ops, w.id, w.parts, w.server)...)
		k, err := kernel.Find(m)
		if err != nil {
			t.Skip()
		}
		n := 0
		for b, err := range nfsd.Backchannels(k) {
			if n++; err == nil && (!b.Local.IsValid() || !b.Remote.IsValid() || b.Minor == 0) {
				t.Errorf("%+v", b)
			}
		}
		if n > 1<<16+1 {
			t.Errorf("%d backchannels", n)
		}
	})
}
