package nfs3

// Procedures and bounds of MOUNT (RFC 1813, 5).
const (
	procMnt    = 1
	maxFlavors = 64
)

// Mount asks for the handle of an export (MNT), at the port of MOUNT. The credentials
// that the server accepts beside AUTH_SYS are of no use here.
func Mount(path string) Request[Handle] {
	var e encoder
	e.opaque([]byte(path))
	return Request[Handle]{program: ProgramMount, procedure: procMnt, args: e.b, decode: decodeMount}
}

func decodeMount(d *decoder) Handle {
	h := d.handle()
	n := d.uint32()
	if n > maxFlavors {
		d.fail("%d flavors of authentication", n)
	}
	for range min(n, maxFlavors) {
		d.uint32()
	}
	return h
}
