// Package nfsd runs the kernel's NFS server where the active role is, and
// promises that starting it costs a takeover next to nothing: everything slow
// is done before ([Prepare], [Server.Arm]) or while the disks are still being
// taken over ([Server.Begin]), and [Server.Start] only has to hand the kernel
// the records of its NFSv4 clients from the disk that was taken over.
//
// # Client records
//
// The package is also the kernel's client tracking daemon (nfsdcld(8)). The kernel
// asks for the records of its clients in the middle of its start, and waits for
// the answer: so the server can be started before there is a disk to read them from,
// and its grace period begins when they have been read. The kernel counts the clients
// that have reclaimed, and ends the grace period itself when all have. The older way of
// tracking can do neither: its directory (nfsv4recoverydir) is read at once, the
// grace period always lasts its full time, the kernel tries it only after waiting a
// second for a daemon, and the newest kernels are built without it.
//
// # Caveats
//
//   - NFSv4.0 clients have no way to say that they have reclaimed. With one of
//     them among the records, the grace period lasts its full time.
//   - Locks of NFSv3 (NLM) are reclaimed by clients that the status monitor's
//     notice reaches. While the monitor has a record of any client, lockd's grace
//     period lasts its full time.
package nfsd
