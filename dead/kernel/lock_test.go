package kernel_test

import (
	"encoding/binary"
	"testing"

	"understudy.dev/understudy/dead/kernel"
)

// TestLock checks each kind of lock, held and not, with and without somebody waiting.
func TestLock(t *testing.T) {
	const at = 16
	for name, tc := range map[string]struct {
		member     string
		size       int
		free, held []uint64
	}{
		"spinlock_t":                    {"rlock.raw_lock.val", 4, []uint64{0}, []uint64{1, 0x101, 0x40001}},
		"rwlock_t":                      {"raw_lock.cnts.counter", 4, []uint64{0, 0x200, 0x400}, []uint64{0xff, 0x1ff}},
		"rw_semaphore":                  {"count", 8, []uint64{0, 0x100, 0x302}, []uint64{1, 7}},
		"mutex":                         {"owner", 8, []uint64{0, 1}, []uint64{0xffff888000001000, 0xffff888000001003}},
		"one CPU, debugged: spinlock_t": {"rlock.owner_cpu", 4, []uint64{0xffffffff}, []uint64{0}},
		"one CPU, debugged: rwlock_t":   {"owner_cpu", 4, []uint64{0xffffffff}, []uint64{0}},
		"real time: spinlock_t":         {"lock.owner", 8, []uint64{0, 1}, []uint64{0xffff888000001000, 0xffff888000001001}},
		"real time: mutex":              {"rtmutex.owner", 8, []uint64{0, 1}, []uint64{0xffff888000001001}},
		"real time: rw_semaphore":       {"rwbase.readers.counter", 4, []uint64{0x80000000, 0x80000003}, []uint64{0x40000000}},
		"real time, 5.10: rw_semaphore": {"readers.counter", 4, []uint64{0x80000000}, []uint64{0x40000000}},
	} {
		lock := kernel.GivenLayout("thing", 64, map[string]kernel.Field{"lock." + tc.member: {Off: at, Size: tc.size}}).Lock("other", "lock")
		if !lock.Known() {
			t.Errorf("%s is not known", name)
		}
		for held, values := range map[bool][]uint64{false: tc.free, true: tc.held} {
			for _, v := range values {
				b := make([]byte, 64)
				binary.LittleEndian.PutUint64(b[at:], v)
				if lock.Held(b) != held || lock.Free(b) == held {
					t.Errorf("%s, %#x: held %v, free %v", name, v, lock.Held(b), lock.Free(b))
				}
			}
		}
	}
	for name, members := range map[string]map[string]kernel.Field{
		"no lock": {"other": {Off: 0, Size: 8}}, "no state": {"lock.rlock.magic": {Off: 0, Size: 4}}, "another size": {"lock.owner": {Off: 0, Size: 2}},
	} {
		if lock := kernel.GivenLayout("thing", 64, members).Lock("lock"); lock.Known() || lock.Held(make([]byte, 64)) || lock.Free(make([]byte, 64)) {
			t.Errorf("%s: %+v is known", name, lock)
		}
	}
}
