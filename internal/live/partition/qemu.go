package partition

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
)

// needed are the devices that partitions are made of.
var needed = append([]string{"ivshmem-plain", "virtio-blk-pci", "virtio-net-pci", "virtio-serial-pci", "virtserialport"}, panicDevices...)

// Installed returns an error if this machine has no QEMU that partitions can run in, with all
// the devices that they need.
func Installed() error {
	said, err := exec.Command(qemu, "-device", "help").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return notInstalled(err)
	}
	if err != nil {
		return fmt.Errorf("ask %s for its devices: %w", qemu, err)
	}
	if lacks := lacking(string(said)); len(lacks) > 0 {
		return hint.New("run "+qemu, fmt.Errorf("it is built without %s", strings.Join(lacks, ", ")), "Install QEMU 6.2 or later with all devices, as the qemu-system-x86 of Debian 12, Ubuntu 22.04 and Fedora.")
	}
	return nil
}

// lacking returns the needed devices that are not in QEMU's list, which has lines like: name "pvpanic", bus ISA.
func lacking(devices string) []string {
	return slices.DeleteFunc(slices.Clone(needed), func(name string) bool {
		return strings.Contains(devices, fmt.Sprintf("name %q", name))
	})
}

// onlyKVM is the QEMU of RHEL and its derivatives, which lacks devices that are needed.
var onlyKVM = "/usr/libexec/qemu-kvm"

func notInstalled(err error) error {
	what := "Install qemu-system-x86."
	if _, missing := os.Stat(onlyKVM); missing == nil {
		what += " " + onlyKVM + ", which is here, is built without devices that are needed."
	}
	return hint.New("run "+qemu, err, what)
}

// becoming returns the options that make QEMU change its user, chosen by what its -help says: -runas was
// removed in 10.0, -run-with user= was added in 9.1 (QEMU's docs/about/removed-features.rst).
func becoming(help, user string) []string {
	if strings.Contains(help, "\n-runas ") {
		return []string{"-runas", user}
	}
	return []string{"-run-with", "user=" + user}
}

// helpOf returns what QEMU's -help says now: QEMU may be replaced by another version while a
// supervisor runs. It is empty if there is no QEMU, which the start will report.
func helpOf() string {
	said, err := exec.Command(qemu, "-help").Output()
	if err != nil {
		return ""
	}
	return string(said)
}
