package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// writer is a service that writes a file, reports that, and waits. The content is in memory
// only, since the guest is told to write nothing back.
const writer = `  - {name: mark, command: [sh, -c, "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; [ -s /srv/kept ] || echo precious > /srv/kept; echo started >> /srv/mark; sleep 1000000"]}
`

const marker = `  - {name: mark, command: [sh, -c, "echo started >> /srv/mark; sleep 1000000"]}
`

// standing is a pair that is up, for a test to harm.
type standing struct {
	t     *testing.T
	file  string
	image string
}

func stand(t *testing.T, edit ...string) *standing {
	t.Helper()
	vm(t)
	s := &standing{t: t, file: pairFile(t, edit...)}
	s.image = filepath.Join(filepath.Dir(s.file), "data.img")
	t.Cleanup(s.clear)
	return s
}

func (s *standing) up() {
	s.t.Helper()
	if _, err := understudy(s.t, "up", "-d", "-f", s.file); err != nil {
		s.t.Fatal(err)
	}
}

// clear removes everything that is left, however the test ended. If the test failed, it
// logs what the supervisor said, and the ends of the consoles.
func (s *standing) clear() {
	logs, _ := filepath.Glob(filepath.Join(dirs.Run("test"), "*.log")) // the pattern is well-formed
	for _, path := range logs {
		if b, err := os.ReadFile(path); err == nil && s.t.Failed() {
			s.t.Logf("the end of %s:\n%s", filepath.Base(path), b[max(0, len(b)-4000):])
		}
	}
	exec.Command(binary, "down", "--force", "--discard", "test").Run() // there may be nothing
}

// shell runs a command line on a side, as the side's user would, and waits until it has ended.
func (s *standing) shell(side, line string) {
	s.t.Helper()
	token := fmt.Sprint("done", time.Now().UnixNano())
	// The quotes keep what is typed from looking like what is printed.
	s.typed(side, line, fmt.Sprintf("%s\recho '%s'%s\r", line, token[:5], token[5:]), token)
}

// says runs a command line on a side, and returns what it prints.
func (s *standing) says(side, line string) string {
	s.t.Helper()
	token := fmt.Sprint("say", time.Now().UnixNano())
	said := s.typed(side, line, fmt.Sprintf("echo '%[1]s'%[2]s; %[3]s; echo '%[1]s'%[2]s.\r", token[:5], token[5:], line), token+".")
	_, out, _ := strings.Cut(said, token)
	out, _, _ = strings.Cut(out, token+".")
	return strings.TrimSpace(strings.ReplaceAll(out, "\r", ""))
}

// typed types a text on a side's console, waits until the console has printed until, and
// returns everything that it printed. line says what the text is for.
func (s *standing) typed(side, line, text, until string) string {
	s.t.Helper()
	cmd := exec.Command(binary, "console", "--pair", "test", side)
	keys, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	io.WriteString(keys, text)
	await(s.t, "answer of the shell to "+line, programLimit, func() bool {
		select {
		case err := <-ended:
			s.t.Fatalf("console ended with %v: %s", err, said.String())
		default:
		}
		return strings.Contains(said.String(), until)
	})
	keys.Write([]byte{leave})
	if err := <-ended; err != nil {
		s.t.Errorf("console: %v: %s", err, said.String())
	}
	return said.String()
}

// written waits until the writer has written.
func (s *standing) written() {
	s.t.Helper()
	s.shell("left", "while [ ! -s /srv/kept ] || [ ! -s /srv/mark ]; do sleep 1; done")
}

