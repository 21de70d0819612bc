package metal

import (
	"fmt"
	"strings"
)

// What install writes, below the root directory, and remove takes away again.
const (
	// GRUBFile is read by Debian's update-grub(8), after /etc/default/grub.
	GRUBFile = "/etc/default/grub.d/understudy-metal.cfg"
	UnitFile = "/etc/systemd/system/" + Unit
	Unit     = "understudy-metal.service"
	// StateDir has the understudy's kernel, image and role.
	StateDir = "/var/lib/understudy/metal"
)

// GRUB is the content of GRUBFile. GRUB's recovery entries stay as they were, in case the parameters keep the machine
// from booting: they do not have GRUB_CMDLINE_LINUX_DEFAULT (/etc/grub.d/10_linux). The file is a shell script, and the GRUB configuration that is made
// from it is another: what is quoted for the first still has a backslash before each $ for the
// second.
func GRUB(parameters []string) string {
	words := strings.ReplaceAll(strings.Join(parameters, " "), "$", `\\\$`)
	return "# Written by understudy metal install; understudy metal remove takes it away.\n" +
		`GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT ` + words + "\"\n"
}

// UnitText is the content of UnitFile. The unit is started after anything that may load a crash
// kernel, and refuses to run then. program is the path of this program, and options are further
// options of metal run. The unit is stopped before the file systems are unmounted, and stops the
// understudy then.
func UnitText(program string, options ...string) string {
	return fmt.Sprintf(`[Unit]
Description=Understudy beside this kernel
After=local-fs.target network.target nfs-server.service kdump-tools.service kdump.service
ConditionKernelCommandLine=%[2]s

[Service]
ExecStart=%[1]s metal run --kernel %[3]s/vmlinuz --image %[3]s/understudy.cpio --role %[3]s/role.json%[4]s
Type=exec
Restart=on-failure
RestartSec=10
OOMScoreAdjust=-1000
LimitMEMLOCK=infinity
LimitRTPRIO=infinity
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
`, program, strings.TrimSuffix(Parameter, "="), StateDir, strings.Join(append([]string{""}, options...), " "))
}
