package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"understudy.dev/understudy/internal/live/wire"
)

// roleParameter is the kernel parameter that gives a guest its role at boot.
const roleParameter = "understudy.role="

// RoleParameter returns the kernel parameter that makes the guest take a role by itself at
// every boot, as a machine without an understudy would: interfaces up, disks mounted,
// services started.
func RoleParameter(c wire.Config) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return roleParameter + base64.RawURLEncoding.EncodeToString(b), nil
}

// standAlone takes the role that the kernel's command line gives, if any.
func (a *Agent) standAlone(ctx context.Context) error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read kernel command line: %w", err)
	}
	c, err := roleIn(string(line))
	if c == nil || err != nil {
		return err
	}
	if _, err := a.configure(ctx, *c); err != nil {
		return err
	}
	for _, d := range c.Disks {
		if _, err := a.mount(ctx, wire.MountRequest{Disk: d.Name}); err != nil {
			return err
		}
	}
	_, err = a.start(ctx, wire.StartRequest{})
	return err
}

// roleIn is the role in a kernel's command line, or nil if it has none.
func roleIn(line string) (*wire.Config, error) {
	for word := range strings.FieldsSeq(line) {
		text, ok := strings.CutPrefix(word, roleParameter)
		if !ok {
			continue
		}
		c := new(wire.Config)
		b, err := base64.RawURLEncoding.DecodeString(text)
		if err == nil {
			err = json.Unmarshal(b, c)
		}
		if err != nil {
			return nil, fmt.Errorf("decode role: %w", err)
		}
		return c, nil
	}
	return nil, nil
}
