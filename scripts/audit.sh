#!/usr/bin/env bash
# Checks the dependencies: licences, sources and banned crates with cargo-deny; known faults with
# cargo-audit, against a local copy of the RustSec advisory database.
#
# The copy is the folder that ADVISORY_DB names, else an `advisory-db` folder in a folder beside
# this project. Without one the known faults are not checked, and the script says so.
#
# The tools are taken from the PATH, else from BELFRY_TOOLS (default: ~/.cache/belfry/tools), where
# they are built once if they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

DENY_VERSION=0.20.2
AUDIT_VERSION=0.22.2

tools=${BELFRY_TOOLS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/belfry/tools}
PATH="$PATH:${HOME:-/root}/.cargo/bin:$tools/bin"

say() { printf 'audit: %s\n' "$*" >&2; }

# A development build is ready in minutes on two cores, and the checks take a second either way.
provide() { # name version [options of cargo install]
    local name=$1 version=$2
    shift 2
    command -v "$name" >/dev/null 2>&1 && return
    say "building $name $version (once, into $tools)"
    cargo install "$name" --version "$version" --locked --debug --quiet --root "$tools" "$@" </dev/null
}

find_database() {
    if [[ -n ${ADVISORY_DB:-} ]]; then
        if [[ ! -d $ADVISORY_DB/crates ]]; then
            say "ADVISORY_DB=$ADVISORY_DB has no folder 'crates'"
            exit 1
        fi
        printf '%s\n' "$ADVISORY_DB"
        return
    fi
    local folder
    for folder in ../advisory-db ../*/advisory-db; do
        if [[ -d $folder/crates ]]; then
            printf '%s\n' "$folder"
            return
        fi
    done
}

provide cargo-deny "$DENY_VERSION"
cargo deny --locked check bans licenses sources

database=$(find_database)
if [[ -n $database ]]; then
    provide cargo-audit "$AUDIT_VERSION" --no-default-features
    cargo audit --db "$database" --no-fetch --stale
else
    say "known faults NOT checked: no copy of the RustSec advisory database (set ADVISORY_DB)"
fi
