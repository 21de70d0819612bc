# make demo: see a machine's operating system die and its service go on.
# make test: set up what is needed, and test every feature.
# make test-quick, make test-full: what needs no guest; all that there is (HACKING.md).
# make matrix: all supported kernels and file systems; writes docs/SUPPORT.md. make matrix-wide:
# Debian's other suites; make matrix-arm64: of arm64; make matrix-built: of other configurations.

GO ?= go
BEGAN := $(shell date +%s)

.PHONY: build lab setup kernels vet check lint test test-quick test-full demo metal survive matrix matrix-wide matrix-arm64 matrix-built oracle oracle-remade oracle-live fuzz nfs nfs-crashes systems bench deb clean

# What --version says: the tag, or the last one with the commit.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.built=$(VERSION)' -o bin/understudy ./cmd/understudy

# The program that proves what the other promises: the demo, and measurements.
lab:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/understudy-lab ./internal/lab/cmd/understudy-lab

setup:
	scripts/setup.sh

# The other kernels, and structures of kernels of other configurations.
kernels: setup
	scripts/kernels.sh
	scripts/layouts.sh

vet:
	@unformatted=$$(gofmt -l .) && if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...

check: vet
	$(GO) tool staticcheck ./...

# What finds faults and is long in the making: built from source the first time, some
# minutes.
GOLANGCI ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.11.4
GOVULNCHECK ?= $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0
lint:
	$(GOLANGCI) run ./...
	$(GOVULNCHECK) ./...

# TIMEOUT is for the tests of one package: it only ends what hangs. RUN is what runs them (internal/lab/tier says
# what the tiers are); it tells what it does meanwhile.
TIMEOUT ?= 25m
RUN = $(GO) run ./internal/lab/cmd/runtests -began $(BEGAN)

test: setup build lab vet
	$(RUN) -tier test -timeout $(TIMEOUT)

test-quick: vet
	$(RUN) -tier quick -timeout $(TIMEOUT)

# RESUME=1 continues a run that was broken off, or in which something failed: what has passed is not run again.
test-full: TIMEOUT = 12h
test-full: kernels build lab check
	$(RUN) -tier full -timeout $(TIMEOUT) -record out/test-full.jsonl $(if $(RESUME),-resume) -table docs/TESTED.md

# Faults of kernels, and deaths of everything that a pair is made of; about an hour; writes
# docs/RELIABILITY.md and out/survive.json.
survive: kernels build lab
	$(GO) run ./internal/lab/cmd/survive

# Machines that die with an understudy beside them, RUNS times in each way; adds to out/metal.json, and
# writes docs/METAL.md's last part of all that is in it. It fails unless all was exact. MACHINE is a
# pattern of machines, as their tests are named, or cost: what an understudy costs the kernel that it is beside.
metal: RUNS ?= 10
metal: MACHINE ?= .
metal: kernels build lab
	UNDERSTUDY_TIER=full $(GO) test -count 1 -timeout 12h -v -run '^TestMetalSeries$$/$(MACHINE)' ./cmd/understudy \
		-metal.runs $(RUNS) -metal.json $(CURDIR)/out/metal.json -metal.table $(CURDIR)/docs/METAL.md

demo: setup lab
	bin/understudy-lab demo

# The tests run in their package's directory, hence the absolute path.
matrix: kernels
	UNDERSTUDY_TIER=full $(GO) test -count 1 -timeout 3h -v -run '^TestMatrix$$' ./dead/salvage -salvage.matrix $(CURDIR)/docs/SUPPORT.md

# One crash of each kernel of Debian's other suites; writes their part of docs/SUPPORT.md. They
# move on: each time the newest are fetched.
WIDE = trixie-cloud trixie-backports-cloud experimental-cloud
matrix-wide: kernels
	rm -f $(WIDE:%=$${UNDERSTUDY_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/understudy}/kernels/%)
	scripts/kernels.sh $(WIDE)
	UNDERSTUDY_TIER=full $(GO) test -count 1 -timeout 3h -v -run '^TestMatrixWide$$' ./dead/salvage -salvage.wide $(CURDIR)/docs/SUPPORT.md

# Kernels for arm64, emulated; writes their part of docs/SUPPORT.md.
matrix-arm64: kernels
	UNDERSTUDY_TIER=full $(GO) test -count 1 -timeout 3h -v -run '^TestMatrixARM64$$' ./dead/salvage -salvage.arm64 $(CURDIR)/docs/SUPPORT.md

# Kernels of other configurations than Debian's, which are built here; writes their part of
# docs/SUPPORT.md.
matrix-built: kernels
	scripts/built.sh
	UNDERSTUDY_TIER=full $(GO) test -count 1 -timeout 3h -v -run '^TestMatrixBuilt$$' ./dead/salvage -salvage.built $(CURDIR)/docs/SUPPORT.md

# Random work, a crash, a rescue, and a comparison with what must be there, SEEDS
# times, then PROGRAMS times with real programs; writes docs/ORACLE.md. What fails
# stays in out/oracle.
SEEDS ?= 200
PROGRAMS ?= 24
FIRST ?= 1
oracle: kernels build
	$(GO) run ./internal/lab/oracle/cmd -seed $(FIRST) -seeds $(SEEDS) -programs $(PROGRAMS) -table docs/ORACLE.md

# The same with XFS and btrfs, and takeovers of pairs with these; writes their parts of docs/ORACLE.md.
REMADE ?= 60
REMADE_PROGRAMS ?= 6
REMADE_LIVE ?= 36
oracle-remade: kernels build
	$(GO) run ./internal/lab/oracle/cmd -seed $(FIRST) -seeds $(REMADE) -programs $(REMADE_PROGRAMS) -live $(REMADE_LIVE) -remade -keep out/oracle-remade -table docs/ORACLE.md

# The same with takeovers of running pairs; writes their part of docs/ORACLE.md.
LIVE ?= 60
oracle-live: kernels build
	$(GO) run ./internal/lab/oracle/cmd -seed $(FIRST) -seeds 0 -live $(LIVE) -keep out/oracle-live -table docs/ORACLE.md

# Every parser of foreign bytes, FUZZTIME each; writes docs/FUZZ.md.
FUZZTIME ?= 10m
fuzz:
	GO=$(GO) FUZZTIME=$(FUZZTIME) scripts/fuzz.sh docs/FUZZ.md

# What clients of an NFS server see when its kernel dies: through a takeover, with
# and without a word to them, and through a reboot; writes out/nfs.json.
nfs: RUNS ?= 10
nfs: REBOOTS ?= 5
nfs: setup lab
	bin/understudy-lab nfs-bench --runs $(RUNS) --reboots $(REBOOTS)

# Crashes while a kernel client runs fio --verify and unpacks a source tree.
nfs-crashes: RUNS ?= 20
nfs-crashes: setup lab
	bin/understudy-lab nfs-crashes --runs $(RUNS) --tree "$$($(GO) env GOROOT)/src/net"

# Programs with data of their own, in pairs of Debian guests whose kernel dies RUNS times; writes
# docs/SYSTEMS.md. It fails if anything that they had acknowledged is lost.
systems: RUNS ?= 5
systems: setup build
	$(GO) run ./internal/lab/systems/cmd -runs $(RUNS) -table docs/SYSTEMS.md

bench: kernels build
	UNDERSTUDY_TIER=full $(GO) test -p 1 -timeout 30m -run '^$$' -bench . ./...

# A package for Debian, in out; scripts/deb.sh.
deb:
	GO=$(GO) scripts/deb.sh

clean:
	rm -rf bin out
