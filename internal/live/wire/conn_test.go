package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func pair(t *testing.T, left, right Handler) (*Conn, *Conn) {
	t.Helper()
	a, b := net.Pipe()
	limits := Limits{Request: 1 << 10, Answer: 1 << 20, Calls: 2, Notices: 100}
	l, r := New(a, limits, left), New(b, limits, right)
	for _, c := range []*Conn{l, r} {
		go c.Serve(t.Context())
		t.Cleanup(func() { c.Close() })
	}
	return l, r
}

func TestCallGoesBothWays(t *testing.T) {
	double := func(_ context.Context, verb string, body json.RawMessage) (any, error) {
		var n int
		if err := json.Unmarshal(body, &n); err != nil {
			return nil, err
		}
		if verb != "double" {
			return nil, errors.New("unknown verb")
		}
		return 2 * n, nil
	}
	l, r := pair(t, double, double)
	for _, c := range []*Conn{l, r} {
		var got int
		if err := c.Call(t.Context(), "double", 21, &got); err != nil || got != 42 {
			t.Errorf("double 21 = %d, %v", got, err)
		}
	}
	var remote *remoteError
	if err := l.Call(t.Context(), "halve", 2, nil); !errors.As(err, &remote) || remote.text != "unknown verb" {
		t.Errorf("unknown verb: %v", err)
	}
}

func TestNoticesKeepTheirOrder(t *testing.T) {
	got := make(chan int, 100)
	_, r := pair(t, func(_ context.Context, _ string, body json.RawMessage) (any, error) {
		var n int
		err := json.Unmarshal(body, &n)
		got <- n
		return nil, err
	}, nil)
	for i := range 100 {
		if err := r.Notify("count", i); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if n := <-got; n != i {
			t.Fatalf("notice %d arrived in place of %d", n, i)
		}
	}
}

