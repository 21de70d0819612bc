package metal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Finding is one thing about a machine that an understudy beside its kernel depends on.
type Finding struct {
	What   string `json:"what"`
	Fit    bool   `json:"fit"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"` // what to do if it is not fit
}

// Running answers what must be asked of the running kernel and its CPU, and is in no file.
type Running interface {
	// Word returns the value of a 32-bit variable of the kernel.
	Word(symbol string) (uint32, error)
	// Long returns the value of a 64-bit variable of the kernel.
	Long(symbol string) (uint64, error)
	// LogicalAPIC returns the logical destination register of this CPU's local APIC, or an error if it cannot
	// be read.
	LogicalAPIC(apic uint64) (uint32, error)
	// Memory returns why physical memory cannot be opened for writing, or nil if it can.
	Memory() error
}

// Check returns the findings that decide whether this machine is fit to start an understudy now, in a stable
// order. root is os.DirFS("/").
func Check(root fs.FS, k Running) []Finding {
	m, err := Look(root)
	if err != nil {
		return []Finding{{What: "machine", Detail: err.Error(), Advice: "Run this as root, on a PC whose firmware has ACPI tables and PCI Express."}}
	}
	return m.Check(root, k)
}

// Check is the function Check for a machine that Look has read already.
func (m *Machine) Check(root fs.FS, k Running) []Finding {
	c := &checker{root: root, kernel: k, machine: m}
	c.lockdown()
	reserved := c.memory()
	if reserved {
		c.unsaved()
	}
	c.cpus()
	c.x2APIC()
	c.destinations(reserved)
	c.broadcast()
	c.iommu()
	c.pci()
	c.virtualFunctions()
	c.encryption()
	c.kdump()
	c.kexec()
	c.panic()
	c.watchdogs()
	c.fred()
	c.tsc()
	c.hypervisor()
	return c.found
}

// Still returns why an understudy that was started on machine m must not go on, given what the machine says
// now: it is not fit any more, or its kernel has CPUs or memory that the understudy was not told of, and would
// neither stop nor read. CPUs that were taken offline may come back.
func (m *Machine) Still(now *Machine, root fs.FS, k Running) error {
	if unfit := Unfit(now.Check(root, k)); len(unfit) > 0 {
		return &Refused{unfit}
	}
	for _, id := range now.Online {
		if !slices.Contains(m.Online, id) {
			return fmt.Errorf("the running kernel has brought one more CPU online since the understudy was started, with APIC number %d: start the understudy again", id)
		}
	}
	if !slices.Equal(Memory(now.Resources), Memory(m.Resources)) {
		return errors.New("the running kernel's memory has changed since the understudy was started (/proc/iomem): start the understudy again")
	}
	return nil
}

// Unfit returns the findings that forbid a start.
func Unfit(all []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f Finding) bool { return f.Fit })
}

type checker struct {
	root    fs.FS
	kernel  Running
	machine *Machine
	found   []Finding
}

const (
	adviceInstall = "Run understudy metal install, and boot again."
	adviceBoot    = "Boot with "
)

func (c *checker) add(what string, fit bool, advice, format string, args ...any) {
	f := Finding{What: what, Fit: fit, Detail: fmt.Sprintf(format, args...)}
	if !fit {
		f.Advice = advice
	}
	c.found = append(c.found, f)
}

// parameter says whether a word is on the running kernel's command line.
func (c *checker) parameter(word string) bool {
	return slices.Contains(strings.Fields(c.machine.Cmdline), word)
}

// lockdown checks that the kernel is not locked down (Documentation/admin-guide/kernel-parameters.txt,
// lockdown=). The file is there only where securityfs is mounted; opening /dev/mem shows it in any case.
func (c *checker) lockdown() {
	b, err := fs.ReadFile(c.root, "sys/kernel/security/lockdown")
	locked := err == nil && !strings.Contains(string(b), "[none]")
	detail := pick(locked, "this kernel is locked down, which forbids /dev/mem", "this kernel is not locked down")
	if err := c.kernel.Memory(); err != nil {
		locked, detail = true, fmt.Sprintf("this kernel may be locked down: %v", err)
	}
	c.add("lockdown", !locked, "Turn Secure Boot off in the firmware, or boot without lockdown=; run this as root.", "%s", detail)
}

