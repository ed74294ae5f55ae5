#!/bin/sh
# SPDX-License-Identifier: MIT
# make platforms: builds janus.c for every platform that can be run here, runs both tasks with the same small model on each,
# and compares with the native plain build. A row says
#   build    whether the compiler was without a warning
#   tests    how many tests of test_janus and test_kernels passed there
#   ids      whether two greedy pictures, a seeded one, an encoded one and two greedy answers are the same
#   pixels   the largest difference in the three drawn pictures, of 255; 1 is allowed
#   threads  whether one thread and three give the same bytes: every tensor of a drawing, and its PNG as a file and on stdout
# and "-" where a row has no such check. Fails if any row that was run differs or warns; says what the others need.
# ONLY=PATTERN runs the rows whose target matches.
cd "$(dirname "$0")/.." || exit 1
MODEL=${MODEL:-weights/tiny.gguf}
IMAGE=weights/samples.png
BUILD=build/platforms
WARN="-std=c99 -pedantic -Wall -Wextra -Wshadow -Wvla"
HERE="$(uname -s) $(uname -m)"
export LC_ALL=C.UTF-8 WINEDEBUG=-all
mkdir -p $BUILD/include/stb $BUILD/native $BUILD/got
for dir in ${STB:-} /usr/include/stb /usr/local/include/stb; do
    [ -f "$dir/stb_image.h" ] && cp "$dir/stb_image.h" "$dir/stb_image_write.h" $BUILD/include/stb/ && break
done
good=0
bad=0

# ---- What a program gives. $runner $program $isa is the command; $windows is 1 where paths have backslashes. ----

run() { $runner "$program" "$@" $isa; }
path() { if [ "$windows" = 1 ]; then echo "$1" | tr / '\\'; else echo "$1"; fi; }

# The numbers of a dumped int32 tensor, one a line.
numbers() { tail -c +129 "$1" | od -An -v -td4 | tr -s ' ' '\n' | sed '/^$/d'; }

# draw FOLDER NAME TEMPERATURE PROMPT: prints the ids; the pixels go to FOLDER/NAME.pixels. The file name tests accents.
draw() {
    rm -rf "$1/dump" "$1/cœur é.png" "$1/$2.pixels"
    run generate -m "$(path "$MODEL")" -q --seed 5 --temperature "$3" --dump "$(path "$1/dump")" -o "$(path "$1/cœur é.png")" \
        "$4" >/dev/null && [ -s "$1/cœur é.png" ] && numbers "$1/dump/generation.ids.npy" | xargs &&
        numbers "$1/dump/image.pixels.npy" >"$1/$2.pixels"
}

ask() { run ask -m "$(path "$MODEL")" -i "$(path $IMAGE)" --max-tokens 24 "$1"; }

# The ids and answers; test/embed.c prints the same.
outputs() {
    draw "$1" greedy 0 "two red hearts" && draw "$1" accents 0 "un cœur rouge" && draw "$1" seeded 1 "a green tree" &&
        run encode -m "$(path "$MODEL")" -i "$(path $IMAGE)" &&
        ask "What is in the picture?" && ask "Où est le cœur ?"
}

# The largest difference to the native pictures; "none" where a picture is missing.
pixel_difference() {
    for name in greedy accents seeded; do
        paste $BUILD/native/$name.pixels "$1/$name.pixels" 2>/dev/null | awk '
            NF != 2 { odd = 1 } { d = $1 - $2; if (d < 0) d = -d; if (d > most) most = d }
            END { print odd || NR == 0 ? "none" : most + 0 }'
    done | awk '/none/ { none = 1 } $1 > most { most = $1 } END { print none ? "none" : most + 0 }'
}

same_bytes() {
    rm -rf "$1/1" "$1/3" "$1/1.png" "$1/3.png"
    run generate -m "$(path "$MODEL")" -q --seed 6 --threads 1 --dump "$(path "$1/1")" -o "$(path "$1/1.png")" "a house" >/dev/null &&
        run generate -m "$(path "$MODEL")" -q --seed 6 --threads 3 --dump "$(path "$1/3")" -o - "a house" >"$1/3.png" &&
        [ -s "$1/1.png" ] && cmp -s "$1/1.png" "$1/3.png" && diff -rq "$1/1" "$1/3" >/dev/null
}

# The sum of what the C tests count, on stdout; fails when a test failed or one of the two did not end.
tests() {
    for test in "$BUILD/test_janus $(path test/golden) $(path $BUILD/test.tmp)" $BUILD/test_kernels; do
        $runner $test | tr -d '\r' | grep ' passed, '
    done | awk '{ passed += $1; failed += $3 } END { print passed + 0 (failed ? ", " failed " failed" : ""); exit failed > 0 || NR != 2 }'
}

# ---- The table ----

print_row() { printf '| %-14s | %-31s | %-10s | %-10s | %6s | %-6s | %6s | %-7s |\n' "$@"; }

