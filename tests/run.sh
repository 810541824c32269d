#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build and run all tests, on a machine that has nothing but Debian 12:
#
#   sh tests/run.sh [CTEST OPTION...]     sh tests/run.sh -L unit
#
# Installs what is missing (apt, as root or through sudo), configures
# build/dev, builds with all cores, runs CTest, prints the seconds.
# clang-format is not needed: its check skips itself.
set -eu
cd "$(dirname "$0")/.."
. tests/support/deps.sh
started=$(date +%s)

# One python3 that can import all of them: the one in the PATH may be a user's
# own, for which Debian's packages do not exist.
modules='numpy, jsonschema, pycparser'
find_python() { # MODULES
    for python in build/venv/bin/python python3 /usr/bin/python3; do
        if "$python" -c "import $1" >/dev/null 2>&1; then
            echo "$python"
            return 0
        fi
    done
    return 1
}

# What apt gives them to, where nobody has all of them yet, is Debian's own.
can_make_venv() {
    "$(find_python "$modules" || echo /usr/bin/python3)" -c 'import ensurepip'
}

need_build
need_library libcmocka-dev cmocka
need build-essential command -v c++
need python3 command -v python3
need python3-numpy find_python "$modules"
need python3-jsonschema find_python "$modules"
need python3-pycparser find_python "$modules"
need python3-venv can_make_venv
install_missing

# The layout checks share no code with us: python3 and, where it can be had,
# stock safetensors, which Debian has no package of.
python=$(find_python "$modules, safetensors.numpy" || :)
if [ -z "$python" ]; then
    python=$(find_python "$modules")
    echo "installing with pip into build/venv: safetensors"
    mkdir -p build
    if {
        "$python" -m venv --system-site-packages build/venv &&
            build/venv/bin/pip install --disable-pip-version-check \
                --timeout 10 --retries 1 safetensors &&
            build/venv/bin/python -c 'import safetensors.numpy'
    } >build/pip.log 2>&1; then
        python=build/venv/bin/python
    else
        echo "stock safetensors cannot be installed here, so the layout" \
            "checks go without it ($(tail -n 1 build/pip.log))"
    fi
fi
python=$(command -v "$python")
case $python in
/*) ;;
*) python=$(pwd)/$python ;;
esac

step() {
    echo "+ $*"
    "$@"
}
step cmake --preset dev "-DMOEC_PYTHON=$python"
built=$(date +%s)
step cmake --build build/dev --parallel "$(jobs_here)"
tested=$(date +%s)
status=0
step ctest --test-dir build/dev --output-on-failure \
    --parallel "$(jobs_here)" "$@" || status=$?
ended=$(date +%s)

echo "set-up $((built - started)) s, build $((tested - built)) s," \
    "tests $((ended - tested)) s, in all $((ended - started)) s"
exit $status
