#!/bin/sh
# SPDX-License-Identifier: MIT
# make platforms: builds janus.c for every platform that can be run here, runs both tasks with the same small model on each,
# and compares with the native plain build. A row says
#   build    "clean" where the compiler was without a warning; "links" says the same of a program that cannot be run here
#   tests    how many tests of test_janus and test_kernels passed there
#   ids      whether two greedy pictures, a seeded one, an encoded one and two greedy answers are the same
#   pixels   the largest difference in the three drawn pictures, of 255; 1 is allowed
#   threads  whether one thread and three give the same bytes: every tensor of a drawing, and its PNG as a file and on stdout
# and "-" where a row has no such check. Fails if any row differs or warns; says below the table why others are left out.
#
#   make platforms ROWS=PATTERN   only the rows whose "compiler target" matches, as for grep -E: ROWS='big-endian|^zig'
#   BUILD=build/DIR sh test/platforms/platforms.sh   works in that folder, so that parts can run side by side
#   TESTS=no                         emulated machines draw and answer, but do not run the tests, which take minutes there
#
# What is fetched stays in build/platforms: the newest stb, zig in a Python environment, a Debian 13 made by debootstrap.
cd "$(dirname "$0")/../.." || exit 1
MODEL=${MODEL:-weights/tiny.gguf}
IMAGE=weights/samples.png
BUILD=${BUILD:-build/platforms}
INCLUDE=$BUILD/include
ZIG=build/platforms/zig
ZIG_VERSION=0.17.0
DEBIAN13=build/platforms/debian13
WARN="-std=c99 -pedantic -Wall -Wextra -Wshadow -Wvla"
HERE="$(uname -s) $(uname -m)"
export LC_ALL=C.UTF-8 WINEDEBUG=-all
mkdir -p $INCLUDE/stb $BUILD/native $BUILD/got
for dir in ${STB:-} ${STB:+"$STB/stb"} build/stb /usr/include/stb /usr/local/include/stb; do
    grep -qs stbi__skip_jpeg_junk_at_end "$dir/stb_image.h" && cp "$dir/stb_image.h" "$dir/stb_image_write.h" $INCLUDE/stb/ && break
done
good=0   # rows that ran and are as they must be
linked=0 # rows that can only be linked
bad=0

# ---- What a program gives. $runner $program $isa is the command; $windows is 1 where paths have backslashes. ----

run() { timeout -s KILL 3600 $runner "$program" "$@" $isa; }
path() { if [ "$windows" = 1 ]; then echo "$1" | tr / '\\'; else echo "$1"; fi; }

# The numbers of a dumped int32 tensor, one a line.
numbers() { tail -c +129 "$1" | od -An -v -td4 | tr -s ' ' '\n' | sed '/^$/d'; }

# draw FOLDER NAME TEMPERATURE PROMPT: prints the ids; makes FOLDER/NAME.pixels and NAME.png. The file name tests accents.
draw() {
    rm -rf "$1/dump" "$1/cœur é.png" "$1/$2.pixels" "$1/$2.png"
    run generate -m "$(path "$MODEL")" -q --seed 5 --temperature "$3" --dump "$(path "$1/dump")" -o "$(path "$1/cœur é.png")" \
        "$4" >/dev/null && [ -s "$1/cœur é.png" ] && numbers "$1/dump/generation.ids.npy" | xargs &&
        numbers "$1/dump/image.pixels.npy" >"$1/$2.pixels" && mv "$1/cœur é.png" "$1/$2.png"
}

ask() { run ask -m "$(path "$MODEL")" -i "$(path $IMAGE)" --max-tokens 24 "$1"; }

# The ids and answers; test/platforms/embed.c prints the same.
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

# Whether the native pictures are the same files.
same_pictures() {
    for name in greedy accents seeded; do cmp -s $BUILD/native/$name.png "$1/$name.png" || return 1; done
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
        timeout -s KILL 3600 $runner $test | tr -d '\r' | grep ' passed, '
    done | awk '{ passed += $1; failed += $3 } END { print passed + 0 (failed ? ", " failed " failed" : ""); exit failed > 0 || NR != 2 }'
}

# ---- Compilers that are fetched. Each is a function, called like a compiler. ----

