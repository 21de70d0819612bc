package metal

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Registers of a PCI function's configuration space (PCI Local Bus 3.0, 6.1; PCI Express
// Base 5.0, 7.5), bytes.
const (
	pciVendor        = 0x00
	pciCommand       = 0x04
	pciClass         = 0x08 // the upper half, with the class and the subclass
	pciHeaderType    = 0x0c // the third byte
	pciBridgeControl = 0x3c // the upper half
	pciSecondary     = 0x18 // primary, secondary, subordinate bus

	commandMaster = 1 << 2
	commandNoINTx = 1 << 10
	headerBridge  = 1
	headerMany    = 0x80
	bridgeReset   = 1 << 22 // of the word at pciBridgeControl
)

// Classes of functions whose bus mastering may stay on whatever is written to the register: they write only for
// other functions, which are silenced themselves (PCI Code and ID Assignment 1.11, 1.7).
const (
	classHost = 0x0600 // bridge from the CPUs
	classISA  = 0x0601
)

// space is the configuration space of a bus. Offsets are in bytes.
type space interface {
	load32(off int) uint32
	store32(off int, v uint32)
}

// function is a PCI function's configuration space.
type function struct {
	space          // of its bus
	bus, dev, num  int
	offset         int
	header         byte
	secondaryBuses [2]byte // secondary and subordinate, of a bridge
}

func (f *function) String() string { return fmt.Sprintf("%02x:%02x.%d", f.bus, f.dev, f.num) }

func (f *function) load(reg int) uint32 { return f.load32(f.offset + reg) }

func (f *function) store(reg int, v uint32) { f.store32(f.offset+reg, v) }

// functions returns the functions of a segment that answer: on the first buses, on the buses behind their
// bridges, and so on. roots are the first buses of the segment's host bridges.
func functions(s Segment, roots []byte) (all []*function, done func() error, err error) {
	var windows []*window
	done = func() error {
		var errs []error
		for _, w := range windows {
			errs = append(errs, w.Close())
		}
		return errors.Join(errs...)
	}
	var seen [256]bool
	for queue := roots; len(queue) > 0; queue = queue[1:] {
		bus := queue[0]
		if seen[bus] || bus < s.FirstBus || bus > s.LastBus {
			continue
		}
		seen[bus] = true
		at := s.Base + uint64(bus)<<20
		w, err := mapPhysical(Range{at, at + 1<<20})
		if err != nil {
			return nil, nil, errors.Join(err, done())
		}
		windows = append(windows, w)
		for dev := range 32 {
			for _, f := range functionsOf(w, int(bus), dev) {
				all = append(all, f)
				queue = append(queue, f.behind()...)
			}
		}
	}
	return all, done, nil
}

