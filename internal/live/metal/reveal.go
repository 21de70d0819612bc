package metal

import (
	"fmt"
	"os"
	"strings"
)

// evaluate makes the kernel evaluate the _STA of the device that notifies the bridges.
func evaluate() error {
	b, err := os.ReadFile("/sys/bus/acpi/devices/" + RevealDevice + "/status")
	if err != nil {
		return fmt.Errorf("reveal PCI: %w", err)
	}
	if status := strings.TrimSpace(string(b)); status != "15" {
		return fmt.Errorf("reveal PCI: _STA of ACPI device %s is %s, not 15", RevealDevice, status)
	}
	return nil
}
