package nfs3

import "time"

// Bounds of RFC 1813, 2.4, and of a name; no server here gives longer ones.
const (
	maxHandle = 64
	maxName   = 1024
	verfBytes = 8 // NFS3_CREATEVERFSIZE, NFS3_WRITEVERFSIZE, NFS3_COOKIEVERFSIZE
)

// Handle names a file for its server.
type Handle []byte

// Verifier is eight bytes that are only compared: those of a server's writes, of an
// exclusive create, of a directory's cookies.
type Verifier [verfBytes]byte

// Type is what a file is (ftype3).
type Type uint32

// The types that tests meet.
const (
	Regular   Type = 1
	Directory Type = 2
	Symlink   Type = 5
)

// Attr is what a server says of a file (fattr3, RFC 1813, 2.6).
type Attr struct {
	Type                Type
	Mode                uint32 // permissions
	Links, UID, GID     uint32
	Size, Used          uint64 // bytes
	Device              uint64 // specdata3: major and minor
	FSID, FileID        uint64
	Atime, Mtime, Ctime time.Time
}

func (d *decoder) attr() Attr {
	a := Attr{
		Type: Type(d.uint32()), Mode: d.uint32(), Links: d.uint32(), UID: d.uint32(), GID: d.uint32(),
		Size: d.uint64(), Used: d.uint64(), Device: d.uint64(), FSID: d.uint64(), FileID: d.uint64(),
		Atime: d.time(), Mtime: d.time(), Ctime: d.time(),
	}
	if d.err == nil && (a.Type == 0 || a.Type > 7) {
		d.fail("file type %d", a.Type)
	}
	return a
}

// time decodes nfstime3.
func (d *decoder) time() time.Time {
	s, ns := d.uint32(), d.uint32()
	if ns >= 1e9 {
		d.fail("%d ns in a time", ns)
	}
	return time.Unix(int64(s), int64(ns))
}

// postAttr decodes post_op_attr: nil if the server gives none.
func (d *decoder) postAttr() *Attr {
	if !d.bool() {
		return nil
	}
	a := d.attr()
	return &a
}

func (d *decoder) handle() Handle { return Handle(d.opaque(maxHandle)) }

// postHandle decodes post_op_fh3.
func (d *decoder) postHandle() Handle {
	if !d.bool() {
		return nil
	}
	return d.handle()
}

// wcc decodes wcc_data. It returns the attributes after the operation; those before are of no use here.
func (d *decoder) wcc() *Attr {
	if d.bool() {
		d.uint64() // size
		d.time()   // mtime
		d.time()   // ctime
	}
	return d.postAttr()
}

func (d *decoder) verifier() (v Verifier) {
	copy(v[:], d.take(verfBytes))
	return v
}

// Set is what to change in a file's attributes (sattr3); nil fields stay as they are.
type Set struct {
	Mode, UID, GID *uint32
	Size           *uint64
	Atime, Mtime   *time.Time
}

func (e *encoder) set(s Set) {
	for _, v := range []*uint32{s.Mode, s.UID, s.GID} {
		e.bool(v != nil)
		if v != nil {
			e.uint32(*v)
		}
	}
	e.bool(s.Size != nil)
	if s.Size != nil {
		e.uint64(*s.Size)
	}
	for _, t := range []*time.Time{s.Atime, s.Mtime} {
		if t == nil {
			e.uint32(0) // DONT_CHANGE
			continue
		}
		e.uint32(2) // SET_TO_CLIENT_TIME
		e.uint32(uint32(t.Unix()))
		e.uint32(uint32(t.Nanosecond()))
	}
}

// place encodes diropargs3.
func (e *encoder) place(dir Handle, name string) {
	e.opaque(dir)
	e.opaque([]byte(name))
}
