// Package pair reads pair.yaml, the description of a machine that runs two
// partitions, and promises that what it accepts is consistent: every refusal
// names the line of the file and says what to do.
//
//	name: demo                 # names the run directory
//	partitions:                # exactly two; the first is active at the start
//	  left:  {cpus: "0", memory: 768MiB, kernel: vmlinuz, initramfs: guest.cpio}
//	  right: {cpus: "1", memory: 768MiB, kernel: vmlinuz, initramfs: guest.cpio, append: "", accel: auto, vcpus: 2}
//	disks:                     # follow the active role
//	  - {name: data, image: data.img, type: ext4, mount: /srv, options: noatime}  # or ext3, xfs, btrfs
//	  - {name: old, image: vm.img, partition: 2, mount: /old}
//	  - {name: safe, image: a.img, mirror: b.img, luks: /etc/safe.key, lvm: data/srv, mount: /safe}  # md, LUKS, LVM: each if it is there
//	nics:
//	  - {name: lan, mac: "52:54:00:00:00:02", address: 10.77.0.2/24, gateway: 10.77.0.1, bridge: br0,
//	     address6: "fd00::2/64", gateway6: "fe80::1", routes: [{to: 10.0.0.0/8, via: 10.77.0.9}]}
//	services:                  # started and stopped with the role, in order
//	  - {name: web, command: [busybox, httpd, -f, -p, "80", -h, /srv], ready: 80}
//	nfs:                       # the kernel's NFS server; more in docs/NFS.md
//	  exports: ["/srv/export *(rw,async,no_root_squash,fsid=1)"]
//	  state: /srv/.nfs
//	  lease: 10s
//	  grace: 10s
//	heartbeat: {period: 20ms, limit: 300ms, cpu: 10s, scheduler: 30s, disk: 30s}
//	takeover: {salvage: true, sync: after, refused: serve, degraded: report, notify: all, notify_rate: 2000}
//	hooks:                     # programs of the host, run when something happens to the pair
//	  - {command: [/usr/local/bin/page, oncall], on: [took-over, unprotected, failed]}
//	metrics: 127.0.0.1:9752    # where Prometheus gets them
//
// A partition has as many virtual CPUs as CPUs, unless vcpus says otherwise: an
// understudy's may be more, since the dead side's CPUs fall to it. Both partitions
// may have the same CPUs, or some of them: an idle understudy takes little, but while
// it boots and rehearses the active side has less, and a hang is noticed later by the
// share of the CPU that the understudy takes from it.
//
// heartbeat says how long a side may be silent: the whole side (limit), one of its CPUs, an
// ordinary thread, or a disk; each of the last three may be off. degraded says what is
// done if the side runs, but one of its services keeps ending or a file system has become
// read-only: report, or takeover.
//
// refused says what a takeover does if the unsaved data of a disk is refused as a whole:
// serve without it, as after an ordinary crash, and keep the memory; or stop, and leave the
// disk as it is, for understudy recover or a person.
//
// notify says which clients of the dead side are told that their connections are
// gone: all, none, or those of a list of local TCP ports.
//
// hooks get an event as JSON on their standard input (package events); a hook without on gets
// all events. metrics are served to anybody who reaches the address.
//
// Relative paths start at the directory of the file. [parse] checks the
// text alone, [Load] also the formats of images that exist, and [Pair.Check]
// the machine: its processors, its memory and all the files.
package pair