func TestCallEndsWithTheLink(t *testing.T) {
	hang := func(ctx context.Context, _ string, _ json.RawMessage) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l, r := pair(t, nil, hang)
	done := make(chan error, 1)
	go func() { done <- l.Call(context.Background(), "wait", nil, nil) }()
	time.Sleep(10 * time.Millisecond)
	r.Close()
	select {
	case err := <-done:
		if !errors.Is(err, errClosed) {
			t.Errorf("call on a closed connection: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("call outlived its connection")
	}
}

// TestAbandon: calls to a process that is gone fail, and later calls are answered.
func TestAbandon(t *testing.T) {
	asked := make(chan bool, 1)
	l, _ := pair(t, nil, func(ctx context.Context, verb string, _ json.RawMessage) (any, error) {
		if verb == "wait" {
			asked <- true
			<-ctx.Done()
		}
		return 1, nil
	})
	done := make(chan error, 1)
	go func() { done <- l.Call(context.Background(), "wait", nil, nil) }()
	<-asked
	l.Abandon(errors.New("gone"))
	if err := <-done; err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("abandoned: %v", err)
	}
	if err := l.Call(t.Context(), "now", nil, nil); err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestCallTimesOut(t *testing.T) {
	l, _ := pair(t, nil, func(ctx context.Context, _ string, _ json.RawMessage) (any, error) {
		<-ctx.Done()
		return nil, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Call(ctx, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call past its deadline: %v", err)
	}
}

// TestLimits: the connection of an end that asks for too much is closed, and calls that wait for it
// fail with the reason.
func TestLimits(t *testing.T) {
	limits := Limits{Request: 1 << 10, Answer: 1 << 20, Calls: 2, Notices: 10}
	frame := func(m message) []byte {
		b, err := encodeMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	long := func(n int) json.RawMessage { return fmt.Appendf(nil, "%q", strings.Repeat("x", n)) }
	for name, tc := range map[string]struct {
		sent []byte
		want string
	}{
		"long request":             {frame(message{ID: 1, Verb: "v", Body: long(2 << 10)}), "a request of 2077 bytes, and at most 1024"},
		"long notice":              {frame(message{Verb: "v", Body: long(2 << 10)}), "and at most 1024"},
		"long answer":              {frame(message{ID: 1, Body: long(2 << 20)}), "and at most 1048576"},
		"a length and nothing":     {[]byte{0xff, 0xff, 0xff, 0xff}, "a message of 4294967295 bytes"},
		"calls at once":            {slices.Repeat(frame(message{ID: 1, Verb: "hang"}), 3), "3 calls at once, and at most 2"},
		"notices":                  {slices.Repeat(frame(message{Verb: "v"}), 11), "more than 10 notices a second"},
		"what may be asked at all": {slices.Concat(slices.Repeat(frame(message{ID: 1, Verb: "hang"}), 2), slices.Repeat(frame(message{Verb: "v"}), 10)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				c := New(ours, limits, func(ctx context.Context, verb string, _ json.RawMessage) (any, error) {
					if verb == "hang" {
						<-ctx.Done()
					}
					return nil, nil
				})
				served, called := make(chan error, 1), make(chan error, 1)
				go func() { served <- c.Serve(t.Context()) }()
				go func() { called <- c.Call(t.Context(), "question", nil, nil) }()
				if _, _, err := readMessage(theirs, anyLength); err != nil {
					t.Fatal(err)
				}
				_, _ = theirs.Write(tc.sent) // the connection may be closed before all of it was read
				synctest.Wait()
				if tc.want == "" {
					c.Close()
				}
				call, serve := <-called, <-served
				if tc.want == "" {
					if !errors.Is(call, errClosed) {
						t.Errorf("within the limits: %v, %v", call, serve)
					}
					return
				}
				for _, err := range []error{call, serve} {
					if !errors.Is(err, errLimit) || !strings.Contains(err.Error(), tc.want) {
						t.Errorf("got %v, want %q", err, tc.want)
					}
				}
				if _, err := theirs.Write([]byte{0}); err == nil {
					t.Error("the stream is open")
				}
			})
		})
	}
}

// TestLongAnswers: an answer to a call may be long, even if nobody waits for it any more;
// no other message may.
func TestLongAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := strings.Repeat("x", 100<<10)
		l, _ := pair(t, nil, func(_ context.Context, verb string, _ json.RawMessage) (any, error) {
			switch verb {
			case "late":
				time.Sleep(time.Second)
			case "endless":
				return strings.Repeat("x", maxMessage), nil
			}
			return text, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := l.Call(ctx, "late", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("late answer: %v", err)
		}
		time.Sleep(2 * time.Second)
		got := ""
		if err := l.Call(t.Context(), "now", nil, &got); err != nil || got != text {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := l.Call(t.Context(), "endless", nil, nil); err == nil || !strings.Contains(err.Error(), "over the limit") {
			t.Errorf("an answer that cannot be sent: %v", err)
		}
		if err := l.Call(t.Context(), "now", nil, &got); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

// TestNobodyReads: a call and a notice end although the other end reads nothing.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := New(ours, Limits{}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Call(ctx, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call: %v", err)
		}
		if err := c.Notify("wait", nil); err == nil || !strings.Contains(err.Error(), "did not read") {
			t.Errorf("notice: %v", err)
		}
		// A part of a message makes the rest of the stream useless.
		go theirs.Read(make([]byte, 1))
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Call(ctx, "wait", nil, nil); err == nil {
			t.Error("half a call is a call")
		}
		if err := c.Call(t.Context(), "wait", nil, nil); err == nil {
			t.Error("the connection is used after half a message")
		}
	})
}

var plans = [][]File{
	nil,
	{{Inode: 12, Generation: 0xdeadbeef, Size: 5000, Atime: Time{1, 2}, Mtime: Time{-3, 999999999}}},
	{
		{Inode: 13, Size: 1 << 40, Runs: []Run{{Off: 4096, Len: 1, Staged: 8192}, {Off: 1 << 39, Len: 4096, Staged: 0}}},
		{Inode: 1 << 40, Generation: 1},
	},
	{
		{Inode: 14, Size: 20000, Cut: true, Holes: []Range{{Off: 4096, Len: 8192}}},
		{Inode: 15, Size: 20000, Runs: []Run{{Off: 0, Len: 4096}}, Holes: []Range{{Off: 4096, Len: 1}, {Off: 1 << 40, Len: 1 << 40}}},
	},
}

func TestPlanSurvivesEncoding(t *testing.T) {
	for _, want := range plans {
		got, err := DecodePlan(EncodePlan(want))
		if err != nil {
			t.Errorf("decode %+v: %v", want, err)
			continue
		}
		if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("decoded %+v, want %+v", got, want)
		}
	}
}

func TestDecodePlanRefuses(t *testing.T) {
	good := EncodePlan(plans[2])
	many := EncodePlan([]File{{}})
	copy(many[len(many)-8:], "\xff\xff\xff\xff")
	odd := EncodePlan([]File{{}})
	odd[len(odd)-4] = 2
	bad := map[string][]byte{
		"empty":        nil,
		"wrong magic":  append([]byte("x"), good[1:]...),
		"cut short":    good[:len(good)-1],
		"left over":    append(append([]byte{}, good...), 0),
		"many files":   append([]byte(planMagic), 0xff, 0xff, 0xff, 0xff),
		"negative run": EncodePlan([]File{{Runs: []Run{{Off: -512, Len: 1}}}}),
		"empty run":    EncodePlan([]File{{Runs: []Run{{Off: 512}}}}),
		"unaligned":    EncodePlan([]File{{Runs: []Run{{Off: 1, Len: 1}}}}),
		"overflow":     EncodePlan([]File{{Runs: []Run{{Off: 1<<63 - 512, Len: 512}}}}),
		"negative":     EncodePlan([]File{{Size: -1}}),
		"hole before":  EncodePlan([]File{{Holes: []Range{{Off: -1, Len: 4096}}}}),
		"hole of none": EncodePlan([]File{{Holes: []Range{{Off: 4096}}}}),
		"endless hole": EncodePlan([]File{{Holes: []Range{{Off: 1, Len: 1<<63 - 1}}}}),
		"many holes":   many,
		"cut oddly":    odd,
	}
	for name, b := range bad {
		if _, err := DecodePlan(b); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodePlan: a plan that decodes encodes to the same bytes, and nothing
// panics or allocates more than the input warrants.
func FuzzDecodePlan(f *testing.F) {
	for _, p := range plans {
		f.Add(EncodePlan(p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := DecodePlan(b)
		if err != nil {
			return
		}
		if got := EncodePlan(files); string(got) != string(b) {
			t.Fatalf("decoded %q encodes to %q", b, got)
		}
	})
}

var blockLists = [][]Run{{}, {{Off: 4096, Len: 1024, Staged: 512}, {Off: 0, Len: 512, Staged: 0}}}

func TestBlocksSurviveEncoding(t *testing.T) {
	for _, want := range blockLists {
		got, err := DecodeBlocks(EncodeBlocks(want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decoded %+v, %v, want %+v", got, err, want)
		}
	}
	good := EncodeBlocks(blockLists[1])
	for name, b := range map[string][]byte{
		"empty":      nil,
		"a plan":     EncodePlan(plans[1]),
		"cut short":  good[:len(good)-1],
		"left over":  append(append([]byte{}, good...), 0),
		"many":       append([]byte(blocksMagic), 0xff, 0xff, 0xff, 0xff),
		"part of it": EncodeBlocks([]Run{{Off: 512, Len: 100}}),
		"overflow":   EncodeBlocks([]Run{{Off: 1<<63 - 512, Len: 512}}),
	} {
		if _, err := DecodeBlocks(b); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeBlocks: a list of blocks that decodes encodes to the same bytes.
func FuzzDecodeBlocks(f *testing.F) {
	for _, l := range blockLists {
		f.Add(EncodeBlocks(l))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, err := DecodeBlocks(b)
		if err == nil && string(EncodeBlocks(blocks)) != string(b) {
			t.Fatalf("%q does not encode to itself", b)
		}
	})
}

// FuzzReadMessage: a frame decodes or is refused, and what decodes encodes.
func FuzzReadMessage(f *testing.F) {
	for _, m := range []message{{}, {ID: 1, Verb: "hello"}, {ID: 2, Body: []byte(`{"a":1}`)}} {
		b, err := encodeMessage(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, err := readMessage(&slowReader{b}, anyLength)
		if err != nil {
			return
		}
		if _, err := encodeMessage(m); err != nil {
			t.Fatal(err)
		}
	})
}

func anyLength() int { return maxMessage }

// slowReader hands out one byte at a time, as a serial port may.
type slowReader struct{ b []byte }

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, errors.New("no more")
	}
	p[0], r.b = r.b[0], r.b[1:]
	return 1, nil
}

var attrLists = [][]Attr{{}, {
	{File: 1, Root: 5, Committed: true},
	{
		File: 2, Paths: [][]byte{[]byte("a/not \xff UTF-8"), {}}, Links: 2, Mode: 0o100644, UID: 1, GID: 2, Settings: Settings{Flags: 0x18, Known: 0x18, Project: 42}, Target: []byte("x"),
		Zeros: []Range{{Off: 0, Len: 1}}, Mapped: []Extent{{Range: Range{Off: 4096, Len: 4096}, Disk: 1 << 40}}, Kept: true, Partial: true,
		Ctime: Time{Sec: 1, Nsec: 2},
	},
}}

func TestAttrsSurviveEncoding(t *testing.T) {
	for _, want := range attrLists {
		b, err := EncodeAttrs(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeAttrs(b); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decoded %+v, %v, want %+v", got, err, want)
		}
	}
	for name, bad := range map[string]string{
		"nothing":        "",
		"no list":        `{"file":1}`,
		"negative zeros": `[{"zeros":[{"off":-1,"len":1}]}]`,
		"empty zeros":    `[{"zeros":[{"off":1,"len":0}]}]`,
		"overflow":       `[{"mapped":[{"off":9223372036854775807,"len":1,"disk":0}]}]`,
		"no such extent": `[{"mapped":[{"off":0,"len":1,"disk":-5}]}]`,
	} {
		if _, err := DecodeAttrs([]byte(bad)); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeAttrs: attributes that decode have extents that end behind their beginning.
func FuzzDecodeAttrs(f *testing.F) {
	for _, l := range attrLists {
		b, err := EncodeAttrs(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, err := DecodeAttrs(b)
		if err != nil {
			return
		}
		for _, a := range attrs {
			for _, p := range a.Mapped {
				if p.Off < 0 || p.Off+p.Len <= p.Off || p.Disk < 0 {
					t.Errorf("place %+v", p)
				}
			}
		}
	})
}
