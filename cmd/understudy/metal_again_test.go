package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/takeover/bare"
)

// metalAgain starts an understudy from files of the disk that is taken over, and leaves there
// what a client can have the next active kernel do: say how its own understudy is, and die with files
// in memory only.
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
chmod 755 /srv/cgi-bin/status /srv/cgi-bin/die
` + metalRun + `
umount /srv || echo "FAILED umount"
`

// TestMetalAgain: an understudy that has taken over is protected by another, on the dead kernel's memory
// and one of its CPUs. When it dies too, that one takes over all of its files, is
// protected in its turn, and gives the machine back.
func TestMetalAgain(t *testing.T) {
	tier.Full(t, "a machine whose kernel dies twice")
	death, _ := metalDeath(t, "panic", "")
	run := strings.NewReplacer("/vmlinuz --image /", "/srv/vmlinuz --again --image /srv/").Replace(metalAgain)
	m := bareMachine{script: parametersFirst + run + metalWork + death.script}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m) + os.Getenv("METAL_DEBUG")
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	ns := virtio.attach(t, m, disk)
	r, end := startMetal(t, ctx, m)
	defer end()
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	client, fetch := metalClient(t, ctx, ns)
	awaitStatus := func() {
		t.Helper()
		for status := ""; !strings.HasPrefix(status, "protected"); time.Sleep(100 * time.Millisecond) {
			if status = string(fetch("/cgi-bin/status")); ctx.Err() != nil {
				t.Fatalf("not protected again: %s", status)
			}
		}
	}
	fetch("/old1")
	checkFiles(t, r.Console(), fetch)
	first := fetch(":81/takeover.json")
	awaitStatus()
	said := fetch("/cgi-bin/die")
	died := time.Now()
	var report bare.Report
	for len(report.Verdict) == 0 {
		b := fetch(":81/takeover.json")
		if bytes.Equal(b, first) || b == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := json.Unmarshal(b, &report); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("served again by the second understudy after %v", time.Since(died)-time.Second)
	files := report.Files
	for _, c := range report.Commits {
		files += c.Files
	}
	if !strings.HasPrefix(report.Verdict, "panic state: ") || len(report.Refused) > 0 || !report.Durable || files < 9 || report.CPUs != 2 {
		t.Errorf("the report is %s: %+v, with %d CPUs", report.Verdict, report.Report, report.CPUs)
	}
	checkMAC(t, ns)
	checkAgain(t, string(said), 10, fetch)
	awaitStatus()
	if _, err := client.Get("http://10.77.0.2/cgi-bin/return"); err == nil {
		t.Error("the understudy did not give the machine back")
	}
	if err := r.Wait(); err != nil {
		t.Fatal(err)
	}
	left := lookInto(t, disk)
	checkAgain(t, string(said), 10, func(path string) []byte {
		b, err := os.ReadFile(left + path)
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		return b
	})
}

// checkAgain compares files with the sums that were told of them.
func checkAgain(t *testing.T, said string, want int, fetch func(path string) []byte) {
	t.Helper()
	sums := 0
	for line := range strings.Lines(said) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "SUM" {
			continue
		}
		sums++
		if got := fmt.Sprintf("%x", sha256.Sum256(fetch("/"+fields[2]))); got != fields[1] {
			t.Errorf("%s is %s, and was %s", fields[2], got, fields[1])
		}
	}
	if sums != want {
		t.Fatalf("%d files were told of:\n%s", sums, said)
	}
	for _, gone := range []string{"/old3", "/new/file5"} {
		if fetch(gone) != nil {
			t.Errorf("%s is there again", gone)
		}
	}
}
