# Everything a developer needs. Each target sets up what it needs by itself.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test chaos chaos-negative lint fmt audit count bench bench-compare

# rustup puts cargo here; a shell opened before the installation does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

# As many file descriptors as the system allows: the tests hold both ends of many connections.
RAISE_NOFILE := ulimit -n "$$(ulimit -Hn)" 2>/dev/null || true

help: ## Show this list
	@echo "Belfry: make <target>"
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2 }' \
	    $(firstword $(MAKEFILE_LIST))

# A development build: ready minutes sooner than an optimised one, and fast enough to try things.
run: ## Build and start a gateway in memory: no Redis, no configuration
	@scripts/setup.sh build
	@$(RAISE_NOFILE); exec cargo run --locked -- serve

# What looks at sockets runs over both transports of WebSocket and streams.
BOTH = protocol:: slow:: stalled:: liveness:: drain:: sse:: delivery:: security::

test: ## Run all tests: unit, documentation, and tests/it with a real redis-server
	@scripts/setup.sh test
	@$(RAISE_NOFILE); cargo test --locked
	@$(RAISE_NOFILE); BELFRY_TEST_TRANSPORT=actix-ws cargo test --locked --test it -- $(BOTH)

# Variables of a run: DURATION in seconds, SEED to repeat one, FSYNC=always where no gap may be
# announced at all, LOG for the replicas' log level.
DURATION ?= 600
SEED ?=
FSYNC ?= everysec
LOG ?= info
CHAOS = cargo test --locked --test chaos -- --duration $(DURATION) $(if $(SEED),--seed $(SEED)) \
    --fsync $(FSYNC) --log $(LOG)

chaos: ## Check delivery under faults at random (DURATION=600 SEED=n FSYNC=everysec|always)
	@scripts/setup.sh test
	@$(RAISE_NOFILE); $(CHAOS)

chaos-negative: ## The same without gap repair: succeeds if the checker notices
	@scripts/setup.sh test
	@$(RAISE_NOFILE); $(CHAOS) --no-repair

lint: ## Check formatting, lints and the links in the documentation
	@scripts/setup.sh build
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test chaos -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet

fmt: ## Format the code
	cargo fmt

audit: ## Check licences, sources and known faults of the dependencies
	@scripts/setup.sh build
	@scripts/audit.sh

count: ## Count the instructions of the hot path, and compare with benches/counts.json
	@scripts/setup.sh bench
	@benches/count.py

bench: ## Measure the hot paths, then every load against a gateway of its own (minutes)
	@scripts/setup.sh bench
	@$(RAISE_NOFILE); cargo bench --locked
	cargo build --locked --release
	@$(RAISE_NOFILE); benches/own.py

# WSLOAD is a neutral load generator, PEERS a folder with a start script for each peer. Neither is a
# part of this project. BENCH_OUT takes the table, the plots and every single run.
WSLOAD ?=
PEERS ?=
BENCH_OUT ?= target/bench
COMPARE_FLAGS ?=

bench-compare: ## Measure beside peers: WSLOAD=… PEERS=… [COMPARE_FLAGS=--quick] (an hour)
	@if [ -z "$(WSLOAD)" ] || [ -z "$(PEERS)" ]; then \
	    echo "Set WSLOAD to the load generator and PEERS to the folder of the peers' start scripts."; \
	    exit 2; fi
	@scripts/setup.sh bench
	cargo build --locked --release
	@$(RAISE_NOFILE); benches/compare.py --wsload "$(WSLOAD)" --peers "$(PEERS)" \
	    --out "$(BENCH_OUT)" $(COMPARE_FLAGS)
	@$(RAISE_NOFILE); benches/memory.py --out "$(BENCH_OUT)" \
	    $(if $(findstring --quick,$(COMPARE_FLAGS)),--most 300 --step 100 --settle 0.2)
