package nfslab

import (
	"context"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

const aloneTap = "nfsalone"

// bootAlone boots the pair's active side without an understudy: it has all CPUs,
// takes its role by itself, at once, and reboots when its kernel panics. Its file
// system is not checked, and its network does not wait for anything: it is back
// sooner than a distribution's init would be.
func (l *Lab) bootAlone(ctx context.Context) error {
	if err := l.makeDir(); err != nil {
		return err
	}
	p, disk, nic, nfs := l.Pair.Partitions[0], l.Pair.Disks[0], l.Pair.NICs[0], l.Pair.NFS
	role, err := agent.RoleParameter(wire.Config{
		Partition: p.Name,
		Disks:     []wire.Disk{{Name: disk.Name, Type: string(disk.Type), Mount: disk.Mount, Options: disk.Options}},
		NICs:      []wire.NIC{{MAC: nic.MAC.String(), Address: nic.Address.String()}},
		NFS:       &wire.NFS{Host: l.Pair.Name, Exports: nfs.Exports, State: nfs.State, Lease: nfs.Lease, Grace: nfs.Grace, Threads: nfs.Threads, UDP: nfs.UDP},
	})
	if err != nil {
		return err
	}
	tap, err := l.Tap(aloneTap)
	if err != nil {
		return err
	}
	defer tap.Close()
	cpus := l.machine.CPUs[:min(2, len(l.machine.CPUs))]
	spec := partition.Spec{
		Name: p.Name, Dir: l.aloneDir, CPUs: cpus, VCPUs: len(cpus), Memory: p.Memory, Kernel: p.Kernel, Initramfs: p.Initramfs,
		Append: p.Append + " panic=1 " + role, Reboots: true,
		Devices: []partition.Device{
			partition.Disk{Name: disk.Name, Image: disk.Image},
			partition.NIC{Name: nic.Name, MAC: nic.MAC, Tap: tap},
		},
	}
	if spec.Accel, err = partition.FindAccel(ctx, p.Kernel); err != nil {
		return err
	}
	l.Alone, err = supervisor.StartGuest(ctx, spec, wire.Config{Partition: p.Name}, nil)
	return err
}
