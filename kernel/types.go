package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"

	"understudy/addr"
)

// maxBTF bounds the type information of a kernel image, in bytes; 6.1 of Debian
// has 5 MiB, 7.2 has 7 MiB.
const maxBTF = 32 << 20

// Types are the types of a kernel, or of one of its modules.
type Types struct {
	spec  *btf.Spec
	count uint32 // of types, without void
}

// newTypes parses BTF (Documentation/bpf/btf.rst).
func newTypes(raw []byte) (*Types, error) {
	tame, err := tameBTF(raw, 1)
	if err != nil {
		return nil, err
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(tame.data))
	if err != nil {
		return nil, fmt.Errorf("parse BTF: %w", err)
	}
	return &Types{spec: spec, count: uint32(len(tame.offsets))}, nil
}

// loadTypes reads the BTF that is linked into the kernel image.
func (k *Kernel) loadTypes() error {
	start, err := k.Symbol("__start_BTF")
	if err != nil {
		return err
	}
	stop, err := k.Symbol("__stop_BTF")
	if err != nil {
		return err
	}
	if stop <= start || stop-start > maxBTF {
		return fmt.Errorf("read BTF: %v to %v is not its place", start, stop)
	}
	raw, err := k.Bytes(start, int(stop-start))
	if err != nil {
		return fmt.Errorf("read BTF: %w", err)
	}
	k.types, err = newTypes(raw)
	return err
}

// Field is the place of a member within a structure, in bytes.
type Field struct {
	Off, Size int
}

// Present reports whether the kernel has this member.
func (f Field) Present() bool { return f.Size > 0 }

// Uint decodes the member from the bytes of its structure, which must be all of
// them.
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

// Layout looks up members of one structure and collects what goes wrong, so that
// a table of fields reads as one.
type Layout struct {
	// Size is that of the structure, in bytes.
	Size int

	name   string
	shapes []*btf.Struct // several, if the image has several of that name
	told   map[string]Field
	errs   []error
}

// ToldLayout returns a layout that the kernel at hand does not tell of itself: of
// a structure of a module of a kernel before 5.11, which keeps no types of
// modules. Members are by path, as for Field.
func ToldLayout(name string, size int, members map[string]Field) *Layout {
	return &Layout{Size: size, name: name, told: members}
}

// maxStruct bounds the structures that are read whole, in bytes. The largest of
// interest, ext4_sb_info, has 3 KiB.
const maxStruct = 64 << 10

// Layout returns the layout of the structure of a name. A structure that is not
// there shows in Err.
func (t *Types) Layout(name string) *Layout {
	l := &Layout{name: name}
	found, err := t.spec.AnyTypesByName(name)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		l.errs = append(l.errs, fmt.Errorf("struct %s: %w", name, err))
		return l
	}
	for _, typ := range found {
		if s, ok := typ.(*btf.Struct); ok && s.Size > 0 && s.Size <= maxStruct {
			l.shapes = append(l.shapes, s)
		}
	}
	if len(l.shapes) == 0 {
		l.errs = append(l.errs, fmt.Errorf("struct %s: %w", name, ErrNotFound))
		return l
	}
	l.Size = int(l.shapes[0].Size)
	for _, s := range l.shapes[1:] {
		if int(s.Size) != l.Size {
			l.errs = append(l.errs, fmt.Errorf("struct %s: %w: sizes %d and %d", name, ErrAmbiguous, l.Size, s.Size))
		}
	}
	return l
}

// Has reports whether the structure has a member at this path.
func (l *Layout) Has(path string) bool {
	_, err := l.find(path)
	return err == nil
}

// Field returns the member at a path such as "i_data.i_pages.xa_head"; members
// of anonymous structures and unions are found by their own name. If sizes are
// given, the member must have one of them, in bytes.
func (l *Layout) Field(path string, sizes ...int) Field {
	if len(l.shapes)+len(l.told) == 0 {
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

// Optional is Field for a member that not every kernel has; it is not Present
// where it is missing.
func (l *Layout) Optional(path string, sizes ...int) Field {
	if !l.Has(path) {
		return Field{}
	}
	return l.Field(path, sizes...)
}

// First is Field for a member that goes by several names, depending on the
// kernel; the first that exists counts.
func (l *Layout) First(paths []string, sizes ...int) Field {
	for _, path := range paths {
		if l.Has(path) {
			return l.Field(path, sizes...)
		}
	}
	return l.Field(paths[0], sizes...)
}

// Err returns everything that was missing.
func (l *Layout) Err() error { return errors.Join(l.errs...) }

func (l *Layout) find(path string) (Field, error) {
	found := l.told[path]
	for _, s := range l.shapes {
		f, ok := member(s, strings.Split(path, "."))
		switch {
		case !ok:
		case f.Off < 0 || f.Size <= 0 || f.Off+f.Size > l.Size:
			return Field{}, fmt.Errorf("struct %s: %s lies outside of it", l.name, path)
		case found.Present() && f != found:
			return Field{}, fmt.Errorf("struct %s: %s: %w", l.name, path, ErrAmbiguous)
		default:
			found = f
		}
	}
	if !found.Present() {
		return Field{}, fmt.Errorf("struct %s: member %s: %w", l.name, path, ErrNotFound)
	}
	return found, nil
}

// member descends along a path of names.
func member(t btf.Type, path []string) (Field, bool) {
	f := Field{}
	for _, name := range path {
		m, off, ok := namedMember(t, name, 0)
		if !ok || m.BitfieldSize != 0 {
			return Field{}, false
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			return Field{}, false
		}
		f.Off, f.Size = f.Off+off, size
		t = m.Type
	}
	return f, true
}

// maxNesting bounds how deep anonymous members are searched.
const maxNesting = 16

// namedMember finds a member by name, also inside anonymous members.
func namedMember(t btf.Type, name string, depth int) (btf.Member, int, bool) {
	if depth > maxNesting {
		return btf.Member{}, 0, false
	}
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		off := int(m.Offset.Bytes())
		if m.Name == name {
			return m, off, true
		}
		if m.Name != "" {
			continue
		}
		if inner, more, ok := namedMember(m.Type, name, depth+1); ok {
			return inner, off + more, true
		}
	}
	return btf.Member{}, 0, false
}

// Enum returns the value of a constant of a named enumeration.
func (t *Types) Enum(enum, constant string) (uint64, error) {
	found, err := t.spec.AnyTypesByName(enum)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		return 0, fmt.Errorf("enum %s: %w", enum, err)
	}
	for _, typ := range found {
		e, ok := typ.(*btf.Enum)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			if v.Name == constant {
				return v.Value, nil
			}
		}
	}
	return 0, fmt.Errorf("enum %s: constant %s: %w", enum, constant, ErrNotFound)
}
