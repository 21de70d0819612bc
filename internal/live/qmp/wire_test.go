package qmp

import (
	"bufio"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDecodeMessage(t *testing.T) {
	id := func(n uint64, value string, err *Error) message {
		r := &reply{id: n, hasID: true, err: err}
		if value != "" {
			r.value = []byte(value)
		}
		return message{reply: r}
	}
	tests := []struct {
		line string
		want message
	}{
		{`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`,
			message{greeting: true}},
		{`{"return": {}, "id": 3}`, id(3, `{}`, nil)},
		{`{"return": null, "id": 0}`, id(0, `null`, nil)},
		{`{"id": 4, "error": {"class": "GenericError", "desc": "no"}}`, id(4, "", &Error{"", "GenericError", "no"})},
		{`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
			message{reply: &reply{err: &Error{"", "GenericError", "JSON parse error"}}}},
		{`{"timestamp": {"seconds": 1340000000, "microseconds": 250}, "event": "STOP"}`,
			message{event: &Event{Name: "STOP", Time: time.Unix(1340000000, 250000)}}},
		{`{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "X", "data": {"a": 1}}`,
			message{event: &Event{Name: "X", Data: []byte(`{"a": 1}`)}}},
	}
	for _, tt := range tests {
		got, err := decodeMessage([]byte(tt.line))
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", tt.line, got, err, tt.want)
		}
	}
	for _, line := range []string{``, `{}`, `[]`, `null`, `{"return": {}, "error": {}}`, `{"return": {}, "id": "x"}`,
		`{"event": "X", "return": 1}`, `{"return": {}} {"return": {}}`} {
		if m, err := decodeMessage([]byte(line)); err == nil {
			t.Errorf("%s: accepted as %+v", line, m)
		}
	}
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 200<<10) // longer than the buffer
	lines := newLineReader(strings.NewReader("a\r\n\r\n" + long + "\n  \nb\n"))
	for _, want := range []string{"a", long, "b"} {
		got, err := lines.next()
		if err != nil || string(got) != want {
			t.Fatalf("got %.20q (%d bytes), %v; want %.20q", got, len(got), err, want)
		}
	}
	if _, err := lines.next(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
	if _, err := newLineReader(strings.NewReader("half")).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("in a message: %v, want unexpected EOF", err)
	}
	endless := &lineReader{bufio.NewReader(endlessReader{})}
	if _, err := endless.next(); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("endless line: %v", err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// FuzzDecodeMessage checks that no bytes make it panic, and that what is accepted
// is exactly one kind of message.
func FuzzDecodeMessage(f *testing.F) {
	f.Add([]byte(`{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}`))
	f.Add([]byte(`{"return": {}, "id": 3}`))
	f.Add([]byte(`{"id": 4, "error": {"class": "GenericError", "desc": "no"}}`))
	f.Add([]byte(`{"timestamp": {"seconds": 1, "microseconds": 250}, "event": "STOP", "data": {}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := newLineReader(strings.NewReader(string(data)))
		for {
			line, err := lines.next()
			if err != nil {
				return
			}
			m, err := decodeMessage(line)
			if err != nil {
				continue
			}
			kinds := 0
			if m.greeting {
				kinds++
			}
			if m.event != nil {
				kinds++
			}
			if m.reply != nil {
				kinds++
				if (m.reply.err == nil) == (m.reply.value == nil) {
					t.Errorf("%q: reply with %v and %q", line, m.reply.err, m.reply.value)
				}
			}
			if kinds != 1 {
				t.Errorf("%q: %d kinds", line, kinds)
			}
		}
	})
}
