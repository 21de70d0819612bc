package libvirtlab

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/initramfs"
)

// Guest is a domain that nobody prepared. At its first boot it leaves much unsaved on two file
// systems, prints what, and panics; at its second, it prints what is there, and ends.
type Guest struct {
	name string
	xml  string
	h    *Host
}

// Memory is where a domain has its memory: an element of its XML, or nothing for libvirt's
// default, which is QEMU's own anonymous memory.
type Memory string

// The kinds of memory that libvirt gives a domain (formatdomain.html, Memory Backing).
const (
	Anonymous Memory = ""
	Memfd     Memory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
	File      Memory = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
)

//go:embed guest.sh
var guestScript string

const busybox = "/bin/busybox"

var applets = []string{"sh", "insmod", "mount", "umount", "cat", "echo", "sync", "sha256sum", "dd", "seq", "mkdir", "poweroff", "head", "mv", "rm", "find", "sort", "xargs", "stat", "sed", "stty"}

// firstSector is where the partition begins, as most installers have it.
const (
	firstSector = 2048
	diskSize    = 64 << 20 // bytes
)

const domainXML = `<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>256</memory>
  %s
  <vcpu>1</vcpu>
  <os><type machine='q35'>hvm</type>
    <kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check random.trust_cpu=on panic=0 %s</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'><feature policy='disable' name='cx16'/><feature policy='disable' name='erms'/><feature policy='disable' name='fsrm'/></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>preserve</on_crash>
  <devices>
    %s
    <serial type='file'><source path='%s' append='on'/></serial>
    <memballoon model='none'/>
    <panic model='isa'/>
  </devices>
</domain>
`

// Guest makes a domain's description and its disks: images of that format, one of them with a partition table.
func (h *Host) Guest(name string, memory Memory, format string) *Guest {
	h.t.Helper()
	g := &Guest{name: name, h: h}
	kernel, modules, err := dirs.Kernel("")
	if err != nil {
		tier.Lacks(h.t, err)
	}
	files := []initramfs.File{
		initramfs.Copy("/bin/busybox", busybox, 0o755),
		initramfs.Text("/etc/inittab", "::sysinit:/etc/rc\n", 0o644),
		initramfs.Text("/etc/rc", guestScript, 0o755),
	}
	for _, a := range applets {
		files = append(files, initramfs.Link("/bin/"+a, "busybox"))
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/first", "/second"} {
		files = append(files, initramfs.File{Path: dir, Mode: os.ModeDir | 0o755})
	}
	initrd := filepath.Join(h.Dir, name+".initrd")
	if err := initramfs.WriteFile(initrd, initramfs.Spec{
		Init: busybox, ModulesDir: modules, Files: files,
		Modules: []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "pvpanic-mmio"},
	}); err != nil {
		h.t.Fatal(err)
	}
	// libvirt changes the owner of the files that a domain boots.
	own := filepath.Join(h.Dir, name+".kernel")
	h.here("cp", kernel, own)
	var disks strings.Builder
	for i := range 2 {
		d := Disk{h.disk(fmt.Sprintf("%s-%d.img", name, i), i == 0), "raw"}
		if format != d.Format {
			d = d.Convert(h.t, format)
		}
		if format == "qcow2" && i == 0 { // as a guest made from a cloud image has it
			base := d.Path
			d.Path = base + ".overlay"
			h.here("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, d.Path)
		}
		fmt.Fprintf(&disks, "<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vd%c'/></disk>\n", d.Format, d.Path, 'a'+i)
	}
	g.xml = fmt.Sprintf(domainXML, name, memory, own, initrd, hold.Parameters(), disks.String(), g.console())
	return g
}

func (h *Host) here(program string, args ...string) {
	h.t.Helper()
	if out, err := exec.CommandContext(h.t.Context(), program, args...).CombinedOutput(); err != nil {
		h.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

// disk makes an image with an empty ext4, in a partition if divided.
func (h *Host) disk(name string, divided bool) string {
	h.t.Helper()
	path := filepath.Join(h.Dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Truncate(path, diskSize); err != nil {
		h.t.Fatal(err)
	}
	if !divided {
		h.here("mke2fs", "-q", "-t", "ext4", path)
		return path
	}
	cmd := exec.CommandContext(h.t.Context(), "/sbin/sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d\n", firstSector, diskSize/512-2*firstSector))
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("sfdisk: %v: %s", err, out)
	}
	h.here("mke2fs", "-q", "-t", "ext4", "-E", fmt.Sprintf("offset=%d", firstSector*512), path, fmt.Sprintf("%dk", (diskSize-2*firstSector*512)>>10))
	return path
}

func (g *Guest) console() string { return filepath.Join(g.h.Dir, g.name+".console") }

// Define makes the domain known to libvirt.
func (g *Guest) Define() {
	g.h.t.Helper()
	g.h.Virsh("define", g.description())
}

func (g *Guest) description() string {
	g.h.t.Helper()
	path := filepath.Join(g.h.Dir, g.name+".xml")
	if err := os.WriteFile(path, []byte(g.xml), 0o644); err != nil {
		g.h.t.Fatal(err)
	}
	return path
}

// Start starts the domain; one that is not defined is transient.
func (g *Guest) Start() {
	g.h.t.Helper()
	if g.h.State(g.name) == "" {
		g.h.Virsh("create", g.description())
		return
	}
	g.h.Virsh("start", g.name)
}

// bootLimit is how long the guest may take to print everything, under emulation on a busy machine.
const bootLimit = 4 * time.Minute

// Left returns what the guest printed before it died: paths, with sums, sizes and times.
func (g *Guest) Left() []string {
	g.h.t.Helper()
	return g.said("left")
}

// Found waits until the guest has printed, after its second boot, what is there, and returns that.
func (g *Guest) Found() []string {
	g.h.t.Helper()
	g.h.Await("word of "+g.name, bootLimit, func() bool { return len(g.said("all found")) > 0 })
	return g.said("found")
}

func (g *Guest) said(word string) (lines []string) {
	b, _ := os.ReadFile(g.console()) // it may not be there yet
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, word+":"); ok && strings.HasSuffix(line, "\n") {
			lines = append(lines, strings.TrimSpace(rest))
		}
	}
	slices.Sort(lines)
	return lines
}
