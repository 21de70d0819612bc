package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/libvirtlab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/takeover/offline"
)

// program returns the path of the program under test, which is valid from anywhere.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sameFiles compares what a guest had before it died with what it found.
func sameFiles(t *testing.T, left, found []string) {
	t.Helper()
	if len(left) < 100 {
		t.Fatalf("the guest told of %d files and directories only", len(left))
	}
	missing := slices.DeleteFunc(slices.Clone(left), func(l string) bool { return slices.Contains(found, l) })
	more := slices.DeleteFunc(slices.Clone(found), func(l string) bool { return slices.Contains(left, l) })
	if len(missing)+len(more) > 0 {
		t.Errorf("of %d, not found again:\n%s\nand found instead:\n%s", len(left), strings.Join(missing, "\n"), strings.Join(more, "\n"))
	}
}

// corpse is a libvirt domain with a dead kernel in its memory, which never runs.
type corpse struct {
	name  string
	image *fixture.Image
	disks []fixture.Disk
}

// newCorpse starts a corpse, paused. Its first disk has the given format.
func newCorpse(t *testing.T, h *libvirtlab.Host, image *fixture.Image, name string, memory libvirtlab.Memory, format string) *corpse {
	t.Helper()
	dir := filepath.Join(h.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &corpse{name: name, image: image, disks: slices.Clone(image.Disks)}
	var disks []libvirtlab.Disk
	for i := range c.disks {
		d := libvirtlab.Disk{Path: filepath.Join(dir, filepath.Base(c.disks[i].Image)), Format: "raw"}
		copyDisk(t, c.disks[i].Image, d.Path)
		c.disks[i].Image = d.Path
		if i == 0 && format != "raw" {
			d = d.Convert(t, format)
		}
		disks = append(disks, d)
	}
	h.Corpse(name, memory, image.RAM, disks)
	return c
}

// complete checks that the report has everything on the disks and, with look, that one disk has what the guest had.
func (c *corpse) complete(t *testing.T, report []byte, look bool) {
	t.Helper()
	var r offline.Adopted
	if err := json.Unmarshal(report, &r); err != nil {
		t.Fatalf("%v: %s", err, report)
	}
	if len(r.Reports) != len(c.disks) || !r.Complete() || r.Memory != "" {
		t.Fatalf("of %d disks: %s", len(c.disks), report)
	}
	for _, d := range c.disks {
		i := slices.IndexFunc(r.Reports, func(r *offline.Report) bool { return r.Disk == d.Image })
		if i < 0 {
			t.Errorf("nothing is said of %s", d.Image)
		} else if look && d.Name == "ext4" {
			(&bench{t: t, image: c.image, disk: d, crash: c.image.Format(d.Name)}).complete(*r.Reports[i])
		}
	}
}

// TestLibvirtApply checks that the disks of a domain with a dead kernel are brought up to date,
// wherever libvirt makes QEMU keep its memory, and with all of libvirt's protections in place.
func TestLibvirtApply(t *testing.T) {
	tier.Full(t, "libvirt itself, from Debian's packages")
	vm(t)
	image := crashImage(t, fixture.Basic)
	h := libvirtlab.Start(t)
	for name, memory := range map[string]libvirtlab.Memory{"anonymous": libvirtlab.Anonymous, "memfd": libvirtlab.Memfd, "file": libvirtlab.File} {
		t.Run(name, func(t *testing.T) {
			c := newCorpse(t, h, image, name, memory, "raw")
			if out, err := h.Run(program(t), "salvage", "apply", "--libvirt", name); err == nil || !strings.Contains(out, "--end") {
				t.Errorf("without --end: %v: %s", err, out)
			}
			if state := h.State(name); state != "paused (user)" {
				t.Errorf("the domain was left %q", state)
			}
			out, err := h.Command(t.Context(), program(t), "salvage", "apply", "--libvirt", name, "--end", "--json").Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			c.complete(t, out, memory != libvirtlab.File)
			h.Await("end of "+name, time.Minute, func() bool { return h.State(name) == "" })
		})
	}
}

// watcher is a run of the unit's command, on a host of libvirt's.
type watcher struct {
	t   *testing.T
	cmd *exec.Cmd
	log string
}

// unitCommand is the command line of understudy-watch.service.
func unitCommand(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("../../packaging/systemd/understudy-watch.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(unit)) {
		if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
			return "exec " + strings.TrimSpace(command)
		}
	}
	t.Fatal("the unit has no ExecStart")
	return ""
}

