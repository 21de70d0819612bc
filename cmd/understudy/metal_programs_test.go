package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
)

// programsOptions names units of programs as Debian 13 has them: one that gives its user capabilities, one that forks,
// an instance of a template that forks, one with a sandbox of users, one that locks memory, and one with a condition.
const programsOptions = "--mount / --mount /srv --interface eth0" + metalLimits +
	" --unit lighttpd.service=80 --unit nginx.service=8080 --unit postgresql@17-main.service=5432 --unit redis-server.service=6379 --unit mariadb.service=3306 --unit smbd.service=445"

// programsAsk prints what each of the programs has. It is run by the machine itself, and later by a client of the
// understudy through CGI.
const programsAsk = `#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ -z "$REQUEST_METHOD" ] || printf 'Content-Type: text/plain\r\n\r\n'
cd /
echo "PROGRAM nginx $(busybox wget -q -O - http://127.0.0.1:8080/page.html 2>&1)"
echo "PROGRAM postgresql $(su postgres -c "psql -At -c 'select count(*), sum(n) from t'" 2>&1)"
echo "PROGRAM redis $(redis-cli get key 2>&1)"
echo "PROGRAM mariadb $(mariadb -N -B -e 'select count(*), sum(n) from d.t' 2>&1)"
echo "PROGRAM samba $(smbclient -N //127.0.0.1/share -c 'get file -' 2>/dev/null)"
echo "PROGRAM name $(hostname) $(stat -c %U /run/postgresql)"
`

// programsScript makes the programs keep something in memory only, and the machine die.
const programsScript = debianStart + `
if ! grep -q understudy.metal /proc/cmdline; then
  mkdir -p /srv/cgi-bin /srv/share
  cat > /srv/cgi-bin/programs <<'END'
` + programsAsk + `END
  cat > /etc/lighttpd/lighttpd.conf <<'END'
server.document-root = "/"
server.modules = ( "mod_cgi" )
cgi.assign = ( "/cgi-bin/programs" => "/bin/sh" )
server.port = 80
END
  sed -i 's/listen 80 /listen 8080 /; s/listen \[::\]:80 /listen [::]:8080 /' /etc/nginx/sites-enabled/default
  echo old > /var/www/html/page.html
  sed -i 's/^appendonly no/appendonly yes/' /etc/redis/redis.conf
  printf '[share]\npath = /srv/share\nguest ok = yes\n' >> /etc/samba/smb.conf
fi
` + debianFirst + debianProtected + `
systemctl start lighttpd nginx postgresql@17-main redis-server mariadb smbd || { systemctl --failed; echo FAILED start; }
` + debianHold + `
echo new > /var/www/html/page.html
su postgres -c "psql -q -c 'create table t (n int)' -c 'insert into t select generate_series(1, 1000)'" || echo FAILED psql
redis-cli set key "$(head -c 9 /dev/urandom | base64)" || echo FAILED redis
mariadb -e 'create database d; create table d.t (n int)' || echo FAILED mariadb
mariadb -e 'insert into d.t values (1), (20), (300)' || echo FAILED mariadb
head -c 999 /dev/urandom | base64 -w 0 > /srv/share/file
chmod 644 /srv/share/file
sh /srv/cgi-bin/programs
echo SERVING
sleep 1
echo DYING
drain
echo c > /proc/sysrq-trigger
`

// TestMetalPrograms checks that servers of Debian's, each of which is started in a different way, run on the understudy
// as they ran under systemd, with everything that they had acknowledged.
func TestMetalPrograms(t *testing.T) {
	tier.Full(t, "Debian's own servers on a bare machine")
	vm(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	d := debianCase{trixie, "6.12-cloud", "6.12-cloud", virtio, false}.install(t, programsScript, programsOptions)
	r, end := startMetal(t, ctx, d.Machine)
	defer end()
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	_, fetch := metalClient(t, ctx, d.network)
	report := metalReport(t, fetch, "/run/understudy/takeover.json")
	t.Logf("served again after %v", time.Since(died))
	if len(report.Refused) > 0 || !report.Durable || len(report.Unready) > 0 {
		t.Errorf("the report is %+v", report.Report)
	}
	want := programLines(r.Console())
	if len(want) != 6 || strings.Contains(r.Console(), "FAILED") {
		t.Fatalf("the machine said:\n%s", r.Console())
	}
	got := programLines(string(fetch("/srv/cgi-bin/programs")))
	for name, says := range want {
		if got[name] != says {
			t.Errorf("%s has %.200q, and had %.200q", name, got[name], says)
		}
	}
}

// programLines returns what the programs print, by name.
func programLines(text string) map[string]string {
	lines := make(map[string]string)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "PROGRAM "); ok {
			name, says, _ := strings.Cut(rest, " ")
			lines[name] = says
		}
	}
	return lines
}
