package ram_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkQEMU lets QEMU dump the memory, which it is given again in a machine that
// never starts, and checks the dumps.
func (d *dead) checkQEMU(t *testing.T, formats ...string) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "dump")
			switch err := d.qemuDump(out, format); {
			case err != nil && strings.Contains(err.Error(), "is not available now"):
				t.Skipf("this QEMU was built without it: %v", err)
			case err != nil:
				t.Fatal(err)
			}
			d.checkSame(t, out)
		})
	}
}

func (d *dead) qemuDump(out, format string) error {
	stat, err := os.Stat(d.image.RAM)
	if err != nil {
		return err
	}
	// share=off: the file is mapped privately and stays as it is.
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg",
		"-machine", "q35,memory-backend=ram", "-m", fmt.Sprintf("%dM", stat.Size()>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=off", stat.Size(), d.image.RAM),
		"-qmp", "stdio", "-gdb", "unix:"+out+".gdb,server=on,wait=off")
	var messages strings.Builder
	cmd.Stderr = &messages
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err = longMode(out + ".gdb"); err == nil {
		err = qmpDump(stdin, stdout, out, format)
	}
	if err != nil {
		err = fmt.Errorf("%w %s", err, messages.String())
	}
	return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
}

// longMode puts the machine's CPU into 64-bit mode through its debugger's port:
// QEMU makes a 32-bit core of a machine that is not in that mode (target/i386/arch_dump.c,
// cpu_get_dump_info). Register 32 is EFER (target/i386/gdbstub.c), in which LME, LMA
// and NXE are set.
func longMode(socket string) error {
	var conn net.Conn
	for try := range 1200 {
		var err error
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		if try == 1199 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	// Registers can be written once their description has been asked for.
	if _, err := gdbCommand(conn, "qXfer:features:read:target.xml:0,fff"); err != nil {
		return err
	}
	if reply, err := gdbCommand(conn, "P20=000d0000"); err != nil || reply != "OK" {
		return fmt.Errorf("set EFER: %q, %w", reply, err)
	}
	return nil
}

// gdbCommand sends a packet of gdb's remote protocol, and returns the reply.
func gdbCommand(conn net.Conn, command string) (string, error) {
	sum := byte(0)
	for _, c := range []byte(command) {
		sum += c
	}
	if _, err := fmt.Fprintf(conn, "$%s#%02x", command, sum); err != nil {
		return "", err
	}
	var reply strings.Builder
	for b := []byte{0}; b[0] != '#'; reply.Write(b) {
		if _, err := conn.Read(b); err != nil {
			return "", err
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil { // the checksum
		return "", err
	}
	_, err := io.WriteString(conn, "+")
	return strings.TrimSuffix(strings.TrimPrefix(reply.String(), "+$"), "#"), err
}

// ignoreExit ignores that a process was killed, which was done on purpose.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func qmpDump(to io.Writer, from io.Reader, out, format string) error {
	replies := bufio.NewScanner(from)
	dump := map[string]any{"execute": "dump-guest-memory", "arguments": map[string]any{"paging": false, "protocol": "file:" + out, "format": format}}
	if format == migrated {
		dump = map[string]any{"execute": "migrate", "arguments": map[string]any{"uri": "exec:cat > '" + out + "'"}}
	}
	for _, command := range []map[string]any{{"execute": "qmp_capabilities"}, dump} {
		if _, err := qmpCall(to, replies, command); err != nil {
			return err
		}
	}
	for format == migrated {
		reply, err := qmpCall(to, replies, map[string]any{"execute": "query-migrate"})
		var state struct{ Status string }
		if err = errors.Join(err, json.Unmarshal(reply, &state)); err != nil {
			return err
		}
		switch state.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("migrate: %s", reply)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// migrated is the name for the format that migrate writes.
const migrated = "migrate"

// qmpCall sends a command, and returns its result.
func qmpCall(to io.Writer, replies *bufio.Scanner, command map[string]any) (json.RawMessage, error) {
	if err := json.NewEncoder(to).Encode(command); err != nil {
		return nil, err
	}
	for replies.Scan() {
		var reply struct{ Return, Error json.RawMessage }
		switch err := json.Unmarshal(replies.Bytes(), &reply); {
		case err != nil:
			return nil, err
		case reply.Error != nil:
			return nil, errors.New(string(reply.Error))
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
	return nil, errors.Join(io.ErrUnexpectedEOF, replies.Err())
}
