#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs parts of the tests, one after the other, and adds up their counts: run.sh build|c|kernels|python|ray|verify|
# verify-full ..., web-test, or measures: run.sh eval|bench|bench-peers|quantisation.
#
# BUILT names the folder of the C tests; RUNNER is a command put before them, such as "qemu-x86_64 -cpu Nehalem"; SAN is
# address, thread or valgrind; PYTESTS are pytest's arguments. A part that has not ended after LIMIT seconds is killed and
# counts as failed. Python parts have an environment of their own in .venv, .venv-verify, .venv-bench, .venv-ray or
# .venv-web, made anew when its requirements change.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
BUILT=${BUILT:-build}
passed=0
failed=0
failures=""
left_out=""
log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log.status"' EXIT

# limited SECONDS COMMAND...: with a limit where the system has a command for it.
limited() {
    seconds=$1
    shift
    if timeout -k 1 1 sh -c : 2>/dev/null; then timeout -k 10 "$seconds" "$@"
    elif command -v perl >/dev/null; then
        perl -e '$limit = shift; if (!($p = fork)) { setpgrp; exec @ARGV or exit 127 }
            $SIG{ALRM} = sub { kill KILL => -$p; exit 124 }; alarm $limit; waitpid $p, 0;
            exit($? & 127 ? 128 + ($? & 127) : $? >> 8)' "$seconds" "$@"
    else "$@"
    fi
}

# Adds the counts of the closing line of what just ran, "N passed, N failed" or pytest's "N failed, N passed in ...".
# A part that failed, or that ran nothing, counts as one failure at least.
count() {
    counts=$(awk '/[0-9]+ (passed|failed|error)/ { good = bad = 0; for (i = 1; i < NF; i++) {
                  if ($(i + 1) ~ /^passed/) good = $i; if ($(i + 1) ~ /^(failed|error)/) bad += $i } }
                  END { print good + 0, bad + 0 }' "$log")
    good=${counts% *}
    bad=${counts#* }
    if [ "$bad" = 0 ] && { [ "$2" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    [ "$bad" = 0 ] && return
    case $2 in
    0) why="" ;;
    124 | 137) why=", killed after $3 s" ;;
    *) why=", exit $2" ;;
    esac
    failures="$failures${failures:+; }$1$why"
}

# part NAME LIMIT COMMAND...: runs a part with its output on the screen and in the log.
part() {
    name=$1 limit=${LIMIT:-$2} start=$(date +%s)
    shift 2
    echo "== $*"
    { limited "$limit" "$@" 2>&1 </dev/null; echo "exit $?" >"$log.status"; } | tee "$log"
    took=$(($(date +%s) - start))
    echo "-- $name: $took s"
    count "$name" "$(sed -n 's/exit //p' "$log.status")" "$took"
}

# c_part PROGRAM [ARGUMENTS]: one of the C tests, through $RUNNER.
c_part() {
    program=$1
    shift
    part "$BUILT/$program${*:+ $*}" 1200 $RUNNER "$BUILT/$program" "$@"
}

pytest() {
    name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m pytest -q "$@"
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

# With a sanitizer the C tests alone are built and run, from a folder of their own.
san() {
    BUILT=build/$SAN
    LIMIT=${LIMIT:-3600}
    case $SAN in
    # stb's JPEG writer shifts a sign bit out.
    address) flags="-fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=shift-base" ;;
    thread) flags=-fsanitize=thread ;;
    valgrind) flags="" ;;
    *) echo "SAN=address, thread or valgrind"; exit 2 ;;
    esac
    export ASAN_OPTIONS=allocator_may_return_null=1
    targets=$BUILT/test_faults
    [ $SAN = address ] && targets=c-tests
    ${MAKE:-make} -j "$jobs" $targets BUILT="$BUILT" CFLAGS="-g -O1 $flags"
}

jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
for kind in "$@"; do
    case $SAN,$kind in
    ?*,build) san || exit ;;
    ,build) ${MAKE:-make} -j "$jobs" janus libjanus.so c-tests || exit ;;
    thread,c) c_part test_faults threads ;;
    valgrind,c)
        RUNNER="valgrind -q --leak-check=full --show-leak-kinds=all --error-exitcode=9"
        c_part test_faults small bombs ;;
    ?*,python) ;;
    *,kernels)
        c_part test_janus
        c_part test_kernels
        c_part test_kernels amx ;;
    *,c)
        c_part test_janus
        c_part test_kernels
        c_part test_kernels amx
        c_part test_faults
        c_part fuzz/replay test/fuzz/corpus test/fuzz/regressions ;;
    *,python)
        if environment .venv test/requirements.txt; then
            pytest test/python 3600 -n auto --maxprocesses 8 --dist worksteal ${PYTESTS:-test/python}
        else
            left_out="the Python tests ($why)"
            [ -n "$CI" ] && failed=$((failed + 1)) failures="$failures${failures:+; }$left_out"
        fi ;;
    *,ray)
        need_environment .venv-ray test/machines/requirements-ray.txt
        pytest test/machines 1200 test/machines ;;
    *,web-test)
        need_environment .venv-web test/web/requirements.txt
        pytest test/web 600 test/web ;;
    *,eval)
        need_environment .venv test/requirements.txt
        exec "$python" weights/eval.py ;;
    *,bench)
        case " $BENCH_ARGS " in
        *" --tiny "*) ;;
        *) need_environment .venv test/requirements.txt ;;
        esac
        PYTHON=${python:-$PYTHON} exec sh test/bench/bench.sh $BENCH_ARGS ;;
    *,bench-peers)
        # gcc 12 and older compile AMX's set-up wrongly, and llama.cpp then dies of an illegal instruction.
        if grep -qs amx_tile /proc/cpuinfo; then
            command -v clang++ >/dev/null || sh test/setup.sh install fuzz || exit 1
            export CMAKE_ARGS="-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
        fi
        need_environment .venv-bench test/bench/requirements-bench.txt
        exec "$python" test/bench/bench_peers.py ${QUICK:+--quick} $BENCH_ARGS ;;
    *,quantisation)
        need_environment .venv test/requirements.txt
        exec "$python" test/bench/quantisation.py $BENCH_ARGS ;;
    *,verify | *,verify-full)
        if ! environment .venv-verify test/verify/requirements-verify.txt; then
            echo "cannot make .venv-verify: $why"
            failed=$((failed + 1)) failures="$failures${failures:+; }.venv-verify"
        elif [ "$kind" = verify ]; then
            pytest test/verify 3600 test/verify/verify_*.py
            part test/verify/verify.py 3600 "$python" test/verify/verify.py --suite
        else
            part test/verify/verify.py 86400 "$python" test/verify/verify.py --full --work "${WORK:-/tmp}"
        fi ;;
    esac
done
[ -n "$left_out" ] && echo "left out: $left_out"
[ -n "$failures" ] && echo "failed: $failures"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
