package metal

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestIssue: a command is written with its destination, or not at all while the last command
// stays pending. The priority is restored.
func TestIssue(t *testing.T) {
	for _, c := range []struct {
		pending uint32
		sent    bool
	}{{0, true}, {icrPending, false}} {
		var page [pageBytes / 4]uint32
		page[apicTPR/4], page[apicICRLow/4] = 0x20, c.pending|0xfb
		sent := issue(&page, 5, icrNMI)
		low, high := page[apicICRLow/4], page[apicICRHigh/4]
		if sent != c.sent || page[apicTPR/4] != 0x20 || c.sent != (low == icrNMI && high == 5<<24) || !c.sent && low != icrPending|0xfb {
			t.Errorf("pending %#x: sent %v, command %#x to %#x, priority %#x", c.pending, sent, low, high, page[apicTPR/4])
		}
	}
}

// TestIssueStays: the code that runs with interrupts kept out calls nothing in Go's runtime,
// which might put the thread to sleep.
func TestIssueStays(t *testing.T) {
	out, err := exec.Command("go", "build", "-gcflags=-S", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, text, ok := strings.Cut(string(out), ".issue STEXT")
	if !ok {
		t.Fatal("the compiler has shown nothing of it")
	}
	if head, _, _ := strings.Cut(text, "\n"); !strings.Contains(head, "nosplit") {
		t.Errorf("it looks at the stack: %s", head)
	}
	text, _, _ = strings.Cut(text, " STEXT")
	for _, call := range regexp.MustCompile(`CALL\s+(\S+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(call[1], "metal.store32") {
			t.Errorf("it calls %s", call[1])
		}
	}
}