zig_cc() {
    case $1 in -dumpfullversion) set -- version ;; *) set -- cc "$@" ;; esac
    ZIG_GLOBAL_CACHE_DIR=$PWD/$ZIG/cache $ZIG/bin/python -m ziglang "$@"
}

install_zig() {
    [ "$(zig_cc -dumpfullversion 2>/dev/null)" = $ZIG_VERSION ] && return
    mkdir -p ${ZIG%/*} && python3 -m venv $ZIG && $ZIG/bin/python -m pip install -q --disable-pip-version-check ziglang==$ZIG_VERSION
}

# Debian 13's gcc works on a copy of the sources in there; what it makes comes out.
debian13_gcc() {
    rm -rf $DEBIAN13/src && mkdir -p $DEBIAN13/src/$BUILD
    cp -R janus.c janus.h test $DEBIAN13/src/ && cp -R $INCLUDE $BUILD/probe.c $DEBIAN13/src/$BUILD/
    chroot $DEBIAN13 sh -c 'cd /src && exec gcc "$@"' gcc "$@" || return
    for made in program test_janus test_kernels; do
        [ ! -f $DEBIAN13/src/$BUILD/$made ] || mv $DEBIAN13/src/$BUILD/$made $BUILD/
    done
}

install_debian13() {
    [ -e $DEBIAN13/made ] && return
    [ "$(id -u)" = 0 ] || return
    rm -rf $DEBIAN13 && mkdir -p ${DEBIAN13%/*}
    debootstrap --variant=minbase --include=gcc,libc6-dev trixie $DEBIAN13 "$(sh test/setup.sh mirror)" && : >$DEBIAN13/made
}

# Fetches what $compiler is; fails at once where that failed before.
fetch_compiler() {
    case $compiler in
    zig_cc | debian13_gcc) ;;
    *) return 0 ;;
    esac
    case $unfetched in *$compiler*) return 1 ;; esac
    install_${compiler%_*} >$BUILD/log.$compiler 2>&1 || { unfetched="$unfetched $compiler"; return 1; }
}
unfetched=""

# ---- The table ----

print_row() { printf '| %-14s | %-33s | %-10s | %-11s | %6s | %-6s | %6s | %-7s |\n' "$@"; }

compiler_version() {
    { "$1" -dumpfullversion || "$1" --version || "$1" -v; } 2>/dev/null | grep -o '[0-9][0-9.]*[0-9][-a-z0-9]*' | head -1
}

short_name() {
    case $1 in *clang*) echo clang ;; *g++*) echo g++ ;; *gcc*) echo gcc ;; zig_cc) echo zig cc ;; *) echo "$1" ;; esac
}

# Whether ROWS asks for this compiler and target.
wanted() { echo "$(short_name "$1") $2" | grep -qE -e "${ROWS:-.}"; }

# leave_out COMPILER TARGET REASON...: named below the table.
leave_out() { echo "- $1, $2: $3" >>$BUILD/left_out; }

# compile OUT ...: $compiler with $flags; the file is called OUT on Windows too.
compile() {
    out=$BUILD/$1
    shift
    rm -f "$out" "$out.exe"
    $compiler -isystem $INCLUDE "$@" -o "$out" -lm $flags
    [ ! -f "$out.exe" ] || mv "$out.exe" "$out"
}

# Whether $compiler with $flags makes a small program that $runner runs; sets $reason where not. It calls libm: qemu 7.2
# refuses an instruction in glibc's cos for 32-bit PowerPC.
works() {
    printf '#include <errno.h>\n#include <math.h>\n#include <stdio.h>\n%s\n' \
        'int main(int argc, char **argv) { (void)argv; puts(cos(argc - 1.0) == 1 ? "works" : "wrong"); return 0; }' >$BUILD/probe.c
    reason="needs $packages"
    fetch_compiler && compile program $BUILD/probe.c >$BUILD/log 2>&1 || return
    [ "$runner" = - ] && return
    [ -z "$runner" ] || command -v "${runner%% *}" >/dev/null || return
    reason="${runner:-this machine} does not run a program that prints a cosine"
    [ "$({ timeout -s KILL 60 $runner ./$BUILD/program; } 2>/dev/null | tr -d '\r')" = works ]
}

# Sets $build to "clean" or to the number of warnings of the last build.
count_warnings() {
    build=$(grep -c 'warning:\|error:\|undefined' $BUILD/log)
    if [ "$build" = 0 ]; then build=clean; else build="$build warnings"; fi
}

# Builds the program and the tests.
build() {
    compile program $warn janus.c >$BUILD/log 2>&1
    compile test_janus $warn -I. test/c/test_janus.c >>$BUILD/log 2>&1
    compile test_kernels -I. test/c/test_kernels.c >$BUILD/log.kernels 2>&1
    count_warnings
}

compiler_name() { echo "$(short_name "$compiler") $(compiler_version "$compiler")"; }

# failed OUTPUT: what is wrong goes to build/platforms/FAILED.*
failed() {
    bad=$((bad + 1))
    { echo "$target"; cat $BUILD/log; echo "$1"; cat $BUILD/stderr; } >"$BUILD/FAILED.$bad"
}

# compare OUTPUT TESTS KERNELS: compares the results with the native ones and prints the row.
compare() {
    pixels=$(pixel_difference $BUILD/got)
    [ "$exact" = 0 ] || same_pictures $BUILD/got || pixels=DIFFER
    if [ "$1" = "$native" ]; then ids=equal; else ids=DIFFER; fi
    print_row "$(compiler_name)" "$target" "$3" "$build" "$2" "$ids" "$pixels" "$threads"
    case $build,$ids,$threads,$pixels,$tests_good in
    clean,equal,equal,[01],1 | clean,equal,-,[01],1) good=$((good + 1)) ;;
    *) failed "$1" ;;
    esac
}

# run_kernels TESTS KERNEL...: both tasks with each of these kernels, a row for each.
run_kernels() {
    tested=$1
    shift
    for kernel in "$@"; do
        isa="--isa $kernel"
        rm -f $BUILD/got/*.p*
        got=$(outputs $BUILD/got 2>$BUILD/stderr | tr -d '\r')
        if same_bytes $BUILD/got 2>>$BUILD/stderr; then threads=equal; else threads=DIFFER; fi
        compare "$got" "$tested" "$kernel"
    done
}

# row TARGET PACKAGES RUNNER WHICH COMPILER FLAGS...: WHICH is the kernels to run: all, best or plain.
row() {
    target=$1 packages=$2 runner=$3 which=$4 compiler=$5
    shift 5
    flags=$*
    wanted "$compiler" "$target" || return 0
    start=$(date +%s)
    works || { leave_out "$(short_name "$compiler")" "$target" "$reason"; return; }
    build
    isa=""
    tested="-" tests_good=1
    case $TESTS,$runner in
    no,*qemu*) ;;
    *) tested=$(tests 2>$BUILD/stderr.tests) || tests_good=0 ;;
    esac
    program=$BUILD/program
    kernels=$(run info -m "$(path "$MODEL")" 2>/dev/null | tr -d '\r,' | sed 's/^kernels *//p;d')
    case $which in best) kernels=${kernels%% *} ;; plain) kernels=plain ;; esac
    run_kernels "$tested" ${kernels:-none}
    echo "$(($(date +%s) - start)) s  $(compiler_name), $target" >>$BUILD/times
}

