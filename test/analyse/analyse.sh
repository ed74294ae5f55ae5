#!/bin/sh
# SPDX-License-Identifier: MIT
# The static analysers over janus.c. Fails on a finding that test/analyse/ANALYSERS.md does not explain.
cd "$(dirname "$0")/../.." || exit 1
BUILD=build/analyse
LIST=test/analyse/ANALYSERS.md
mkdir -p $BUILD
stb=$(CC=gcc sh test/setup.sh flags) || exit
for tool in clang-tidy cppcheck gcc; do
    command -v $tool >/dev/null || { echo "$tool is missing: make deps WHAT=analyse"; exit 1; }
done

checked="::fopen;::fread;::malloc;::calloc;::realloc;::fseek;::ftell;::strtod;::strtol;::strtoull"
clang-tidy --quiet --header-filter='janus\.[ch]' --checks='-*,bugprone-*,cert-*,-bugprone-easily-swappable-parameters' \
    --config="{CheckOptions: [{key: cert-err33-c.CheckedFunctions, value: '$checked'}]}" janus.c -- -std=c99 $stb \
    >$BUILD/clang-tidy 2>$BUILD/clang-tidy.log || { cat $BUILD/clang-tidy $BUILD/clang-tidy.log; exit 1; }
cppcheck --enable=warning,performance,portability --std=c99 --quiet -UKERNEL_PASS -DJANUS_NO_SIMD --force \
    --template='{file}:{line}:0: warning: {message} [{id}]' janus.c 2>$BUILD/cppcheck || { cat $BUILD/cppcheck; exit 1; }
# Without optimisation: with it, gcc 12 overlooks a double free() in this file.
gcc -std=c99 -O0 -fanalyzer -DJANUS_NO_SIMD $stb -c janus.c -o $BUILD/janus.o 2>$BUILD/gcc || { cat $BUILD/gcc; exit 1; }

# Each finding once, with the source line that it names: "check: line".
cat $BUILD/clang-tidy $BUILD/cppcheck $BUILD/gcc | grep 'warning:\|error:' | sort -u | while read -r finding; do
    line=$(echo "$finding" | sed 's/^[^:]*:\([0-9]*\):.*/\1/')
    check=$(echo "$finding" | sed 's/.*\[\([^],]*\).*\]$/\1/')
    source=$(sed -n "${line}p" janus.c)
    explained=no
    sed -n 's/^    \([a-z-]*\): /\1 /p' $LIST >$BUILD/list
    while read -r name pattern; do
        [ "$name" = "$check" ] && echo "$source" | grep -qE "$pattern" && explained=yes
    done <$BUILD/list
    echo "$explained $finding"
done >$BUILD/findings
grep '^no ' $BUILD/findings | sed 's/^no //'
echo "$(grep -c '^yes' $BUILD/findings) findings explained in $LIST, $(grep -c '^no' $BUILD/findings) not"
! grep -q '^no' $BUILD/findings
