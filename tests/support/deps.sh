# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Sourced by tests/run.sh and convert/demo.sh: puts on the machine what a
# build needs, and says aloud what it installs. Looks for the thing itself,
# not for a package's name, so that nothing is installed twice and machines
# other than Debian work where they have it. Posix sh.

# Words of packages that are missing.
deps_missing=

# need PACKAGE COMMAND...: PACKAGE unless the command succeeds.
need() {
    deps_package=$1
    shift
    case " $deps_missing " in
    *" $deps_package "*) return 0 ;;
    esac
    if ! "$@" >/dev/null 2>&1; then
        deps_missing="$deps_missing $deps_package"
    fi
}

# need_library PACKAGE MODULE: PACKAGE unless pkg-config knows the module.
need_library() {
    need "$1" pkg-config --exists "$2"
}

need_build() {
    need build-essential command -v cc
    need build-essential command -v make
    need cmake command -v cmake
    need pkg-config command -v pkg-config
    need_library libjansson-dev jansson
    need_library libssl-dev libcrypto
    need_library libxxhash-dev libxxhash
    need_library libcurl4-openssl-dev libcurl
    need_library libexpat1-dev expat
    need_library libyaml-dev yaml-0.1
}

# Install the packages in $deps_missing. Fails with a sentence that says what
# a person can do.
install_missing() {
    [ -n "$deps_missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "missing:$deps_missing (Debian's names), and there is no" \
            "apt-get here: install them and run this again" >&2
        return 1
    fi
    deps_root=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "missing:$deps_missing. As root, run:" \
                "apt-get install --no-install-recommends$deps_missing" >&2
            return 1
        fi
        deps_root=sudo
    fi
    echo "installing with apt-get:$deps_missing"
    deps_log=$(mktemp)
    for deps_step in update install; do
        case $deps_step in
        update) set -- update ;;
        install)
            # shellcheck disable=SC2086 # a list of words
            set -- install -y --no-install-recommends $deps_missing
            ;;
        esac
        if ! $deps_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -q "$@" >"$deps_log" 2>&1; then
            cat "$deps_log" >&2
            rm -f "$deps_log"
            echo "apt-get $deps_step failed; missing:$deps_missing" >&2
            return 1
        fi
    done
    rm -f "$deps_log"
    deps_missing=
}

# How many build jobs: the CPUs that this process may use.
jobs_here() {
    nproc 2>/dev/null || echo 2
}