# link_row TARGET PACKAGES COMPILER FLAGS...: a program for a machine that is not here, compiled and linked.
link_row() {
    target=$1 packages=$2 compiler=$3 runner=-
    shift 3
    flags=$*
    wanted "$compiler" "$target" || return 0
    works || { leave_out "$(short_name "$compiler")" "$target" "$reason"; return; }
    compile program $warn janus.c >$BUILD/log 2>&1
    count_warnings
    : >$BUILD/stderr
    if [ "$build" = clean ] && [ -s $BUILD/program ]; then build=links linked=$((linked + 1)); else failed ""; fi
    print_row "$(compiler_name)" "$target" - "$build" - - - -
}

# The newest stb, that of Debian's unstable release. The drawn PNG files must be the native ones to the byte.
rows_stb() {
    { wanted gcc "x86-64, newest stb" || wanted clang "x86-64, newest stb"; } || return 0
    if ! sh test/setup.sh release sid $BUILD/include-newest >$BUILD/log.stb 2>&1; then
        leave_out "gcc and clang" "x86-64, newest stb" "needs apt-get, dpkg-deb and a Debian mirror"
        return
    fi
    native_include=$INCLUDE INCLUDE=$BUILD/include-newest exact=1
    version=$(sed -n 's/.* stb_image - v\([0-9.]*\).*/\1/p' $INCLUDE/stb/stb_image.h)
    for compiler in gcc clang; do row "x86-64, newest stb ($version)" $compiler "" plain $compiler -O2 -lpthread; done
    INCLUDE=$native_include exact=0
}

