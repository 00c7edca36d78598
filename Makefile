# Everything a developer runs. `make help` lists it. Needs Debian 12 (or the same packages elsewhere), Go, gcc, git, make;
# whatever else is missing is installed by apt when a target needs it (packaging/setup.sh says what and why).

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# CGO_ENABLED=0: one static binary that runs on every distribution.
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help
help: ## this list
	@echo 'stoker: which code, in which container, is using this machine?'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  DEMO_SECONDS=20 make demo    ends by itself after 20 seconds'
	@echo '  DEMO_LISTEN=127.0.0.1:5050   another address for the demo'"'"'s web UI'
	@echo '  FUZZ_SECONDS=600 make fuzz   ten minutes for each fuzz target'

.PHONY: build
build: ## bin/stoker and bin/stoker-hook, static (the BPF objects are committed: no clang needed)
	$(BUILD) -o bin/stoker ./cmd/stoker
	$(BUILD) -o bin/stoker-hook ./cmd/stoker-hook

.PHONY: cross
cross: ## the same for amd64 and arm64
	for arch in amd64 arm64; do for p in stoker stoker-hook; do GOARCH=$$arch $(BUILD) -o bin/$$p-$$arch ./cmd/$$p; done; done

.PHONY: package
package: ## deb, rpm and tarball for amd64 and arm64 in dist/, the same bytes from the same commit
	packaging/package.sh dist

.PHONY: generate
generate: ## compile the BPF C again (clang-19) after a change; commit the result
	@packaging/setup.sh generate
	$(GO) generate ./...

.PHONY: vmlinux
vmlinux: ## print the running kernel's types in C: where a type that bpf/include/kernel.h lacks comes from
	@packaging/setup.sh generate
	@bpftool btf dump file /sys/kernel/btf/vmlinux format c

.PHONY: demo
demo: ## a private containerd, a few busy containers, the agent on them, UI at http://127.0.0.1:4041 (root; Ctrl-C ends it)
	@packaging/setup.sh demo
	@$(MAKE) build
	@$(GO) build -o bin/demo ./test/demo
	@# On a terminal the demo gets a process group of its own, so that Ctrl-C ends the demo, which exits 0, and not make.
	@if [[ -t 0 ]]; then set -m; bin/demo -agent bin/stoker; else exec bin/demo -agent bin/stoker; fi

.PHONY: test
test: ## every test, in lanes with a time budget each (root, Linux; about 30 minutes on 2 cores)
	@packaging/setup.sh test
	@exec test/run.sh generate lint unit race root browser e2e vm demo kernels

.PHONY: test-unit
test-unit: ## tests that need no root and no network; seconds when warm
	@exec test/run.sh unit

.PHONY: test-race
test-race: ## the same under the race detector, for the packages with goroutines
	@exec test/run.sh race

.PHONY: test-root
test-root: ## tests that load BPF and run containerd (root)
	@packaging/setup.sh test
	@exec test/run.sh root

.PHONY: test-browser
test-browser: ## the web UI in headless Chromium
	@packaging/setup.sh test
	@exec test/run.sh browser

.PHONY: test-e2e
test-e2e: ## the built agent on real containers with programs of known truth (root)
	@packaging/setup.sh test
	@exec test/run.sh e2e

.PHONY: test-vm
test-vm: ## what needs systemd, in an emulated machine (root; minutes)
	@packaging/setup.sh vm
	@exec test/run.sh vm

.PHONY: test-packages
test-packages: ## packages: built twice, linted, installed, upgraded and purged in an emulated machine (root; minutes)
	@packaging/setup.sh packages
	@exec test/run.sh packages

.PHONY: test-kernels
test-kernels: ## the kernel side in Debian's kernels on amd64 and arm64, emulated (root; minutes); KERNELS=-update writes docs/kernels.md
	@packaging/setup.sh kernels
	@exec env KERNELS='$(KERNELS)' test/run.sh kernels

.PHONY: lint
lint: ## gofmt, go vet, staticcheck (why these three: CONTRIBUTING.md)
	@exec test/run.sh lint

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZ_SECONDS (60) each, about 50 minutes in all; not part of `make test`, which runs their seeds
	@exec test/fuzz.sh

.PHONY: bench
bench: ## cost of a sample, of the agent, of the kernel maps, of a start that waits for it, beside perf and bpftrace (root; not part of `make test`)
	@packaging/setup.sh bench
	@$(MAKE) build
	@$(GO) build -o bin/bench ./test/bench
	@exec bin/bench -agent bin/stoker

.PHONY: real
real: ## stacks of PostgreSQL, nginx, g++ and others as Debian ships them, beside perf's and gdb's (root; 20 minutes; not part of `make test`)
	@packaging/setup.sh real
	@$(MAKE) build
	@$(GO) run ./test/real -agent bin/stoker -gdb -length 60s

.PHONY: install-deps
install-deps: ## install by apt all that any target needs (root)
	@packaging/setup.sh test
	@packaging/setup.sh bench
	@packaging/setup.sh real

.PHONY: clean
clean: ## remove what these targets built
	rm -rf bin dist
