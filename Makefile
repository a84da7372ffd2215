# One line each: cargo, or cargo xtask. setup.sh installs what is missing and prints the cargo to call.
CARGO = $(or $(shell sh xtask/setup.sh),$(error the setup failed, its reason stands above))

.PHONY: demo test dev ci fmt lint build-wasm wasm-size regen-proto check-readme coverage audit

demo: ; @$(CARGO) xtask demo
test: ; $(CARGO) run --package xtask --features wasm-opt -- test
dev: fmt lint ; $(CARGO) test --lib
ci: check-readme audit regen-proto wasm-size demo ; $(CARGO) xtask lint --all-features && $(MAKE) test
fmt: ; $(CARGO) fmt --all
lint: ; $(CARGO) xtask lint
build-wasm: ; $(CARGO) run --package xtask --features wasm-opt -- build-wasm
wasm-size: ; $(CARGO) run --package xtask --features wasm-opt -- wasm-size
regen-proto: ; $(CARGO) run --package xtask --features proto -- regen-proto
check-readme: ; $(CARGO) test --test it -- tidy
coverage: ; $(CARGO) xtask coverage
audit: ; $(CARGO) xtask audit
