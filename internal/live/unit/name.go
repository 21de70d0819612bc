package unit

import (
	"fmt"
	"strings"
)

// CheckName checks that a name is one that a systemd service can have (systemd.unit(5)).
func CheckName(name string) error {
	base, ok := strings.CutSuffix(name, ".service")
	legal := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(`:-_.\@`, c)
	}
	if !ok || base == "" || base[0] == '-' || len(name) > 255 || strings.ContainsFunc(base, func(c rune) bool { return !legal(c) }) {
		return fmt.Errorf("%q is not the name of a service of systemd's", name)
	}
	return nil
}
