#!/bin/sh
# SPDX-License-Identifier: MIT
# make test-stb: janus.c compiles without a warning with the oldest stb and with the newest, the same pictures come out,
# and files that are damaged or cut short are refused alike. The headers are those of two Debian releases (STB_RELEASES); the second one's have to be those of the commit that
# test/setup.sh downloads where there is no package. A release that cannot be had is left out; where $CI is set it fails.
cd "$(dirname "$0")/../.." || exit 1
RELEASES=${STB_RELEASES:-bookworm trixie}
BUILD=build/test-stb
passed=0
failed=0
rm -rf $BUILD
mkdir -p $BUILD

# check WHAT COMMAND...: runs it and counts.
check() {
    what=$1
    shift
    if "$@" >$BUILD/log 2>&1; then passed=$((passed + 1)); echo "  ok      $what"
    else failed=$((failed + 1)); echo "  FAILED  $what"; cat $BUILD/log
    fi
}

# compile COMPILER DIR PROGRAM
compile() {
    "$1" -std=c99 -pedantic -Wall -Wextra -Wshadow -Wvla -Werror -O1 -DJANUS_NO_SIMD -isystem "$2" janus.c -o "$3" \
        -lm -lpthread
}

# damaged COMPILER DIR PROGRAM: the tests of reading and writing that fails.
damaged() {
    "$1" -std=c99 -O1 -DJANUS_NO_SIMD -isystem "$2" -I. test/c/test_faults.c -o "$3" -lm -lpthread && "./$3" files
}

# outputs PROGRAM DIR: a drawn PNG and JPEG, and the ids of both, read again.
outputs() {
    mkdir "$2" && for kind in png jpg; do
        "./$1" generate -q --seed 7 -o "$2/picture.$kind" "a red circle" >/dev/null &&
            "./$1" encode -i "$2/picture.$kind" >"$2/$kind.ids" || return 1
    done
}

# The version that the first line of stb_image.h names.
version() { sed -n '1s/.*stb_image - \(v[0-9.]*\).*/\1/p' "$1/stb/stb_image.h"; }

compilers=""
for compiler in gcc clang; do
    command -v $compiler >/dev/null && compilers="$compilers $compiler"
done
compilers=${compilers:-cc}
newest=""
for release in $RELEASES; do
    dir=$BUILD/$release
    newest=$dir
    if ! sh test/setup.sh release $release $dir 2>$BUILD/log; then
        echo "  left out  stb of $release: its package cannot be had"
        cat $BUILD/log
        [ -z "$CI" ] || failed=$((failed + 1))
        continue
    fi
    for compiler in $compilers; do
        program=$dir/janus-$compiler
        what="$compiler, stb_image $(version $dir) of $release:"
        check "$what no warning" compile $compiler $dir $program
        check "$what draws and reads" outputs $program $program.out
        reference=${reference:-$program.out}
        [ $reference = $program.out ] || check "$what the same bytes and ids" diff -r $reference $program.out
    done
    check "$what damaged files are refused" damaged $compiler $dir $dir/faults
done
[ ! -d "$newest/stb" ] || [ -n "$STB_RELEASES" ] ||
    check "the pinned commit is the newest" sh test/setup.sh pinned $newest/stb
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
