package rootdisk

import (
	"iter"
	"path"
	"strings"

	"understudy.dev/understudy/internal/live/unit"
)

// Paths in a system of what we write there, and of what we look at.
const (
	programPath = "usr/libexec/understudy/understudy" // any policy of SELinux lets systemd start what is below /usr/libexec
	formerPath  = "usr/lib/understudy/understudy"     // until 2026-12
	unitPath    = "etc/systemd/system/" + unit.Agent
	rulePath    = "etc/udev/rules.d/60-understudy.rules"
	networkPath = "etc/systemd/network/00-understudy.network"
	dropIn      = "understudy.conf"
	unitsPath   = "etc/systemd/system"
	fstabPath   = "etc/fstab"
	selinuxPath = "etc/selinux/config"
)

// head is the first line of what we write.
const head = "# Written by understudy image prepare; its --undo takes it away.\n"

// agentUnit starts the agent when the port for a supervisor is there, so outside of a pair never.
// The process that beats goes on while the agent is started again (KillMode). How long the agent may take to
// start on a busy machine is not limited here, but by the side that waits for its greeting.
const agentUnit = head + `[Unit]
Description=Understudy's agent in this partition
BindsTo=` + portUnit + `
After=` + portUnit + `
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/` + programPath + ` agent --service
TimeoutStartSec=infinity
Restart=always
RestartSec=100ms
KillMode=process
OOMScoreAdjust=-1000
`

// portUnit is what systemd calls /dev/virtio-ports/org.understudy.agent (systemd-escape(1)).
const portUnit = `dev-virtio\x2dports-org.understudy.agent.device`

// rule starts the agent where the port exists, like the rule of QEMU's own agent. In a pair it makes NetworkManager
// leave the interfaces to the agent (NetworkManager.conf(5), NM_UNMANAGED): without the kernel parameter IMPORT fails,
// and so does the rest of its line.
const rule = head + `SUBSYSTEM=="virtio-ports", ATTR{name}=="org.understudy.agent", TAG+="systemd", ENV{SYSTEMD_WANTS}+="` + unit.Agent + `"
SUBSYSTEM=="net", DRIVERS=="virtio_net", IMPORT{cmdline}="` + unit.PairParameter + `", ENV{NM_UNMANAGED}="1"
`

// network makes systemd-networkd do the same (systemd.network(5)).
const network = head + `[Match]
KernelCommandLine=` + unit.PairParameter + `
Driver=virtio_net

[Link]
Unmanaged=yes
`

// unitDropIn makes a unit of the pair start by role.
func unitDropIn(name string) string {
	return head + "[Unit]\n" + strings.Join(unit.RoleConditions(name), "\n") + "\n"
}

func dropInPath(name string) string { return path.Join(unitsPath, name+".d", dropIn) }

// mark begins a line of fstab that is set aside.
const mark = "#understudy: "

// setAside comments out the lines of fstab(5) that mount something on these directories,
// and returns these lines. Directories without such a line are returned as missing.
func setAside(fstab string, dirs []string) (text string, aside, missing []string) {
	found := make(map[string]bool)
	var out strings.Builder
	for line := range strings.Lines(fstab) {
		f := strings.Fields(strings.TrimPrefix(line, mark))
		for _, dir := range dirs {
			if len(f) < 2 || strings.HasPrefix(f[0], "#") || path.Clean(f[1]) != path.Clean(dir) {
				continue
			}
			found[dir] = true
			if !strings.HasPrefix(line, mark) {
				aside = append(aside, strings.TrimSpace(line))
				line = mark + line
			}
		}
		out.WriteString(line)
	}
	for _, dir := range dirs {
		if !found[dir] {
			missing = append(missing, dir)
		}
	}
	return out.String(), aside, missing
}

// putBack undoes setAside for all lines.
func putBack(fstab string) (text string, back []string) {
	var out strings.Builder
	for line := range strings.Lines(fstab) {
		if rest, ok := strings.CutPrefix(line, mark); ok {
			line = rest
			back = append(back, strings.TrimSpace(line))
		}
		out.WriteString(line)
	}
	return out.String(), back
}

// entries yields the lines of an fstab that are not comments, and have two fields at least, with their fields.
func entries(fstab string) iter.Seq2[string, []string] {
	return func(yield func(string, []string) bool) {
		for line := range strings.Lines(fstab) {
			f := strings.Fields(line)
			if len(f) >= 2 && !strings.HasPrefix(f[0], "#") && !yield(strings.TrimSpace(line), f) {
				return
			}
		}
	}
}

// elsewhere returns the lines of an fstab that a boot waits for, and whose disk is not this one:
// uuids are those of the file systems on this disk.
func elsewhere(fstab string, uuids []string) (lines []string) {
	for line, f := range entries(fstab) {
		if len(f) < 4 || f[1] == "/" {
			continue
		}
		options := "," + f[3] + ","
		if strings.Contains(options, ",noauto,") || strings.Contains(options, ",nofail,") {
			continue
		}
		here := !strings.HasPrefix(f[0], "UUID=") && !strings.HasPrefix(f[0], "LABEL=") && !strings.HasPrefix(f[0], "/dev/")
		for _, u := range uuids {
			here = here || f[0] == "UUID="+u || f[0] == "/dev/disk/by-uuid/"+u
		}
		if !here {
			lines = append(lines, line)
		}
	}
	return lines
}

// hides returns the line of an fstab that mounts something over what is written here; empty if none does.
func hides(fstab string) string {
	for line, f := range entries(fstab) {
		for _, p := range []string{programPath, unitPath, rulePath, networkPath} {
			if at := path.Clean(f[1]); at != "/" && strings.HasPrefix("/"+p, at+"/") {
				return line
			}
		}
	}
	return ""
}

// rootSubvolume returns the subvolume of btrfs, in the top level, that an fstab mounts as the root file system; empty if it does not
// name one.
func rootSubvolume(fstab string) string {
	for _, f := range entries(fstab) {
		if len(f) < 4 || f[1] != "/" {
			continue
		}
		for option := range strings.SplitSeq(f[3], ",") {
			if name, ok := strings.CutPrefix(option, "subvol="); ok {
				return strings.TrimPrefix(name, "/")
			}
		}
	}
	return ""
}
