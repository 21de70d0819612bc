package nfs3

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// words encodes values in XDR: numbers, and strings with their length.
func words(values ...any) []byte {
	var e encoder
	for _, v := range values {
		switch v := v.(type) {
		case int:
			e.uint32(uint32(v))
		case uint64:
			e.uint64(v)
		case string:
			e.opaque([]byte(v))
		case []byte:
			e.fixed(v)
		}
	}
	return e.b
}

// file returns the fattr3 of a file.
func file() []byte {
	return words(1, 0o644, 1, 0, 0, uint64(5), uint64(4096), uint64(0), uint64(7), uint64(99), 1, 2, 3, 4, 5, 6)
}

func TestResults(t *testing.T) {
	verf := []byte("verifier")
	tests := []struct {
		name   string
		decode func([]byte) error
		good   []byte
		bad    map[string][]byte
	}{
		{"getattr", result(Getattr(nil)), words(0, file()), map[string][]byte{
			"type 0": words(0, bytes.Replace(file(), []byte{0, 0, 0, 1}, []byte{0, 0, 0, 0}, 1)),
			"short":  words(0, file())[:80],
			"long":   words(0, file(), 0),
			"time":   append(words(0, file())[:84], 0xff, 0xff, 0xff, 0xff),
		}},
		{"lookup", result(Lookup(nil, "")), words(0, "handle", 1, file(), 0), map[string][]byte{
			"handle too long": words(0, string(make([]byte, 65)), 0, 0),
			"bad bool":        words(0, "handle", 2, file(), 0),
		}},
		{"read", result(Read(nil, 0, 0)), words(0, 0, 3, 1, "abc"), map[string][]byte{
			"count":    words(0, 0, 4, 1, "abc"),
			"too long": words(0, 0, 1<<21, 1, 1<<21),
			"padding":  words(0, 0, 3, 1, "abc")[:19],
		}},
		{"write", result(Write(nil, 0, 0, nil)), words(0, 1, uint64(5), 1, 2, 3, 4, 0, 3, 2, verf), map[string][]byte{
			"stability": words(0, 0, 0, 3, 3, verf),
		}},
		{"commit", result(Commit(nil, 0, 0)), words(0, 0, 0, verf), map[string][]byte{"short": words(0, 0, 0, verf[:4])}},
		{"readdirplus", result(ReaddirPlus(nil, 0, Verifier{}, 0)),
			words(0, 0, verf, 1, uint64(9), "name", uint64(1), 0, 1, "handle", 0, 1), map[string][]byte{
				"endless": words(0, 0, verf, 1, uint64(9), "name", uint64(1), 0, 1, "handle", 1),
			}},
		{"mount", result(Mount("/")), words(0, "handle", 1, 1), map[string][]byte{
			"flavors": words(0, "handle", 1<<30),
		}},
		{"null", result(Null()), nil, map[string][]byte{"long": words(0)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.decode(tt.good); err != nil {
				t.Errorf("good: %v", err)
			}
			for name, b := range tt.bad {
				if err := tt.decode(b); !errors.Is(err, ErrFormat) {
					t.Errorf("%s: %v", name, err)
				}
			}
			for n := range tt.good {
				if err := tt.decode(tt.good[:n]); !errors.Is(err, ErrFormat) {
					t.Errorf("first %d bytes: %v", n, err)
				}
			}
		})
	}
}

// result decodes results of one procedure.
func result[T any](r Request[T]) func([]byte) error {
	return func(b []byte) error {
		_, err := r.result(b)
		return err
	}
}

