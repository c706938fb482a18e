# Coracle's house. `make help` lists what can be made.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# cargo keeps a build for an explicit target (.cargo/config.toml) in a directory named after it.
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BUILT := target/$(TARGET)/release/coracle
BINARY := target/release/coracle
UNITDIR ?= $(PREFIX)/lib/systemd/system

.DEFAULT_GOAL := all
.PHONY: all help run test check bench fuzz install uninstall deps test-vm clean FORCE

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

bench: ## the table of figures: ours, the floor, crun, dockerd (root; OUT=file keeps it)
	@tests/need-root bench
	@$(MAKE) --no-print-directory all
	CORACLE=$(CURDIR)/$(BINARY) $(CARGO) bench --locked --features crash-points --bench table $(if $(OUT),-- --out $(OUT))

fuzz: ## feed the parsers random bytes for a minute (SECONDS=n for longer)
	CORACLE_FUZZ_SECONDS=$(or $(SECONDS),60) $(CARGO) test --locked --lib -- fuzz --nocapture

install: ## install binary, man pages, units, completions below DESTDIR/PREFIX
	@test -f $(BINARY) || $(MAKE) --no-print-directory all
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/coracle
	install -D -m 644 man/coracle.8 $(DESTDIR)$(PREFIX)/share/man/man8/coracle.8
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|@PREFIX@|$(PREFIX)|' units/coracle.service >$(DESTDIR)$(UNITDIR)/coracle.service
	chmod 644 $(DESTDIR)$(UNITDIR)/coracle.service
	install -m 644 units/coracle.socket $(DESTDIR)$(UNITDIR)/coracle.socket
	install -D -m 644 completions/coracle.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/coracle
	install -D -m 644 completions/_coracle $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_coracle
	install -D -m 644 completions/coracle.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/coracle.fish

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/coracle $(DESTDIR)$(PREFIX)/share/man/man8/coracle.8
	rm -f $(DESTDIR)$(UNITDIR)/coracle.service $(DESTDIR)$(UNITDIR)/coracle.socket
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/coracle
	rm -f $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_coracle
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/coracle.fish

deps: ## install the Debian packages that build and tests need (only what is missing; root)
	@tests/deps

test-vm: ## run the black-box tests in a virtual machine, given its start script as VM=
	@tests/vm $(VM)

clean: ## remove everything built
	$(CARGO) clean
