package addr

import (
	"encoding/hex"
	"fmt"
)

// UUID identifies a file system, or an external journal.
type UUID [16]byte

func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseUUID reads the form that String writes; the dashes may be missing.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	digits := make([]byte, 0, 2*len(u))
	for i := range len(s) {
		if s[i] != '-' {
			digits = append(digits, s[i])
		}
	}
	if len(digits) != 2*len(u) {
		return u, fmt.Errorf("parse UUID %q: %d digits instead of 32", s, len(digits))
	}
	if _, err := hex.Decode(u[:], digits); err != nil {
		return u, fmt.Errorf("parse UUID %q: %w", s, err)
	}
	return u, nil
}