compiler_version() {
    { "$1" -dumpfullversion || "$1" --version || "$1" -v; } 2>/dev/null | grep -o '[0-9][0-9.]*[0-9][-a-z0-9]*' | head -1
}

short_name() { case $1 in *clang*) echo clang ;; *g++*) echo g++ ;; *gcc*) echo gcc ;; *) echo "$1" ;; esac; }

wanted() { case $1 in *${ONLY:-}*) ;; *) false ;; esac; }

leave_out() { print_row "$(short_name "$1")" "$2" "needs $3" "" "" "" "" ""; missing=$((missing + 1)); }
missing=0

# compile OUT ...: $compiler with $flags; the file is called OUT on Windows too.
compile() {
    out=$BUILD/$1
    shift
    rm -f "$out" "$out.exe"
    $compiler $flags -isystem $BUILD/include "$@" -o "$out" -lm
    [ ! -f "$out.exe" ] || mv "$out.exe" "$out"
}

# Whether `compiler flags` makes a program that the runner runs.
works() {
    printf '#include <errno.h>\n#include <stdio.h>\nint main(void) { puts("works"); return 0; }\n' >$BUILD/probe.c
    compile program $BUILD/probe.c >/dev/null 2>&1
    [ "$($runner ./$BUILD/program 2>/dev/null | tr -d '\r')" = works ]
}

# Sets $build to "clean" or to the number of warnings of the last build.
count_warnings() {
    build=$(grep -c 'warning:\|error:\|undefined' $BUILD/log)
    if [ "$build" = 0 ]; then build=clean; else build="$build warnings"; fi
}

# Builds the program and the tests.
build() {
    compile program $warn janus.c >$BUILD/log 2>&1
    compile test_janus $warn -I. -DJANUS_LIBRARY janus.c test/test_janus.c >>$BUILD/log 2>&1
    compile test_kernels -I. test/test_kernels.c >$BUILD/log.kernels 2>&1
    count_warnings
}

# Compares the results with the native ones and prints the row. What is wrong goes to build/platforms/FAILED.*.
compare() {
    got=$1
    tested=$2
    name=$3
    pixels=$(pixel_difference $BUILD/got)
    if [ "$got" = "$native" ]; then ids=equal; else ids=DIFFER; fi
    print_row "$(short_name "$compiler") $(compiler_version "$compiler")" "$target" "$name" "$build" "$tested" "$ids" "$pixels" "$threads"
    case $build,$ids,$threads,$pixels,$tests_good in clean,equal,equal,[01],1 | clean,equal,-,[01],1) equal=1 ;; *) equal=0 ;; esac
    if [ $equal = 1 ]; then
        good=$((good + 1))
    else
        bad=$((bad + 1))
        { cat $BUILD/log; echo "$got"; cat $BUILD/stderr; } >"$BUILD/FAILED.$bad"
    fi
}

