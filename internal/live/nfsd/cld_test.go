package nfsd

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// message returns a message of the kernel about a client.
func message(size int, command byte, c client) cldMessage {
	m := make(cldMessage, size)
	m[0], m[1] = cldVersion, command
	binary.LittleEndian.PutUint32(m[4:], 0x1234)
	return m.record(c).answer(0)
}

func TestMessages(t *testing.T) {
	long := client{Name: bytes.Repeat([]byte("n"), maxClientName), Principal: bytes.Repeat([]byte{9}, principalSize)}
	for _, size := range []int{cldSizeV1, cldSizeV2} {
		m, err := checkCLD(message(size, cldCreate, long))
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.client()
		if err != nil || !bytes.Equal(got.Name, long.Name) {
			t.Errorf("%d bytes: name %q, %v", size, got.Name, err)
		}
		if want := size == cldSizeV2; bytes.Equal(got.Principal, long.Principal) != want {
			t.Errorf("%d bytes: principal %x", size, got.Principal)
		}
		r := m.record(client{Name: []byte("short")})
		if got, err := r.client(); err != nil || string(got.Name) != "short" || got.Principal != nil {
			t.Errorf("%d bytes: record of %+v, %v", size, got, err)
		}
		if status := int16(binary.LittleEndian.Uint16(r[cldStatus:])); status != cldInProgress {
			t.Errorf("status of a record: %d", status)
		}
		if !bytes.Equal(r[4:8], m[4:8]) || r.command() != m.command() {
			t.Error("the record is of another question")
		}
	}
}

// TestSizes: the sizes are those of the kernel's packed structs.
func TestSizes(t *testing.T) {
	if cldSizeV1 != 1034 || cldSizeV2 != 1067 {
		t.Errorf("sizes %d and %d", cldSizeV1, cldSizeV2)
	}
}

func TestMessageRefuses(t *testing.T) {
	if _, err := checkCLD(make([]byte, cldSizeV1+1)); err == nil {
		t.Error("a message of no version is taken")
	}
	nameless := message(cldSizeV2, cldCreate, client{})
	tooLong := message(cldSizeV2, cldCreate, client{Name: []byte("x")})
	binary.LittleEndian.PutUint16(tooLong[cldUnion:], maxClientName+1)
	odd := message(cldSizeV2, cldCreate, client{Name: []byte("x")})
	odd[cldPrincipal] = principalSize + 1
	for what, m := range map[string]cldMessage{"no name": nameless, "a name too long": tooLong, "a principal too long": odd} {
		if c, err := m.client(); err == nil {
			t.Errorf("%s: %+v", what, c)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(message(cldSizeV1, cldRemove, client{Name: []byte("a")})))
	f.Add([]byte(message(cldSizeV2, cldCreate, client{Name: []byte("a"), Principal: []byte{1}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := checkCLD(b)
		if err != nil {
			return
		}
		c, err := m.client()
		if err != nil {
			return
		}
		again, err := m.record(c).client()
		if err != nil || !bytes.Equal(again.Name, c.Name) || !bytes.Equal(again.Principal, c.Principal) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}
