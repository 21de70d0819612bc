package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/barelab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/takeover/bare"
)

// metalAgain starts an understudy from files on the disk that is taken over, and leaves programs
// there by which a client can make the next active kernel report how its own understudy is, and die
// with files in memory only.
const metalAgain = `
while [ ! -e /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /srv || echo "FAILED mount"
cat /vmlinuz > /srv/vmlinuz
cat /understudy.cpio > /srv/understudy.cpio
cat > /srv/cgi-bin/status <<END
#!/bin/sh
echo "Content-Type: text/plain"
echo
/init metal status 2>&1
END
cat > /srv/cgi-bin/die <<END
#!/bin/sh
echo "Content-Type: text/plain"
echo
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000; do
  echo \${s#*=} > /proc/sys/\${s%=*}
done
busybox mount -o remount,commit=86400 /srv || echo FAILED
cd /srv
busybox mkdir again
for n in 1 2 3 4 5 6 7 8 9; do
  busybox head -c \$((n * 7919)) /dev/urandom > again/file\$n
done
busybox mv old3 again/renamed
busybox rm new/file5
for f in again/*; do echo "SUM \$(busybox sha256sum \$f)"; done
(busybox sleep 1; echo c > /proc/sysrq-trigger) < /dev/null > /dev/null 2>&1 &
END
cat > /srv/cgi-bin/panic <<END
#!/bin/sh
echo "Content-Type: text/plain"
echo
busybox cat /proc/sys/kernel/panic
END
chmod 755 /srv/cgi-bin/*
` + metalRun + `
umount /srv || echo "FAILED umount"
`

// TestMetalAgain checks that an understudy that has taken over is protected by another one, on the dead
// kernel's memory and one of its CPUs. When it dies, too, the second one takes over all of its files, is
// protected in its turn, and gives the machine back.
func TestMetalAgain(t *testing.T) {
	tier.Full(t, "a machine whose kernel dies twice")
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	r, ns, end := diesFirst(t, ctx, " --again")
	defer end()
	disk := filepath.Join(r.Dir, "data.img")
	client, fetch := metalClient(t, ctx, ns)
	fetch("/old1")
	checkFiles(t, r.Console(), fetch)
	metalReport(t, fetch, ":81/takeover.json")
	first := fetch(":81/takeover.json")
	awaitProtected(t, ctx, fetch, "/cgi-bin/status")
	said := fetch("/cgi-bin/die")
	died := time.Now()
	report := nextReport(t, fetch, ":81/takeover.json", first)
	t.Logf("served again by the second understudy after %v", time.Since(died)-time.Second)
	files := report.Files
	for _, c := range report.Commits {
		files += c.Files
	}
	if !strings.HasPrefix(report.Verdict, "panic state: ") || len(report.Refused) > 0 || !report.Durable || files < 9 || report.CPUs != 2 {
		t.Errorf("the report is %s: %+v, with %d CPUs", report.Verdict, report.Report, report.CPUs)
	}
	checkMAC(t, ns)
	checkTold(t, string(said), 10, goneAgain, fetch)
	awaitProtected(t, ctx, fetch, "/cgi-bin/status")
	givesBack(t, client, r, "/cgi-bin/return")
	left := lookInto(t, disk)
	checkTold(t, string(said), 10, goneAgain, func(path string) []byte {
		return readLeft(t, left+path)
	})
}

// diesFirst lets a machine die whose understudy was started by metalAgain with an option.
func diesFirst(t *testing.T, ctx context.Context, option string) (*barelab.Running, *netns.Namespace, func()) {
	t.Helper()
	death, _ := metalDeath(t, "panic", "")
	run := strings.NewReplacer("/vmlinuz --image /", "/srv/vmlinuz"+option+" --image /srv/").Replace(metalAgain)
	m := bareMachine{script: parametersFirst + run + metalWork + death.script}.make(t)
	m.Append = parameters(t, ctx, m) + os.Getenv("METAL_DEBUG")
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	ns := virtio.attach(t, m, disk)
	r, end := startMetal(t, ctx, m)
	if err := r.Await(ctx, "DYING"); err != nil {
		end()
		t.Fatal(err)
	}
	return r, ns, end
}

// TestMetalResets checks that an understudy that has taken over, is not protected, and dies, resets
// the machine, and that what the first kernel had is on the disk.
func TestMetalResets(t *testing.T) {
	tier.Full(t, "a machine whose understudy dies")
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	r, ns, end := diesFirst(t, ctx, "")
	defer end()
	_, fetch := metalClient(t, ctx, ns)
	metalReport(t, fetch, ":81/takeover.json")
	for status := ""; status != "10\n"; time.Sleep(100 * time.Millisecond) {
		if status = string(fetch("/cgi-bin/panic")); ctx.Err() != nil {
			t.Fatalf("it is not reset by a panic: %q", status)
		}
	}
	fetch("/cgi-bin/die")
	if err := r.Wait(); err != nil { // the reset ends it here
		t.Fatal(err)
	}
	disk := filepath.Join(r.Dir, "data.img")
	replay(t, disk)
	if b, err := os.ReadFile(lookInto(t, disk) + "/new/renamed"); err != nil || len(b) == 0 {
		t.Errorf("/new/renamed: %v", err)
	}
}

// awaitProtected waits until a program on the active side, which a client runs, reports that the
// side is protected.
func awaitProtected(t *testing.T, ctx context.Context, fetch func(path string) []byte, program string) {
	t.Helper()
	for status := ""; !strings.HasPrefix(status, "protected"); time.Sleep(100 * time.Millisecond) {
		if status = string(fetch(program)); ctx.Err() != nil {
			t.Fatalf("not protected again: %s", status)
		}
	}
}

// nextReport returns the report of the takeover after the first one.
func nextReport(t *testing.T, fetch func(path string) []byte, path string, first []byte) (report bare.Report) {
	t.Helper()
	for len(report.Verdict) == 0 {
		b := fetch(path)
		if bytes.Equal(b, first) || b == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := json.Unmarshal(b, &report); err != nil {
			t.Fatal(err)
		}
	}
	return report
}

// goneAgain are the files that must not be there again on the second understudy.
var goneAgain = []string{"/old3", "/new/file5"}
