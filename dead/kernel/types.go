package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// maxBTF bounds the type information of a kernel image, in bytes; 6.1 of Debian
// has 5 MiB, 7.2 has 7 MiB.
const maxBTF = 32 << 20

// Types are the types of a kernel, or of one of its modules.
type Types struct {
	answers *answerSet // sizes, fields and constants
	decoded func() (decodedTypes, error)
}

// decodedTypes are BTF that was decoded.
type decodedTypes struct {
	spec  *btf.Spec
	count uint32 // of types, without void
}

// newTypes parses BTF (Documentation/bpf/btf.rst); base is nil, or the types that a
// module may refer to. What the memo knows about it may spare decoding it.
func newTypes(raw []byte, base *Types, m *memo) (*Types, error) {
	t := &Types{decoded: sync.OnceValues(func() (decodedTypes, error) { return decodeTypes(raw, base) })}
	read := false
	if base == nil {
		t.answers, read = m.about([]byte("types"), raw)
	} else {
		t.answers, read = m.about([]byte("types of module"), base.answers.of[:], raw)
	}
	if read {
		return t, nil
	}
	_, err := t.decoded()
	return t, err
}

func decodeTypes(raw []byte, base *Types) (decodedTypes, error) {
	var under decodedTypes
	if base != nil {
		var err error
		if under, err = base.decoded(); err != nil {
			return under, err
		}
	}
	tame, err := tameBTF(raw, under.count+1)
	if err != nil {
		return decodedTypes{}, err
	}
	d := decodedTypes{count: uint32(len(tame.offsets))}
	if base == nil {
		d.spec, err = btf.LoadSpecFromReader(bytes.NewReader(tame.data))
	} else {
		d.spec, err = btf.LoadSplitSpecFromReader(bytes.NewReader(tame.data), under.spec)
	}
	if err != nil {
		return decodedTypes{}, fmt.Errorf("parse BTF: %w", err)
	}
	return d, nil
}

// errNoTypes is for kernels that do not describe their structures: where a member lies is not
// guessed.
var errNoTypes = errors.New("it was built without CONFIG_DEBUG_INFO_BTF and does not tell its own structures, so that nothing in it can be read for sure; keep this memory for a debugger with the vmlinux of the same build (crash, drgn), and build kernels that are to be salvaged with CONFIG_DEBUG_INFO_BTF=y")

// loadTypes reads the BTF that is linked into the kernel image.
func (k *Kernel) loadTypes() error {
	start, err := k.Symbol("__start_BTF")
	if errors.Is(err, ErrNotFound) {
		return errNoTypes
	}
	if err != nil {
		return err
	}
	stop, err := k.Symbol("__stop_BTF")
	if err != nil {
		return err
	}
	if stop <= start || stop-start > maxBTF {
		return fmt.Errorf("read BTF: it cannot lie from %v to %v", start, stop)
	}
	raw, err := k.Bytes(start, int(stop-start))
	if err != nil {
		return fmt.Errorf("read BTF: %w", err)
	}
	if k.types, err = newTypes(raw, nil, k.memo); err != nil {
		return err
	}
	return k.checkOrder()
}

// errRandstruct is for kernels whose BTF has the members of structures in another order than the
// structures. gcc's plugin moves the members and leaves its debug information, from which pahole makes
// BTF, as it was (lib/Kconfig.debug: with it, DEBUG_INFO_BTF requires COMPILE_TEST).
var errRandstruct = errors.New("it was built with CONFIG_RANDSTRUCT by gcc, whose debug information has another order of the members of structures than the kernel has, so that nothing in it can be read for sure; keep this memory for somebody who has the build's seed (randomize_layout_seed.h), and build kernels that are to be salvaged with CONFIG_RANDSTRUCT_NONE=y")

// checkOrder checks that the types are those of this kernel, by one member whose content is known:
// the name of the first task (INIT_TASK_COMM, include/linux/init_task.h). A damaged name alone
// is no reason to refuse: the kernel itself says what build its modules must be of
// (MODULE_RANDSTRUCT, include/linux/vermagic.h), if it can have any.
func (k *Kernel) checkOrder() error {
	task := k.types.Layout("task_struct")
	comm := task.Field("comm", 16)
	at, err := k.Symbol("init_task")
	if err != nil || task.Err() != nil {
		return nil // the code that needs it reports that
	}
	if name, err := k.Bytes(comm.In(at), comm.Size); err != nil || bytes.HasPrefix(name, []byte("swapper")) {
		return nil
	}
	if at, err = k.Symbol("vermagic"); err == nil {
		magic, err := k.Bytes(at, maxVermagic)
		if err == nil && !bytes.Contains(magic, []byte("RANDSTRUCT_")) {
			return nil
		}
	}
	return errRandstruct
}

