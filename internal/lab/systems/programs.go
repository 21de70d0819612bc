package systems

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

//go:embed guest/programs.sh
var programs string

// Program is a program that keeps data and has its own check.
type Program struct {
	Name  string
	Title string
	Check string // how it is judged, for people
	unit  string // a systemd unit; if empty, serve is a command of sh, or there is nothing to run
	serve string
	ready int
	// weight is the CPU weight of its work (CPUWeight= of systemd.resource-control(5)); 0 means
	// 100, as for any unit. A run goes on until the slowest program has answered some times.
	weight int
}

// Suite is a Debian release.
type Suite struct {
	Name     string
	Title    string
	postgres int // the version of its PostgreSQL
}

// Suites are the releases that partitions are tried with, the newest first.
var Suites = []Suite{{"trixie", "Debian 13", 17}, {"bookworm", "Debian 12", 15}}

// Programs returns the programs that a suite is tried with.
func (s Suite) Programs() []Program {
	title, check := fmt.Sprintf("PostgreSQL %d, ", s.postgres), "count, bt_index_check, pg_dump"
	etc := fmt.Sprintf("/etc/postgresql/%d/main", s.postgres)
	return []Program{
		{Name: "postgres", Title: title + "as Debian has it", Check: check, unit: s.cluster(), ready: 5432},
		{Name: "postgres-nofsync", Title: title + "fsync=off", Check: check, ready: 5433,
			serve: fmt.Sprintf("exec runuser -u postgres -- /usr/lib/postgresql/%d/bin/postgres -D /srv/fast --config-file=/srv/fast.conf --hba-file=%s/pg_hba.conf --ident-file=%s/pg_ident.conf", s.postgres, etc, etc)},
		{Name: "git", Title: "git, a commit loop", Check: "git fsck --full --strict, the last commit"},
		{Name: "nginx", Title: "nginx, uploads (PUT)", Check: "each file", serve: "exec nginx -c /srv/nginx.conf", ready: 80},
		{Name: "prometheus", Title: "Prometheus, scraping itself", Check: "the same query as before", ready: 9090,
			serve: "exec prometheus --config.file=/srv/prometheus.yml --storage.tsdb.path=/srv/prometheus --web.listen-address=127.0.0.1:9090"},
		{Name: "podman", weight: 1000, Title: "podman, pulls of images", Check: "each file of each image, podman run, podman system check where there is one"},
	}
}

// cluster returns the unit of Debian's own PostgreSQL cluster.
func (s Suite) cluster() string { return fmt.Sprintf("postgresql@%d-main.service", s.postgres) }

// Files on the shared disk that configure the programs.
var configurations = map[string]string{
	"programs.sh":    "",
	"fast.conf":      "port = 5433\nfsync = off\nunix_socket_directories = '/tmp'\n",
	"nginx.conf":     "user www-data;\ndaemon off;\npid /run/nginx-lab.pid;\nerror_log /srv/nginx/error.log;\nevents {}\nhttp {\n  access_log off;\n  client_body_temp_path /srv/nginx/tmp;\n  server {\n    listen 80;\n    root /srv/nginx/www;\n    dav_methods PUT;\n  }\n}\n",
	"prometheus.yml": "global: {scrape_interval: 1s}\nscrape_configs:\n  - {job_name: self, static_configs: [{targets: ['127.0.0.1:9090']}]}\n",
}

// service returns the program's service for pair.yaml; empty if it has none.
func (p Program) service() string {
	switch {
	case p.unit != "":
		return fmt.Sprintf("  - {name: %s, unit: %q, ready: %d, rehearse: false}\n", p.Name, p.unit, p.ready)
	case p.serve != "": // no ready: setup and check wait for its port, which takes long on a busy machine
		return fmt.Sprintf("  - {name: %s, command: [sh, -c, %q], rehearse: false}\n", p.Name, p.serve)
	}
	return ""
}

// unitOf returns the unit in which the program runs if it was started in the given way.
func (p Program) unitOf(way string) string {
	if p.unit != "" {
		return p.unit
	}
	return way + "-" + p.Name + ".service"
}

// ackLine is the line on the console by which a program acknowledges something; acks returns how
// much each did, and its last.
var ackLine = regexp.MustCompile(`ACK ([a-z-]+) ([0-9a-f]+(?:@[0-9]+)?)\r?\n`)

func acks(console string) (count map[string]int, last map[string]string) {
	count, last = make(map[string]int), make(map[string]string)
	for _, m := range ackLine.FindAllStringSubmatch(console, -1) {
		name, what := m[1], m[2]
		count[name]++
		if n, _, ok := strings.Cut(what, "@"); ok { // the total, not one more
			count[name], _ = strconv.Atoi(n) // the pattern has digits there
		}
		last[name] = what
	}
	return count, last
}

// Judgement is the result of a check.
type Judgement struct {
	Found int    // of what was acknowledged
	Said  string // what else is wrong; empty if nothing
}

var foundLine = regexp.MustCompile(`(?m)^FOUND ([0-9]+)$`)

// judge reads a check's output.
func judge(status int, output string) Judgement {
	var j Judgement
	if m := foundLine.FindStringSubmatch(output); m != nil {
		j.Found, _ = strconv.Atoi(m[1]) // likewise
	}
	if status != 0 {
		j.Said = strings.Join(strings.Fields(foundLine.ReplaceAllString(output, "")), " ")
		if j.Said == "" {
			j.Said = fmt.Sprintf("its check ended with status %d", status)
		}
		j.Said = j.Said[:min(len(j.Said), 160)]
	}
	return j
}
