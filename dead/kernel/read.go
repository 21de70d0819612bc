package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// maxRead bounds a single read: more than the largest table of a kernel image
// (BTF of 7.2 is 7 MiB).
const maxRead = 64 << 20

// Bytes returns the n bytes at va, without copying if they are contiguous in
// physical memory. The result must not be written to.
func (k *Kernel) Bytes(va addr.Virt, n int) ([]byte, error) {
	if n < 0 || n > maxRead {
		return nil, fmt.Errorf("read %d bytes at %v: not a sane size", n, va)
	}
	pa, room, err := k.paging.translate(va)
	if err != nil {
		return nil, err
	}
	if uint64(n) <= room {
		return k.mem.View(pa, n)
	}
	return k.bytesAcross(va, pa, room, n)
}

// bytesAcross reads n bytes at va across page boundaries; the first room
// bytes are known to be at pa.
func (k *Kernel) bytesAcross(va addr.Virt, pa addr.Phys, room uint64, n int) ([]byte, error) {
	if _, ok := va.Add(uint64(n)); !ok {
		return nil, fmt.Errorf("read %d bytes at %v: wraps around", n, va)
	}
	contiguous := true
	for done := room; done < uint64(n); {
		next, size, err := k.paging.translate(va + addr.Virt(done))
		if err != nil {
			return nil, err
		}
		contiguous = contiguous && next == pa+addr.Phys(done)
		done += size
	}
	if contiguous {
		return k.mem.View(pa, n)
	}
	out := make([]byte, 0, n)
	for len(out) < n {
		next, size, err := k.paging.translate(va + addr.Virt(len(out)))
		if err != nil {
			return nil, err
		}
		b, err := k.mem.View(next, int(min(size, uint64(n-len(out)))))
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}

// U32 reads an unsigned number of 4 bytes.
func (k *Kernel) U32(va addr.Virt) (uint32, error) {
	b, err := k.Bytes(va, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// U64 reads an unsigned number of 8 bytes.
func (k *Kernel) U64(va addr.Virt) (uint64, error) {
	b, err := k.Bytes(va, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Pointer reads a pointer.
func (k *Kernel) Pointer(va addr.Virt) (addr.Virt, error) {
	v, err := k.U64(va)
	return addr.Virt(v), err
}

// CString reads a string that ends in a zero byte, of at most limit bytes
// without that byte. A longer string is an error.
func (k *Kernel) CString(va addr.Virt, limit int) (string, error) {
	var out []byte
	for len(out) <= limit {
		here, ok := va.Add(uint64(len(out)))
		if !ok {
			break
		}
		// To the end of the page, so that no page is touched in vain.
		n := min(addr.PageSize-here.PageOffset(), limit+1-len(out))
		b, err := k.Bytes(here, n)
		if err != nil {
			return "", fmt.Errorf("read string: %w", err)
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(out, b[:i]...)), nil
		}
		out = append(out, b...)
	}
	return "", fmt.Errorf("read string at %v: no end within %d bytes", va, limit)
}

// Physical translates a virtual address of the kernel.
func (k *Kernel) Physical(va addr.Virt) (addr.Phys, error) {
	pa, _, err := k.paging.translate(va)
	return pa, err
}
