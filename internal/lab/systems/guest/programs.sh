# What programs do in a guest, and how each is checked. A worker says "ACK PROGRAM WHAT" on the
# console, which outlives the guest, once the program has answered for WHAT. A check is given the
# last WHAT, and prints "FOUND N", how much of what was acknowledged is there, and what is
# wrong on lines of their own. It fails if something is.

export HOME=/root

port_of() { case $1 in postgres) echo 5432 ;; postgres-nofsync) echo 5433 ;; esac; }

# wait_port PORT UNIT waits until something listens there, or the unit has ended for good, or
# hangs; 0 is none.
wait_port() {
	[[ $1 = 0 ]] && return
	until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
		case $(systemctl show -P ActiveState "$2") in failed | inactive) return ;; esac
		((SECONDS < 1800)) || return
		sleep 0.5
	done
}

# http METHOD PATH [BODY] sends a request to the port in $http_port and prints the answer.
http() {
	exec 3<>"/dev/tcp/127.0.0.1/$http_port" || return
	printf '%s %s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s' "$1" "$2" "${#3}" "$3" >&3
	cat <&3
	exec 3>&-
}

psql_at() { runuser -u postgres -- psql -XAtq -h "$([[ $1 = 5433 ]] && echo /tmp || echo /var/run/postgresql)" -p "$1" -v ON_ERROR_STOP=1 "${@:2}"; }

# PostgreSQL: one session after the other's answer.
setup_postgres() { psql_at "$(port_of "$1")" -c 'create extension amcheck' -c 'create table t (n int primary key, v text)'; }
setup_postgres-nofsync() { setup_postgres "$1"; }

work_postgres() {
	local i=0
	while :; do
		i=$((i + 1))
		printf "insert into t values (%d, repeat(md5('%d'), 20));\n\\\\echo ACK %s %d\n" $i $i "$1" $i
	done | psql_at "$(port_of "$1")" >/dev/ttyS0
}
work_postgres-nofsync() { work_postgres "$1"; }

check_postgres() {
	local p bad
	p=$(port_of "$1")
	echo "FOUND $(psql_at "$p" -c "select count(*) from t where n <= $2")" || return
	psql_at "$p" -c "select bt_index_check('t_pkey', true)" >/dev/null || return
	bad=$(psql_at "$p" -c "select count(*) from t where v <> repeat(md5(n::text), 20)") || return
	[[ $bad = 0 ]] || { echo "$bad rows are not what was inserted"; return 1; }
	runuser -u postgres -- pg_dump -h "$([[ $p = 5433 ]] && echo /tmp || echo /var/run/postgresql)" -p "$p" >/dev/null
}
check_postgres-nofsync() { check_postgres "$@"; }

# git: a commit each time, of a file that grows and one that is new.
setup_git() { git init -q /srv/repo && cd /srv/repo && git config user.name lab && git config user.email lab@localhost; }

work_git() {
	cd /srv/repo || return
	local i=0
	while :; do
		i=$((i + 1))
		echo "line $i" >>log
		seq $i $((i + 300)) >"file$i"
		git add -A && git commit -qm "commit $i" && echo "ACK git $(git rev-parse HEAD)" >/dev/ttyS0 || return
	done
}

check_git() {
	cd /srv/repo || return
	local said
	if git merge-base --is-ancestor "$2" HEAD 2>/dev/null; then
		echo "FOUND $(git rev-list --count "$2")"
	else
		echo "FOUND $(git rev-list --count HEAD 2>/dev/null || echo 0)"
	fi
	said=$(git fsck --full --strict --no-dangling --no-progress 2>&1) || { echo "git fsck: $(head -3 <<<"$said" | tr '\n' ';')"; return 1; }
	git diff --quiet "$2" HEAD -- log 2>/dev/null || git rev-parse -q --verify "$2^{commit}" >/dev/null || { echo "the last commit is not there"; return 1; }
}

# nginx: files that are put there over HTTP.
setup_nginx() { :; }

work_nginx() {
	http_port=80
	local i=0
	while :; do
		i=$((i + 1))
		[[ $(http PUT "/f$i" "$(seq $i $((i + 400)))" | head -1) = *" 201 "* ]] || return
		echo "ACK nginx $i" >/dev/ttyS0
	done
}

check_nginx() {
	local i found=0
	for ((i = 1; i <= $2; i++)); do
		if [[ $(cat "/srv/nginx/www/f$i" 2>/dev/null) = "$(seq $i $((i + 400)))" ]]; then found=$((found + 1)); fi
	done
	echo "FOUND $found"
	http_port=80
	[[ $(http GET "/f1" | tail -n +2) = *401* ]] || { echo "nginx does not serve the first file"; return 1; }
}

