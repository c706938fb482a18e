# Coracle's house. `make help` lists what can be made.

CARGO ?= cargo
# cargo keeps a build for an explicit target (.cargo/config.toml) in a directory named after it.
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BUILT := target/$(TARGET)/release/coracle
BINARY := target/release/coracle

.DEFAULT_GOAL := all
.PHONY: all help run test check fuzz deps test-vm clean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

all: $(BINARY) ## build the static release binary, target/release/coracle

$(BUILT): FORCE
	$(CARGO) build --release --locked --bin coracle

$(BINARY): $(BUILT)
	@mkdir -p target/release
	@ln -f $(BUILT) $@ 2>/dev/null || cp -f $(BUILT) $@

run: ## build, then run a container on a throw-away daemon (root)
	@tests/need-root run
	@$(MAKE) --no-print-directory all
	@tests/voyage $(BINARY)

test: ## install what the tests need, run them all, print the counts (root)
	@tests/need-root test
	@$(MAKE) --no-print-directory deps
	@tests/run

check: ## formatting and lints, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

fuzz: ## feed the parsers random bytes for a minute (SECONDS=n for longer)
	CORACLE_FUZZ_SECONDS=$(or $(SECONDS),60) $(CARGO) test --locked --lib -- fuzz --nocapture

deps: ## install the Debian packages that build and tests need (only what is missing; root)
	@tests/deps

test-vm: ## run the black-box tests in a virtual machine, given its start script as VM=
	@tests/vm $(VM)

clean: ## remove everything built
	$(CARGO) clean
