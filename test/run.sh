#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs parts of the tests, one after the other, and adds up their counts: run.sh c|python|ray|verify|verify-full|eval ...,
# or measures: run.sh bench|bench-peers|quantisation.
# Python parts make an environment of their own in .venv, .venv-verify or .venv-ray and only do so when its requirements changed.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
passed=0
failed=0
left_out=""
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

# Adds the counts of the closing line of what just ran, "N passed, N failed" or pytest's "N failed, N passed in ...".
# A part that failed, or that ran nothing, counts as one failure at least.
count() {
    counts=$(awk '/[0-9]+ (passed|failed|error)/ { good = bad = 0; for (i = 1; i < NF; i++) {
                  if ($(i + 1) ~ /^passed/) good = $i; if ($(i + 1) ~ /^(failed|error)/) bad += $i } }
                  END { print good + 0, bad + 0 }' "$log")
    good=${counts% *}
    bad=${counts#* }
    if [ "$bad" = 0 ] && { [ "$1" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
}

# Runs a part with its output on the screen and in the log.
part() {
    echo "== $*"
    { "$@" 2>&1; echo "exit $?" >"$log.status"; } | tee "$log"
    count "$(sed -n 's/exit //p' "$log.status")"
    rm -f "$log.status"
}

has_venv() { "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; }

# environment FOLDER REQUIREMENTS: makes it when it is not there or out of date, and installs Python's venv first where that
# is missing and we are root; sets $python. 1: cannot be made, $why says why.
environment() {
    python=$1/bin/python
    cmp -s "$2" "$1/requirements" && return 0
    if ! has_venv && [ "$(id -u)" = 0 ] && [ "$FETCH" != no ]; then
        echo "== $PYTHON has no venv: make deps"
        sh test/setup.sh install
    fi
    has_venv || { why="no Python 3 with venv and pip; make deps installs it"; return 1; }
    echo "== making $1 from $2"
    "$PYTHON" -m venv "$1" && "$python" -m pip install --quiet --disable-pip-version-check -r "$2" && cp "$2" "$1/requirements" ||
        { why="the packages of $2 could not be installed"; return 1; }
}

# As environment, but without it there is nothing to do.
need_environment() { environment "$@" || { echo "cannot make $1: $why"; exit 1; }; }

for name in "$@"; do
    case $name in
    c)
        part "${BUILT:-build}/test_janus"
        part "${BUILT:-build}/test_kernels"
        part "${BUILT:-build}/test_amx"
        part "${BUILT:-build}/test_faults"
        part "${BUILT:-build}/fuzz/replay" test/fuzz/corpus test/fuzz/regressions ;;
    python)
        if environment .venv test/requirements.txt; then
            part "$python" -m pytest -q -p no:cacheprovider ${PYTESTS:-test/python}
        else
            left_out="the Python tests ($why)"
            [ -n "$CI" ] && failed=$((failed + 1))
        fi ;;
    ray)
        need_environment .venv-ray test/machines/requirements-ray.txt
        part "$python" -m pytest -q -p no:cacheprovider test/machines ;;
    eval)
        need_environment .venv test/requirements.txt
        exec "$python" weights/eval.py ;;
    bench)
        case " $BENCH_ARGS " in
        *" --tiny "*) ;;
        *) need_environment .venv test/requirements.txt ;;
        esac
        PYTHON=${python:-$PYTHON} exec sh test/bench/bench.sh $BENCH_ARGS ;;
    bench-peers|quantisation)
        folder=.venv list=test/requirements.txt program=quantisation.py
        [ "$name" = bench-peers ] &&
            folder=.venv-bench list=test/bench/requirements-bench.txt program=bench_peers.py
        # gcc 12 compiles AMX's set-up wrongly, and llama.cpp then dies of an illegal instruction.
        if grep -qs amx_tile /proc/cpuinfo; then
            export CMAKE_ARGS="-DCMAKE_C_FLAGS=-mno-amx-tile -DCMAKE_CXX_FLAGS=-mno-amx-tile"
            command -v clang++ >/dev/null && export CMAKE_ARGS="-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
        fi
        need_environment $folder $list
        exec "$python" test/bench/$program $BENCH_ARGS ;;
    verify|verify-full)
        if ! environment .venv-verify test/verify/requirements-verify.txt; then
            echo "cannot make .venv-verify: $why"
            failed=$((failed + 1))
        elif [ "$name" = verify ]; then
            part "$python" -m pytest -q -p no:cacheprovider test/verify/verify_*.py
            part "$python" test/verify/verify.py --suite
        else
            part "$python" test/verify/verify.py --full --work "${WORK:-/tmp}"
        fi ;;
    esac
done
[ -n "$left_out" ] && echo "left out: $left_out"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