# Prometheus: it scrapes itself; what it answers for a moment it has to answer later, too.
setup_prometheus() { :; }

samples_at() {
	http_port=9090
	http GET "/api/v1/query?query=sum(count_over_time(up%5B1h%5D))&time=$1" | sed -n 's/.*"value":\[[^,]*,"\([0-9]*\)"\].*/\1/p'
}

work_prometheus() {
	local at n
	while :; do
		at=$(date +%s)
		n=$(samples_at "$at")
		[[ -z $n ]] || echo "ACK prometheus $n@$at" >/dev/ttyS0
		sleep 0.5
	done
}

check_prometheus() {
	local n
	n=$(samples_at "${2#*@}")
	echo "FOUND ${n:-0}"
}

# podman: it pulls images of an OCI layout. Nothing of it stays mounted (skip_mount_home), so that
# the disk can be unmounted.
pod() { podman --root /srv/containers --runroot /run/containers-lab --storage-driver overlay --storage-opt overlay.skip_mount_home=true "$@"; }

# blob FILE makes a blob of the layout in the working directory, and prints its descriptor's end.
blob() {
	local sum size
	sum=$(sha256sum <"$1") size=$(stat -c %s "$1")
	mv "$1" "blobs/sha256/${sum%% *}"
	printf '"digest":"sha256:%s","size":%d' "${sum%% *}" "$size"
}

# file_of N LAYER FILE is what is in a file of image N: it is in no other.
file_of() { seq $(($1 * 100000 + $2 * 1000 + $3)) $(($1 * 100000 + $2 * 1000 + $3 + 4000)); }

layers=3 files=6

# oci_image N makes the layout of an image in an empty working directory: a layer with busybox, the
# same in each, and some that only this image has.
oci_image() {
	local n=$1 k f type=application/vnd.oci.image described= ids= one config
	mkdir -p blobs/sha256 tree/0/bin
	cp /bin/busybox tree/0/bin/
	for ((k = 1; k <= layers; k++)); do
		mkdir -p tree/$k/l$k
		for ((f = 1; f <= files; f++)); do file_of "$n" $k $f >tree/$k/l$k/f$f; done
	done
	echo "$n" >tree/$layers/n
	for ((k = 0; k <= layers; k++)); do
		tar -C tree/$k --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf layer .
		one=$(blob layer)
		described+=",{\"mediaType\":\"$type.layer.v1.tar\",$one}"
		ids+=",${one#*:}"
		ids=${ids%%,\"size*}
	done
	printf '{"created":"1970-01-01T00:00:00Z","architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' "${ids#,}" >config
	config=$(blob config)
	printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[%s]}' $type $type "$config" "${described#,}" >manifest
	printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json",%s}]}' $type "$(blob manifest)" >index.json
	echo '{"imageLayoutVersion":"1.0.0"}' >oci-layout
	rm -r tree
}

setup_podman() { pod info >/dev/null; }

work_podman() {
	local i=0
	while :; do
		i=$((i + 1))
		rm -rf /run/oci && mkdir /run/oci && cd /run/oci && oci_image $i || return
		pod pull -q oci:/run/oci >/dev/null && echo "ACK podman $i" >/dev/ttyS0 || return
	done
}

# good_image DIR says which image is mounted there, if all of it is there.
good_image() {
	local n k f
	n=$(cat "$1/n") && [[ -n $n ]] && cmp -s /bin/busybox "$1/bin/busybox" || return
	for ((k = 1; k <= layers; k++)); do
		for ((f = 1; f <= files; f++)); do file_of "$n" $k $f | cmp -s - "$1/l$k/f$f" || return; done
	done
	echo "$n"
}

check_podman() {
	local id at n last= found=0 bad=0 ids
	rm -rf /run/containers-lab
	ids=$(pod images -aq --no-trunc) || return
	for id in $ids; do
		n=0
		if at=$(pod image mount "$id"); then
			n=$(good_image "$at") || bad=$((bad + 1))
			pod image umount "$id" >/dev/null || return
		else
			bad=$((bad + 1))
		fi
		if [[ -n $n ]] && ((n > 0 && n <= $2)); then found=$((found + 1)); fi
		[[ $n = "$2" ]] && last=$id
	done
	echo "FOUND $found"
	((bad == 0)) || { echo "$bad of $(wc -w <<<"$ids") images are not what was pulled"; return 1; }
	[[ -n $last ]] || { echo "the last image is not there"; return 1; }
	[[ $(pod run --rm --pull=never --network=none --cgroups=disabled "$last" /bin/busybox cat /n) = "$2" ]] || { echo "the last image does not run"; return 1; }
	! podman system --help | grep -q "^ *check " || pod system check >/dev/null
}
