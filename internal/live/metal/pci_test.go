package metal

import (
	"encoding/binary"
	"slices"
	"testing"
)

// bus is the configuration space of one, in which nothing answers.
func bus() *window {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 0xff
	}
	return &window{all: b, data: b}
}

// put has a function answer: with that header, and its bus mastering on.
func put(w *window, dev, num int, header byte, buses ...byte) {
	at := w.data[dev<<15|num<<12:][:4096]
	clear(at)
	binary.LittleEndian.PutUint32(at, 0x10001af4)
	binary.LittleEndian.PutUint16(at[pciCommand:], 0x7)
	at[0xe] = header
	copy(at[pciSecondary+1:], buses)
}

func TestFunctions(t *testing.T) {
	w := bus()
	put(w, 0, 0, 0)
	put(w, 1, 0, headerBridge, 2, 3)
	put(w, 2, 0, headerMany)
	put(w, 2, 3, 0)
	put(w, 3, 1, 0)                  // without a function 0 it is not there
	put(w, 4, 0, headerBridge, 0, 5) // a bridge back to itself
	var names []string
	var behind []byte
	for dev := range 32 {
		for _, f := range functionsOf(w, 0, dev) {
			names = append(names, f.String())
			behind = append(behind, f.behind()...)
			if err := f.silence(); err != nil {
				t.Error(err)
			}
			if got := f.load(pciCommand) & 0xffff; got != 0x3|commandNoINTx {
				t.Errorf("%v has command %#x", f, got)
			}
		}
	}
	if want := []string{"00:00.0", "00:01.0", "00:02.0", "00:02.3", "00:04.0"}; !slices.Equal(names, want) {
		t.Errorf("%v answer, not %v", names, want)
	}
	if !slices.Equal(behind, []byte{2, 3}) {
		t.Errorf("buses %v are behind bridges", behind)
	}
}

func TestResets(t *testing.T) {
	bridge := &function{bus: 0, header: headerBridge, secondaryBuses: [2]byte{2, 3}}
	for _, c := range []struct {
		on   int
		want bool
	}{{0, false}, {1, false}, {2, true}, {3, true}, {4, false}} {
		if got := bridge.resets([]*function{bridge, {bus: c.on}}); got != c.want {
			t.Errorf("with a device on bus %d it is %v", c.on, got)
		}
	}
	if (&function{secondaryBuses: [2]byte{2, 3}}).resets([]*function{{bus: 2}}) {
		t.Error("what is no bridge has buses behind it")
	}
}
