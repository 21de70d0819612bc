package metal

import (
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// bus is the configuration space of a bus on which nothing answers.
func bus() *window {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 0xff
	}
	return &window{all: b, data: b}
}

// put makes a function answer, with that header type, and with its bus mastering on.
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

// wired is a bus whose functions keep mastering it, whatever is written.
type wired struct{ *window }

func (w wired) store32(off int, v uint32) {
	if off&0xfff == pciCommand {
		v |= commandMaster
	}
	w.window.store32(off, v)
}

// TestSilenceWired: bus mastering that stays on is accepted in bridges of the chipset only.
func TestSilenceWired(t *testing.T) {
	for class, want := range map[uint16]bool{classHost: true, classISA: true, 0x0604: false, 0x0108: false} {
		w := bus()
		put(w, 0, 0, 0)
		binary.LittleEndian.PutUint16(w.data[pciClass+2:], class)
		if err := functionsOf(wired{w}, 0, 0)[0].silence(); (err == nil) != want {
			t.Errorf("class %04x: %v", class, err)
		}
	}
}

// noted is a bus that appends its number to order at each write.
type noted struct {
	*window
	bus   int
	order *[]int
}

func (n noted) store32(off int, v uint32) {
	*n.order = append(*n.order, n.bus)
	n.window.store32(off, v)
}

// TestSilenceOrder: a bridge is silenced after what is behind it.
func TestSilenceOrder(t *testing.T) {
	var all []*function
	var order []int
	for n := range 3 { // as functions has them
		w := bus()
		put(w, 0, 0, headerBridge, byte(n+1), 2)
		all = append(all, functionsOf(noted{w, n, &order}, n, 0)...)
	}
	if err := silence(all); err != nil || !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("buses %v in this order, %v", order, err)
	}
}

// late is a bus on which nothing answers before one time, and no device is ready before another.
type late struct {
	*window
	answers, ready time.Time
}

func (l late) load32(off int) uint32 {
	switch now := time.Now(); {
	case now.Before(l.answers):
		return 0xffffffff
	case now.Before(l.ready) && off&0xfff == pciVendor:
		return 0xffff0001
	}
	return l.window.load32(off)
}

// TestReset: the reset lasts until the devices directly behind a bridge answer, and not for ever.
func TestReset(t *testing.T) {
	for _, c := range []struct {
		name           string
		answers, ready time.Duration
		least, most    time.Duration
		mute           []string
	}{
		{"at once", 0, 0, 2 * settle, 3 * settle, nil},
		{"late", 300 * time.Millisecond, 0, 300*time.Millisecond + settle, 300*time.Millisecond + 2*settle, nil},
		{"late to be ready", 300 * time.Millisecond, 5 * time.Second, 5*time.Second + settle, 5*time.Second + 2*settle, nil},
		{"never", time.Hour, 0, readyLimit, readyLimit + 3*settle, []string{"01:00.0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second, third := bus(), bus(), bus()
				put(first, 0, 0, 0)
				put(first, 1, 0, headerBridge, 1, 2)
				put(second, 0, 0, headerBridge, 2, 2)
				put(third, 0, 0, 0)
				all := slices.Concat(functionsOf(first, 0, 0), functionsOf(first, 0, 1), functionsOf(second, 1, 0), functionsOf(third, 2, 0))
				start := time.Now()
				for _, f := range all[2:] { // what is on bus 2 is not found until its bridge has its bus numbers again
					l := late{window: second, answers: start.Add(c.answers), ready: start.Add(c.ready)}
					if f.bus == 2 {
						l = late{window: third, answers: start.Add(time.Hour)}
					}
					f.space = l
				}
				mute := reset(all)
				if took := time.Since(start); took < c.least || took > c.most || !slices.Equal(mute, c.mute) {
					t.Errorf("%v, %v are mute", took, mute)
				}
				if all[1].load(pciBridgeControl)&bridgeReset != 0 {
					t.Error("the bridge stays in reset")
				}
				if got := binary.LittleEndian.Uint32(second.data[pciBridgeControl:]); got != 0 {
					t.Errorf("%#x was written to a bridge that was in reset", got)
				}
			})
		})
	}
	if mute := reset([]*function{{bus: 0}}); mute != nil {
		t.Errorf("%v are behind no bridge", mute)
	}
}

// configuration is a configuration space with capabilities of these numbers, the last of which leads back to the first
// if round.
func configuration(round bool, ids ...byte) []byte {
	b := make([]byte, pciConfigSize)
	at := pciCapabilities
	for i, id := range ids {
		b[pciStatus] |= statusList
		next := pciHeaderSize + 8*i
		b[at], b[next] = byte(next), id
		at = next + 1
	}
	if round {
		b[at] = pciHeaderSize
	}
	return b
}

func TestMessages(t *testing.T) {
	hidden := configuration(false, capabilityMSI)
	hidden[pciStatus] = 0
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"none", configuration(false), false},
		{"MSI", configuration(false, 0x01, 0x10, capabilityMSI), true},
		{"MSI-X", configuration(false, capabilityMSIX, 0x01), true},
		{"others", configuration(false, 0x01, 0x12), false},
		{"in a circle", configuration(true, 0x01, 0x12), false},
		{"no list", hidden, false},
	} {
		if got := messages(c.b); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(configuration(false, 0x01, capabilityMSI))
	f.Add(configuration(true, 0x01))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= pciConfigSize && messages(b) && b[pciStatus]&statusList == 0 {
			t.Error("there is no list")
		}
	})
}