// maxVermagic is how much of the string is looked at: a release of up to 64 bytes, some
// words, and RANDSTRUCT_ with a seed.
const maxVermagic = 128

// Layout returns the layout of the structure with a name. If there is no such structure,
// Err says so.
func (t *Types) Layout(name string) *Layout {
	l := &Layout{name: name}
	sizes, err := t.answers.ask("size "+name, func() ([]uint64, error) { return t.sizes(name) })
	switch {
	case err != nil:
		l.errs = append(l.errs, fmt.Errorf("struct %s: %w", name, err))
		return l
	case len(sizes) == 0:
		l.errs = append(l.errs, fmt.Errorf("struct %s: %w", name, ErrNotFound))
		return l
	case len(sizes) > 1:
		l.errs = append(l.errs, fmt.Errorf("struct %s: %w: sizes %d", name, ErrAmbiguous, sizes))
	}
	if sizes[0] == 0 || sizes[0] > maxStruct {
		l.errs = append(l.errs, fmt.Errorf("struct %s has %d bytes", name, sizes[0]))
		return l
	}
	l.Size, l.types = int(sizes[0]), t
	return l
}

// shapes returns the structures with a name: several, if the image has several.
func (t *Types) shapes(name string) ([]*btf.Struct, error) {
	d, err := t.decoded()
	if err != nil {
		return nil, err
	}
	found, err := d.spec.AnyTypesByName(name)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		return nil, err
	}
	var shapes []*btf.Struct
	for _, typ := range found {
		if s, ok := typ.(*btf.Struct); ok && s.Size > 0 && s.Size <= maxStruct {
			shapes = append(shapes, s)
		}
	}
	return shapes, nil
}

// sizes returns the sizes that structures of a name have, in bytes.
func (t *Types) sizes(name string) ([]uint64, error) {
	shapes, err := t.shapes(name)
	sizes := []uint64{}
	for _, s := range shapes {
		if !slices.Contains(sizes, uint64(s.Size)) {
			sizes = append(sizes, uint64(s.Size))
		}
	}
	return sizes, err
}

// field returns the offset and size of a member of the structures of a name, or
// nothing if there is none.
func (t *Types) field(name, path string) ([]uint64, error) {
	shapes, err := t.shapes(name)
	if err != nil {
		return nil, err
	}
	found := []uint64{}
	for _, s := range shapes {
		f, ok := member(s, strings.Split(path, "."))
		if !ok || f.Off < 0 || f.Size <= 0 {
			continue
		}
		answer := []uint64{uint64(f.Off), uint64(f.Size)}
		if len(found) > 0 && !slices.Equal(found, answer) {
			return nil, ErrAmbiguous
		}
		found = answer
	}
	return found, nil
}

// member follows a path of names.
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
	answer, err := t.answers.ask("enum "+enum+" "+constant, func() ([]uint64, error) { return t.constant(enum, constant) })
	if err == nil && len(answer) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("enum %s: constant %s: %w", enum, constant, err)
	}
	return answer[0], nil
}

func (t *Types) constant(enum, constant string) ([]uint64, error) {
	d, err := t.decoded()
	if err != nil {
		return nil, err
	}
	found, err := d.spec.AnyTypesByName(enum)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		return nil, err
	}
	for _, typ := range found {
		e, ok := typ.(*btf.Enum)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			if v.Name == constant {
				return []uint64{v.Value}, nil
			}
		}
	}
	return []uint64{}, nil
}

// Constant returns the value of a constant of an anonymous enumeration. A
// constant in several enumerations must have the same value in all.
func (t *Types) Constant(constant string) (uint64, error) {
	answer, err := t.answers.ask("constant "+constant, func() ([]uint64, error) { return t.anonymous(constant) })
	if err == nil && len(answer) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("constant %s: %w", constant, err)
	}
	return answer[0], nil
}

// anonymous returns the value of a constant of an anonymous enumeration, or
// nothing if there is none.
func (t *Types) anonymous(constant string) ([]uint64, error) {
	d, err := t.decoded()
	if err != nil {
		return nil, err
	}
	found := []uint64{}
	for typ, err := range d.spec.All() {
		if err != nil {
			return nil, err
		}
		e, ok := typ.(*btf.Enum)
		if !ok || e.Name != "" {
			continue
		}
		for _, v := range e.Values {
			if v.Name != constant {
				continue
			}
			if len(found) > 0 && v.Value != found[0] {
				return nil, fmt.Errorf("%w: %d and %d", ErrAmbiguous, found[0], v.Value)
			}
			found = []uint64{v.Value}
		}
	}
	return found, nil
}
