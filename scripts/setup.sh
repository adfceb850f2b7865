#!/usr/bin/env bash
# Installs what a build or a test run needs and this machine lacks.
#
#   scripts/setup.sh build    a C compiler (some dependencies contain C)
#   scripts/setup.sh test     that, and redis-server
#   scripts/setup.sh bench    that, and python3 and valgrind
#   scripts/setup.sh ci       that, and make
#
# What is there already is left alone, so a machine that has everything needs no network and no
# rights. Installing takes apt-get, as root or by sudo.
set -euo pipefail

need=()

missing() { ! command -v "$1" >/dev/null 2>&1; }

say() { printf 'setup: %s\n' "$*" >&2; }

# rustup puts cargo here; a shell opened before the installation does not know it yet.
PATH="$PATH:${HOME:-/root}/.cargo/bin"

check_rust() {
    if missing cargo; then
        say "Rust is missing. Install it as https://rust-lang.org/tools/install says, and try again."
        exit 1
    fi
}

check_c() {
    if missing cc; then need+=(gcc libc6-dev); fi
}

check_redis() {
    if missing redis-server; then need+=(redis-server); fi
}

check_make() {
    if missing make; then need+=(make); fi
}

check_bench() {
    if missing python3; then need+=(python3); fi
    if missing valgrind; then need+=(valgrind); fi
}

install_missing() {
    ((${#need[@]})) || return 0
    local as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        if missing sudo; then by_hand "neither root nor sudo is at hand"; fi
        as_root=(sudo)
    fi
    if missing apt-get; then by_hand "there is no apt-get"; fi

    say "installing ${need[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q)
    # A package list that is there and current enough saves a download.
    "${apt[@]}" install -y --no-install-recommends "${need[@]}" >&2 </dev/null || {
        "${apt[@]}" update >&2 </dev/null
        "${apt[@]}" install -y --no-install-recommends "${need[@]}" >&2 </dev/null
    } || by_hand "apt-get failed"
}

by_hand() {
    say "$1, so these cannot be installed from here: ${need[*]}"
    say "Ask an administrator for them, for instance: apt-get install ${need[*]}"
    say "On another system, install its packages of the same purpose (a C compiler; Redis 7)."
    exit 1
}

case "${1:-}" in
    build) check_rust && check_c ;;
    test) check_rust && check_c && check_redis ;;
    bench) check_rust && check_c && check_redis && check_bench ;;
    ci) check_rust && check_c && check_redis && check_make && check_bench ;;
    *)
        say "usage: scripts/setup.sh build|test|bench|ci"
        exit 2
        ;;
esac
install_missing