# row TARGET PACKAGES RUNNER WHICH COMPILER FLAGS...: WHICH is the kernels to run, "all" or "best".
row() {
    target=$1 packages=$2 runner=$3 which=$4 compiler=$5
    shift 5
    flags=$*
    wanted "$target" || return 0
    if ! works; then
        leave_out "$compiler" "$target" "$packages"
        return
    fi
    build
    isa=""
    tested=$(tests 2>$BUILD/stderr.tests) && tests_good=1 || tests_good=0
    program=$BUILD/program
    kernels=$(run info -m "$(path "$MODEL")" 2>/dev/null | tr -d '\r,' | sed 's/^kernels *//p;d')
    [ $which = best ] && kernels=${kernels%% *}
    for kernel in ${kernels:-none}; do
        isa="--isa $kernel"
        rm -f $BUILD/got/*.pixels
        got=$(outputs $BUILD/got 2>$BUILD/stderr | tr -d '\r')
        if same_bytes $BUILD/got 2>>$BUILD/stderr; then threads=equal; else threads=DIFFER; fi
        compare "$got" "$tested" "$kernel"
    done
}

# C++ includes the header and links the library that the C compiler made.
row_cpp() {
    target="x86-64, C++11 program" compiler=g++ runner="" flags="-O2"
    wanted "$target" || return 0
    works || { leave_out g++ "$target" g++; return; }
    rm -f $BUILD/program
    { gcc $WARN -O2 -isystem $BUILD/include -DJANUS_LIBRARY -c janus.c -o $BUILD/janus.o
      g++ -std=c++11 -pedantic -Wall -Wextra -Wshadow -O2 -I. -x c++ test/embed.c -x none $BUILD/janus.o -o $BUILD/program -lm -lpthread
    } >$BUILD/log 2>&1
    count_warnings
    rm -f $BUILD/got/*.pixels
    got=$($BUILD/program "$MODEL" $IMAGE $BUILD/got plain 2>$BUILD/stderr)
    threads="-" tests_good=1
    compare "$got" "-" plain
}

# BSD's make, in a folder of its own.
row_bmake() {
    target="x86-64, built by BSD make" compiler=cc runner="" tests_good=1
    wanted "$target" || return 0
    command -v bmake >/dev/null || { leave_out cc "$target" bmake; return; }
    rm -rf $BUILD/bmake && mkdir $BUILD/bmake && cp -R Makefile janus.c janus.h test $BUILD/bmake/
    (cd $BUILD/bmake && bmake janus libjanus.a && bmake install DESTDIR=there && bmake uninstall DESTDIR=there) >$BUILD/log 2>&1 ||
        echo "error: bmake failed" >>$BUILD/log
    rm -f $BUILD/program
    mv $BUILD/bmake/janus $BUILD/program 2>>$BUILD/log
    count_warnings
    program=$BUILD/program isa="--isa plain"
    rm -f $BUILD/got/*.pixels
    got=$(outputs $BUILD/got 2>$BUILD/stderr)
    if same_bytes $BUILD/got 2>>$BUILD/stderr; then threads=equal; else threads=DIFFER; fi
    compare "$got" "-" plain
}

# ---- The rows ----

rm -f $BUILD/FAILED.* $BUILD/log*
windows=0 runner="" program=./janus isa="--isa plain"
native=$(outputs $BUILD/native 2>$BUILD/stderr)
[ "$(echo "$native" | wc -l)" = 6 ] || { echo "./janus does not run with $MODEL"; cat $BUILD/stderr; exit 1; }

echo "$(date +%Y-%m-%d), $HERE; $(for tool in qemu-s390x wine node; do $tool --version 2>/dev/null | head -1; done | tr '\n' ';')"
echo
print_row compiler target kernels build tests ids pixels threads
print_row --- --- --- --- --- --- --- ---
warn=$WARN
row "x86-64" gcc "" all gcc -O2 -lpthread
row "x86-64, -O0" gcc "" best gcc -O0 -lpthread
row "x86-64" clang "" all clang -O2 -lpthread
row "x86-64" tcc "" best tcc -I/usr/include -lpthread
row "x86-64, -DJANUS_NO_THREADS" gcc "" best gcc -O2 -DJANUS_NO_THREADS
row "x86-64, -DJANUS_NO_MMAP" gcc "" best gcc -O2 -DJANUS_NO_MMAP -lpthread
row "x86-64, -DJANUS_NO_SIMD" gcc "" best gcc -O2 -DJANUS_NO_SIMD -lpthread
row "x86-64, musl, static" musl-tools "" best musl-gcc -O2 -static
# As a compiler that knows nothing of GNU C; what glibc then puts for INFINITY is a literal that is too large.
warn="-std=c11 -pedantic -Wall -Wextra -Wshadow -Wvla -Wno-literal-range"
row "x86-64, C11 without GNU C" clang "" best clang -O2 -fgnuc-version=0
warn=$WARN
row_bmake
row_cpp
i386_packages="libc6-dev-i386 lib32gcc-12-dev"
row "i386 (-m32)" "$i386_packages" "" best gcc -m32 -O2 -idirafter /usr/include/x86_64-linux-gnu -lpthread
row "i386 (-m32)" "$i386_packages" "" best clang -m32 -O2 -idirafter /usr/include/x86_64-linux-gnu -lpthread
windows=1
row "Windows x86-64, wine" "gcc-mingw-w64-x86-64 wine64" wine all x86_64-w64-mingw32-gcc -O2 -static
windows=0
# The memory is large from the start: node's WASI (20.20) crashes in programs that let it grow.
wasi_packages="clang lld wasi-libc libclang-rt-dev-wasm32 nodejs"
row "WebAssembly (WASI), node" "$wasi_packages" "node --experimental-wasi-unstable-preview1 test/wasi.mjs" best \
    clang --target=wasm32-wasi -O2 -DJANUS_NO_THREADS -DJANUS_NO_MMAP -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS \
    -Wl,-z,stack-size=1048576,--initial-memory=268435456 -lwasi-emulated-getpid -lwasi-emulated-process-clocks
row "aarch64, qemu" "gcc-aarch64-linux-gnu qemu-user" qemu-aarch64 all aarch64-linux-gnu-gcc -O2 -static -lpthread
row "armhf, qemu" "gcc-arm-linux-gnueabihf qemu-user" qemu-arm best arm-linux-gnueabihf-gcc -O2 -static -lpthread
row "riscv64, qemu" "gcc-riscv64-linux-gnu qemu-user" qemu-riscv64 best riscv64-linux-gnu-gcc -O2 -static -lpthread
row "ppc64le, qemu" "gcc-powerpc64le-linux-gnu qemu-user" qemu-ppc64le best powerpc64le-linux-gnu-gcc -O2 -static -lpthread
row "s390x (big-endian), qemu" "gcc-s390x-linux-gnu qemu-user" qemu-s390x best s390x-linux-gnu-gcc -O2 -static -lpthread
echo
echo "$missing rows left out"
echo "$good passed, $bad failed"
[ $bad = 0 ]
