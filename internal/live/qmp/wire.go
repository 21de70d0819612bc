package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxMessage bounds a message, in bytes. The longest answers that we ask for,
// block nodes and statistics, have some ten KiB; query-qmp-schema has 200 KiB.
const maxMessage = 16 << 20

// message is what the server sends; exactly one of the kinds is set (qmp-spec, 2).
type message struct {
	greeting bool
	event    *Event
	reply    *reply
}

// Event is a notice that the server sends by itself (qmp-spec, 2.5).
type Event struct {
	Name string          // "GUEST_PANICKED"
	Time time.Time       // on the host's clock, to the microsecond; zero if the server had none
	Data json.RawMessage // nil if there is none
	Came time.Time       // when it was read here, which no step of the host's clock changes (package time, monotonic clocks)
}

// reply is the answer to a command. hasID is false only if the server could
// not read the command.
type reply struct {
	id    uint64
	hasID bool
	value json.RawMessage
	err   *Error
}

// Error is a command's refusal by the server (qmp-spec, 2.4.2).
type Error struct {
	Command string // the verb that was refused
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", ...
	Desc    string // for people
}

func (e *Error) Error() string { return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class) }

// wireMessage holds every key a server may send.
type wireMessage struct {
	QMP    *struct{}       `json:"QMP"` // the greeting (qmp-spec, 2.2)
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID        *uint64         `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"` // -1 if the host's clock could not be read
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// decodeMessage reads one message. It is exactly one of the kinds, or an error.
func decodeMessage(line []byte) (message, error) {
	var w wireMessage
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, fmt.Errorf("decode qmp message: %w", err)
	}
	var m message
	kinds := 0
	if w.QMP != nil {
		m.greeting = true
		kinds++
	}
	if w.Event != "" {
		m.event = &Event{Name: w.Event, Data: w.Data}
		if w.Timestamp.Seconds > 0 {
			m.event.Time = time.Unix(w.Timestamp.Seconds, w.Timestamp.Microseconds*1000)
		}
		kinds++
	}
	if w.Return != nil || w.Error != nil {
		m.reply = &reply{value: w.Return}
		if w.ID != nil {
			m.reply.id, m.reply.hasID = *w.ID, true
		}
		kinds++
	}
	if w.Error != nil {
		m.reply.err = &Error{Class: w.Error.Class, Desc: w.Error.Desc}
		if w.Return != nil {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, fmt.Errorf("decode qmp message: it is %d of greeting, event, return and error, not 1: %.80q", kinds, line)
	}
	return m, nil
}

// encodeCommand writes a command as one line (qmp-spec, 2.3). A nil args is
// left out.
func encodeCommand(id uint64, verb string, args any) ([]byte, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{verb, args, id})
	if err != nil {
		return nil, fmt.Errorf("encode qmp %s: %w", verb, err)
	}
	return append(line, '\n'), nil
}

// lineReader splits a server's bytes into lines, one message each, as QEMU
// sends them without "pretty".
type lineReader struct{ r *bufio.Reader }

func newLineReader(r io.Reader) *lineReader { return &lineReader{bufio.NewReaderSize(r, 64<<10)} }

// next returns the next line that is not blank. It is the caller's to keep.
// The error is io.EOF only between two messages.
func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxMessage:
			return nil, fmt.Errorf("read qmp message: longer than %d bytes", maxMessage)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) > 0:
			return nil, fmt.Errorf("read qmp message: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}
