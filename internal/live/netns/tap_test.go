package netns_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/netlab"
)

// needTun skips the test if, and only if, there is no tun driver.
func needTun(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("no taps: %v", err)
	}
}

func TestTap(t *testing.T) {
	needTun(t)
	lab := newLab(t)
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 9}
	tap, err := lab.Services.Tap("tap0", mac)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	checkTap(t, tap)
	if got := linkMAC(t, lab.Services, "tap0"); !bytes.Equal(got, mac) {
		t.Errorf("address %v, want %v", got, mac)
	}
	if links, err := lab.Services.Links(); err != nil || links["tap0"] != "" || links["client"] != netlab.BridgeName {
		t.Errorf("links %v, %v", links, err)
	}
	if _, err := lab.Services.Tap("tap0", nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("same tap twice: %v", err)
	}
	for _, before := range []bool{false, true} {
		if there, err := lab.Services.Join("tap0", netlab.BridgeName); err != nil || there != before {
			t.Fatalf("join: it was a port before is %v, not %v: %v", there, before, err)
		}
	}
	// The client sends an ARP request; it comes out of the tap, behind a header of 10 bytes.
	conn, err := lab.Client.DialContext(t.Context(), "udp", "10.77.0.99:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if !readARP(t, tap, linkMAC(t, lab.Client, "eth0")) {
		t.Error("no question came out of the tap")
	}
	tap.Close()
	if links, err := lab.Services.Links(); err != nil || slices.Contains(slices.Collect(maps.Keys(links)), "tap0") {
		t.Errorf("links after the close %v, %v", links, err)
	}
	if _, err := lab.Services.Tap("a-name-too-long-for-a-link", nil); err == nil {
		t.Error("a name too long is taken")
	}
}

// checkTap checks that the descriptor is as QEMU needs it.
func checkTap(t *testing.T, tap *os.File) {
	t.Helper()
	req, err := unix.NewIfreq("")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNGETIFF, req); err != nil {
		t.Fatal(err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := req.Uint16(); flags&want != want || req.Name() != "tap0" {
		t.Errorf("tap %q with flags %#x", req.Name(), flags)
	}
	status, err := unix.FcntlInt(tap.Fd(), unix.F_GETFL, 0)
	if err != nil || status&unix.O_NONBLOCK != 0 {
		t.Errorf("status flags %#x, %v", status, err)
	}
	fd, err := unix.FcntlInt(tap.Fd(), unix.F_GETFD, 0)
	if err != nil || fd&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", fd, err)
	}
}

// readARP reads frames until an ARP request from the given sender comes.
func readARP(t *testing.T, tap *os.File, from net.HardwareAddr) bool {
	t.Helper()
	frame := make([]byte, 2000)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		poll := []unix.PollFd{{Fd: int32(tap.Fd()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 100); n < 1 {
			continue
		}
		n, err := tap.Read(frame)
		if err != nil {
			t.Fatal(err)
		}
		if eth := frame[10:n]; len(eth) > 14 && bytes.Equal(eth[6:12], from) && eth[12] == 0x08 && eth[13] == 0x06 {
			return true
		}
	}
	return false
}