func functionsOf(s space, bus, dev int) (all []*function) {
	for num := range 8 {
		f := &function{space: s, bus: bus, dev: dev, num: num, offset: dev<<15 | num<<12}
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

// silence keeps a function from mastering the bus, which message-signaled interrupts need too, and from raising
// an interrupt line. It makes sure that bus mastering is off.
func (f *function) silence() error {
	const status = 0xffff << 16 // its bits are cleared by writing ones
	f.store(pciCommand, (f.load(pciCommand)&^(status|commandMaster))|commandNoINTx)
	class := f.load(pciClass) >> 16
	if got := f.load(pciCommand); got&commandMaster != 0 && class != classHost && class != classISA {
		return fmt.Errorf("PCI function %v, of class %04x, still may write to memory", f, class)
	}
	return nil
}

// Silence takes the bus from all PCI functions of a segment. When it returns, all that they had written is in
// memory, and nothing follows. Devices behind bridges are reset; mute names those that do not answer after it.
func Silence(s Segment, roots []byte) (mute []string, err error) {
	all, done, err := functions(s, roots)
	if err != nil {
		return nil, fmt.Errorf("silence devices: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := silence(all); err != nil {
		return nil, fmt.Errorf("silence devices: %w", err)
	}
	return reset(all), nil
}

// silence silences functions, those behind a bridge before the bridge itself: a bridge that may not master the
// bus answers requests from behind it with an error (PCI Express Base 5.0, 7.5.1.1.3), for which a server's
// firmware may reset the machine.
func silence(all []*function) error {
	for _, f := range slices.Backward(all) {
		if err := f.silence(); err != nil {
			return err
		}
	}
	return nil
}

// readyLimit is how long a device may take to answer after its reset, as in Linux (drivers/pci/pci.c,
// PCIE_RESET_READY_POLL_MS). settle is how long it takes after that until what is behind the device answers
// (PCI Express Base 5.0, 6.6.1: 100 ms from the end of its link's training).
const (
	readyLimit = 60 * time.Second
	settle     = 100 * time.Millisecond
)

// reset resets the devices that answer behind bridges, and waits until they answer again: the kernel looks for
// devices only once. mute names those that do not answer.
func reset(all []*function) (mute []string) {
	var reset []*function // the outermost bridges: their reset resets all that is behind them, which must not be accessed meanwhile
	for _, f := range all {
		inner := slices.ContainsFunc(reset, func(b *function) bool { return slices.Contains(b.behind(), byte(f.bus)) })
		if !inner && f.resets(all) {
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
	time.Sleep(settle)
	end := time.Now().Add(readyLimit)
	for _, f := range below(reset, all) {
		if !awaitFor(time.Until(end), f.answers) {
			mute = append(mute, f.String())
		}
	}
	time.Sleep(settle)
	return mute
}

// below returns the devices directly behind bridges that were reset. A bridge among them has lost its bus
// numbers, and nothing behind it can be accessed.
func below(reset, all []*function) (devices []*function) {
	for _, f := range all {
		if f.num == 0 && slices.ContainsFunc(reset, func(b *function) bool { return byte(f.bus) == b.secondaryBuses[0] }) {
			devices = append(devices, f)
		}
	}
	return devices
}

// answers says whether a device is there, and ready: vendor ID 1 means that it is not ready yet (PCI Express
// Base 5.0, 2.3.2).
func (f *function) answers() bool {
	vendor := f.load(pciVendor) & 0xffff
	return vendor != 0xffff && vendor != 0x0001
}

// behind returns the buses behind a bridge. There are none behind another function.
func (f *function) behind() []byte {
	var buses []byte
	if f.header&^headerMany == headerBridge && f.secondaryBuses[0] > byte(f.bus) {
		for bus := int(f.secondaryBuses[0]); bus <= int(f.secondaryBuses[1]); bus++ {
			buses = append(buses, byte(bus))
		}
	}
	return buses
}

// resets says whether anything answers behind a bridge, where the bridge's reset would reach it.
func (f *function) resets(all []*function) bool {
	buses := f.behind()
	return slices.ContainsFunc(all, func(o *function) bool { return slices.Contains(buses, byte(o.bus)) })
}

// The list of capabilities in a configuration space of pciConfigSize bytes (PCI Local Bus 3.0, 6.7): whether
// there is a list, where it begins, and the numbers of two capabilities.
const (
	pciConfigSize   = 256
	pciStatus       = 0x06
	statusList      = 1 << 4
	pciCapabilities = 0x34
	pciHeaderSize   = 0x40
	capabilityMSI   = 0x05
	capabilityMSIX  = 0x11
)

// messages says whether a function with that configuration space can raise message-signaled interrupts.
func messages(b []byte) bool {
	next := int(b[pciCapabilities] &^ 3)
	if b[pciStatus]&statusList == 0 {
		return false
	}
	for range (pciConfigSize - pciHeaderSize) / 4 { // no more fit, unless the list is circular
		if next < pciHeaderSize {
			return false
		}
		if id := b[next]; id == capabilityMSI || id == capabilityMSIX {
			return true
		}
		next = int(b[next+1] &^ 3)
	}
	return false
}
