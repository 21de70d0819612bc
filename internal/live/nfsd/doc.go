// Package nfsd runs the kernel's NFS server where the active role is, and
// promises that starting it costs a takeover next to nothing: all that is slow
// is done before ([Prepare], [Server.Arm]) or while the disks are still on their
// way ([Server.Begin]), and what is left for [Server.Start] is to hand the kernel
// the records of its NFSv4 clients from the disk that was taken over.
//
// # Client records
//
// The package is the kernel's client tracking daemon (nfsdcld(8)) too. The kernel
// asks for the records of its clients in the middle of its start, and waits for
// the answer: so it can be started before there is a disk to read them from, and
// its grace begins when they have been read. It counts who has reclaimed, and
// ends the grace by itself when all have. The other ways of tracking could do
// neither: the directory of old (nfsv4recoverydir) is read at once and knows of
// no end but the clock's, is tried only after a second of waiting for a daemon,
// and newest kernels are built without it.
//
// # Caveats
//
//   - NFSv4.0 clients have no way to say that they have reclaimed. With one of
//     them among the records, the grace takes its whole time.
//   - Locks of NFSv3 (NLM) are reclaimed by clients that the status monitor's
//     notice reaches. While any client has a record with it, lockd's grace takes
//     its whole time.
package nfsd