// pick is a if yes, else b.
func pick(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

func (c *checker) memory() bool {
	r, err := c.machine.Reservation()
	if err == nil {
		err = r.Left(c.machine.Resources)
	}
	if err == nil && c.machine.reserved == nil {
		err = r.given(c.root)
	}
	if err != nil {
		c.add("memory", false, adviceInstall, "%v", err)
		return false
	}
	if !c.parameter("iomem=relaxed") {
		c.add("memory", false, adviceInstall, "iomem=relaxed is missing: /dev/mem does not show the local APIC")
		return false
	}
	c.add("memory", true, "", "%d MiB are the understudy's", r.High.Len()>>20)
	return true
}

// takeoverNeeds is how much memory an understudy needs besides what it gathers, in bytes.
const takeoverNeeds = 400 << 20

// entryBytes is how many bytes of page tables each page of the other kernel's memory costs an understudy, which
// maps all of that memory in pages of 4 KiB (mm/memory.c, remap_pfn_range).
const entryBytes = 8

// room is how much data may be unsaved in the running kernel beside an understudy with that reservation, in
// bytes.
func (m *Machine) room(r Reservation) uint64 {
	needs := takeoverNeeds + m.memory()/pageBytes*entryBytes
	return r.High.Len() - min(needs, r.High.Len())
}

// memory is how much memory the running kernel has, in bytes.
func (m *Machine) memory() (all uint64) {
	for _, m := range Memory(m.Resources) {
		all += m.Len()
	}
	return all
}

// unsaved is how much data the running kernel may leave unsaved, in bytes
// (Documentation/admin-guide/sysctl/vm.rst, dirty_bytes, dirty_ratio).
func (m *Machine) unsaved(root fs.FS) uint64 {
	number := func(name string) uint64 {
		b, _ := fs.ReadFile(root, "proc/sys/vm/"+name) // without the file it is zero
		v, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		return v
	}
	if most := number("dirty_bytes"); most > 0 {
		return most
	}
	return m.memory() / 100 * number("dirty_ratio")
}

// unsaved checks that the understudy has room for what the kernel may leave unsaved: all of it passes through
// the understudy's memory.
func (c *checker) unsaved() {
	most := c.machine.unsaved(c.root)
	r, err := c.machine.Reservation()
	if err != nil {
		return // said already
	}
	room := c.machine.room(r)
	advice := fmt.Sprintf("Set vm.dirty_bytes to at most %d, or give the understudy more memory.", room)
	if room == 0 {
		advice = "Give the understudy more memory: metal install --memory, after metal remove and a boot."
	}
	c.add("unsaved data", most > 0 && most <= room, advice,
		"this kernel leaves up to %d MiB unsaved, and the understudy has room for %d MiB", most>>20, room>>20)
}

func (c *checker) cpus() {
	free := len(c.machine.Free())
	c.add("CPUs", free > 0, adviceInstall, "%d are free for the understudy, %d are this kernel's", free, len(c.machine.Online))
}

// x2APIC checks that the APIC is not in x2APIC mode, in which its command register is an MSR, and not where we
// write (arch/x86/kernel/apic/apic.c, x2apic_mode).
func (c *checker) x2APIC() {
	on, err := c.kernel.Word("x2apic_mode")
	switch {
	case err != nil:
		c.add("APIC", false, "Boot with sysctl.kernel.kptr_restrict=0, on a kernel with /proc/kcore.", "whether it is in x2APIC mode cannot be seen: %v", err)
	default:
		c.add("APIC", on == 0, adviceBoot+"nox2apic.", "%s", pick(on == 0, "xAPIC mode", "x2APIC mode is not supported yet"))
	}
}

// destinations checks that APIC destinations are physical. In logical flat mode the kernel gives each CPU a bit
// of the logical destination register (arch/x86/kernel/apic/apic_flat_64.c), and the understudy would use the
// same bits; in physical mode it leaves the register at zero, as it is after a reset.
func (c *checker) destinations(reserved bool) {
	if !reserved {
		return // the register cannot be read yet
	}
	ldr, err := c.kernel.LogicalAPIC(c.machine.Processors.APIC)
	if err != nil {
		c.add("interrupts", false, adviceBoot+"iomem=relaxed.", "the local APIC cannot be read: %v", err)
		return
	}
	c.add("interrupts", ldr == 0, adviceBoot+"possible_cpus=9 or more, of a kernel that goes by it (up to 6.8).",
		"%s", pick(ldr == 0, "physical APIC destinations", "logical APIC destinations: those of one kernel would reach the other"))
}

// broadcast checks that IPIs are not broadcast (arch/x86/kernel/apic/ipi.c).
func (c *checker) broadcast() {
	off := c.parameter("no_ipi_broadcast=1")
	c.add("IPI broadcast", off, adviceInstall, "%s", pick(off, "off", "on: a panic of this kernel would stop the understudy's CPUs"))
}

// iommu checks that no IOMMU is on: an understudy has no DMAR or IVRS table, and cannot program one.
func (c *checker) iommu() {
	const advice = adviceBoot + "intel_iommu=off amd_iommu=off intremap=off."
	units, _ := fs.ReadDir(c.root, "sys/class/iommu") // none: no such directory
	if len(units) > 0 {
		c.add("IOMMU", false, advice, "%d units translate what devices write", len(units))
		return
	}
	on, err := c.kernel.Word("irq_remapping_enabled")
	remapped := err == nil && on != 0
	c.add("IOMMU", !remapped, advice, "%s", pick(remapped, "interrupts are remapped", "off"))
}

// virtualFunctions checks that there are none: they do not answer a scan of the bus, and may write to memory
// for as long as their own configuration allows it (PCI Express Base 5.0, 9.3.4.1.2;
// Documentation/ABI/testing/sysfs-bus-pci, sriov_numvfs).
func (c *checker) virtualFunctions() {
	files, _ := fs.Glob(c.root, "sys/bus/pci/devices/*/sriov_numvfs") // the pattern is well-formed
	var on []string
	for _, f := range files {
		if b, err := fs.ReadFile(c.root, f); err != nil || strings.TrimSpace(string(b)) != "0" {
			on = append(on, path.Base(path.Dir(f)))
		}
	}
	c.add("virtual functions", len(on) == 0, "Have none made: write 0 to sriov_numvfs of these devices.",
		"%s", pick(len(on) == 0, "none", strings.Join(on, ", ")+" may have some that cannot be fenced"))
}

// encryption checks that memory encryption is off: with it, the other kernel's memory would read as noise. A
// kernel keeps the address bit that turns encryption on in a variable: sme_me_mask for AMD's
// (arch/x86/mm/mem_encrypt_identity.c), and since 5.19 cc_mask for that of any vendor (arch/x86/coco/core.c). A
// kernel that has neither variable cannot use any encryption. cc_vendor says nothing: since 6.9 it is AMD on
// every CPU of AMD's (arch/x86/kernel/cpu/amd.c, bsp_determine_snp).
func (c *checker) encryption() {
	on := c.parameter("mem_encrypt=on")
	for _, name := range []string{"sme_me_mask", "cc_mask"} {
		mask, err := c.kernel.Long(name)
		on = on || err == nil && mask != 0
	}
	c.add("memory encryption", !on, adviceBoot+"mem_encrypt=off.", "%s", pick(on, "on", "off"))
}

// kdump checks that no crash kernel is loaded (Documentation/ABI/testing/sysfs-kernel-kexec), and that
// crash_kexec_post_notifiers is off (Documentation/admin-guide/kernel-parameters.txt): with it, a panic stops
// the other CPUs as for a crash kernel even if none is loaded (kernel/panic.c), and leaves them inside an NMI,
// where the boot CPU takes no other NMI.
func (c *checker) kdump() {
	b, err := fs.ReadFile(c.root, "sys/kernel/kexec_crash_loaded")
	loaded := err == nil && strings.TrimSpace(string(b)) != "0"
	b, err = fs.ReadFile(c.root, "sys/module/kernel/parameters/crash_kexec_post_notifiers")
	if after := err == nil && strings.TrimSpace(string(b)) != "N"; after && !loaded {
		c.add("kdump", false, adviceBoot+"crash_kexec_post_notifiers=0.", "crash_kexec_post_notifiers is set: a panic would leave the boot CPU where it cannot be stopped")
		return
	}
	c.add("kdump", !loaded, "Unload it: systemctl disable --now kdump-tools.",
		"%s", pick(loaded, "a crash kernel is loaded: it would run in the place of a takeover", "no crash kernel is loaded"))
}

// kexec checks that no kernel is loaded to be started in the place of this one without a reset (kexec -e). Such
// a kernel would be in the middle of its boot when the silence of this one counts as a death, and may use the
// memory that is the understudy's, because its memory map is the firmware's
// (Documentation/ABI/testing/sysfs-kernel-kexec).
func (c *checker) kexec() {
	b, err := fs.ReadFile(c.root, "sys/kernel/kexec_loaded")
	loaded := err == nil && strings.TrimSpace(string(b)) != "0"
	c.add("kexec", !loaded, "Unload it: kexec -u.", "%s", pick(loaded, "another kernel is loaded, to be started in the place of this one", "no other kernel is loaded"))
}

// nmiPanics are the settings that turn an NMI into a panic (Documentation/admin-guide/sysctl/kernel.rst).
var nmiPanics = []string{"hardlockup_panic", "unknown_nmi_panic", "panic_on_unrecovered_nmi", "panic_on_io_nmi"}

// panic checks what a panic does. A kernel that resets the machine some seconds after its panic would reset the
// understudy (Documentation/admin-guide/sysctl/kernel.rst, panic). A panic inside an NMI, such as that of a
// boot CPU that hangs with interrupts off (hardlockup_panic, which some distributions set), leaves that CPU
// where no other NMI stops it. Without such a setting, the silence of that CPU is a death that can be taken
// over from.
func (c *checker) panic() {
	b, err := fs.ReadFile(c.root, "proc/sys/kernel/panic")
	stays := err == nil && strings.TrimSpace(string(b)) == "0"
	c.add("panic", stays, "Set kernel.panic=0.", "%s", pick(stays, "leaves the machine to the understudy", "resets the machine"))
	var on []string
	for _, name := range nmiPanics {
		if b, err := fs.ReadFile(c.root, "proc/sys/kernel/"+name); err == nil && strings.TrimSpace(string(b)) != "0" {
			on = append(on, "kernel."+name)
		}
	}
	c.add("panic by NMI", len(on) == 0, "Set to 0: "+strings.Join(on, ", ")+".",
		"%s", pick(len(on) == 0, "none", strings.Join(on, ", ")+" would leave the boot CPU where it cannot be stopped"))
}

// watchdogs checks that no watchdog is active: one that the dead kernel fed would reset the machine
// (Documentation/ABI/testing/sysfs-class-watchdog). Drivers outside of that class, such as ipmi_watchdog, are
// among the miscellaneous devices only, and do not say whether they are active.
func (c *checker) watchdogs() {
	all, _ := fs.Glob(c.root, "sys/class/watchdog/*") // the pattern is well-formed
	var active []string
	for _, dir := range all {
		if b, err := fs.ReadFile(c.root, dir+"/state"); err != nil || strings.TrimSpace(string(b)) != "inactive" {
			active = append(active, path.Base(dir))
		}
	}
	if _, err := fs.Stat(c.root, "sys/class/misc/watchdog"); err == nil && len(all) == 0 {
		active = append(active, "watchdog")
	}
	if _, err := fs.Stat(c.root, "sys/module/ipmi_watchdog"); err == nil {
		active = append(active, "ipmi_watchdog")
	}
	c.add("watchdogs", len(active) == 0, "Stop whatever feeds them, such as systemd by RuntimeWatchdogSec=, or keep their modules from being loaded, and boot again.",
		"%s", pick(len(active) == 0, "none is active", strings.Join(active, ", ")+" would reset the machine when this kernel is dead, or does not say whether it would"))
}

// fred checks that FRED is off (Documentation/admin-guide/kernel-parameters.txt, fred=): with it, an NMI does
// not go through the interrupt table. A kernel that does not use FRED removes it from the flags of its CPUs.
func (c *checker) fred() {
	cpus, err := fs.ReadFile(c.root, "proc/cpuinfo")
	on := c.parameter("fred=on") || err != nil || slices.Contains(strings.Fields(string(cpus)), "fred")
	c.add("NMI", !on, adviceBoot+"fred=off.", "%s", pick(on, "is delivered by FRED, where it cannot be caught", "goes by the interrupt table"))
}

// hypervisors are the modules that turn VMX on: kvm_intel when a virtual machine runs, and since 6.12
// (enable_virt_at_load, virt/kvm/kvm_main.c) already when it is loaded, and those of VirtualBox and VMware.
var hypervisors = []string{"kvm_intel", "vboxdrv", "vmmon"}

// hypervisor checks that nothing can turn VMX on: a CPU with VMX on ignores an INIT (Intel SDM volume 3,
// "Restrictions on VMX operation"; arch/x86/kernel/reboot.c), and neither a kernel that hangs nor the CPU that
// panics turns it off.
func (c *checker) hypervisor() {
	cpus, err := fs.ReadFile(c.root, "proc/cpuinfo")
	able := err != nil || slices.Contains(strings.Fields(string(cpus)), "vmx")
	loaded := slices.DeleteFunc(slices.Clone(hypervisors), func(name string) bool {
		_, err := fs.Stat(c.root, "sys/module/"+name)
		return err != nil
	})
	fit := !able || len(loaded) == 0
	c.add("hypervisor", fit, adviceBoot+"module_blacklist="+strings.Join(loaded, ",")+", and without virtual machines.",
		"%s", pick(fit, "none that uses VMX", strings.Join(loaded, ", ")+" is loaded: CPUs that it turns VMX on for cannot be stopped"))
}

// Host is the Running of the kernel that runs this program.
type Host struct{}

func (Host) Word(symbol string) (uint32, error) {
	b, err := variable(symbol, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (Host) Long(symbol string) (uint64, error) {
	b, err := variable(symbol, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

const apicLDR = 0x0d0 // Intel SDM volume 3, 11.6.2.2

func (Host) LogicalAPIC(at uint64) (uint32, error) {
	a, err := openAPIC(at)
	if err != nil {
		return 0, err
	}
	ldr := a.load32(apicLDR)
	return ldr, a.Close()
}

func (Host) Memory() error {
	f, err := os.OpenFile("/dev/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Refused says why an understudy is not started.
type Refused struct{ Findings []Finding }

func (r *Refused) Error() string {
	var lines []string
	for _, f := range r.Findings {
		lines = append(lines, fmt.Sprintf("%s: %s. %s", f.What, f.Detail, f.Advice))
	}
	return "this machine is not fit for an understudy (" + strconv.Itoa(len(r.Findings)) + "): " + strings.Join(lines, " ")
}
