package metal

import (
	"errors"
	"fmt"
	"time"
)

// parkLimit is how long a CPU may take to say that it is parked. It only bounds what hangs.
const parkLimit = 2 * time.Second

// Fence takes the other kernel's CPUs out, and then its devices off the bus. nmiEntry is
// the physical address of what that kernel's boot CPU runs at an NMI. It fails if any CPU
// does not say that it runs our code now: then the other kernel may still write.
func (s *Self) Fence(nmiEntry uint64) error {
	a, err := openAPIC(s.Config.APIC)
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	defer a.Close()
	if err := s.parkOthers(a); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := s.parkBoot(a, nmiEntry); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	for _, g := range s.Config.Segments {
		if err := Silence(g); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
	}
	return nil
}

// parkOthers parks the application CPUs, by INIT and a start in our code.
func (s *Self) parkOthers(a apic) error {
	at := s.reservation.Low.Start + lowPark
	page, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return err
	}
	defer page.Close()
	copy(page.data, park()) // the dead kernel may have written there
	for _, cpu := range s.Config.Others {
		if cpu == s.Config.BootCPU {
			return errors.New("the machine's boot CPU is among the others: an INIT would reset the machine")
		}
		if err := a.start(cpu, byte(at>>12)); err != nil {
			return err
		}
	}
	for _, cpu := range s.Config.Others {
		if !await(func() bool { return page.data[parkFlags+cpu] == 1 }) {
			return fmt.Errorf("the CPU with APIC number %d does not stop", cpu)
		}
	}
	return nil
}

// parkBoot parks the boot CPU, by an NMI into our code.
func (s *Self) parkBoot(a apic, entry uint64) error {
	code, flag := nmiPark()
	w, err := mapPhysical(Range{entry, entry + uint64(len(code))})
	if err != nil {
		return err
	}
	defer w.Close()
	copy(w.data, code)
	if err := a.send(s.Config.BootCPU, icrNMI); err != nil {
		return err
	}
	parked := func() bool {
		b := w.data[flag:]
		return uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24 == nmiParked
	}
	if !await(parked) {
		return errors.New("the machine's boot CPU takes no NMI: it may still run the dead kernel")
	}
	return nil
}

func await(done func() bool) bool {
	for end := time.Now().Add(parkLimit); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		if done() {
			return true
		}
	}
	return done()
}

// Reveal shows PCI to the understudy's own kernel, which finds and drives its devices from
// then on. Only what is fenced may be revealed.
func (s *Self) Reveal() error {
	s.status.store32(statusReveal, 1)
	return evaluate()
}
