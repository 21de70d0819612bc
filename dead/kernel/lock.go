package kernel

import "understudy.dev/understudy/dead/addr"

// Lock is a member of a structure that is a lock, and says whether somebody held it for
// writing. What a lock consists of is a matter of the kernel's configuration: under
// PREEMPT_RT most are mutexes with priority inheritance, debugging adds members, and
// without SMP a spinlock has none.
type Lock struct {
	state Field  // of its structure
	held  uint64 // bits of it that say so; 0: there is nothing that does
	idle  uint64 // these bits while nobody holds it
}

// lockKinds are where locks have their state, by what each kind is called, which bits
// of that say that a writer has it, and what these are while none has.
var lockKinds = []struct {
	member     string
	size       int
	held, idle uint64
}{
	{"rlock.raw_lock.val", 4, ^uint64(0), 0}, // spinlock_t (include/asm-generic/qspinlock_types.h)
	{"raw_lock.cnts.counter", 4, 0xff, 0},    // rwlock_t (qrwlock_types.h, _QW_LOCKED)
	{"count", 8, 1, 0},                       // struct rw_semaphore (kernel/locking/rwsem.c, RWSEM_WRITER_LOCKED)
	// Without SMP, and with CONFIG_DEBUG_SPINLOCK: spinlock_t and rwlock_t, which say only
	// there which CPU has them (kernel/locking/spinlock_debug.c; -1: none).
	{"rlock.owner_cpu", 4, 1<<32 - 1, 1<<32 - 1},
	{"owner_cpu", 4, 1<<32 - 1, 1<<32 - 1},
	// Under PREEMPT_RT: rwlock_t and struct rw_semaphore (include/linux/rwbase_rt.h,
	// WRITER_BIAS), the latter without a structure around it in Debian's 5.10.
	{"rwbase.readers.counter", 4, 1 << 30, 0},
	{"readers.counter", 4, 1 << 30, 0},
	{"lock.owner", 8, ^uint64(1), 0},    // spinlock_t (include/linux/rtmutex.h; rtmutex_common.h, RT_MUTEX_HAS_WAITERS)
	{"rtmutex.owner", 8, ^uint64(1), 0}, // struct mutex
	{"owner", 8, ^uint64(7), 0},         // struct mutex without it (kernel/locking/mutex.h, MUTEX_FLAGS)
}

// Lock returns the lock at a path, as for Field; of several paths the first that exists
// counts. One of a kind that is not known, or that has no state, is not Known. A missing
// lock is no error: locks only tell what else is not to be relied on.
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

// Free is Lock.Free of the structure at an address, of which nothing else is read.
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
