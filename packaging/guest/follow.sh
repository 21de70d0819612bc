# What an administrator does on a fresh Debian who has our package, its next version, and
# understudy(8). Each step is told on the console; the last word is DONE.
set -eEu -o pipefail
export HOME=/root DEBIAN_FRONTEND=noninteractive
shopt -s inherit_errexit

step() { echo "STEP $(date +%T) $*"; }
fail() {
	trap - ERR
	echo "FAILED $*"
	understudy status || true
	understudy events web || true
	journalctl --no-pager -n 60 || true
	tail -n 40 /dev/shm/understudy-web/*.log || true
	sync
	systemctl poweroff -ff
	exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# files are all that there are on the system's disk, but for logs and what apt and dpkg keep.
files() { find / -xdev \( -path /var/log -o -path /var/cache/apt -o -path /var/cache/debconf -o -path /var/cache/ldconfig -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /root -o -path /lab -o -path /tmp -o -path /var/tmp -o -path /srv \) -prune -o -print | sort; }

# example prints what understudy(8) has one type, of its n-th example.
example() {
	zcat /usr/share/man/man8/understudy.8.gz | awk -v want="$1" '$1 == ".EX" { n++; on = n == want; next } $1 == ".EE" { on = 0 } on' |
		sed -e 's/^  //' -e 's/\\&//g' -e 's/\\-/-/g' -e "s/\\\\(aq/'/g" -e 's/\\`/`/g' -e 's/\\(ha/^/g' -e 's/\\(ti/~/g' -e 's/\\e/\\/g'
}

ask() { busybox wget -q -O - "http://10.77.0.2/$1"; }

# protected waits for what status says by its exit; only a pair that never comes there has this
# wait for good, which who runs this machine ends.
protected() {
	until understudy status web >/run/status; do
		[[ $? != 5 ]] || fail "nobody serves: $(cat /run/status)"
		sleep 5
	done
	cat /run/status
}

field() { { understudy status --json web || true; } | tr -d ' \n' | grep -o "\"$1\":[^,}]*" | head -1; }
guests() { { pgrep -x qemu-system-x86 || true; } | sort | tr '\n' ' '; }

step install
files >/lab/before
apt-get -y install /lab/first.deb
! systemctl is-failed --quiet 'understudy*'

step "the first example of understudy(8)"
example 1 >/lab/example1
example 2 >/lab/example2
cat /lab/example1 /lab/example2
# What is served can be written, too: busybox's httpd runs what is in cgi-bin.
install -D /lab/put /srv/pairs/www/cgi-bin/put
journalctl -f -n 0 -o cat -u understudy@web &
# Nothing tells a machine that is emulated for how long its CPUs stood still (no steal time): their silence
# is no death here, and the panic is seen without.
sed -i '/^cp .*web.yaml$/a echo "heartbeat: {limit: 1m, cpu: 1h, scheduler: 1h, disk: 1h}" >>/etc/understudy/web.yaml' /lab/example1
grep -q heartbeat /lab/example1
. /lab/example1
protected
[[ $(field active) = '"active":"left"' ]]

step "write through the served address"
for n in 1 2 3 4 5 6 7 8; do
	head -c $((n * 52391)) /dev/urandom | base64 >/lab/sent$n # busybox's wget sends no zeros
	busybox wget -q -O /lab/said --post-file=/lab/sent$n "http://10.77.0.2/cgi-bin/put?file$n"
	grep -q "stored file$n" /lab/said
	ask file$n | cmp - /lab/sent$n
done

step "the second example: a crash"
protected
[[ $(head -1 /lab/example2) = "understudy crash" ]]
sed -i 's/^understudy status$/& || [[ $? = 4 ]]/' /lab/example2
. /lab/example2
until understudy events web | grep took-over; do sleep 1; done
for n in 1 2 3 4 5 6 7 8; do
	ask file$n | cmp - /lab/sent$n
done
[[ $(field active) = '"active":"right"' ]]
protected

step upgrade
before=$(guests)
supervisor=$(systemctl show -P MainPID understudy@web)
apt-get -y install /lab/second.deb
protected
until [[ $(systemctl show -P ActiveState understudy@web) = active ]]; do sleep 1; done
[[ $(guests) = "$before" ]]
[[ $(systemctl show -P MainPID understudy@web) != "$supervisor" ]]
[[ $(understudy events web | grep -c took-over) = 1 ]]
ask file8 | cmp - /lab/sent8
protected

step stop
systemctl stop understudy@web
[[ -z $(guests) ]]
e2fsck -fn /srv/pairs/web.img
mkdir -p /tmp/look
mount -o loop,ro /srv/pairs/web.img /tmp/look
for n in 1 2 3 4 5 6 7 8; do cmp /tmp/look/file$n /lab/sent$n; done
umount /tmp/look

step purge
apt-get -y purge understudy
files >/lab/after
# What the operator wrote, or had made, stays.
diff /lab/before /lab/after | tee /lab/differs || true
if grep '^>' /lab/differs | grep -v -e '^> /etc/understudy$' -e '^> /etc/understudy/web.yaml$'; then fail "left behind"; fi
if grep '^<' /lab/differs; then fail "taken away"; fi
[[ -z $(ls -d /dev/shm/understudy* /run/understudy* 2>/dev/null || true) ]]
[[ -z $(systemctl list-units --all --plain --no-legend 'understudy*') ]]
echo DONE
sync
systemctl poweroff -ff
