# SPDX-License-Identifier: MIT
# make          the program ./janus           make demo     draws a picture and answers a question about it
# make test     the tests                     make verify   PyTorch's numbers beside ours (installs torch)
# make deps     installs what is missing: a C compiler, the stb headers, Python's venv
# make install  PREFIX=/usr/local DESTDIR=
# STB=DIR names the folder that holds stb_image.h and stb_image_write.h where the system has none.

CC = cc
CFLAGS = -O2
WARNINGS = -std=c99 -pedantic -Wall -Wextra -Wshadow
LDLIBS = -lm -lpthread
PREFIX = /usr/local
DESTDIR =
PYTHON = python3
STB =
VERIFY_ARGS = --suite

# Sets the shell variable $stb to the compiler's flags for the stb headers, or says how to get them.
FIND_STB = stb=""; found=""; \
	if test -n "$(STB)"; then stb="-isystem $(STB) -DJANUS_STB_FLAT"; found=1; fi; \
	for dir in "" /usr/local/include /opt/homebrew/include /opt/local/include; do \
	    test -n "$$found" && break; \
	    test -n "$$dir" && flag="-isystem $$dir" || flag=""; \
	    if echo '\#include <stb/stb_image.h>' | $(CC) $$flag -E -x c - >/dev/null 2>&1; then stb="$$flag"; found=1; fi; \
	done; \
	if test -z "$$found" && pkg-config --exists stb 2>/dev/null; then \
	    stb="`pkg-config --cflags stb | sed 's/-I/-isystem /g'` -DJANUS_STB_FLAT"; found=1; fi; \
	if test -z "$$found"; then \
	    echo "The stb headers are missing. Install them with:"; echo "    $$($(DEPS_COMMAND))"; \
	    echo "or name the folder that holds stb_image.h: make STB=DIR"; exit 1; fi

# Prints the one command that installs everything on this system.
DEPS_COMMAND = sudo=""; test "$$(id -u)" = 0 || sudo="sudo "; \
	if command -v apt-get >/dev/null; then echo "$${sudo}apt-get install -y gcc make libc6-dev libstb-dev python3-venv"; \
	elif command -v dnf >/dev/null; then echo "$${sudo}dnf install -y gcc make glibc-devel stb-devel python3"; \
	elif command -v apk >/dev/null; then echo "$${sudo}apk add gcc make musl-dev stb python3"; \
	elif command -v pacman >/dev/null; then echo "$${sudo}pacman -S --needed --noconfirm gcc make stb python"; \
	elif command -v brew >/dev/null; then echo "brew install stb python3"; \
	elif command -v pkg >/dev/null; then echo "$${sudo}pkg install -y stb python3"; \
	else echo "(no known package manager: get the headers from the stb project and use STB=DIR)"; fi

all: janus

janus: janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) $(WARNINGS) $$stb $(LDFLAGS) janus.c -o $@ $(LDLIBS)

# The library, for C programs (libjanus.a) and for the Python tests (libjanus.so).
libjanus.o: janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) $(WARNINGS) $$stb -fPIC -DJANUS_LIBRARY -c janus.c -o $@

libjanus.a: libjanus.o
	ar rcs $@ libjanus.o

libjanus.so: libjanus.o
	$(CC) -shared $(LDFLAGS) libjanus.o -o $@ $(LDLIBS)

deps:
	@if command -v apt-get >/dev/null && test "$$(id -u)" = 0; then apt-get update -q; fi
	@command="$$($(DEPS_COMMAND))"; echo "$$command"; $$command

# ---- Tests ----

test/test_janus: test/test_janus.c libjanus.a
	$(CC) $(CFLAGS) $(WARNINGS) -I. $(LDFLAGS) test/test_janus.c libjanus.a -o $@ $(LDLIBS)

# These two include janus.c, to reach what is inside.
test/test_kernels: test/test_kernels.c janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/test_kernels.c -o $@ $(LDLIBS)

