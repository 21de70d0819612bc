package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Fetch asks once and returns the body with the answer. A failed try is an answer, not an error of Fetch: look at its
// Class and Err. The body is nil unless the class is OK or BadStatus.
func Fetch(ctx context.Context, spec Spec) ([]byte, Answer) {
	var body bytes.Buffer
	s, err := spec.fill()
	if err != nil {
		now := time.Now()
		return nil, Answer{Start: now, End: now, Class: Other, Err: err}
	}
	a := s.try(ctx, &body)
	if a.Err != nil {
		return nil, a
	}
	return body.Bytes(), a
}

// try asks once, over a connection of its own, and copies the body to sink.
func (s *Spec) try(ctx context.Context, sink io.Writer) Answer {
	a := Answer{Start: time.Now()}
	ctx, cancel := context.WithDeadline(ctx, a.Start.Add(s.Timeout))
	defer cancel()
	a.Err = s.exchange(ctx, &a, sink)
	a.End = time.Now()
	switch {
	case a.Err != nil:
		a.Class = classify(a.Err)
	case a.Status != http.StatusOK:
		a.Class = BadStatus
	default:
		a.Class = OK
	}
	return a
}

// exchange connects, asks, and reads the whole answer into a and sink.
func (s *Spec) exchange(ctx context.Context, a *Answer, sink io.Writer) (err error) {
	conn, err := s.Dial(ctx, "tcp", s.Address)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", s.Address, err)
	}
	defer func() { hangUp(conn, err != nil) }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // the caller gave up
	defer stop()

	ask := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", s.Path, s.Address)
	if _, err := io.WriteString(conn, ask); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	defer resp.Body.Close()
	a.Status = resp.StatusCode
	sum := sha256.New()
	a.Size, err = io.Copy(io.MultiWriter(sum, sink), io.LimitReader(resp.Body, s.MaxBody+1))
	switch {
	case err != nil:
		return fmt.Errorf("read body: %w", err)
	case a.Size > s.MaxBody:
		return fmt.Errorf("read body: over %d bytes: %w", s.MaxBody, errTooLong)
	}
	sum.Sum(a.SHA256[:0])
	return nil
}

// hangUp closes a connection. After a failure it is reset: a dead server's connections would otherwise linger in the
// kernel, each repeating its last segment for minutes.
func hangUp(conn net.Conn, failed bool) {
	if tcp, ok := conn.(*net.TCPConn); ok && failed {
		_ = tcp.SetLinger(0) // it is closed in any case
	}
	conn.Close()
}