// read reads a file of the image, which must not be mounted.
func (s *standing) read(path string) string {
	s.t.Helper()
	out, err := exec.Command("debugfs", "-R", "cat "+path, s.image).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

// sound checks the image's file system.
func (s *standing) sound() {
	s.t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", s.image).CombinedOutput(); err != nil {
		s.t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// supervisorPID returns the process ID of the pair's supervisor.
func (s *standing) supervisorPID() int {
	s.t.Helper()
	return s.processOf("up\x00-f\x00" + s.file)
}

// qemuPID returns the process ID of a side's QEMU.
func (s *standing) qemuPID(side string) int {
	s.t.Helper()
	return s.processOf(filepath.Join(dirs.Run("test"), side+".ram"))
}

func (s *standing) processOf(words string) int {
	s.t.Helper()
	pid := processWith(words)
	if pid == 0 {
		s.t.Fatalf("no process has %q", words)
	}
	return pid
}

// processWith returns the ID of the process whose command line has these words; 0 if there is none.
func processWith(words string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, l := range lines {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(words)) {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2]) // it is a number
			return pid
		}
	}
	return 0
}

// kill kills the supervisor and both guests with SIGKILL.
func (s *standing) kill() {
	s.t.Helper()
	for _, pid := range []int{s.supervisorPID(), s.qemuPID("left"), s.qemuPID("right")} {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
	}
	await(s.t, "end of the supervisor", programLimit, func() bool {
		d, err := supervisor.OpenRunDir(dirs.Run("test"))
		return err == nil && d.Close() == nil && processWith(dirs.Run("test")) == 0
	})
}

// recover brings what the pair left in memory to the disk.
func (s *standing) recover() {
	s.t.Helper()
	if _, err := understudy(s.t, "recover", "test"); err != nil {
		s.t.Fatal(err)
	}
	if _, err := os.Stat(dirs.Run("test")); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the run directory is still there: %v", err)
	}
}

// state waits for a state of the pair.
func (s *standing) state(want string) (st status) {
	s.t.Helper()
	await(s.t, "state "+want, programLimit, func() bool {
		st = s.status()
		return st.State == want
	})
	return st
}

// calm waits until the next death does not count as part of a crash loop, after which the
// pair would pause.
func (s *standing) calm() {
	s.t.Helper()
	for st := s.status(); time.Since(st.Since) < 11*time.Second; st = s.status() {
		time.Sleep(time.Second)
	}
}

// status returns the pair's status, for a test that asks often.
func (s *standing) status() (st status) {
	s.t.Helper()
	time.Sleep(50 * time.Millisecond)
	out, err := exec.Command(binary, "status", "--json").Output()
	if st, err = said(string(out), err); err != nil {
		st = status{State: err.Error()} // there is no pair yet, or no longer
	}
	return st
}

// again is a service that writes another file each time it starts, and reports that. All of
// it stays in memory.
const again = `  - {name: mark, command: [sh, -c, "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo started >> /srv/mark; n=$(wc -l < /srv/mark); seq $n 100000 > /srv/file-$n; touch /srv/done-$n; sleep 1000000"]}
`

// againFile returns what start n of that service writes.
func againFile(n int) string {
	var b strings.Builder
	for i := n; i <= 100000; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// wrote waits until start n of the service again has written its file.
func (s *standing) wrote(side string, n int) {
	s.t.Helper()
	s.shell(side, fmt.Sprintf("while [ ! -e /srv/done-%d ]; do sleep 1; done", n))
}

// exact compares what the first n starts of the service again wrote.
func (s *standing) exact(n int) {
	s.t.Helper()
	for i := 1; i <= n; i++ {
		if got, want := s.read(fmt.Sprintf("/file-%d", i)), againFile(i); got != want {
			s.t.Errorf("%s: file %d has %d bytes, or other ones than the %d that were written", s.image, i, len(got), len(want))
		}
	}
}

// mkfs makes an ext4 file system.
func mkfs(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mkfs.ext4", append([]string{"-q", "-F"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
}

// row reports a result to make survive: a line of the table in that section
// (internal/lab/cmd/survive).
func row(t *testing.T, section string, cells ...any) {
	t.Helper()
	texts := []string{section}
	for _, c := range cells {
		texts = append(texts, fmt.Sprint(c))
	}
	b, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("survive: %s", b)
}
