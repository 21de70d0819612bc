package netns_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"understudy.dev/understudy/internal/live/netns"
)

// victimEnv makes this test binary play the process that is killed.
const victimEnv = "NETNS_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		if err := victim(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// victim makes a namespace with a tap, cables it to the one it runs in, says so and waits to be killed.
func victim() error {
	n, err := netns.New()
	if err != nil {
		return err
	}
	// The near end is in the namespace that this process was started in.
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	err = n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "far"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "cable", PeerNamespace: netlink.NsFd(here.Fd())})
	})
	if err != nil {
		return err
	}
	tap, err := n.Tap("tap0", nil)
	if err != nil {
		return err
	}
	defer tap.Close()
	fmt.Println("ready")
	time.Sleep(time.Minute)
	return nil
}

// The victim's namespace holds the far end of a cable; when the near end vanishes, the namespace has died with it.
func TestNothingIsLeftBehindAfterKill(t *testing.T) {
	needTun(t)
	outer, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := outer.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	links, err := outer.Links()
	if killErr := cmd.Process.Kill(); killErr != nil {
		t.Fatal(killErr)
	}
	cmd.Wait()
	if _, there := links["cable"]; line != "ready\n" || err != nil || !there {
		t.Fatalf("victim said %q; links %v, %v", line, links, err)
	}
	eventually(t, "the victim's namespace is gone", func() bool {
		links, err := outer.Links()
		_, there := links["cable"]
		return err == nil && !there
	})
}
