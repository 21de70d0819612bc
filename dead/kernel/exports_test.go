package kernel

import (
	"encoding/binary"
	"fmt"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// exportTable writes a table of exported symbols after their names. The value of each symbol is its
// number in the table, relative to the start of everything.
func exportTable(names []string) []byte {
	var b []byte
	starts := make([]int, len(names))
	for i, name := range names {
		starts[i] = len(b)
		b = append(append(b, name...), 0)
	}
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	le := binary.LittleEndian
	for i := range names {
		b = le.AppendUint32(b, uint32(int32(i-len(b))))
		b = le.AppendUint32(b, uint32(int32(starts[i]-len(b))))
		b = le.AppendUint32(b, 0)
	}
	return b
}

func someNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("symbol_%05d", i))
	}
	return names
}

func TestExports(t *testing.T) {
	const at addr.Virt = 0xffff_8000_1000_0000
	names := someNames(1000)
	unsorted := someNames(1000)
	for i := 100; i < len(unsorted); i += 100 {
		unsorted[i] = "a" + unsorted[i]
	}
	strange := someNames(1000)
	for i := 100; i < len(strange); i += 100 {
		strange[i] += "\n"
	}
	for name, tc := range map[string]struct {
		b    []byte
		want int
	}{
		"a table":              {exportTable(names), 1000},
		"zeros":                {make([]byte, 100<<10), 0},
		"few":                  {exportTable(someNames(fewestExports - 1)), 0},
		"not in order":         {exportTable(unsorted), 0},
		"names that are none":  {exportTable(strange), 0},
		"two tables":           {append(exportTable(names), exportTable([]string{"other"})...), 1000},
		"one that is cut":      {exportTable(names)[:len(exportTable(names))-exportSize/2], 999},
		"the same name, twice": {append(exportTable(names), exportTable(names)...), 0},
	} {
		got := exportsIn(at, tc.b)
		if len(got) != tc.want {
			t.Errorf("%s: %d symbols, not %d", name, len(got), tc.want)
		}
		for i, symbol := range names[:min(tc.want, len(names))] {
			if got[symbol] != at+addr.Virt(i) {
				t.Fatalf("%s: %s at %v", name, symbol, got[symbol])
			}
		}
	}
}

// FuzzExports checks that whatever is found has the name of a symbol.
func FuzzExports(f *testing.F) {
	f.Add(exportTable(someNames(300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name := range exportsIn(0, b) {
			if name == "" || len(name) >= maxSymbolName || name[0] >= '0' && name[0] <= '9' {
				t.Errorf("a symbol %q", name)
			}
		}
	})
}

func TestTypesIn(t *testing.T) {
	le := binary.LittleEndian
	types := func(change func(b []byte)) []byte {
		b := []byte{0x9f, 0xeb, 1, 0}
		for _, n := range []uint32{24, 0, fewestTypes, fewestTypes, 100} {
			b = le.AppendUint32(b, n)
		}
		b = append(b, make([]byte, fewestTypes+100)...)
		if change != nil {
			change(b)
		}
		return b
	}
	for name, tc := range map[string]struct {
		b    []byte
		want int
	}{
		"types":             {types(nil), 1},
		"and again":         {append(types(nil), types(nil)...), 2},
		"cut":               {types(nil)[:fewestTypes], 0},
		"a small set":       {types(func(b []byte) { le.PutUint32(b[12:], 100); le.PutUint32(b[16:], 100) }), 0},
		"a large header":    {types(func(b []byte) { le.PutUint32(b[4:], 1<<31) }), 0},
		"strings too early": {types(func(b []byte) { le.PutUint32(b[16:], 4) }), 0},
		"a first string":    {types(func(b []byte) { b[24+fewestTypes] = 'x' }), 0},
		"no last string":    {types(func(b []byte) { b[len(b)-1] = 'x' }), 0},
	} {
		got := typesIn(0x1000, tc.b)
		if len(got) != tc.want {
			t.Errorf("%s: %v", name, got)
		}
		if tc.want == 1 && got[0] != (addr.VirtRange{Start: 0x1000, End: 0x1000 + addr.Virt(len(tc.b))}) {
			t.Errorf("%s: at %v", name, got)
		}
	}
}

// FuzzTypesIn checks that what is found lies within the bytes searched.
func FuzzTypesIn(f *testing.F) {
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range typesIn(0, b) {
			if r.End > addr.Virt(len(b)) || r.Start >= r.End {
				t.Errorf("types at %v of %d bytes", r, len(b))
			}
		}
	})
}
