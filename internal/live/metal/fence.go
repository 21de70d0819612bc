package metal

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// parkLimit is how long a CPU may take to report that it is parked. It only bounds a hang.
const parkLimit = 10 * time.Second

// Park takes the other kernel's CPUs out of that kernel. virtual and physical are the addresses of
// the code that its boot CPU runs at an NMI. Park fails unless every CPU reports that it runs our
// code now: otherwise the other kernel may still write.
func (s *Self) Park(virtual, physical uint64) error {
	a, err := openAPIC(s.Config.APIC)
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	defer a.Close()
	if slices.Contains(s.Config.Others, s.Config.BootCPU) {
		return errors.New("fence: the machine's boot CPU is among the CPUs to park by INIT, which would reset the machine")
	}
	if err := park(s.reservation, s.Config.APIC, s.Config.Others); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if !s.Config.Parked {
		if err := s.parkBoot(a, nmiHandler{virtual, physical}); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
	}
	return nil
}

// Silence takes the other kernel's devices off the bus, once its CPUs are parked. mute names the
// devices that do not answer any more.
func (s *Self) Silence() (mute []string, err error) {
	for _, g := range s.Config.Segments {
		more, err := Silence(g, s.Config.roots(g.Group))
		if err != nil {
			return nil, fmt.Errorf("fence: %w", err)
		}
		mute = append(mute, more...)
	}
	return mute, nil
}

// park parks CPUs, by INIT and a start in our code, and makes sure that they run it. The machine's
// boot CPU must not be among them: an INIT to it resets the machine.
func park(r Reservation, apicAt uint64, cpus []uint32) error {
	at := r.Low.Start + lowPark
	page, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return err
	}
	defer page.Close()
	copy(page.data, parkCode(uint32(at))) // with no CPU there yet
	a, err := openAPIC(apicAt)
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.start(byte(at>>12), cpus...); err != nil {
		return err
	}
	for _, cpu := range cpus {
		if !await(func() bool { return page.load8(parkFlags+int(cpu)) == 1 }) {
			return fmt.Errorf("the CPU with APIC number %d does not stop", cpu)
		}
	}
	return nil
}

// nmiPeriod is how long an NMI may take to have its effect before another is sent: the first may have
// come while that CPU ran a KVM guest, and KVM takes it in a way of its own (vmx_do_nmi_irqoff,
// arch/x86/kvm/vmx/vmenter.S). A CPU that is parked takes no further NMIs.
const nmiPeriod = 100 * time.Millisecond

// parkBoot parks the boot CPU, by an NMI that takes it into a cell of ours.
func (s *Self) parkBoot(a apic, h nmiHandler) error {
	at := s.reservation.Low.Start + lowCell
	c, err := newCell(uint32(at), h)
	if err != nil {
		return err
	}
	if err := write([]Piece{{at, c.page}, {at + pageBytes, c.root.b}, {h.physical, c.nmi}}); err != nil {
		return err
	}
	page, err := mapPhysical(Range{at, at + pageBytes})
	if err != nil {
		return err
	}
	defer page.Close()
	for range int(parkLimit / nmiPeriod) {
		if err := a.send(s.Config.BootCPU, icrNMI); err != nil {
			return err
		}
		if awaitFor(nmiPeriod, func() bool { return page.load32(cellParked) == parkedBoot }) {
			return nil
		}
	}
	return errors.New("the machine's boot CPU takes no NMI: it may still run the dead kernel")
}

func await(done func() bool) bool { return awaitFor(parkLimit, done) }

func awaitFor(limit time.Duration, done func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
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
