package vigil

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy.dev/understudy/internal/live/domains"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/takeover/offline"
)

// hypervisor is a libvirt whose crashed domains have no QEMU.
type hypervisor struct {
	word    chan struct{}
	crashed []domains.Domain
	lacks   map[string]string
}

func (h *hypervisor) Word(context.Context) (<-chan struct{}, error) { return h.word, nil }
func (h *hypervisor) Crashed() ([]domains.Domain, error)            { return h.crashed, nil }
func (h *hypervisor) Unprepared() (map[string]string, error)        { return h.lacks, nil }
func (h *hypervisor) Start(context.Context, domains.Domain) error   { return nil }
func (h *hypervisor) Close() error                                  { return nil }

var errGone = errors.New("no such process")

// options returns the Options of a run that gets one connection after the other, and then none.
func options(t *testing.T, told *[]string, all ...*hypervisor) Options {
	return Options{
		State: t.TempDir(),
		Connect: func() (Hypervisor, error) {
			if len(all) == 0 {
				return nil, errors.New("no libvirt")
			}
			h := all[0]
			all = all[1:]
			return h, nil
		},
		Find:    func(string) (*foreign.Machine, error) { return nil, errGone },
		Refused: func(*offline.Adopted) []string { return nil },
		Tell:    func(s string) { *told = append(*told, s) },
		Ready:   func() error { return nil },
	}
}

// count returns how many times a text occurs in lines.
func count(lines []string, text string) (n int) {
	for _, l := range lines {
		n += strings.Count(l, text)
	}
	return n
}

// TestRun: each crash is acted on once, over all connections, and again when the domain has been
// started and has crashed again. A lasting problem is told once.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := domains.Domain{Name: "web", UUID: "1", Run: 1}
		again := web
		again.Run = 2
		first := &hypervisor{word: make(chan struct{}, 1), crashed: []domains.Domain{web}, lacks: map[string]string{"db": "no panic device"}}
		second := &hypervisor{word: make(chan struct{}, 1), crashed: []domains.Domain{web}}
		var told []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Run(ctx, options(t, &told, first, second)) }()
		time.Sleep(3 * lookEvery)
		if n := count(told, "web: not salvaged: no such process"); n != 1 {
			t.Errorf("the crash was acted on %d times: %q", n, told)
		}
		if n := count(told, "db: what it has not saved is lost"); n != 1 {
			t.Errorf("what db lacks was told %d times", n)
		}
		close(first.word) // libvirt is started again
		time.Sleep(time.Minute)
		if n := count(told, "watching"); n != 2 {
			t.Errorf("%d connections: %q", n, told)
		}
		second.crashed = []domains.Domain{again}
		second.word <- struct{}{}
		synctest.Wait()
		if n := count(told, "web: not salvaged"); n != 2 {
			t.Errorf("two crashes were acted on %d times: %q", n, told)
		}
		close(second.word) // libvirt stays away
		time.Sleep(time.Hour)
		if n := count(told, "no libvirt"); n != 1 {
			t.Errorf("that libvirt is away was told %d times", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestTwo: of two runs with the same state one watches, and the other says so.
func TestTwo(t *testing.T) {
	var told []string
	o := options(t, &told)
	first := &vigil{Options: o}
	lock, err := first.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "Another watch runs") {
		t.Errorf("a second one: %v", err)
	}
}

// TestBadRecord: a record that cannot be read is reported, and left where it is. The run goes
// on.
func TestBadRecord(t *testing.T) {
	var told []string
	o := options(t, &told)
	path := filepath.Join(o.State, "x"+recordSuffix)
	if err := os.WriteFile(path, []byte(`{"version": 7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	v := &vigil{Options: o, told: make(map[string]bool), seen: make(map[string]bool)}
	if err := v.resume(t.Context()); err != nil || count(told, "version 7") != 1 || len(v.starts) > 0 {
		t.Errorf("%v; told %q", err, told)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
