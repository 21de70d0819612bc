package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/kernel"
)

// Reads returns why file systems of a type, as in struct file_system_type, will never be understood in this kernel: it keeps
// no types of its modules (before 5.11, commit 36e68442d1af), and that file system is one. A module that is not loaded yet
// passes.
func (c *Cache) Reads(fsType string) error {
	var err error
	switch fsType {
	case "xfs":
		_, err = newXFSLayout(c.k)
	case "btrfs":
		_, err = newBtrfsLayout(c.k)
	}
	if _, without := c.k.Symbol("btf_modules"); err != nil && errors.Is(without, kernel.ErrNotFound) {
		return fmt.Errorf("read %s: this kernel keeps no types of its modules, as kernels do since 5.11: %w", fsType, err)
	}
	return nil
}
