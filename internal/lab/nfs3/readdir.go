package nfs3

// Entry is one name in a directory. READDIRPLUS gives handle and attributes, as
// far as the server has them.
type Entry struct {
	FileID uint64
	Name   string
	Cookie uint64
	Handle Handle
	Attr   *Attr
}

// List is a part of a directory. Unless EOF, the cookie of the last entry and the
// verifier give the next part.
type List struct {
	Verifier Verifier
	Entries  []Entry
	EOF      bool
}

// Readdir asks for names from cookie on, at most count bytes of them.
func Readdir(dir Handle, cookie uint64, v Verifier, count uint32) Request[List] {
	return nfs(procReaddir, func(d *decoder) List { return decodeList(d, false) }, func(e *encoder) {
		e.opaque(dir)
		e.uint64(cookie)
		e.fixed(v[:])
		e.uint32(count)
	})
}

// ReaddirPlus asks for handles and attributes as well.
func ReaddirPlus(dir Handle, cookie uint64, v Verifier, count uint32) Request[List] {
	return nfs(procReaddirPlus, func(d *decoder) List { return decodeList(d, true) }, func(e *encoder) {
		e.opaque(dir)
		e.uint64(cookie)
		e.fixed(v[:])
		e.uint32(count) // of names alone
		e.uint32(count)
	})
}

// decodeList always ends, because each entry takes some of the reply.
func decodeList(d *decoder, plus bool) List {
	d.postAttr()
	l := List{Verifier: d.verifier()}
	for d.bool() {
		e := Entry{FileID: d.uint64(), Name: string(d.opaque(maxName)), Cookie: d.uint64()}
		if plus {
			e.Attr, e.Handle = d.postAttr(), d.postHandle()
		}
		if d.err != nil {
			return List{}
		}
		l.Entries = append(l.Entries, e)
	}
	l.EOF = d.bool()
	return l
}
