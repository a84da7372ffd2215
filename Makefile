# One line each: cargo, or cargo xtask. setup.sh installs what a target needs and is missing, and prints cargo's folder.
CARGO = PATH="$(or $(shell sh xtask/setup.sh $@),$(error nothing was done, for the reason above)):$$PATH" cargo
# All of them at once, as Binaryen would be compiled again for other ones.
WITH_WASM_OPT = run --package xtask --features oci,verify,wasm-opt --

unexport RUSTUP_TOOLCHAIN # rust-toolchain.toml decides
.NOTPARALLEL:
.PHONY: help demo docker-demo test test-docker test-mesh test-mesh-full dev ci fmt lint build-native build-wasm wasm-size oci oci-push verify regen-proto check-readme coverage audit bench fuzz sanitize

help: ; @sed -n 's/^| `\(make [^`]*\)` *| \(.*\) |$$/\1: \2/p' CONTRIBUTING.md
demo: ; @$(CARGO) xtask demo
docker-demo: ; @$(CARGO) $(WITH_WASM_OPT) docker-demo
test: ; $(CARGO) $(WITH_WASM_OPT) test
test-docker: ; $(CARGO) $(WITH_WASM_OPT) test-docker
test-mesh: ; $(CARGO) $(WITH_WASM_OPT) test-mesh
test-mesh-full: ; $(CARGO) $(WITH_WASM_OPT) test-mesh-full
dev: fmt ; $(CARGO) clippy --all-targets -- --deny warnings && $(CARGO) test --lib
ci: lint check-readme audit regen-proto wasm-size demo test fuzz test-docker test-mesh
fmt: ; $(CARGO) fmt --all
lint: ; $(CARGO) xtask lint
build-native: ; $(CARGO) xtask build-native
build-wasm: ; $(CARGO) $(WITH_WASM_OPT) build-wasm
wasm-size: ; $(CARGO) $(WITH_WASM_OPT) wasm-size
oci: ; $(CARGO) $(WITH_WASM_OPT) oci
oci-push: ; $(CARGO) $(WITH_WASM_OPT) oci-push $(or $(REF),$(error REF=REGISTRY/NAME:TAG is missing))
verify: ; @$(CARGO) run --quiet --package xtask --features verify -- verify $(TO)
regen-proto: ; $(CARGO) run --package xtask --features proto -- regen-proto
check-readme: ; $(CARGO) test --test native -- tidy
coverage: ; $(CARGO) xtask coverage
audit: ; $(CARGO) xtask audit
fuzz: ; $(CARGO) $(WITH_WASM_OPT) fuzz $(or $(SECONDS),3)
sanitize: ; $(CARGO) xtask sanitize
bench: ; $(CARGO) $(WITH_WASM_OPT) bench
