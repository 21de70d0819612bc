package kernel

import (
	"bytes"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// maxModules bounds the list of modules.
const maxModules = 4096

// Module returns the types that a loaded module adds to those of the image. They
// are kept in the list that the kernel itself uses (kernel/bpf/btf.c, btf_modules;
// since 5.11, commit 36e68442d1af); the copy in the module is gone after loading.
func (k *Kernel) Module(name string) (*Types, error) {
	l, err := newModuleLayout(k.types)
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	head, err := k.Symbol("btf_modules")
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	at, err := k.Pointer(head)
	for n := 0; err == nil && at != head && n < maxModules; n++ {
		var entry, b []byte
		if entry, err = k.Bytes(at-addr.Virt(l.list.Off), l.entrySize); err != nil {
			break
		}
		if b, err = k.Bytes(l.btf.Pointer(entry), l.size); err != nil {
			break
		}
		if l.name.String(b) == name {
			return k.moduleTypes(l, b)
		}
		at = addr.Virt(littleEndian(l.list.Bytes(entry)[:8]))
	}
	if err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	return nil, fmt.Errorf("types of module %s: %w", name, ErrNotFound)
}

// moduleLayout is where the kernel keeps the types of a module.
type moduleLayout struct {
	entrySize  int
	list, btf  Field // in btf_module
	size       int
	name       Field // in btf
	data, used Field
}

func newModuleLayout(t *Types) (*moduleLayout, error) {
	m := t.Layout("btf_module")
	b := t.Layout("btf")
	l := &moduleLayout{
		entrySize: m.Size, list: m.Field("list", 16), btf: m.Field("btf", 8),
		size: b.Size, name: b.Field("name"), data: b.Field("data", 8), used: b.Field("data_size", 4),
	}
	if err := m.Err(); err != nil {
		return nil, err
	}
	return l, b.Err()
}

// moduleTypes reads the split BTF that a struct btf describes. The same bytes give the
// same Types, however often they are asked for.
func (k *Kernel) moduleTypes(l *moduleLayout, b []byte) (*Types, error) {
	size := l.used.Uint(b)
	if size > maxBTF {
		return nil, fmt.Errorf("read BTF: %d bytes", size)
	}
	raw, err := k.Bytes(l.data.Pointer(b), int(size))
	if err != nil {
		return nil, fmt.Errorf("read BTF: %w", err)
	}
	raw = bytes.Clone(raw) // a living kernel may unload the module
	of := digestOf(raw)
	k.modulesMu.Lock()
	defer k.modulesMu.Unlock()
	t := k.modules[of]
	if t == nil {
		if t, err = newTypes(raw, k.types, k.memo); err != nil {
			return nil, err
		}
		k.modules[of] = t
	}
	return t, nil
}
