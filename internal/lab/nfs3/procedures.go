package nfs3

// Procedures (RFC 1813, 3.3).
const (
	procNull        = 0
	procGetattr     = 1
	procSetattr     = 2
	procLookup      = 3
	procRead        = 6
	procWrite       = 7
	procCreate      = 8
	procMkdir       = 9
	procRemove      = 12
	procRmdir       = 13
	procRename      = 14
	procReaddir     = 16
	procReaddirPlus = 17
	procFsinfo      = 19
	procCommit      = 21
)

// maxData is the most that one READ may give, in bytes.
const maxData = 1 << 20

func nfs[T any](procedure uint32, decode func(*decoder) T, args func(*encoder)) Request[T] {
	var e encoder
	args(&e)
	return Request[T]{program: ProgramNFS, procedure: procedure, args: e.b, decode: decode}
}

// None is the result of a procedure that returns nothing.
type None struct{}

// Null does nothing but answer.
func Null() Request[None] { return Request[None]{program: ProgramNFS, procedure: procNull} }

// Getattr asks for a file's attributes.
func Getattr(h Handle) Request[Attr] {
	return nfs(procGetattr, (*decoder).attr, func(e *encoder) { e.opaque(h) })
}

// Setattr changes a file's attributes. The result is nil if the server does not give them.
func Setattr(h Handle, s Set) Request[*Attr] {
	return nfs(procSetattr, (*decoder).wcc, func(e *encoder) {
		e.opaque(h)
		e.set(s)
		e.bool(false) // no guard
	})
}

// Found is a file, and its attributes if the server gives them.
type Found struct {
	Handle Handle
	Attr   *Attr
}

// Lookup finds a name in a directory.
func Lookup(dir Handle, name string) Request[Found] {
	return nfs(procLookup, decodeLookup, func(e *encoder) { e.place(dir, name) })
}

func decodeLookup(d *decoder) Found {
	f := Found{Handle: d.handle(), Attr: d.postAttr()}
	d.postAttr() // of the directory
	return f
}

// Data is what READ gives.
type Data struct {
	Attr *Attr
	Data []byte
	EOF  bool
}

// Read reads up to count bytes at offset.
func Read(h Handle, offset uint64, count uint32) Request[Data] {
	return nfs(procRead, decodeRead, func(e *encoder) {
		e.opaque(h)
		e.uint64(offset)
		e.uint32(count)
	})
}

func decodeRead(d *decoder) Data {
	r := Data{Attr: d.postAttr()}
	count := d.uint32()
	r.EOF = d.bool()
	r.Data = d.opaque(maxData)
	if d.err == nil && int(count) != len(r.Data) {
		d.fail("%d bytes read, %d given", count, len(r.Data))
	}
	return r
}

// Stable says how much of a write is on the disk when its reply comes (stable_how).
type Stable uint32

// What a write may ask for, and what may be answered.
const (
	Unstable Stable = 0 // nothing, until a COMMIT
	DataSync Stable = 1 // the data and what it takes to read it
	FileSync Stable = 2 // all
)

// Written is what WRITE gives. If the server loses unstable data later, its verifier
// changes.
type Written struct {
	Attr     *Attr
	Count    uint32
	Stable   Stable
	Verifier Verifier
}

// Write writes data at offset.
func Write(h Handle, offset uint64, how Stable, data []byte) Request[Written] {
	return nfs(procWrite, decodeWrite, func(e *encoder) {
		e.opaque(h)
		e.uint64(offset)
		e.uint32(uint32(len(data)))
		e.uint32(uint32(how))
		e.opaque(data)
	})
}

func decodeWrite(d *decoder) Written {
	w := Written{Attr: d.wcc(), Count: d.uint32(), Stable: Stable(d.uint32()), Verifier: d.verifier()}
	if d.err == nil && w.Stable > FileSync {
		d.fail("stability %d of a write", w.Stable)
	}
	return w
}

// Commit makes unstable writes stable. A count of zero means from offset to the end. The
// result is the server's verifier.
func Commit(h Handle, offset uint64, count uint32) Request[Verifier] {
	return nfs(procCommit, decodeCommit, func(e *encoder) {
		e.opaque(h)
		e.uint64(offset)
		e.uint32(count)
	})
}

func decodeCommit(d *decoder) Verifier {
	d.wcc()
	return d.verifier()
}

// How a file is created (createmode3).
const (
	unchecked = 0
	guarded   = 1
	exclusive = 2
)

// Create makes a file, or takes the existing one.
func Create(dir Handle, name string, s Set) Request[Found] { return create(dir, name, unchecked, s) }

// CreateGuarded makes a file that must not exist.
func CreateGuarded(dir Handle, name string, s Set) Request[Found] {
	return create(dir, name, guarded, s)
}

func create(dir Handle, name string, how uint32, s Set) Request[Found] {
	return nfs(procCreate, decodeCreate, func(e *encoder) {
		e.place(dir, name)
		e.uint32(how)
		e.set(s)
	})
}

// CreateExclusive makes a file that must not exist, unless it was made with the same
// verifier.
func CreateExclusive(dir Handle, name string, v Verifier) Request[Found] {
	return nfs(procCreate, decodeCreate, func(e *encoder) {
		e.place(dir, name)
		e.uint32(exclusive)
		e.fixed(v[:])
	})
}

func decodeCreate(d *decoder) Found {
	f := Found{Handle: d.postHandle(), Attr: d.postAttr()}
	d.wcc() // of the directory
	return f
}

// Mkdir makes a directory.
func Mkdir(dir Handle, name string, s Set) Request[Found] {
	return nfs(procMkdir, decodeCreate, func(e *encoder) {
		e.place(dir, name)
		e.set(s)
	})
}

// Remove removes a name of a file.
func Remove(dir Handle, name string) Request[*Attr] {
	return nfs(procRemove, (*decoder).wcc, func(e *encoder) { e.place(dir, name) })
}

// Rmdir removes a directory.
func Rmdir(dir Handle, name string) Request[*Attr] {
	return nfs(procRmdir, (*decoder).wcc, func(e *encoder) { e.place(dir, name) })
}

// Rename gives a file another name.
func Rename(from Handle, old string, to Handle, name string) Request[None] {
	return nfs(procRename, decodeRename, func(e *encoder) {
		e.place(from, old)
		e.place(to, name)
	})
}

func decodeRename(d *decoder) None {
	d.wcc()
	d.wcc()
	return None{}
}

// Info is what a server prefers, in bytes (FSINFO).
type Info struct {
	ReadMax, ReadPreferred   uint32
	WriteMax, WritePreferred uint32
	FileMax                  uint64
}

// Fsinfo asks for a server's Info.
func Fsinfo(root Handle) Request[Info] {
	return nfs(procFsinfo, decodeFsinfo, func(e *encoder) { e.opaque(root) })
}

func decodeFsinfo(d *decoder) Info {
	var i Info
	d.postAttr()
	i.ReadMax, i.ReadPreferred = d.uint32(), d.uint32()
	d.uint32() // multiple
	i.WriteMax, i.WritePreferred = d.uint32(), d.uint32()
	d.uint32() // multiple
	d.uint32() // preferred size of READDIR
	i.FileMax = d.uint64()
	d.time()   // granularity of times
	d.uint32() // properties
	return i
}
