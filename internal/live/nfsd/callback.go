package nfsd

// Numbers of callbacks of NFSv4.1 (RFC 8881, 20; RFC 5531).
const (
	// Linux takes 1 as the version of a callback program, and has taken 4 only since 2.6.38 (nfs4_callback_version1 and
	// nfs4_callback_version4, fs/nfs/callback_xdr.c); its server says 1.
	callbackVersion = 1
	procCompound    = 1  // CB_COMPOUND
	opRecallSlot    = 10 // CB_RECALL_SLOT
	opSequence      = 11 // CB_SEQUENCE
)

// Recall returns the call, as a record of a stream, by which an NFSv4 server asks a client to use no more than slots slots of a
// session: CB_RECALL_SLOT, in slot 0 of the session's backchannel. minor is the minor version, at least 1, and sequence the next
// sequence number of slot 0. If slots is the number that the client has, nothing changes for it, but it must confirm that to
// the server with a SEQUENCE (RFC 8881, 20.8.3), and so finds out at once whether the server still knows it.
func Recall(program, minor uint32, session [16]byte, sequence, slots uint32) []byte {
	b := words(nil, 0, minor, 0, 2) // no tag, minor version, callback_ident, two operations
	b = words(b, opSequence)
	b = append(b, session[:]...)
	b = words(b, sequence, 0, 0, 0, 0) // slot 0 of 0 to 0, do not cache, no referring calls
	b = words(b, opRecallSlot, max(slots, 1)-1)
	return callRecord(sequence, program, callbackVersion, procCompound, b)
}