func TestReplyHeader(t *testing.T) {
	tests := []struct {
		name string
		msg  []byte
		want error
	}{
		{"good", words(7, 1, 0, 0, "", 0), nil},
		{"verifier", words(7, 1, 0, 1, "xyz", 0), nil},
		{"a call", words(7, 0, 0, 0, "", 0), ErrFormat},
		{"empty", nil, ErrFormat},
		{"status", words(7, 1, 2), ErrFormat},
		{"verifier too long", words(7, 1, 0, 0, string(make([]byte, 401)), 0), ErrFormat},
		{"no such procedure", words(7, 1, 0, 0, "", 3), &RPCError{}},
		{"denied", words(7, 1, 1, 1, 5), &RPCError{}},
	}
	for _, tt := range tests {
		xid, body, err := decodeReply(tt.msg)
		switch want := tt.want.(type) {
		case nil:
			if err != nil || xid != 7 || len(body) > 0 {
				t.Errorf("%s: %#x, %x, %v", tt.name, xid, body, err)
			}
		case *RPCError:
			if !errors.As(err, &want) {
				t.Errorf("%s: %v", tt.name, err)
			}
		default:
			if !errors.Is(err, want) {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
}

func TestRecord(t *testing.T) {
	part := func(last bool, s string) []byte {
		b := appendRecord(nil, []byte(s))
		if !last {
			b[0] = 0
		}
		return b
	}
	huge := binary.BigEndian.AppendUint32(nil, lastFragment|maxRecord+1)
	tests := []struct {
		name string
		in   []byte
		want string // empty means an error
	}{
		{"whole", part(true, "abc"), "abc"},
		{"parts", append(part(false, "ab"), part(true, "c")...), "abc"},
		{"cut", part(true, "abc")[:6], ""},
		{"too long", huge, ""},
		{"fragments without end", bytes.Repeat(part(false, ""), maxFragments+1), ""},
	}
	for _, tt := range tests {
		got, err := readRecord(bytes.NewReader(tt.in))
		if (err == nil) != (tt.want != "") || string(got) != tt.want && err == nil {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

// decoders decode the results of all procedures.
var decoders = []func([]byte) error{
	result(Null()), result(Getattr(nil)), result(Setattr(nil, Set{})), result(Lookup(nil, "")),
	result(Read(nil, 0, 0)), result(Write(nil, 0, 0, nil)), result(Commit(nil, 0, 0)),
	result(Create(nil, "", Set{})), result(Mkdir(nil, "", Set{})), result(Remove(nil, "")),
	result(Rename(nil, "", nil, "")), result(Readdir(nil, 0, Verifier{}, 0)),
	result(ReaddirPlus(nil, 0, Verifier{}, 0)), result(Fsinfo(nil)), result(Mount("")),
}

// FuzzReply checks that every decoder ends, that its error is one of ours, and that input
// that it accepts is refused without its last byte.
func FuzzReply(f *testing.F) {
	verf := []byte("verifier")
	for i := range decoders {
		f.Add(byte(i), words(0, file()))
		f.Add(byte(i), words(0, 0, verf, 1, uint64(9), "name", uint64(1), 0, 1, "handle", 0, 1))
		f.Add(byte(i), words(0, 0, 3, 1, "abc"))
		f.Add(byte(i), words(70, 0))
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		decode := decoders[int(which)%len(decoders)]
		err := decode(b)
		var s Status
		switch {
		case err == nil && len(b) > 0:
			if err := decode(b[:len(b)-1]); err == nil {
				t.Error("the same without its last byte is taken, too")
			}
		case err != nil && !errors.Is(err, ErrFormat) && !errors.As(err, &s):
			t.Errorf("error %v", err)
		}
	})
}

// FuzzReplyHeader checks that a header is separated from what follows it, or refused.
func FuzzReplyHeader(f *testing.F) {
	f.Add(words(7, 1, 0, 1, "xyz", 0, 1, 2, 3))
	f.Add(words(7, 1, 1, 1, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, err := decodeReply(b)
		var refused *RPCError
		switch {
		case err == nil && !bytes.HasSuffix(b, body):
			t.Error("the body is not the end of the message")
		case err != nil && !errors.Is(err, ErrFormat) && !errors.As(err, &refused):
			t.Errorf("error %v", err)
		}
	})
}

// FuzzRecord checks that a record is no longer than the input, and that a record of ours
// is read as it was written.
func FuzzRecord(f *testing.F) {
	f.Add(appendRecord(nil, []byte("abc")))
	f.Add(appendRecord([]byte{0, 0, 0, 1, 'x'}, []byte("abc")))
	f.Fuzz(func(t *testing.T, b []byte) {
		msg, err := readRecord(bytes.NewReader(b))
		if err == nil && len(msg) > len(b)-4 {
			t.Errorf("%d bytes out of %d", len(msg), len(b))
		}
		if back, err := readRecord(bytes.NewReader(appendRecord(nil, b))); err != nil || !bytes.Equal(back, b) {
			t.Errorf("%x came back as %x, %v", b, back, err)
		}
	})
}
