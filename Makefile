# make demo: see a machine's operating system die and its service go on.
# make test: set up what is needed, and run everything.
# make matrix: all supported kernels and file systems; writes docs/SUPPORT.md.

GO ?= go

.PHONY: build lab setup check test demo matrix oracle fuzz nfs nfs-crashes bench clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/understudy ./cmd/understudy

# The program that proves what the other promises: the demo, and measurements.
lab:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/understudy-lab ./internal/lab/cmd/understudy-lab

setup:
	scripts/setup.sh

check:
	@unformatted=$$(gofmt -l .) && if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# One package at a time: tests that boot guests measure time, and would disturb
# each other. Never from the test cache: they run bin/understudy. What failed is told
# again at the end.
test: setup build lab check
	$(GO) tool gotestsum --format pkgname --format-hide-empty-pkg --hide-summary skipped -- -p 1 -count 1 -timeout 40m ./...

demo: setup lab
	bin/understudy-lab demo

# The tests run in their package's directory, hence the absolute path.
matrix: setup
	scripts/kernels.sh
	UNDERSTUDY_MATRIX=$(CURDIR)/docs/SUPPORT.md $(GO) test -count 1 -timeout 3h -v -run '^TestMatrix$$' ./dead/salvage

# Random work, a crash, a rescue, and a comparison with what must be there, SEEDS
# times, then PROGRAMS times with real programs; writes docs/ORACLE.md. What fails
# stays in out/oracle.
SEEDS ?= 200
PROGRAMS ?= 24
FIRST ?= 1
oracle: setup build
	scripts/kernels.sh
	$(GO) run ./internal/lab/oracle/cmd -seed $(FIRST) -seeds $(SEEDS) -programs $(PROGRAMS) -table docs/ORACLE.md

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

bench: setup build
	$(GO) test -p 1 -timeout 30m -run '^$$' -bench . ./...

clean:
	rm -rf bin out
