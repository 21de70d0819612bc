package kernel

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// unsavedItems are the kernel's counters of pages that are not on their disk: dirty, or
// under writeback (enum node_stat_item, include/linux/mmzone.h; since Linux 4.8).
var unsavedItems = []string{"NR_FILE_DIRTY", "NR_WRITEBACK"}

// Unsaved returns how many bytes of the kernel's page cache are not on their disks, by the
// kernel's own count: vm_node_stat (mm/vmstat.c), an array of 64-bit numbers. Each CPU may
// hold back up to 125 pages of each counter (calculate_normal_threshold), so that this is
// an estimate. It is cheap, and works on a living kernel.
func (k *Kernel) Unsaved() (bytes uint64, err error) {
	array, err := k.Symbol("vm_node_stat")
	if err != nil {
		return 0, err
	}
	pages := int64(0)
	for _, item := range unsavedItems {
		i, err := k.Types().Enum("node_stat_item", item)
		if err != nil {
			return 0, err
		}
		if i > maxNodeStats {
			return 0, fmt.Errorf("%s is %d: %w", item, i, ErrNotFound)
		}
		n, err := k.U64(array + addr.Virt(8*i))
		if err != nil {
			return 0, fmt.Errorf("read vm_node_stat: %w", err)
		}
		pages += max(0, int64(n)) // what CPUs hold back may make it negative
	}
	return uint64(pages) << k.unit, nil
}

// maxNodeStats bounds how many counters a plausible kernel has for a node; there are about 50.
const maxNodeStats = 1024
