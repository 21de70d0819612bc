package nfsd

import (
	"encoding/binary"
	"fmt"
)

// Commands of the kernel's client tracking (enum cld_command,
// include/uapi/linux/nfsd/cld.h).
const (
	cldCreate = iota
	cldRemove
	cldCheck
	cldGraceDone
	cldGraceStart
	cldGetVersion
)

// cldVersion is the newest version of the messages that we speak. Linux has had it
// since 5.4, and version 1 since 5.2.
const cldVersion = 2

// Sizes and offsets of struct cld_msg and cld_msg_v2, in bytes: packed, in the
// machine's byte order, which is little-endian here. A header of version,
// command, status and transaction id; then a union of the version and the
// client's name, preceded by its length; in version 2 the hash of the
// client's principal follows, preceded by its length in one byte.
const (
	maxClientName = 1024 // NFS4_OPAQUE_LIMIT
	principalSize = 32   // SHA256_DIGEST_SIZE

	cldStatus    = 2
	cldUnion     = 8
	cldName      = cldUnion + 2
	cldPrincipal = cldName + maxClientName

	cldSizeV1 = cldUnion + 2 + maxClientName
	cldSizeV2 = cldSizeV1 + 1 + principalSize
)

// client is one NFSv4 client as the kernel tracks it.
type client struct {
	Name      []byte `json:"name"`                // co_ownerid of RFC 8881, nfs_client_id4 of RFC 7530: 1 to 1024 bytes
	Principal []byte `json:"principal,omitempty"` // SHA-256 of its Kerberos principal, or nothing
}

// cldMessage is one message from the kernel; its answer is made in place.
type cldMessage []byte

// checkCLD makes a message of what was read from the pipe.
func checkCLD(b []byte) (cldMessage, error) {
	if len(b) != cldSizeV1 && len(b) != cldSizeV2 {
		return nil, fmt.Errorf("client tracking message of %d bytes, not %d or %d", len(b), cldSizeV1, cldSizeV2)
	}
	return cldMessage(b), nil
}

func (m cldMessage) command() byte { return m[1] }

func (m cldMessage) hasPrincipal() bool { return len(m) == cldSizeV2 }

// client returns the client that a message is about.
func (m cldMessage) client() (client, error) {
	n := int(binary.LittleEndian.Uint16(m[cldUnion:]))
	if n == 0 || n > maxClientName {
		return client{}, fmt.Errorf("client name of %d bytes", n)
	}
	c := client{Name: append([]byte(nil), m[cldName:cldName+n]...)}
	if !m.hasPrincipal() {
		return c, nil
	}
	p := int(m[cldPrincipal])
	if p > principalSize {
		return client{}, fmt.Errorf("principal's hash of %d bytes", p)
	}
	if p > 0 {
		c.Principal = append([]byte(nil), m[cldPrincipal+1:cldPrincipal+1+p]...)
	}
	return c, nil
}

// answer sets the status of the message, zero or a negative errno, and returns it.
func (m cldMessage) answer(status int16) cldMessage {
	binary.LittleEndian.PutUint16(m[cldStatus:], uint16(status))
	return m
}

// answerVersion says which version we speak.
func (m cldMessage) answerVersion() cldMessage {
	m[cldUnion] = cldVersion
	return m.answer(0)
}

// record returns a message with one of the clients: when the kernel asks for all
// clients, one such message each comes before the last answer. c must be valid.
func (m cldMessage) record(c client) cldMessage {
	r := append(cldMessage(nil), m...)
	clear(r[cldUnion:])
	binary.LittleEndian.PutUint16(r[cldUnion:], uint16(len(c.Name)))
	copy(r[cldName:], c.Name)
	if m.hasPrincipal() {
		r[cldPrincipal] = byte(copy(r[cldPrincipal+1:], c.Principal))
	}
	return r.answer(cldInProgress)
}

// cldInProgress is -EINPROGRESS: more of the answer follows.
const cldInProgress = -115