// startWatch installs this program where the package has it, and starts the unit's command, with
// further options that an operator may add.
func startWatch(t *testing.T, h *libvirtlab.Host, name, more string) *watcher {
	t.Helper()
	if _, err := h.Run("install", program(t), "/usr/bin/understudy"); err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, log: filepath.Join(h.Dir, name+".log")}
	out, err := os.Create(w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w.cmd = h.Command(context.WithoutCancel(t.Context()), "sh", "-c", unitCommand(t)+more)
	w.cmd.Stdout, w.cmd.Stderr = out, out
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.end(syscall.SIGKILL)
		t.Logf("%s said:\n%s", name, w.said())
	})
	return w
}

func (w *watcher) said() string {
	b, err := os.ReadFile(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// end ends the process in the namespace, which nsenter(1) waits for.
func (w *watcher) end(s syscall.Signal) {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", w.cmd.Process.Pid, w.cmd.Process.Pid))
	for _, pid := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, s) // it may have ended
		}
	}
	_ = w.cmd.Wait() // its log says how it ended
}

// await waits until the log has a text this many times.
func (w *watcher) await(h *libvirtlab.Host, text string, times int) {
	w.t.Helper()
	h.Await(text, 4*time.Minute, func() bool { return strings.Count(w.said(), text) >= times })
}

// TestLibvirtWatch checks that the unit's command salvages domains by itself: one that had
// crashed before, although the command is killed in the middle of it; one after libvirtd was
// restarted; and one that is refused, which stays as it is.
func TestLibvirtWatch(t *testing.T) {
	tier.Full(t, "libvirt itself, from Debian's packages")
	vm(t)
	image := crashImage(t, fixture.Basic)
	h := libvirtlab.Start(t)
	report := func(name string) []byte { return []byte(h.Read("/var/lib/understudy-watch/" + name + ".report.json")) }

	early := newCorpse(t, h, image, "early", libvirtlab.Memfd, "raw")
	h.Panic("early")
	w := startWatch(t, h, "first", "")
	w.await(h, "domain early: its kernel has panicked", 1)
	w.end(syscall.SIGKILL)
	w = startWatch(t, h, "second", "")
	w.await(h, "domain early: all that its kernel had not saved is on its disks", 1)
	early.complete(t, report("early"), false)

	if out, err := h.Run("sh", "-c", unitCommand(t)); err == nil || !strings.Contains(out, "Another watch runs") {
		t.Errorf("a second watch: %v: %s", err, out)
	}
	h.RestartLibvirtd(syscall.SIGKILL)
	w.await(h, "watching libvirt's domains", 2)

	web := newCorpse(t, h, image, "web", libvirtlab.Anonymous, "raw")
	newCorpse(t, h, image, "lost", libvirtlab.Anonymous, "vmdk")
	h.Panic("lost")
	h.Panic("web")
	w.await(h, "domain web: all that its kernel had not saved is on its disks", 1)
	web.complete(t, report("web"), true)
	w.await(h, "domain lost: not salvaged", 1)
	w.await(h, "qemu-img convert", 1)
	if state := h.State("lost"); state != "crashed (panicked)" {
		t.Errorf("the one that was refused is %s", state)
	}
	w.end(syscall.SIGTERM)
	if left, err := h.Run("ls", "/var/lib/understudy-watch"); err != nil || left != "early.report.json\nlock\nweb.report.json\n" {
		t.Errorf("the state directory has %q, %v", left, err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Dir, "*", "*memory*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestLibvirtGuest checks that guests that nobody prepared panic, are salvaged and started again
// by the unit's command, and find everything that they had: one in a persistent domain of
// libvirt's, and one in a transient one.
func TestLibvirtGuest(t *testing.T) {
	tier.Full(t, "libvirt itself, from Debian's packages")
	vm(t)
	h := libvirtlab.Start(t)
	w := startWatch(t, h, "watch", " --restart")
	for name, memory := range map[string]libvirtlab.Memory{"kept": libvirtlab.Anonymous, "transient": libvirtlab.Memfd, "qcow2": libvirtlab.Anonymous} {
		t.Run(name, func(t *testing.T) {
			format := "raw"
			if name == "qcow2" {
				format = name
			}
			g := h.Guest(name, memory, format)
			if name != "transient" {
				g.Define()
			}
			g.Start()
			w.await(h, "domain "+name+": started again", 1)
			sameFiles(t, g.Left(), g.Found())
		})
	}
}
