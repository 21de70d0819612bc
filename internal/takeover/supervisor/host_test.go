package supervisor

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/internal/lab/kerneltest"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
)

// TestFindAgain checks that an active kernel that was not found when its supervisor took charge of it is
// looked for until it is found, and that the missing protection is reported once, and its end, too.
func TestFindAgain(t *testing.T) {
	t.Setenv("UNDERSTUDY_CACHE", t.TempDir())
	s := graveyard(t)
	spec := s.spec(0, "")
	s.active = &side{name: "left", process: &partition.Process{Spec: spec}}
	var told []wire.TroubleNotice
	s.options.Trouble = func(n wire.TroubleNotice) { told = append(told, n) }
	if err := os.WriteFile(spec.RAMPath(), make([]byte, kerneltest.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s.missed(lostKernel, s.prepare(t.Context()), "") // as Reconnect does
		go s.findAgain(t.Context())
		time.Sleep(10 * time.Second)
		if len(told) != 1 || s.Vitals().Unread != told[0].What || told[0].What == "" {
			t.Errorf("told %+v, and status says %q", told, s.Vitals().Unread)
		}
		m := kerneltest.New(t)
		m.Finish(&btf.Struct{Name: "page", Size: kerneltest.PageStruct})
		f, err := os.OpenFile(spec.RAMPath(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(m.Mem, 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(2 * maxPause)
		if len(told) != 2 || told[1].Ends != told[0].What || s.Vitals().Unread != "" || !s.prepared {
			t.Errorf("told %+v, and status says %q", told, s.Vitals().Unread)
		}
	})
	if err := s.closeMorgue(); err != nil {
		t.Error(err)
	}
}

// TestMissed checks that the end of a trouble is reported with the words in which the trouble was reported.
func TestMissed(t *testing.T) {
	s := graveyard(t)
	var told []wire.TroubleNotice
	s.options.Trouble = func(n wire.TroubleNotice) { told = append(told, n) }
	for _, err := range []error{errors.New("no bridge a"), errors.New("no bridge b"), nil, nil} {
		s.missed("network", err, "it is there")
	}
	if len(told) != 2 || told[0].What != "no bridge a" || told[1].Ends != "no bridge a" {
		t.Errorf("%+v", told)
	}
}

// TestTapGone checks that an understudy whose tap somebody has removed, and which could not be reached,
// is as good as dead.
func TestTapGone(t *testing.T) {
	tier.Guest(t) // it makes a network
	n, err := netns.New()
	if err != nil {
		tier.Lacks(t, err)
	}
	t.Cleanup(func() { n.Close() })
	s := graveyard(t)
	s.options.Network = n
	s.active, s.understudy = &side{name: "left"}, &side{name: "right", taps: []string{"ustest0"}}
	tap, err := n.Tap("ustest0", nil)
	if err != nil {
		tier.Lacks(t, err)
	}
	if gone := s.goneTap(s.understudy); gone != "" {
		t.Errorf("%s is there", gone)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := s.watchPorts(t.Context())
	if err != nil || v.Cause != liveness.Degraded || !strings.Contains(v.Detail, "ustest0") {
		t.Errorf("%+v, %v", v, err)
	}
	s.understudy = nil
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.watchPorts(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
