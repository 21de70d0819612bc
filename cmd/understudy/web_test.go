package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

const (
	webFiles   = "../../docs/web" // the pair that docs/SERVICES.md shows
	webClients = 3
	webRows    = "/cgi-bin/rows"
	webStatic  = "/static"
)

// TestServicesDocument checks that docs/SERVICES.md shows the pair that is tested here.
func TestServicesDocument(t *testing.T) {
	shown, err := os.ReadFile("../../docs/SERVICES.md")
	if err != nil {
		t.Fatal(err)
	}
	tested, err := os.ReadFile(filepath.Join(webFiles, "pair.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(shown, tested) {
		t.Errorf("docs/SERVICES.md does not show %s/pair.yaml", webFiles)
	}
}

// webPair brings that pair up in its own lab, with edits to its pair.yaml.
func webPair(t *testing.T, static []byte, edit ...string) *netlab.Lab {
	t.Helper()
	kernel, modules, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	text, err := os.ReadFile(filepath.Join(webFiles, "pair.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	given := onTheseCPUs(t, string(text))
	edited := strings.NewReplacer(edit...).Replace(given)
	if len(edit) > 0 && edited == given {
		t.Fatalf("%q changes nothing", edit)
	}
	err = errors.Join(
		os.CopyFS(in("disk"), os.DirFS(filepath.Join(webFiles, "disk"))),
		os.WriteFile(in("disk/www"+webStatic), static, 0o644),
		os.WriteFile(in("pair.yaml"), []byte(edited), 0o600),
		os.Symlink(kernel, in("vmlinuz")),
		os.WriteFile(in("data.img"), nil, 0o600),
		os.Truncate(in("data.img"), 256<<20),
	)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", in("disk"), in("data.img")).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	if _, err := understudy(t, "initramfs", "-o", in("guest.cpio"), "--modules", modules, "--add", "/usr/bin/sqlite3"); err != nil {
		t.Fatal(err)
	}
	lab, err := netlab.NewLab(netip.MustParsePrefix(clients4))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	err = lab.Services.Do(func() error { _, err := understudy(t, "up", "-d", "-f", in("pair.yaml")); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(binary, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return lab
}

// webClient makes one request after the other, each on its own connection, and repeats a
// failed request once.
type webClient struct {
	name  string
	http  *http.Client
	sent  map[string]bool // keys of the rows that were sent
	acked map[string]bool // keys of the rows that were acknowledged
	rows  atomic.Int64    // len(acked), for others
	took  []time.Duration // of each request, with its retry
	again []webRetry
	pause time.Duration // before each request
	since time.Time     // when the last connection was made
	err   error
}

// webRetry is a request that failed, and was repeated.
type webRetry struct {
	err   error     // error of the first attempt
	since time.Time // when the first attempt's connection was made
	at    time.Time // when err occurred
	took  time.Duration
}

func newWebClient(lab *netlab.Lab, name string) *webClient {
	// Keep-alives are disabled: without them, net/http never repeats a request by itself.
	transport := &http.Transport{DialContext: lab.Client.DialContext, DisableKeepAlives: true}
	return &webClient{
		name: name, http: &http.Client{Transport: transport, Timeout: programLimit},
		sent: map[string]bool{}, acked: map[string]bool{},
	}
}

// once does one request and returns the whole answer.
func (c *webClient) once(method, path, body string) ([]byte, error) {
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { c.since = time.Now() }}
	ctx := httptrace.WithClientTrace(context.Background(), trace)
	q, err := http.NewRequestWithContext(ctx, method, "http://"+pair4+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r, err := c.http.Do(q)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return b, err
}

// ask makes one request, and at most one retry, which waits for the address.
func (c *webClient) ask(method, path, body string) ([]byte, error) {
	began := time.Now()
	defer func() { c.took = append(c.took, time.Since(began)) }()
	answer, err := c.once(method, path, body)
	if err == nil {
		return answer, nil
	}
	retry := webRetry{err: err, since: c.since, at: time.Now()}
	for {
		answer, err = c.once(method, path, body)
		if !errors.Is(err, syscall.EHOSTUNREACH) { // nothing was sent: nobody has the address yet
			break
		}
	}
	retry.took = time.Since(retry.at)
	c.again = append(c.again, retry)
	return answer, err
}

func webValue(key string) string {
	return strings.Repeat(fmt.Sprintf("%x", sha256.Sum256([]byte(key))), 4)
}

// run inserts rows, and reads the static file after each, until stop is closed or a
// request has failed twice.
func (c *webClient) run(static []byte, stop <-chan struct{}) {
	for i := 0; c.err == nil; i++ {
		select {
		case <-stop:
			return
		case <-time.After(c.pause):
		}
		key := fmt.Sprintf("%s%06d", c.name, i)
		c.sent[key] = true
		answer, err := c.ask(http.MethodPost, webRows, key+" "+webValue(key)+"\n")
		if err != nil || string(answer) != "stored "+key+"\n" {
			c.err = fmt.Errorf("insert %s: %q, %w", key, answer, err)
			return
		}
		c.acked[key] = true
		c.rows.Add(1)
		if answer, err = c.ask(http.MethodGet, webStatic, ""); err != nil || !bytes.Equal(answer, static) {
			c.err = fmt.Errorf("read static file: %d bytes, %w", len(answer), err)
		}
	}
}

// webCrash lets clients work while the active kernel dies, at any moment, and for a while
// after. It returns the clients, the report of the takeover, and when the address was live.
func webCrash(t *testing.T, lab *netlab.Lab, static []byte) ([]*webClient, *lastTakeover, time.Time) {
	t.Helper()
	var clients []*webClient
	var working sync.WaitGroup
	stop := make(chan struct{})
	for i := range webClients {
		c := newWebClient(lab, string(rune('a'+i)))
		clients = append(clients, c)
		if i == 0 { // this client will most likely connect while nobody has the address
			c.pause = 200 * time.Millisecond
		}
		working.Go(func() { c.run(static, stop) })
	}
	await := func(rows int64) { // waits until each client has had this many more rows acknowledged
		t.Helper()
		began := time.Now()
		for _, c := range clients {
			for from := c.rows.Load(); c.rows.Load() < from+rows; time.Sleep(10 * time.Millisecond) {
				if time.Since(began) > programLimit {
					t.Errorf("client %s: %d rows in %v", c.name, c.rows.Load()-from, programLimit)
					return
				}
			}
		}
	}
	defer working.Wait()
	defer sync.OnceFunc(func() { close(stop) })()
	await(5)
	moment := rand.N(3 * time.Second)
	t.Logf("crash after %v more", moment)
	time.Sleep(moment)
	if st := pairStatus(t); st.State != "protected" {
		t.Fatalf("before the crash: %+v", st)
	}
	report, live, _ := crashPair(t)
	await(5)
	return clients, report, live
}

// webFound asks for the rows, and returns what SQLite says about its file, and how often
// each key occurs.
func webFound(t *testing.T, lab *netlab.Lab) (integrity string, found map[string]int) {
	t.Helper()
	c := newWebClient(lab, "judge")
	answer, err := c.once(http.MethodGet, webRows, "")
	if err != nil {
		t.Fatal(err)
	}
	integrity, rows, _ := strings.Cut(string(answer), "\n")
	found = map[string]int{}
	for row := range strings.Lines(rows) {
		key, value, _ := strings.Cut(strings.TrimSpace(row), "|")
		found[key]++
		if value != webValue(key) {
			t.Errorf("row %q: value %q", key, value)
		}
	}
	return integrity, found
}

// TestWebService tests a web server and SQLite, which waits for no disk, both unmodified and
// restarted by role. It checks that each row that a client has an answer for is there, once,
// and that no client had to repeat more than one request, or that request more than once.
func TestWebService(t *testing.T) {
	for name, edit := range map[string][]string{
		"write-ahead log":  nil,
		"rollback journal": {"journal_mode=WAL", "journal_mode=DELETE"},
	} {
		t.Run(name, func(t *testing.T) {
			if edit != nil {
				tier.Full(t, "another journal of SQLite")
			}
			vm(t)
			static := make([]byte, 64<<10)
			rand.NewChaCha8([32]byte{1}).Read(static)
			lab := webPair(t, static, edit...)
			clients, report, live := webCrash(t, lab, static)
			integrity, found := webFound(t, lab)
			if integrity != "ok" {
				t.Errorf("integrity check: %s", integrity)
			}
			for _, c := range clients {
				checkWebClient(t, c, live, found)
			}
			for key, n := range found {
				sent := slices.ContainsFunc(clients, func(c *webClient) bool { return c.sent[key] })
				if n > 1 || !sent {
					t.Errorf("row %q is there %d times; sent: %v", key, n, sent)
				}
			}
			recovered := report.Bytes
			for _, c := range report.Commits {
				recovered += c.Data
			}
			if recovered == 0 || len(report.Refused) > 0 {
				t.Errorf("recovered %d bytes, refused %v", recovered, report.Refused)
			}
			t.Logf("%d rows; recovered %d bytes; told %+v", len(found), recovered, report.Notified)
		})
	}
}

func checkWebClient(t *testing.T, c *webClient, live time.Time, found map[string]int) {
	t.Helper()
	if c.err != nil {
		t.Errorf("client %s: %v", c.name, c.err)
	}
	for key := range c.acked {
		if found[key] == 0 {
			t.Errorf("row %s was answered and is not there", key)
		}
	}
	if len(c.again) > 1 {
		t.Errorf("client %s: %d retries", c.name, len(c.again))
	}
	for _, r := range c.again {
		t.Logf("client %s: connected %v before the address was live, %v %v after; the retry took %v",
			c.name, live.Sub(r.since), r.err, r.at.Sub(live), r.took)
		if r.since.After(live) {
			t.Errorf("client %s: a connection to the new server failed", c.name)
		}
		if !errors.Is(r.err, syscall.ECONNRESET) && !errors.Is(r.err, io.EOF) && !errors.Is(r.err, io.ErrUnexpectedEOF) {
			t.Errorf("client %s: not told, but %v", c.name, r.err)
		}
	}
	longest := time.Duration(0)
	for _, d := range c.took {
		longest = max(longest, d)
	}
	t.Logf("client %s: %d requests, %d rows answered, %d retries, the longest request took %v",
		c.name, len(c.took), len(c.acked), len(c.again), longest)
}

// TestWebServiceWithoutSalvage checks that, without the data that the dead kernel had not
// saved, rows are lost that clients had an answer for. So that data was in its memory only.
func TestWebServiceWithoutSalvage(t *testing.T) {
	tier.Full(t, "the contrast")
	vm(t)
	static := []byte("static")
	lab := webPair(t, static, "services:", "takeover: {salvage: false}\nservices:")
	clients, _, _ := webCrash(t, lab, static)
	_, found := webFound(t, lab)
	answered, lost := 0, 0
	for _, c := range clients {
		answered += len(c.acked)
		for key := range c.acked {
			if found[key] == 0 {
				lost++
			}
		}
	}
	t.Logf("%d of %d rows that were answered are lost", lost, answered)
	if lost == 0 {
		t.Error("no row was lost without salvage: nothing was in memory only")
	}
}
