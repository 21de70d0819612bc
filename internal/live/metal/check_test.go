package metal

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// fakeKernel is a Running for the tests. It has only variables that are also read from a real kernel.
type fakeKernel struct {
	words map[string]uint32
	longs map[string]uint64
	ldr   uint32
	err   error
	mem   error
}

func (k fakeKernel) Memory() error { return k.mem }

func (k fakeKernel) Word(symbol string) (uint32, error) {
	v, ok := k.words[symbol]
	if !ok || !slices.Contains(wanted, symbol) {
		return 0, fs.ErrNotExist
	}
	return v, nil
}

func (k fakeKernel) Long(symbol string) (uint64, error) {
	v, ok := k.longs[symbol]
	if !ok || !slices.Contains(wanted, symbol) {
		return 0, fs.ErrNotExist
	}
	return v, nil
}

func (k fakeKernel) LogicalAPIC(uint64) (uint32, error) { return k.ldr, k.err }

func TestCheck(t *testing.T) {
	const good = "quiet iomem=relaxed no_ipi_broadcast=1 " + reserved + "\n"
	words := map[string]uint32{"x2apic_mode": 0, "irq_remapping_enabled": 0}
	for _, c := range []struct {
		name  string
		files map[string]string
		k     fakeKernel
		unfit []string
	}{
		{"fit", nil, fakeKernel{words: words}, nil},
		{"not installed", map[string]string{"proc/cmdline": "quiet\n", "proc/iomem": iomem}, fakeKernel{words: words}, []string{"memory", "IPI broadcast"}},
		{"not relaxed", map[string]string{"proc/cmdline": "no_ipi_broadcast=1 " + reserved + "\n"}, fakeKernel{words: words}, []string{"memory"}},
		{"memmap= forgotten", map[string]string{"proc/iomem": iomem}, fakeKernel{words: words}, []string{"memory"}},
		{"much unsaved", map[string]string{"proc/sys/vm/dirty_bytes": "2000000000\n"}, fakeKernel{words: words}, []string{"unsaved data"}},
		{"much memory", map[string]string{"proc/iomem": iomemReserved + "1000000000-4fffffffff : System RAM\n", "proc/sys/vm/dirty_bytes": "900000000\n"}, fakeKernel{words: words}, []string{"unsaved data"}},
		{"much memory and little unsaved", map[string]string{"proc/iomem": iomemReserved + "1000000000-4fffffffff : System RAM\n", "proc/sys/vm/dirty_bytes": "500000000\n"}, fakeKernel{words: words}, nil},
		{"more memory than can be mapped", map[string]string{"proc/iomem": iomemReserved + "10000000000-1ffffffffff : System RAM\n", "proc/sys/vm/dirty_bytes": "100000\n"}, fakeKernel{words: words}, []string{"unsaved data"}},
		{"no CPU left", map[string]string{"proc/cpuinfo": cpuinfo + "apicid : 4\napicid : 6\n"}, fakeKernel{words: words}, []string{"CPUs"}},
		{"locked down", map[string]string{"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, fakeKernel{words: words}, []string{"lockdown"}},
		{"locked down, unseen", nil, fakeKernel{words: words, mem: fs.ErrPermission}, []string{"lockdown"}},
		{"open", map[string]string{"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, fakeKernel{words: words}, nil},
		{"x2APIC", nil, fakeKernel{words: map[string]uint32{"x2apic_mode": 1}}, []string{"APIC"}},
		{"nothing to be seen", nil, fakeKernel{}, []string{"APIC"}},
		{"logical", nil, fakeKernel{words: words, ldr: 1 << 24}, []string{"interrupts"}},
		{"no APIC", nil, fakeKernel{words: words, err: errors.New("no")}, []string{"interrupts"}},
		{"remapped", nil, fakeKernel{words: map[string]uint32{"x2apic_mode": 0, "irq_remapping_enabled": 1}}, []string{"IOMMU"}},
		{"IOMMU", map[string]string{"sys/class/iommu/dmar0/x": ""}, fakeKernel{words: words}, []string{"IOMMU"}},
		{"encrypted", map[string]string{"proc/cmdline": "mem_encrypt=on " + good}, fakeKernel{words: words}, []string{"memory encryption"}},
		{"encrypted by default", nil, fakeKernel{words: words, longs: map[string]uint64{"sme_me_mask": 0, "cc_mask": 1 << 47}}, []string{"memory encryption"}},
		{"encrypted by default, before 5.19", nil, fakeKernel{words: words, longs: map[string]uint64{"sme_me_mask": 1 << 47}}, []string{"memory encryption"}},
		{"could be encrypted", nil, fakeKernel{words: words, longs: map[string]uint64{"sme_me_mask": 0, "cc_mask": 0}}, nil},
		{"virtual functions", map[string]string{"sys/devices/pci0000:00/0000:00:01.0/sriov_numvfs": "2\n"}, fakeKernel{words: words}, []string{"virtual functions"}},
		{"no virtual functions", map[string]string{"sys/devices/pci0000:00/0000:00:01.0/sriov_numvfs": "0\n"}, fakeKernel{words: words}, nil},
		{"kdump", map[string]string{"sys/kernel/kexec_crash_loaded": "1\n"}, fakeKernel{words: words}, []string{"kdump"}},
		{"kdump after all", map[string]string{"sys/module/kernel/parameters/crash_kexec_post_notifiers": "Y\n"}, fakeKernel{words: words}, []string{"kdump"}},
		{"kdump before", map[string]string{"sys/module/kernel/parameters/crash_kexec_post_notifiers": "N\n"}, fakeKernel{words: words}, nil},
		{"panic", map[string]string{"proc/sys/kernel/panic": "10\n"}, fakeKernel{words: words}, []string{"panic"}},
		{"kexec", map[string]string{"sys/kernel/kexec_loaded": "1\n"}, fakeKernel{words: words}, []string{"kexec"}},
		{"no kexec", map[string]string{"sys/kernel/kexec_loaded": "0\n"}, fakeKernel{words: words}, nil},
		{"hard lockup", map[string]string{"proc/sys/kernel/hardlockup_panic": "1\n", "proc/sys/kernel/unknown_nmi_panic": "0\n"}, fakeKernel{words: words}, []string{"panic by NMI"}},
		{"no hard lockup", map[string]string{"proc/sys/kernel/hardlockup_panic": "0\n"}, fakeKernel{words: words}, nil},
		{"button", map[string]string{"proc/sys/kernel/unknown_nmi_panic": "1\n"}, fakeKernel{words: words}, []string{"panic by NMI"}},
		{"watchdog", map[string]string{"sys/class/watchdog/watchdog0/state": "active\n"}, fakeKernel{words: words}, []string{"watchdogs"}},
		{"idle watchdog", map[string]string{"sys/class/watchdog/watchdog0/state": "inactive\n"}, fakeKernel{words: words}, nil},
		{"watchdog without a state", map[string]string{"sys/class/watchdog/watchdog0/dev": "248:0\n"}, fakeKernel{words: words}, []string{"watchdogs"}},
		{"idle watchdog of two names", map[string]string{"sys/class/watchdog/watchdog0/state": "inactive\n", "sys/class/misc/watchdog/dev": "10:130\n"}, fakeKernel{words: words}, nil},
		{"watchdog of another kind", map[string]string{"sys/class/misc/watchdog/dev": "10:130\n"}, fakeKernel{words: words}, []string{"watchdogs"}},
		{"watchdog of IPMI", map[string]string{"sys/module/ipmi_watchdog/refcnt": "0\n"}, fakeKernel{words: words}, []string{"watchdogs"}},
		{"FRED", map[string]string{"proc/cmdline": "fred=on " + good}, fakeKernel{words: words}, []string{"NMI"}},
		{"FRED by default", map[string]string{"proc/cpuinfo": cpuinfo + "flags\t\t: fpu fred lkgs\n"}, fakeKernel{words: words}, []string{"NMI"}},
		{"no clock", map[string]string{clocks: "hpet acpi_pm \n"}, fakeKernel{words: words}, []string{"TSC"}},
		{"a clock that stops", map[string]string{"proc/cpuinfo": strings.Replace(cpuinfo, "nonstop_tsc", "", 1)}, fakeKernel{words: words}, []string{"TSC"}},
		{"a clock that changes", map[string]string{"proc/cpuinfo": strings.Replace(cpuinfo, "constant_tsc", "", 1)}, fakeKernel{words: words}, []string{"TSC"}},
		{"a virtual machine's clock", map[string]string{"proc/cpuinfo": strings.Replace(cpuinfo, steady, "flags : hypervisor\n", 1), clocks: "kvm-clock \n"}, fakeKernel{words: words}, nil},
		{"KVM", map[string]string{"proc/cpuinfo": cpuinfo + "flags\t\t: fpu vmx\n", "sys/module/kvm_intel/refcnt": "0\n"}, fakeKernel{words: words}, []string{"hypervisor"}},
		{"KVM of AMD", map[string]string{"proc/cpuinfo": cpuinfo + "flags\t\t: fpu svm\n", "sys/module/kvm_amd/refcnt": "0\n"}, fakeKernel{words: words}, nil},
		{"KVM not loaded", map[string]string{"proc/cpuinfo": cpuinfo + "flags\t\t: fpu vmx\n"}, fakeKernel{words: words}, nil},
		{"no PC", map[string]string{acpiDir + "APIC": ""}, fakeKernel{words: words}, []string{"machine"}},
	} {
		files := root(map[string]string{"proc/cmdline": good})
		files["sys/bus/pci/devices/0000:00:01.0"] = link("../../../devices/pci0000:00/0000:00:01.0")
		for name, text := range c.files {
			files[name] = &fstest.MapFile{Data: []byte(text)}
		}
		var unfit []string
		for _, f := range Unfit(Check(files, c.k)) {
			unfit = append(unfit, f.What)
			if f.Advice == "" {
				t.Errorf("%s: %s has no advice", c.name, f.What)
			}
		}
		if !slices.Equal(unfit, c.unfit) {
			t.Errorf("%s: unfit are %v, not %v", c.name, unfit, c.unfit)
		}
	}
}

// TestGiven: memory that the firmware now uses for itself is not the understudy's, whatever memmap= says.
func TestGiven(t *testing.T) {
	for _, c := range []struct{ name, kind, end, wrong string }{
		{"as it was", "System RAM", "0x7ffdffff", ""},
		{"a hole", "System RAM", "0x7bffffff", "0x7be00000-0x7fe00000"},
		{"firmware's own", "Reserved", "0x7ffdffff", "0x20000-0x60000"},
		{"no number", "System RAM", "x", "invalid syntax"},
	} {
		files := root(map[string]string{"proc/cmdline": "iomem=relaxed no_ipi_broadcast=1 " + reserved + "\n"})
		for i, r := range []struct{ start, end, kind string }{
			{"0x0", "0x9fbff", c.kind}, {"0x100000", "0x3fffffff", "System RAM"}, {"0x40000000", c.end, "System RAM"},
			{"0x7ffe0000", "0x7fffffff", "Reserved"}, {"0x100000000", "0x17fffffff", "System RAM"},
		} {
			at := "sys/firmware/memmap/" + strconv.Itoa(i)
			files[at+"/start"], files[at+"/end"], files[at+"/type"] = file(r.start+"\n"), file(r.end+"\n"), file(r.kind+"\n")
		}
		m, err := Look(files)
		if err != nil {
			t.Fatal(err)
		}
		got := m.Check(files, fakeKernel{})[1]
		if got.What != "memory" || got.Fit != (c.wrong == "") || !strings.Contains(got.Detail, c.wrong) {
			t.Errorf("%s: %+v", c.name, got)
		}
		m.reserved = new(Reservation) // as after a takeover by an understudy, whose memory map is of our own making
		if *m.reserved, err = ParseReservation(reserved); err != nil {
			t.Fatal(err)
		}
		if got := m.Check(files, fakeKernel{})[1]; !got.Fit {
			t.Errorf("%s, again: %+v", c.name, got)
		}
	}
}

// TestStill: a machine that becomes unfit, or gets another CPU or more memory, after an understudy was
// started ends that understudy.
func TestStill(t *testing.T) {
	k := fakeKernel{words: map[string]uint32{"x2apic_mode": 0, "irq_remapping_enabled": 0}}
	for _, c := range []struct{ name, file, text, wrong string }{
		{"as it was", "proc/loadavg", "", ""},
		{"a CPU out", "proc/cpuinfo", "apicid : 0\n" + steady, ""},
		{"another CPU", "proc/cpuinfo", "apicid : 0\napicid : 2\napicid : 4\n" + steady, "APIC number 4"},
		{"more memory", "proc/iomem", iomemReserved + "200000000-27fffffff : System RAM\n", "memory has changed"},
		{"kdump", "sys/kernel/kexec_crash_loaded", "1\n", "kdump"},
		{"kexec -l", "sys/kernel/kexec_loaded", "1\n", "kexec"},
		{"no PC", acpiDir + "APIC", "", "APIC"},
	} {
		files := root(map[string]string{"proc/cmdline": "iomem=relaxed no_ipi_broadcast=1 " + reserved + "\n"})
		m, err := Look(files)
		if err != nil {
			t.Fatal(err)
		}
		files[c.file] = file(c.text)
		now, err := Look(files)
		if err == nil {
			err = m.Still(now, files, k)
		}
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
