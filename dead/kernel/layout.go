package kernel

import (
	"bytes"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// Field is where a member lies within a structure, in bytes.
type Field struct {
	Off, Size int
}

// Present reports whether the kernel has this member.
func (f Field) Present() bool { return f.Size > 0 }

// Uint decodes the member from the bytes of its structure. b must be the whole
// structure.
func (f Field) Uint(b []byte) uint64 {
	return littleEndian(b[f.Off : f.Off+f.Size])
}

// Pointer decodes the member as an address.
func (f Field) Pointer(b []byte) addr.Virt { return addr.Virt(f.Uint(b)) }

// Bytes returns the member's own bytes.
func (f Field) Bytes(b []byte) []byte { return b[f.Off : f.Off+f.Size] }

// String decodes the member as characters that end in a zero byte or with the
// member.
func (f Field) String(b []byte) string {
	s := f.Bytes(b)
	if i := bytes.IndexByte(s, 0); i >= 0 {
		s = s[:i]
	}
	return string(s)
}

// In returns the address of the member of the structure at va.
func (f Field) In(va addr.Virt) addr.Virt { return va + addr.Virt(f.Off) }

// Layout looks up members of one structure and collects errors, so that
// code can list its fields like a table.
type Layout struct {
	// Size is the size of the structure, in bytes.
	Size int

	name  string
	types *Types // nil if the layout is given, or the structure is not there
	given map[string]Field
	errs  []error
}

// GivenLayout returns a layout that is not from the kernel's own types: that of
// a structure of a module of a kernel before 5.11, which keeps no types of
// modules. Members are by path, as for Field.
func GivenLayout(name string, size int, members map[string]Field) *Layout {
	return &Layout{Size: size, name: name, given: members}
}

// maxStruct bounds the structures that are read whole, in bytes. The largest of
// interest, ext4_sb_info, has 3 KiB.
const maxStruct = 64 << 10

// Has reports whether the structure has a member at this path.
func (l *Layout) Has(path string) bool {
	_, err := l.find(path)
	return err == nil
}

// Field returns the member at a path such as "i_data.i_pages.xa_head"; members
// of anonymous structures and unions are found by their own name. If sizes are
// given, the member must have one of them, in bytes.
func (l *Layout) Field(path string, sizes ...int) Field {
	if l.types == nil && l.given == nil {
		return Field{}
	}
	f, err := l.find(path)
	if err != nil {
		l.errs = append(l.errs, err)
		return Field{}
	}
	for _, size := range sizes {
		if f.Size == size {
			return f
		}
	}
	if len(sizes) > 0 {
		l.errs = append(l.errs, fmt.Errorf("struct %s: %s has %d bytes, not %v", l.name, path, f.Size, sizes))
		return Field{}
	}
	return f
}

// Optional is Field for a member that not every kernel has. If it is missing,
// the result is not Present.
func (l *Layout) Optional(path string, sizes ...int) Field {
	if !l.Has(path) {
		return Field{}
	}
	return l.Field(path, sizes...)
}

// First is Field for a member that has different names in different
// kernels; the first name that exists counts.
func (l *Layout) First(paths []string, sizes ...int) Field {
	for _, path := range paths {
		if l.Has(path) {
			return l.Field(path, sizes...)
		}
	}
	return l.Field(paths[0], sizes...)
}

// Err returns the errors of all lookups.
func (l *Layout) Err() error { return errors.Join(l.errs...) }

func (l *Layout) find(path string) (Field, error) {
	found := l.given[path]
	if l.types != nil {
		question := "field " + l.name + " " + path
		answer, err := l.types.answers.ask(question, func() ([]uint64, error) { return l.types.field(l.name, path) })
		if err != nil {
			return Field{}, fmt.Errorf("struct %s: %s: %w", l.name, path, err)
		}
		if len(answer) == 2 {
			found = Field{Off: int(answer[0]), Size: int(answer[1])}
		}
	}
	switch {
	case !found.Present():
		return Field{}, fmt.Errorf("struct %s: member %s: %w", l.name, path, ErrNotFound)
	case found.Off < 0 || found.Off > l.Size || found.Size > l.Size-found.Off:
		return Field{}, fmt.Errorf("struct %s: %s lies outside of it", l.name, path)
	}
	return found, nil
}
