#!/bin/sh
# SPDX-License-Identifier: MIT
# make web: builds build/web with the compiler CLANG and the flags STB for the stb headers. WASI's mmap reads the model.
cd "$(dirname "$0")/../.." || exit 1
mkdir -p build/web
[ -f /usr/include/wasm32-wasi/stdio.h ] || { echo "the page needs clang, lld and wasi-libc: make deps WHAT=web"; exit 1; }

# program NAME FLAGS: unless it is newer than its sources.
program() {
    [ -f build/web/$1 ] && [ -z "$(find janus.c janus.h test/web/web.c test/web/web.sh -newer build/web/$1)" ] && return
    $CLANG --target=wasm32-wasi -std=c99 -O3 $2 -pedantic -Wall -Wextra -Wshadow -Wno-unused-function -I. $STB -idirafter /usr/include \
        -DJANUS_LIBRARY -DJANUS_NO_THREADS -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_MMAN \
        -mexec-model=reactor -Wl,-z,stack-size=1048576,--max-memory=4294967296,--export=malloc,--export=free,--strip-all \
        test/web/web.c janus.c -lwasi-emulated-getpid -lwasi-emulated-process-clocks -lwasi-emulated-mman -o build/web/$1
}

program janus-simd.wasm -msimd128 && program janus.wasm && cp test/web/*.html test/web/*.css test/web/*.js weights/tiny.gguf build/web/