build/libinternals.so: test/internals.c janus.c janus.h
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/internals.c -o $@ $(LDLIBS)

# Everything that needs no torch; alone: the C part, which needs no Python either.
test: janus libjanus.so test/test_janus test/test_kernels
	@PYTHON="$(PYTHON)" sh test/run.sh c python

test-c: janus test/test_janus test/test_kernels
	@sh test/run.sh c

# The C tests once more under the address and undefined-behaviour sanitizers (stb's JPEG writer shifts a sign bit out).
test-asan:
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=shift-base \
	    -std=c99 $$stb -I. -DJANUS_LIBRARY janus.c test/test_janus.c -o build/test_janus $(LDLIBS) && \
	    $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -std=c99 $$stb -I. \
	    test/test_kernels.c -o build/test_kernels $(LDLIBS)
	@BUILT=build sh test/run.sh c

# The same checkpoints through PyTorch and through ./janus, stage by stage.
verify: janus libjanus.so build/libinternals.so
	@PYTHON="$(PYTHON)" sh test/run.sh verify

# The real geometries with random weights: needs 40 GB of disk and half an hour.
verify-full: janus libjanus.so
	@PYTHON="$(PYTHON)" sh test/run.sh verify-full

# Builds for every platform whose tools are here, runs both tasks on each and compares.
platforms: janus
	@sh test/platforms.sh

platforms-deps:
	apt-get install -y clang tcc musl-tools qemu-user gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf gcc-riscv64-linux-gnu \
	    gcc-powerpc64le-linux-gnu gcc-s390x-linux-gnu gcc-mingw-w64-x86-64 wine64

# The small model's scores, through the library.
eval: libjanus.so
	@PYTHON="$(PYTHON)" sh test/run.sh eval

# ---- Measuring ----

# make bench [BENCH_ARGS="--tiny --json FILE ..."] [TYPES="bf16 q8_0"] [WORK=DIR] [KEEP=1]: every stage beside the machine's limits.
# make bench-peers [BENCH_ARGS="--quick ..."]: beside PyTorch and llama.cpp, which it installs in .venv-bench (llama.cpp from source).
# make quantisation: what smaller weights cost in quality.
BENCH_ARGS =
test/bench: test/bench.c janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/bench.c -o $@ $(LDLIBS)

bench: test/bench
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" TYPES="$(TYPES)" WORK="$(WORK)" KEEP="$(KEEP)" sh test/run.sh bench

build/libbench.so: test/bench_stages.c janus.c janus.h
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/bench_stages.c -o $@ $(LDLIBS)

bench-peers: build/libbench.so
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" sh test/run.sh bench-peers

quantisation: build/libbench.so
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" sh test/run.sh quantisation

# ---- Showing and installing ----

demo:
	@$(FIND_STB); :
	@$(MAKE) janus
	@sh test/demo.sh

install: janus libjanus.a
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig
	cp janus $(DESTDIR)$(PREFIX)/bin/
	cp janus.h $(DESTDIR)$(PREFIX)/include/
	cp libjanus.a $(DESTDIR)$(PREFIX)/lib/
	printf 'Name: janus\nDescription: Janus-Pro in portable C\nVersion: 1.0.0\nCflags: -I%s/include\nLibs: -L%s/lib -ljanus -lm -lpthread\n' \
	    $(PREFIX) $(PREFIX) > $(DESTDIR)$(PREFIX)/lib/pkgconfig/janus.pc

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/janus $(DESTDIR)$(PREFIX)/include/janus.h $(DESTDIR)$(PREFIX)/lib/libjanus.a
	rm -f $(DESTDIR)$(PREFIX)/lib/pkgconfig/janus.pc

clean:
	rm -rf janus libjanus.o libjanus.a libjanus.so test/test_janus test/test_kernels test/bench build

.PHONY: bench bench-peers quantisation eval all deps test test-c test-asan verify verify-full platforms platforms-deps demo install uninstall clean
