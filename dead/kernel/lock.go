package kernel

import "understudy.dev/understudy/dead/addr"

// Lock is a lock in a structure, and says whether somebody held it for writing. What a lock
// consists of depends on the kernel's configuration: under PREEMPT_RT most locks are
// mutexes with priority inheritance, debugging adds members, and
// without SMP a spinlock has no members.
type Lock struct {
	state Field  // of the structure
	held  uint64 // bits of state that say so; 0 means that none do
	idle  uint64 // value of these bits while nobody holds the lock
}

// lockKinds says where each kind of lock has its state: the name of the member, which of its bits
// say that a writer holds the lock, and the value of these bits while none does.
var lockKinds = []struct {
	member     string
	size       int
	held, idle uint64
}{
	{"rlock.raw_lock.val", 4, ^uint64(0), 0}, // spinlock_t (include/asm-generic/qspinlock_types.h)
	{"raw_lock.cnts.counter", 4, 0xff, 0},    // rwlock_t (qrwlock_types.h, _QW_LOCKED)
	{"count", 8, 1, 0},                       // struct rw_semaphore (kernel/locking/rwsem.c, RWSEM_WRITER_LOCKED)
	// Without SMP, and with CONFIG_DEBUG_SPINLOCK: spinlock_t and rwlock_t, which say only
	// then which CPU holds them (kernel/locking/spinlock_debug.c; -1 means none).
	{"rlock.owner_cpu", 4, 1<<32 - 1, 1<<32 - 1},
	{"owner_cpu", 4, 1<<32 - 1, 1<<32 - 1},
	// Under PREEMPT_RT: rwlock_t and struct rw_semaphore (include/linux/rwbase_rt.h,
	// WRITER_BIAS), the latter without a structure around it in Debian's 5.10.
	{"rwbase.readers.counter", 4, 1 << 30, 0},
	{"readers.counter", 4, 1 << 30, 0},
	{"lock.owner", 8, ^uint64(1), 0},    // spinlock_t (include/linux/rtmutex.h; rtmutex_common.h, RT_MUTEX_HAS_WAITERS)
	{"rtmutex.owner", 8, ^uint64(1), 0}, // struct mutex
	{"owner", 8, ^uint64(7), 0},         // struct mutex without PREEMPT_RT (kernel/locking/mutex.h, MUTEX_FLAGS)
}

// Lock returns the lock at a path, as for Field; of several paths the first that exists
// counts. A lock of an unknown kind, or without state, is not Known. A missing
// lock is no error: locks only say what else cannot be relied on.
func (l *Layout) Lock(paths ...string) Lock {
	for _, path := range paths {
		for _, kind := range lockKinds {
			if f, err := l.find(path + "." + kind.member); err == nil && f.Size == kind.size {
				return Lock{f, kind.held, kind.idle}
			}
		}
	}
	return Lock{}
}

// Known reports whether the lock says if it is held.
func (k Lock) Known() bool { return k.held != 0 }

// Free reports whether the lock is known not to be held for writing. b is its structure.
func (k Lock) Free(b []byte) bool { return k.Known() && (k.state.Uint(b)^k.idle)&k.held == 0 }

// Held reports whether the lock is known to be held for writing.
func (k Lock) Held(b []byte) bool { return k.Known() && (k.state.Uint(b)^k.idle)&k.held != 0 }

// Free is Lock.Free for the structure at an address. It reads nothing but the lock's state.
func (k *Kernel) Free(l Lock, at addr.Virt) (bool, error) {
	if !l.Known() {
		return false, nil
	}
	b, err := k.Bytes(l.state.In(at), l.state.Size)
	if err != nil {
		return false, err
	}
	return (littleEndian(b)^l.idle)&l.held == 0, nil
}
