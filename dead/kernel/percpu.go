package kernel

import (
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// maxCPUs bounds nr_cpu_ids: NR_CPUS of x86-64 with CONFIG_MAXSMP (arch/x86/Kconfig).
const maxCPUs = 8192

// PerCPU yields where a per-CPU variable is, of each possible CPU. at is what a pointer to it says that is marked __percpu; the kernel adds
// the CPU's offset to that (include/linux/percpu-defs.h, per_cpu_ptr). An error ends the walk.
func (k *Kernel) PerCPU(at addr.Virt) iter.Seq2[addr.Virt, error] {
	return func(yield func(addr.Virt, error) bool) {
		offsets, possible, err := k.possibleCPUs()
		if err != nil {
			yield(0, fmt.Errorf("per-CPU variable at %v: %w", at, err))
			return
		}
		for cpu, b := range possible {
			for bit := range 8 {
				if b>>bit&1 == 0 {
					continue
				}
				offset, err := k.U64(offsets + addr.Virt(8*(8*cpu+bit)))
				if err != nil {
					yield(0, fmt.Errorf("per-CPU variable at %v: %w", at, err))
					return
				}
				if !yield(at+addr.Virt(offset), nil) {
					return
				}
			}
		}
	}
}

// possibleCPUs returns where __per_cpu_offset is, and the bits of __cpu_possible_mask, of which those from nr_cpu_ids on are not set.
func (k *Kernel) possibleCPUs() (offsets addr.Virt, possible []byte, err error) {
	offsets, err = k.Symbol("__per_cpu_offset")
	if err != nil {
		return 0, nil, err
	}
	count, err := k.Symbol("nr_cpu_ids")
	if err != nil {
		return 0, nil, err
	}
	mask, err := k.Symbol("__cpu_possible_mask")
	if err != nil {
		return 0, nil, err
	}
	n, err := k.U32(count)
	if err == nil && (n == 0 || n > maxCPUs) {
		err = fmt.Errorf("nr_cpu_ids is %d", n)
	}
	if err != nil {
		return 0, nil, err
	}
	possible, err = k.Bytes(mask, int(n+7)/8)
	return offsets, possible, err
}
