package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestManyFilesFit: if there are more files than an answer has room for, it has the outcome of the first
// ones, and the number of the others.
func TestManyFilesFit(t *testing.T) {
	for name, path := range map[string]string{"150,000 files": "var/mail/new/1764000001.M1.shop", "long names, escaped": strings.Repeat("\x01", 4095)} {
		t.Run(name, func(t *testing.T) {
			var all ApplyResult
			at := []byte(path)
			for i := range uint64(150_000) {
				all.Acts = append(all.Acts, Act{Kind: ActCreated, Inode: i, Path: at, Other: at})
				all.Failures = append(all.Failures, Failure{Inode: i, Reason: path})
			}
			if name == "150,000 files" {
				if _, err := encodeMessage(message{ID: 1, Body: encoded(t, all)}); err == nil {
					t.Error("it would fit as it is")
				}
			}
			answers := map[string]interface{ Fit() }{
				Apply: &ApplyResult{Acts: all.Acts, Failures: all.Failures, Phases: []PhaseTime{{Name: "write files"}}},
				Name:  &NameResult{Acts: all.Acts, Failures: all.Failures},
			}
			l, r := pair(t, nil, func(_ context.Context, verb string, _ json.RawMessage) (any, error) {
				answers[verb].Fit()
				return answers[verb], nil
			})
			l.limits, r.limits = FromAgent, FromSupervisor
			for verb := range answers {
				var got ApplyResult // both answers decode into it
				if err := l.Call(t.Context(), verb, nil, &got); err != nil {
					t.Fatal(err)
				}
				acts, failures := len(got.Acts), len(got.Failures)
				if acts < 100 || failures < 100 || acts+got.MoreActs != len(all.Acts) || failures+got.MoreFailures != len(all.Failures) {
					t.Errorf("%s: %d acts and %d more, %d failures and %d more", verb, acts, got.MoreActs, failures, got.MoreFailures)
				}
				if last := got.Failures[failures-1]; last != all.Failures[failures-1] {
					t.Errorf("%s: the last one that is named: %+v", verb, last)
				}
			}
		})
	}
}

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFitsAsItIs: nothing is left out of an answer that fits.
func TestFitsAsItIs(t *testing.T) {
	few := ApplyResult{Acts: []Act{{Kind: ActBack}}, Failures: []Failure{{Reason: "why"}, {Reason: "why not"}}}
	before := fmt.Sprintf("%+v", few)
	if few.Fit(); fmt.Sprintf("%+v", few) != before {
		t.Errorf("%+v, was %s", few, before)
	}
}

// TestManyNameless: the result of a check of a file system that has lost most of its directories
// fits in an answer.
func TestManyNameless(t *testing.T) {
	var said strings.Builder
	for i := range 2 * maxInodes {
		fmt.Fprintf(&said, "Unattached inode %d\nUnattached zero-length inode %d\n", i, i)
	}
	found, err := Checked([]byte(said.String()), nil)
	if err != nil || len(found.Lost) != maxInodes || len(found.Cleared) != maxInodes || found.More != 2*maxInodes {
		t.Errorf("%d lost, %d cleared, %d more, %v", len(found.Lost), len(found.Cleared), found.More, err)
	}
	if _, err := encodeMessage(message{ID: 1, Body: encoded(t, MountResult{Check: found})}); err != nil {
		t.Error(err)
	}
}
