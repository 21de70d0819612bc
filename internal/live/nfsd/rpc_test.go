package nfsd

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
)

// answerWith plays a server that answers any call with these words.
func answerWith(t *testing.T, words ...uint32) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	go func() {
		defer theirs.Close()
		var mark [4]byte
		if _, err := io.ReadFull(theirs, mark[:]); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, theirs, int64(binary.BigEndian.Uint32(mark[:])&^lastRecord)); err != nil {
			return
		}
		var out []byte
		for _, w := range words {
			out = binary.BigEndian.AppendUint32(out, w)
		}
		theirs.Write(out)
	}()
	return ours
}

func TestCall(t *testing.T) {
	tests := []struct {
		name  string
		words []uint32
		want  string // in the error; empty means no error
	}{
		{"success", []uint32{lastRecord | 24, 7, rpcReply, 0, 0, 0, 0}, ""},
		{"refusal", []uint32{lastRecord | 20, 7, rpcReply, 1, 1, 1}, ""},
		{"another call's", []uint32{lastRecord | 24, 8, rpcReply, 0, 0, 0, 0}, "word 0"},
		{"a call", []uint32{lastRecord | 24, 7, rpcCall, 0, 0, 0, 0}, "word 1"},
		{"too short", []uint32{lastRecord | 4, 7}, "4 bytes"},
		{"too long", []uint32{0x7fffffff}, "2147483647 bytes"},
		{"cut off", []uint32{lastRecord | 24, 7}, "EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := call(answerWith(t, tt.words...), 7, procNull, nil)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