# C++ includes the header and links the library that the C compiler made.
row_cpp() {
    target="x86-64, C++11 program" compiler=g++ packages=g++ runner="" flags="-O2"
    wanted g++ "$target" || return 0
    works || { leave_out g++ "$target" "$reason"; return; }
    rm -f $BUILD/program
    { gcc $WARN -O2 -isystem $INCLUDE -DJANUS_LIBRARY -c janus.c -o $BUILD/janus.o
      g++ -std=c++11 -pedantic -Wall -Wextra -Wshadow -O2 -I. -x c++ test/platforms/embed.c -x none $BUILD/janus.o \
          -o $BUILD/program -lm -lpthread
    } >$BUILD/log 2>&1
    count_warnings
    rm -f $BUILD/got/*.p*
    got=$($BUILD/program "$MODEL" $IMAGE $BUILD/got plain 2>$BUILD/stderr)
    threads="-" tests_good=1
    compare "$got" "-" plain
}

# BSD's make, in a folder of its own.
row_bmake() {
    target="x86-64, built by BSD make" compiler=cc runner="" tests_good=1
    wanted cc "$target" || return 0
    command -v bmake >/dev/null || { leave_out cc "$target" "needs bmake"; return; }
    rm -rf $BUILD/bmake && mkdir -p $BUILD/bmake/weights && cp -R Makefile janus.c janus.h test $BUILD/bmake/
    cp weights/tiny.* $BUILD/bmake/weights/
    (stb=$(cd $INCLUDE && pwd) && cd $BUILD/bmake && bmake STB="$stb" janus libjanus.a &&
        bmake STB="$stb" install DESTDIR=there && bmake uninstall DESTDIR=there) >$BUILD/log 2>&1 ||
        echo "error: bmake failed" >>$BUILD/log
    rm -f $BUILD/program
    mv $BUILD/bmake/janus $BUILD/program 2>>$BUILD/log
    count_warnings
    program=$BUILD/program
    run_kernels - plain
}

# ---- The rows ----

rm -rf $BUILD/FAILED.* $BUILD/log.* $BUILD/left_out $BUILD/times
: >$BUILD/left_out
windows=0 exact=0 runner="" program=./janus isa="--isa plain"
native=$(outputs $BUILD/native 2>$BUILD/stderr)
[ "$(echo "$native" | wc -l)" = 6 ] || { echo "./janus does not run with $MODEL"; cat $BUILD/stderr; exit 1; }

echo "$(date +%Y-%m-%d), $HERE; $(for tool in qemu-s390x wine node; do $tool --version 2>/dev/null | head -1; done | tr '\n' ';')"
echo
print_row compiler target kernels build tests ids pixels threads
print_row --- --- --- --- --- --- --- ---
warn=$WARN
zig_packages="python3-venv and the Python package ziglang $ZIG_VERSION"
row "x86-64" gcc "" all gcc -O2 -lpthread
row "x86-64, -O0" gcc "" best gcc -O0 -lpthread
row "x86-64, AMX emulated" gcc "" all gcc -O2 -DEMULATED_AMX -D_GNU_SOURCE -include test/c/emulate_amx.h -lpthread
row "x86-64" clang "" all clang -O2 -lpthread
row "x86-64" tcc "" best tcc -lpthread
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
rows_stb
row "x86-64, gcc of Debian 13, static" "root, debootstrap and a Debian mirror" "" all debian13_gcc -O2 -static -lpthread
row "x86-64, musl, static" "$zig_packages" "" all zig_cc -target x86_64-linux-musl -O2
i386_packages="libc6-dev-i386 lib32gcc-12-dev"
row "i386 (-m32)" "$i386_packages" "" best gcc -m32 -O2 -idirafter /usr/include/x86_64-linux-gnu -lpthread
row "i386 (-m32)" "$i386_packages" "" best clang -m32 -O2 -idirafter /usr/include/x86_64-linux-gnu -lpthread
windows=1
row "Windows x86-64, wine" "gcc-mingw-w64-x86-64 wine64" wine all x86_64-w64-mingw32-gcc -O2 -static -lpthread
windows=0
# The memory is large from the start: node's WASI (20.20) crashes in programs that let it grow.
wasi_packages="clang lld wasi-libc libclang-rt-dev-wasm32 nodejs"
wasi() {
    target=$1 which=$2
    shift 2
    row "$target, node" "$wasi_packages" "node --experimental-wasi-unstable-preview1 test/platforms/wasi.mjs" $which \
        clang --target=wasm32-wasi -O2 "$@" -DJANUS_NO_THREADS -DJANUS_NO_MMAP -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS \
        -Wl,-z,stack-size=1048576,--initial-memory=268435456 -lwasi-emulated-getpid -lwasi-emulated-process-clocks
}
wasi "WebAssembly (WASI)" best
wasi "WebAssembly (WASI, SIMD128)" all -msimd128
row "aarch64, qemu" "gcc-aarch64-linux-gnu qemu-user" qemu-aarch64 all aarch64-linux-gnu-gcc -O2 -static -lpthread
emulated() { row "$1, qemu" "gcc-$3 qemu-user" "qemu-$2" best "$3-gcc" -O2 -static -lpthread; }
emulated "armhf" arm arm-linux-gnueabihf
emulated "armel" arm arm-linux-gnueabi
emulated "riscv64" riscv64 riscv64-linux-gnu
emulated "ppc64le" ppc64le powerpc64le-linux-gnu
emulated "ppc64 (big-endian)" ppc64 powerpc64-linux-gnu
emulated "s390x (big-endian)" s390x s390x-linux-gnu
emulated "mips (big-endian)" mips mips-linux-gnu
emulated "mipsel" mipsel mipsel-linux-gnu
emulated "mips64 (big-endian)" mips64 mips64-linux-gnuabi64
emulated "mips64el" mips64el mips64el-linux-gnuabi64
emulated "m68k (big-endian)" m68k m68k-linux-gnu
emulated "sparc64 (big-endian)" sparc64 sparc64-linux-gnu
emulated "sh4" sh4 sh4-linux-gnu
# Static programs of hppa and alpha end in a fault at the start; alpha has infinities and NaNs only with -mieee.
row "hppa (big-endian), qemu" "gcc-hppa-linux-gnu qemu-user" "qemu-hppa -L /usr/hppa-linux-gnu" best hppa-linux-gnu-gcc -O2 -lpthread
row "alpha, qemu" "gcc-alpha-linux-gnu qemu-user" "qemu-alpha -L /usr/alpha-linux-gnu" best alpha-linux-gnu-gcc -mieee -O2 -lpthread
# Machines that Debian 12 has no compiler for, or a libm that qemu does not run.
emulated_zig() { row "$1, musl, qemu" "$zig_packages, qemu-user" "qemu-$2" best zig_cc -target "$3" -O2; }
emulated_zig "aarch64_be (big-endian)" aarch64_be aarch64_be-linux-musl
emulated_zig "armeb (big-endian)" armeb armeb-linux-musleabihf
emulated_zig "powerpc (big-endian)" ppc powerpc-linux-musleabihf
emulated_zig "riscv32" riscv32 riscv32-linux-musl
emulated_zig "loongarch64" loongarch64 loongarch64-linux-musl
# Systems that cannot be run here.
linked_zig() { link_row "$1" "$zig_packages" zig_cc -target "$2" -O2 $3; }
linked_zig "macOS arm64" aarch64-macos -lpthread
linked_zig "macOS x86-64" x86_64-macos -lpthread
linked_zig "FreeBSD x86-64" x86_64-freebsd -lpthread
linked_zig "FreeBSD arm64" aarch64-freebsd -lpthread
linked_zig "NetBSD x86-64" x86_64-netbsd -lpthread
linked_zig "OpenBSD x86-64" x86_64-openbsd -lpthread
linked_zig "Windows arm64" aarch64-windows-gnu -lpthread
link_row "Windows x86" "gcc-mingw-w64-i686" i686-w64-mingw32-gcc -O2 -static -lpthread
if [ -s $BUILD/left_out ]; then
    echo
    echo "Left out:"
    cat $BUILD/left_out
fi
echo
echo "$linked link only"
echo "$good passed, $bad failed"
[ $bad = 0 ]
