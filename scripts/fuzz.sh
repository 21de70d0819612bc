#!/bin/bash
# Fuzzes every parser of foreign bytes: each Fuzz function in the tree for a time,
# with one worker, as many at once as there are CPUs. What breaks one is kept by go
# test under its package's testdata/fuzz, to be mended and committed.
#
#   FUZZTIME=10m  for each
#   PARALLEL=N    at once; the number of CPUs
#
# usage: scripts/fuzz.sh [TABLE]; TABLE gets the counts (docs/FUZZ.md).
set -euo pipefail
cd "$(dirname "$0")/.."

table=${1:-}
time=${FUZZTIME:-10m}
parallel=${PARALLEL:-$(nproc)}
go=${GO:-go}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# targets lists packages and their Fuzz functions, a pair a line.
targets() {
	local pkg name
	grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | while read -r pkg; do
		grep -ho '^func Fuzz[A-Za-z0-9_]*' "$pkg"/*_test.go | sort | while read -r _ name; do echo "$pkg $name"; done
	done
}

# one fuzzes one target; its log is kept under a name without slashes.
one() {
	local pkg=$1 name=$2 log
	log=$logs/$(tr / _ <<<"$pkg").$name
	# Of an input of some pages go test tries to make a smaller one for a minute each time, and
	# counts nothing meanwhile: FuzzOpen of ram had 93 executions in ten minutes.
	#
	# At the end of its time go test now and then fails with nothing but its own
	# deadline to tell of: that is no finding.
	if ! "$go" test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x -parallel 1 "$pkg" >"$log" 2>&1 &&
		[[ $(grep -A1 -- "^--- FAIL: $name" "$log" | tail -n 1) != *"context deadline exceeded" ]]; then
		echo "$pkg $name failed:" >&2
		tail -n 40 "$log" >&2
		echo FAILED >>"$log"
	fi
	row "$pkg" "$name" "$log"
}

# row prints a row of the table, from the last line of progress.
row() {
	local last execs new found=none
	last=$(grep '^fuzz: elapsed' "$3" | tail -n 1)
	execs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' <<<"$last")
	new=$(sed -n 's/.*new interesting: \([0-9]*\).*/\1/p' <<<"$last")
	grep -q '^FAILED' "$3" && found="**it failed**"
	echo "| ${1#./} | $2 | $(sed -n 's/fuzz: elapsed: \([^,]*\),.*/\1/p' <<<"$last") | ${execs:-?} | ${new:-?} | $found |"
}

export -f one row
export logs time go
rows=$(targets | xargs -P "$parallel" -n 2 bash -c 'one "$@"' fuzz | tee >(cat >&2) | sort)
if [[ -n $table ]]; then
	{
		cat <<-HEAD
			# Fuzzing

			Made by \`make fuzz\` on $(date -u +%F): do not edit.

			Every parser of foreign bytes (memory, dumps, disks, messages, files of the operator's) has a target that states what must
			hold whatever the bytes are: that it ends, allocates within a bound, and what it accepts is consistent. Each ran for $time with
			one worker. What a run found before stands in the packages' testdata/fuzz and is run by every \`make test\`.

			| package | target | for | inputs | of new coverage | broke on |
			|---|---|---|---|---|---|
		HEAD
		echo "$rows"
	} >"$table.new"
	mv "$table.new" "$table"
fi
if grep -q 'it failed' <<<"$rows"; then exit 1; fi
