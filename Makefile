# Each target is one line: cargo, or cargo xtask. setup.sh installs or names the programs that the goals need and this machine
# lacks, and prints cargo's folder.
CARGO = PATH="$(or $(shell sh xtask/setup.sh $(MAKECMDGOALS)),$(error stopped, for the reason above)):$$PATH" cargo
# One set of features for all tasks that use wasm-opt, because cargo would compile Binaryen again for another set.
WITH_WASM_OPT = run --package xtask --features oci,verify,wasm-opt --

unexport RUSTUP_TOOLCHAIN # rust-toolchain.toml decides
.NOTPARALLEL:
.PHONY: help demo docker-demo test test-native test-docker test-mesh test-mesh-full test-matrix test-oldest soak soak-short dev ci ci-lint ci-module ci-docker ci-mesh fmt lint build-native build-wasm wasm-size oci oci-push release verify regen-proto check-readme coverage audit fuzz fuzz-short sanitize bench bench-egress bench-limits

help: ; @sed -n 's/^| `\(make [^`]*\)` *| \(.*\) |$$/\1: \2/p' CONTRIBUTING.md
demo: ; @$(CARGO) xtask demo
docker-demo: ; @$(CARGO) $(WITH_WASM_OPT) docker-demo
test: ; $(CARGO) $(WITH_WASM_OPT) test
test-native: ; $(CARGO) test --locked
test-docker: ; $(CARGO) $(WITH_WASM_OPT) test-docker
test-mesh: ; $(CARGO) $(WITH_WASM_OPT) test-mesh
test-mesh-full: ; $(CARGO) $(WITH_WASM_OPT) test-mesh-full
test-matrix: ; $(CARGO) $(WITH_WASM_OPT) test-matrix
test-oldest: ; $(CARGO) $(WITH_WASM_OPT) test-oldest
soak: ; $(CARGO) $(WITH_WASM_OPT) soak
soak-short: ; CONNECTIONS=6000 $(CARGO) $(WITH_WASM_OPT) soak
dev: fmt ; $(CARGO) clippy --all-targets -- --deny warnings && $(CARGO) test --lib
ci: ci-lint ci-module ci-docker ci-mesh
ci-lint: lint test-native audit
ci-module: regen-proto wasm-size demo test test-oldest fuzz-short
ci-docker: test-docker soak-short
ci-mesh: test-mesh
fmt: ; $(CARGO) fmt --all && $(CARGO) fmt --manifest-path fuzz/Cargo.toml
lint: ; $(CARGO) xtask lint
build-native: ; $(CARGO) xtask build-native
build-wasm: ; $(CARGO) $(WITH_WASM_OPT) build-wasm
wasm-size: ; $(CARGO) $(WITH_WASM_OPT) wasm-size
oci: ; $(CARGO) $(WITH_WASM_OPT) oci
oci-push: ; $(CARGO) $(WITH_WASM_OPT) oci-push $(or $(REF),$(error REF=REGISTRY/NAME:TAG is missing))
release: ; $(CARGO) $(WITH_WASM_OPT) release
verify: ; @$(CARGO) run --quiet --package xtask --features verify -- verify $(TO)
regen-proto: ; $(CARGO) run --package xtask --features proto -- regen-proto
check-readme: ; $(CARGO) test --test native -- tidy
coverage: ; $(CARGO) xtask coverage
audit: ; $(CARGO) xtask audit
fuzz: ; $(CARGO) $(WITH_WASM_OPT) fuzz $(or $(SECONDS),60)
fuzz-short: ; SANITIZER=none $(CARGO) $(WITH_WASM_OPT) fuzz 3
sanitize: ; $(CARGO) xtask sanitize
bench: ; $(CARGO) $(WITH_WASM_OPT) bench
bench-egress: ; $(CARGO) $(WITH_WASM_OPT) bench-egress
bench-limits: ; $(CARGO) $(WITH_WASM_OPT) bench-limits
