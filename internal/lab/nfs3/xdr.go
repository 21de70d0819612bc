package nfs3

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrFormat is the error for bytes that are not a valid NFS reply.
var ErrFormat = errors.New("malformed reply")

// encoder appends XDR (RFC 4506).
type encoder struct{ b []byte }

func (e *encoder) uint32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) uint64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }

func (e *encoder) bool(v bool) {
	if v {
		e.uint32(1)
	} else {
		e.uint32(0)
	}
}

// fixed appends bytes whose number both sides know, padded to four.
func (e *encoder) fixed(v []byte) {
	e.b = append(e.b, v...)
	e.b = append(e.b, make([]byte, padding(len(v)))...)
}

// opaque appends a length and that many bytes.
func (e *encoder) opaque(v []byte) {
	e.uint32(uint32(len(v)))
	e.fixed(v)
}

func padding(n int) int { return -n & 3 }

// decoder decodes XDR. After its first error it returns only zero values.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
	}
	d.b = nil
}

// take returns the next n bytes, which are not copied.
func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.b) {
		d.fail("%d bytes wanted, %d left", n, len(d.b))
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.uint32()
	if v > 1 {
		d.fail("%d is neither true nor false", v)
	}
	return v == 1
}

// opaque returns bytes that are preceded by their length, which is at most limit.
func (d *decoder) opaque(limit uint32) []byte {
	n := d.uint32()
	if n > limit {
		d.fail("%d bytes, of which there may be %d", n, limit)
		return nil
	}
	v := d.take(int(n))
	d.take(padding(int(n)))
	return v
}

// end returns the error of the decoding. Bytes that are left over are an error, too.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}
