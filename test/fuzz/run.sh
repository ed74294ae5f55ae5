#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the fuzz targets one after the other and prints what they reached: run.sh SECONDS [TARGET ...]. The fuzzers stand in
# build/fuzz, where new inputs and finds are kept too. Fails on a crash, a sanitizer's report, a leak, too much memory or
# 10 seconds of the processor for one input.
cd "$(dirname "$0")/../.." || exit 1
seconds=$1
shift
status=0
export ASAN_OPTIONS=allocator_may_return_null=1:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
[ $# = 0 ] && set -- model image text ids options json
for target in "$@"; do
    found=build/fuzz/$target
    mkdir -p "$found"
    dictionary=""
    [ -f "test/fuzz/$target.dict" ] && dictionary="-dict=test/fuzz/$target.dict"
    case $target in model) longest=24576 ;; image) longest=4096 ;; *) longest=1024 ;; esac
    "build/fuzz/fuzz-$target" "$found" "test/fuzz/corpus/$target" -max_total_time="$seconds" -timeout=600 -rss_limit_mb=4096 \
        -malloc_limit_mb=4096 -max_len=$longest -artifact_prefix="$found-" $dictionary >"$found.log" 2>&1
    result=$?
    awk -v name="$target" -v result=$result '
        /^#[0-9]/ { runs = substr($1, 2); for (i = 1; i < NF; i++) { if ($i == "cov:") edges = $(i + 1); if ($i == "ft:") features = $(i + 1) } }
        END { printf "%-8s %9d executions, %5d edges, %6d features: %s\n", name, runs, edges, features, result == 0 ? "nothing found" : "FOUND" }' \
        "$found.log"
    if [ $result != 0 ]; then
        status=1
        grep -v "^#[0-9]\|NEW_FUNC" "$found.log" | tail -n 60
    fi
done
exit $status
