package metal

import (
	"errors"
	"fmt"
	"time"
)

// Registers of a PCI function's configuration space (PCI Local Bus 3.0, 6.1; PCI Express
// Base 5.0, 7.5), bytes.
const (
	pciVendor        = 0x00
	pciCommand       = 0x04
	pciHeaderType    = 0x0c // the third byte
	pciBridgeControl = 0x3c // the upper half
	pciSecondary     = 0x18 // primary, secondary, subordinate bus

	commandMaster = 1 << 2
	commandNoINTx = 1 << 10
	headerBridge  = 1
	headerMany    = 0x80
	bridgeReset   = 1 << 22 // of the word at pciBridgeControl
)

// function is a PCI function's configuration space.
type function struct {
	*window        // of its bus
	bus, dev, num  int
	offset         int
	header         byte
	secondaryBuses [2]byte // secondary and subordinate, of a bridge
}

func (f *function) String() string { return fmt.Sprintf("%02x:%02x.%d", f.bus, f.dev, f.num) }

func (f *function) load(reg int) uint32 { return f.load32(f.offset + reg) }

func (f *function) store(reg int, v uint32) { f.store32(f.offset+reg, v) }

// functions are those on the buses of a segment that answer.
func functions(s Segment) (all []*function, done func() error, err error) {
	var windows []*window
	done = func() error {
		var errs []error
		for _, w := range windows {
			errs = append(errs, w.Close())
		}
		return errors.Join(errs...)
	}
	for bus := int(s.FirstBus); bus <= int(s.LastBus); bus++ {
		at := s.Base + uint64(bus)<<20
		w, err := mapPhysical(Range{at, at + 1<<20})
		if err != nil {
			return nil, nil, errors.Join(err, done())
		}
		windows = append(windows, w)
		for dev := range 32 {
			all = append(all, functionsOf(w, bus, dev)...)
		}
	}
	return all, done, nil
}

func functionsOf(w *window, bus, dev int) (all []*function) {
	for num := range 8 {
		f := &function{window: w, bus: bus, dev: dev, num: num, offset: dev<<15 | num<<12}
		if f.load(pciVendor)&0xffff == 0xffff {
			if num == 0 {
				return nil
			}
			continue
		}
		f.header = byte(f.load(pciHeaderType) >> 16)
		if f.header&^headerMany == headerBridge {
			buses := f.load(pciSecondary)
			f.secondaryBuses = [2]byte{byte(buses >> 8), byte(buses >> 16)}
		}
		all = append(all, f)
		if num == 0 && f.header&headerMany == 0 {
			return all
		}
	}
	return all
}

// silence has a function neither master the bus, which messages of interrupts need too, nor
// raise an interrupt line, and makes sure of it.
func (f *function) silence() error {
	const status = 0xffff << 16 // its bits are cleared by writing ones
	f.store(pciCommand, (f.load(pciCommand)&^(status|commandMaster))|commandNoINTx)
	if got := f.load(pciCommand); got&commandMaster != 0 {
		return fmt.Errorf("PCI function %v still may write to memory", f)
	}
	return nil
}

// Silence takes the bus from all PCI functions of a segment: what was written to memory by
// then is there when it returns, and nothing follows. Devices behind bridges are reset.
func Silence(s Segment) (err error) {
	all, done, err := functions(s)
	if err != nil {
		return fmt.Errorf("silence devices: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	for _, f := range all {
		if err := f.silence(); err != nil {
			return fmt.Errorf("silence devices: %w", err)
		}
	}
	var reset []*function
	for _, f := range all {
		if f.header&^headerMany == headerBridge && behind(f, all) {
			f.store(pciBridgeControl, f.load(pciBridgeControl)|bridgeReset)
			reset = append(reset, f)
		}
	}
	if len(reset) == 0 {
		return nil
	}
	time.Sleep(2 * time.Millisecond) // at least 1 ms (PCI Express Base 5.0, 7.5.1.3.13)
	for _, f := range reset {
		f.store(pciBridgeControl, f.load(pciBridgeControl)&^bridgeReset)
	}
	time.Sleep(100 * time.Millisecond) // until they may be asked (6.6.1)
	return nil
}

// behind says whether anything answers behind a bridge.
func behind(b *function, all []*function) bool {
	for _, f := range all {
		if int(b.secondaryBuses[0]) <= f.bus && f.bus <= int(b.secondaryBuses[1]) && b.secondaryBuses[0] > 0 {
			return true
		}
	}
	return false
}
