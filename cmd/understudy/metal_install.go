package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/bare"
)

// reserve is how much of the machine an understudy gets.
type reserve struct{ memory, cpus int }

func (r *reserve) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&r.memory, "memory", 1536, "the understudy's memory, MiB")
	cmd.Flags().IntVar(&r.cpus, "cpus", 1, "the understudy's CPUs")
}

// parameters returns the kernel parameters for the machine's own kernel.
func (r *reserve) parameters() ([]string, error) {
	m, err := metal.Look(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	reserved, err := metal.ParseReservation(m.Cmdline)
	switch {
	case err != nil: // the running kernel has no reservation yet
		if reserved, err = metal.Reserve(m.Resources, uint64(r.memory)<<20); err != nil {
			return nil, err
		}
	case reserved.High.Len() != uint64(r.memory)<<20:
		return nil, fmt.Errorf("this kernel was booted with %d MiB for an understudy: to have %d, run understudy metal remove, and boot again first", reserved.High.Len()>>20, r.memory)
	}
	keep := len(m.Processors.IDs) - r.cpus
	if keep < 1 || r.cpus < 1 {
		return nil, fmt.Errorf("of %d CPUs, %d cannot be the understudy's", len(m.Processors.IDs), r.cpus)
	}
	return reserved.Parameters(keep), nil
}

// installation has the options of metal install.
type installation struct {
	reserve
	release, role      string
	mounts, interfaces []string
	files, units       []string
	without            []string
	limit, cpuLimit    time.Duration
	again, nfs         bool
	dump               string
}

func metalInstallCommand() *cobra.Command {
	var i installation
	cmd := &cobra.Command{
		Use:   "install --role FILE | --mount DIR --interface NAME",
		Short: "Have this machine start an understudy at each boot, from the next one on",
		Long: `Have this machine start an understudy at each boot, from the next one on: write the kernel
parameters for GRUB, the understudy's image, and a systemd unit. The role says what is taken
over; without, it is made of what is mounted on directories and the addresses of interfaces
as they are now, with the units given as its services. A role that was installed before, and
differs from that, is not replaced. understudy metal remove undoes it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := i.install(cmd.OutOrStdout()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "installed. What is taken over is in %s: look at it, and boot again.\n", roleFile)
			return nil
		},
	}
	i.flags(cmd)
	cmd.Flags().StringVar(&i.release, "release", "", "the understudy's kernel: a release in /boot and /lib/modules; the running one by default")
	cmd.Flags().StringVar(&i.role, "role", "", "what it takes over, JSON")
	cmd.Flags().StringArrayVar(&i.mounts, "mount", nil, "directory on whose disk a file system is to be taken over")
	cmd.Flags().StringArrayVar(&i.interfaces, "interface", nil, "network interface to be taken over")
	cmd.Flags().DurationVar(&i.limit, "limit", silenceLimit, "silence of all CPUs that is death, as of metal run")
	cmd.Flags().DurationVar(&i.cpuLimit, "cpu-limit", silenceCPULimit, "likewise, of one CPU")
	cmd.Flags().BoolVar(&i.again, "again", false, againUsage)
	cmd.Flags().StringArrayVar(&i.units, "unit", nil, "service of systemd's to be started from the root file system, NAME.service, with =PORT if it listens on a TCP port; needs --mount /")
	cmd.Flags().BoolVar(&i.nfs, "nfs", false, "take over the NFS server that this machine runs, with its exports, each of which needs an fsid=")
	cmd.Flags().StringArrayVar(&i.without, "without", nil, "directory that no service has need of: what is mounted on it, or below, is not taken over")
	cmd.Flags().StringVar(&i.dump, "dump", "", "`DEVICE`, a partition or a disk with nothing on it but a swap area, for the memory of a kernel that died with something that could not be saved")
	cmd.Flags().StringArrayVar(&i.files, "add", nil, "file of this machine to put at the same path of the understudy's image")
	return cmd
}

func (i *installation) install(w io.Writer) error {
	for _, name := range []string{"update-grub", "systemctl"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("install needs GRUB and systemd as Debian has them; without, see understudy metal parameters and metal run: %w", err)
		}
	}
	parameters, err := i.parameters()
	if err != nil {
		return err
	}
	if i.release == "" {
		var uts unix.Utsname
		if err := unix.Uname(&uts); err != nil {
			return err
		}
		i.release = unix.ByteSliceToString(uts.Release[:])
	}
	kernel, err := os.ReadFile("/boot/vmlinuz-" + i.release)
	if err != nil {
		return err
	}
	if _, err := metal.ParseKernel(kernel); err != nil {
		return err
	}
	role, roleText, err := i.takeRole()
	if err != nil {
		return err
	}
	if err := sayLeft(w, role); err != nil {
		return err
	}
	if err := i.checkDump(w, role); err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(metal.StateDir, 0o755), os.MkdirAll(filepath.Dir(metal.GRUBFile), 0o755)); err != nil {
		return err
	}
	if i.again {
		if err := metal.OnDisk(metal.StateDir, role); err != nil {
			return fmt.Errorf("--again: %w", err)
		}
	}
	if err := i.image(role, filepath.Join(metal.StateDir, "understudy.cpio")); err != nil {
		return err
	}
	options := []string{"--limit", i.limit.String(), "--cpu-limit", i.cpuLimit.String()}
	if i.again {
		options = append(options, "--again")
	}
	return place(
		placed{metal.GRUBFile, []byte(metal.GRUB(parameters))},
		placed{filepath.Join(metal.StateDir, "vmlinuz"), kernel}, placed{roleFile, roleText},
		placed{metal.UnitFile, []byte(metal.UnitText(program, options...))},
	)
}

// sayLeft reports what of this machine a role leaves out.
func sayLeft(w io.Writer, role wire.Config) error {
	left, err := metal.Left(os.DirFS("/"), role)
	for _, what := range left {
		fmt.Fprintf(w, "%s is not taken over: what is unsaved there is lost with this kernel\n", what)
	}
	return err
}

// roleFile is the role of an installation.
var roleFile = filepath.Join(metal.StateDir, "role.json")

// takeRole returns the role, as given or made from this machine, and its text.
func (i *installation) takeRole() (role wire.Config, text []byte, err error) {
	if i.role == "" {
		if role, err = i.makeRole(); err == nil {
			text, err = json.MarshalIndent(role, "", "  ")
		}
		if err == nil {
			err = keepsRole(roleFile, text)
		}
		return role, text, err
	}
	if text, err = os.ReadFile(i.role); err == nil {
		err = json.Unmarshal(text, &role)
	}
	if err == nil {
		_, err = checkRole(role)
	}
	if err != nil {
		return role, nil, fmt.Errorf("role %s: %w", i.role, err)
	}
	return role, text, nil
}

// keepsRole returns an error if a file has a role other than the one that was made now. Somebody may have added to it.
func keepsRole(path string, made []byte) error {
	before, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && bytes.Equal(bytes.TrimSpace(before), made) {
		return nil
	}
	if err == nil {
		err = errors.New("it is not the role that these options make now, and may have been changed by hand")
	}
	return hint.New("replace role "+path, err, "Add --role "+path+" to take over what it says; or move it away to have it made anew.")
}

// makeRole makes a role from this machine.
func (i *installation) makeRole() (role wire.Config, err error) {
	if len(i.mounts) == 0 && len(i.interfaces) == 0 {
		return role, errors.New("nothing is to be taken over: give --role, or --mount and --interface")
	}
	role.Partition, role.Without = "understudy", i.without
	for _, dir := range i.mounts {
		d, err := metal.DiskOf(os.DirFS("/"), dir)
		if err != nil {
			return role, err
		}
		role.Disks = metal.Join(role.Disks, d)
	}
	for _, name := range i.interfaces {
		n, err := metal.NICOf(name)
		if err != nil {
			return role, err
		}
		role.NICs = append(role.NICs, n)
	}
	if i.dump != "" {
		if role.Dump, err = dumpOf(i.dump); err != nil {
			return role, err
		}
	}
	if i.nfs {
		if role.NFS, err = metal.NFSOf(os.DirFS("/"), role.Disks); err != nil {
			return role, fmt.Errorf("--nfs: %w", err)
		}
	}
	for _, u := range i.units {
		s, err := serviceOf(u)
		if err != nil {
			return role, err
		}
		role.Services = append(role.Services, s)
	}
	_, err = checkRole(role)
	return role, err
}

// checkRole returns why a role cannot be carried out for this machine, and the settings of units that are not carried
// out.
func checkRole(role wire.Config) (omitted []string, err error) {
	if omitted, err = metal.CheckRole(os.DirFS("/"), role); err == nil {
		err = bare.CheckFileSystems(role)
	}
	return omitted, err
}

// dumpOf returns the name of a block device in a role.
func dumpOf(device string) (string, error) {
	var s unix.Stat_t
	if err := unix.Stat(device, &s); err != nil {
		return "", fmt.Errorf("--dump: look at %s: %w", device, err)
	}
	if s.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("--dump: %s is no block device", device)
	}
	name, err := metal.DumpOf(os.DirFS("/"), fmt.Sprintf("%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev)))
	if err != nil {
		return "", fmt.Errorf("--dump: %s: %w", device, err)
	}
	return name, nil
}

// checkDump calls the function of this name for the memory that this machine's kernel will have when it has left
// the understudy its part.
func (i *installation) checkDump(w io.Writer, role wire.Config) error {
	if role.Dump == "" {
		return nil
	}
	m, err := metal.Look(os.DirFS("/"))
	if err != nil {
		return err
	}
	less := int64(0)
	if _, err := metal.ParseReservation(m.Cmdline); err != nil {
		less = int64(i.memory) << 20
	}
	return checkDump(w, m, role, less)
}

// checkDump returns an error if a role's disk for a dump cannot take the memory of a machine's kernel, minus less
// bytes. It reports on w what is on the disk, if that prevents a dump.
func checkDump(w io.Writer, m *metal.Machine, role wire.Config, less int64) error {
	if role.Dump == "" {
		return nil
	}
	if err := metal.CheckDump(os.DirFS("/"), role, ram.CoreSize(bare.Memory(metal.Memory(m.Resources)))-less); err != nil {
		return err
	}
	path, err := agent.AwaitDisk(context.Background(), role.Dump, time.Second)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = metal.Vacant(f, size)
	}
	if err != nil {
		fmt.Fprintf(w, "%s would take no dump: %v\n", path, err)
	}
	return nil
}

// serviceOf parses the value of --unit: NAME.service, or NAME.service=PORT.
func serviceOf(text string) (wire.Service, error) {
	name, port, ok := strings.Cut(text, "=")
	s := wire.Service{Name: strings.TrimSuffix(name, ".service"), Unit: name}
	if ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return s, fmt.Errorf("--unit %s: %q is no port", text, port)
		}
		s.Ready = int(n)
	}
	return s, nil
}

// image makes the understudy's image, with drivers and programs for what it takes over.
func (i *installation) image(c wire.Config, path string) error {
	var mounts, interfaces []string
	for _, d := range c.Disks {
		mounts = append(mounts, d.Mount)
	}
	for _, n := range c.NICs {
		name, err := metal.InterfaceOf(n.MAC)
		if err != nil {
			return err
		}
		interfaces = append(interfaces, name)
	}
	drivers, err := metal.DriversOf(os.DirFS("/"), interfaces, mounts, c.Dump)
	if err != nil {
		return err
	}
	var under, types []string
	for _, d := range c.Disks {
		types = append(types, d.Type)
	}
	if slices.ContainsFunc(c.Disks, func(d wire.Disk) bool { return d.Volume != "" }) {
		under = []string{"lvm"}
	}
	image := guest.Image{Under: under, Types: types, Modules: "/lib/modules/" + i.release, Drivers: drivers, NFSServer: c.NFS != nil}
	for _, f := range i.files {
		more, err := initramfs.Add(f)
		if err != nil {
			return err
		}
		image.Files = append(image.Files, more...)
	}
	return image.WriteFile(path)
}
