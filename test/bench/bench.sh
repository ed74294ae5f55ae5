#!/bin/sh
# SPDX-License-Identifier: MIT
# make bench: products of 1 to 64 rows, then every stage at Janus-Pro-1B's sizes for each type of weights: bench.sh [--tiny] [arguments of bench].
# WORK is the folder for the files of random weights (up to 4.2 GB, one at a time; f32 8.3 GB), KEEP=1 leaves them there,
# TYPES names the types. --tiny measures weights/tiny.gguf instead, in seconds.
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
WORK=${WORK:-build/bench}
TYPES=${TYPES:-bf16 f16 q8_0 q4_0}
tiny=""
for argument in "$@"; do
    shift
    if [ "$argument" = --tiny ]; then tiny=1; else set -- "$@" "$argument"; fi
done
date -u '+%Y-%m-%d %H:%M UTC'
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | sort | uniq -c
build/benchmark "$@" || exit 1
if [ -n "$tiny" ]; then exec build/benchmark --short "$@" weights/tiny.gguf; fi
mkdir -p "$WORK" || exit 1
failed=0
for type in $TYPES; do
    file=$WORK/janus-pro-1b-$type.gguf
    made=""
    if [ ! -e "$file" ]; then
        echo "== making $file"
        made=1
        "$PYTHON" test/python/random_model.py janus-pro-1b --dtype "$type" -o "$file" || exit 1
    fi
    build/benchmark "$@" "$file" || failed=1
    if [ -n "$made" ] && [ -z "$KEEP" ]; then rm -f "$file"; fi
done
exit $failed
