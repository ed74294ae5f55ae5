#!/bin/sh
# SPDX-License-Identifier: MIT
# make platforms: builds janus.c for every platform that can be run here, runs both tasks with the same small model on each,
# and compares with the native plain build: ids of a greedy and of a seeded picture and of an encoded one, a greedy answer,
# and the pixels, which may differ by 1 of 255.
# A row whose tools are missing says which package brings them. Fails if any row that was run differs or warns.
cd "$(dirname "$0")/.." || exit 1
MODEL=${MODEL:-weights/tiny.gguf}
BUILD=build/platforms
WARN="-std=c99 -pedantic -Wall -Wextra -Wshadow"
mkdir -p $BUILD/include/stb
for dir in ${STB:-} /usr/include/stb /usr/local/include/stb; do
    [ -f "$dir/stb_image.h" ] && cp "$dir/stb_image.h" "$dir/stb_image_write.h" $BUILD/include/stb/ && break
done
good=0
bad=0
missing=0

# The results of one build, as text: ids of two pictures, ids of an encoded one, an answer. Pixels go to $1.
outputs() {
    dump=$1
    shift
    rm -rf "$dump"
    "$@" generate -m "$MODEL" -q --seed 5 --temperature 0 --dump "$dump" -o $BUILD/greedy.png "two red hearts" >/dev/null &&
        cat "$dump/generation.ids.npy" | tail -c +129 | cksum &&
        "$@" encode -m "$MODEL" -i weights/samples.png &&
        "$@" ask -m "$MODEL" -i weights/samples.png --max-tokens 24 "What is in the picture?" &&
        rm -rf "$dump" &&
        "$@" generate -m "$MODEL" -q --seed 5 --dump "$dump" -o $BUILD/seeded.png "a green tree" >/dev/null &&
        cat "$dump/generation.ids.npy" | tail -c +129 | cksum
}

# The largest difference of a pixel between two dumped pictures, of 255.
pixel_difference() {
    cmp -l "$1/image.pixels.npy" "$2/image.pixels.npy" 2>/dev/null | awk '
        function octal(n) { return int(n / 100) * 64 + int(n / 10) % 10 * 8 + n % 10 }
        { d = octal($2) - octal($3); if (d < 0) d = -d; if (d > most) most = d } END { print most + 0 }'
}

# row NAME PACKAGE RUNNER COMPILER FLAGS...
row() {
    name=$1 package=$2 runner=$3 compiler=$4
    shift 4
    if ! command -v "$compiler" >/dev/null || { [ -n "$runner" ] && ! command -v "${runner%% *}" >/dev/null; }; then
        printf '%-28s left out: needs %s\n' "$name" "$package"
        missing=$((missing + 1))
        return
    fi
    rm -f $BUILD/program $BUILD/program.exe
    warnings=$("$compiler" "$@" -isystem $BUILD/include janus.c -o $BUILD/program -lm 2>&1 | grep -c 'warning\|error')
    [ -f $BUILD/program.exe ] && mv $BUILD/program.exe $BUILD/program
    got=$(outputs $BUILD/dump $runner ./$BUILD/program $extra 2>$BUILD/stderr | tr -d '\r')
    pixels=$(pixel_difference $BUILD/native $BUILD/dump)
    if [ "$warnings" = 0 ] && [ "$got" = "$native" ] && [ "$pixels" -le 1 ]; then
        verdict=equal good=$((good + 1))
    else
        verdict=DIFFERENT bad=$((bad + 1))
    fi
    printf '%-28s warnings %s   ids and answer %-9s   largest pixel difference %s\n' "$name" "$warnings" "$verdict" "$pixels"
}

extra=""
native=$(outputs $BUILD/native ./janus --isa plain 2>/dev/null)
[ -n "$native" ] || { echo "./janus does not run with $MODEL"; exit 1; }
row "gcc" gcc "" gcc $WARN -O2 -lpthread
row "gcc -O0" gcc "" gcc $WARN -O0 -lpthread
row "clang" clang "" clang $WARN -O2 -lpthread
row "tcc" tcc "" tcc -I/usr/include -lpthread
for isa in $(./janus info -m "$MODEL" | sed -n 's/^kernels *//p' | tr -d ','); do
    extra="--isa $isa" && row "gcc --isa $isa" gcc "" gcc $WARN -O2 -lpthread
done
extra="--threads 1" && row "gcc --threads 1" gcc "" gcc $WARN -O2 -lpthread
extra="--threads 3" && row "gcc --threads 3" gcc "" gcc $WARN -O2 -lpthread
extra=""
row "gcc -DJANUS_NO_THREADS" gcc "" gcc $WARN -O2 -DJANUS_NO_THREADS
row "gcc -DJANUS_NO_MMAP" gcc "" gcc $WARN -O2 -DJANUS_NO_MMAP -lpthread
row "gcc -DJANUS_NO_SIMD" gcc "" gcc $WARN -O2 -DJANUS_NO_SIMD -lpthread
row "musl, static" musl-tools "" musl-gcc $WARN -O2 -static
row "aarch64 (NEON)" "gcc-aarch64-linux-gnu qemu-user" qemu-aarch64 aarch64-linux-gnu-gcc $WARN -O2 -static -lpthread
row "armhf" "gcc-arm-linux-gnueabihf qemu-user" qemu-arm arm-linux-gnueabihf-gcc $WARN -O2 -static -lpthread
row "riscv64" "gcc-riscv64-linux-gnu qemu-user" qemu-riscv64 riscv64-linux-gnu-gcc $WARN -O2 -static -lpthread
row "ppc64le" "gcc-powerpc64le-linux-gnu qemu-user" qemu-ppc64le powerpc64le-linux-gnu-gcc $WARN -O2 -static -lpthread
row "s390x, big-endian" "gcc-s390x-linux-gnu qemu-user" qemu-s390x s390x-linux-gnu-gcc $WARN -O2 -static -lpthread
WINEDEBUG=-all row "Windows x86-64 (wine)" "gcc-mingw-w64-x86-64 wine64" wine x86_64-w64-mingw32-gcc $WARN -O2 -static
echo "$missing rows left out"
echo "$good passed, $bad failed"
[ $bad = 0 ]
