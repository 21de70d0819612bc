package bare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
)

// rootDir is where the dead kernel's root file system is mounted, if it is taken over. The services run in it,
// with its programs and configuration; the dead kernel's other disks are mounted in it where that kernel had
// them.
const rootDir = "/sysroot"

// serviceStop is how long a service may take to end: what it has in memory is nowhere else.
const serviceStop = 30 * time.Second

// within returns a role as this kernel carries it out. A disk that is mounted inside another comes after that
// one.
func within(role wire.Config) wire.Config {
	role.Disks = metal.InOrder(role.Disks)
	if len(role.Disks) == 0 || role.Disks[0].Mount != "/" {
		return role
	}
	for i := range role.Disks {
		d := &role.Disks[i]
		d.Mount = filepath.Join(rootDir, d.Mount)
		d.Also = slices.Clone(d.Also)
		for j := range d.Also {
			d.Also[j].Dir = filepath.Join(rootDir, d.Also[j].Dir)
		}
	}
	role.Services = slices.Clone(role.Services)
	for i, s := range role.Services {
		command := s.Command
		if s.Unit != "" {
			command = []string{s.Unit}
		}
		role.Services[i].Stop = cmp.Or(s.Stop, serviceStop)
		role.Services[i].Command = append([]string{"/init", "metal", "enter", "--"}, command...)
	}
	if role.NFS != nil {
		nfs := *role.NFS
		nfs.State = rootDir + nfs.State
		if nfs.Monitor != "" {
			nfs.Monitor = rootDir + nfs.Monitor
		}
		role.NFS = &nfs
	}
	return role
}

// RootOf is where this kernel has the root directory of the kernel that a role was taken over from: "" if that
// is this kernel's own.
func RootOf(role wire.Config) string {
	if slices.ContainsFunc(role.Disks, func(d wire.Disk) bool { return d.Mount == "/" }) {
		return rootDir
	}
	return ""
}

// isRoot says whether a disk has the root file system.
func (m *machine) isRoot(disk string) bool {
	return slices.ContainsFunc(m.role.Disks, func(d wire.Disk) bool { return d.Name == disk && d.Mount == rootDir })
}

// shown are the directories of this kernel that are seen in the root file system too. Orders
// to the understudy go through /run.
var shown = []string{"/proc", "/sys", "/dev", "/run"}

// devices are what a system has in /dev, and this kernel does not need for itself.
var devices = []struct{ at, kind, data string }{
	{"/dev/pts", "devpts", "mode=620,ptmxmode=666,gid=5"}, // of tty, in Debian
	{"/dev/shm", "tmpfs", "mode=1777"},
}

// furnish makes this kernel's directories visible in the root file system.
func furnish() error {
	for _, d := range devices {
		err := os.MkdirAll(d.at, 0o755)
		if err == nil {
			err = unix.Mount(d.kind, d.at, d.kind, unix.MS_NOSUID|unix.MS_NOEXEC, d.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", d.at, err)
		}
	}
	for _, dir := range shown {
		if err := unix.Mount(dir, rootDir+dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind mount %s into the root file system: %w", dir, err)
		}
	}
	return nil
}

// makeTemporary gives the services of the root file system what its systemd would set up before them: the host
// name, and what they need in /run, which was lost with the dead kernel (tmpfiles.d(5)). They may do without
// it.
func (m *machine) makeTemporary(ctx context.Context) {
	if RootOf(m.self.Config.Role) == "" || len(m.role.Services) == 0 {
		return
	}
	if name := m.morgue.Hostname(); name != "" && m.role.NFS == nil { // an NFS server has it already
		if err := unix.Sethostname([]byte(name)); err != nil {
			say("set the name of the machine: %v", err)
		}
	}
	if _, err := os.Stat(rootDir + temporary[0]); err != nil {
		return // its system does not have this program
	}
	ctx, cancel := context.WithTimeout(ctx, temporaryLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, temporary[0], temporary[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootDir}
	if err := m.agent.Run(cmd); err != nil {
		say("make files in /run: %v", err)
	}
}

// temporary is the command that makes what belongs in /run, and temporaryLimit is how long a takeover waits for
// it.
var temporary = []string{"/usr/bin/systemd-tmpfiles", "--create", "--boot", "--prefix=/run"}

const temporaryLimit = 5 * time.Second

// showExports makes the directories that the NFS server exports from the root file system, and from what is
// mounted in it, visible at the paths by which clients know them.
func (m *machine) showExports() {
	if m.role.NFS == nil || RootOf(m.self.Config.Role) == "" {
		return
	}
	for _, e := range m.agent.Exports() {
		if err := unix.Mount(rootDir+e.Path, e.Path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			say("show %s, which is exported: %v", e.Path, err) // the others are served
		}
	}
}

// clearOut undoes furnish and showExports, as far as they have been done.
func (m *machine) clearOut() {
	if RootOf(m.self.Config.Role) == "" {
		return
	}
	for _, e := range slices.Backward(m.agent.Exports()) {
		_ = unix.Unmount(e.Path, unix.MNT_DETACH) // it may not be mounted
	}
	for _, dir := range slices.Backward(shown) {
		_ = unix.Unmount(rootDir+dir, unix.MNT_DETACH) // it may not be mounted
	}
}
