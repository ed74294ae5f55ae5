# SPDX-License-Identifier: MIT
# make          the program ./janus           make demo     draws a picture and answers a question about it
# make test     the tests                     make verify   PyTorch's numbers beside ours (installs torch)
# make deps     installs what is missing: a C compiler, the stb headers, Python's venv
# make install  PREFIX=/usr/local DESTDIR=
# Where the system has no stb headers, every target brings them into build/ (test/setup.sh says how). STB=DIR names a folder
# that holds stb_image.h and stb_image_write.h instead; FETCH=no downloads and installs nothing.

CC = cc
CFLAGS = -O2
WARNINGS = -std=c99 -pedantic -Wall -Wextra -Wshadow
LDLIBS = -lm -lpthread
PREFIX = /usr/local
DESTDIR =
PYTHON = python3
STB =
VERIFY_ARGS = --suite

# Sets the shell variable $stb to the compiler's flags for the stb headers: finds or brings them, or says how to get them.
FIND_STB = stb=`CC="$(CC)" CFLAGS="$(CFLAGS)" STB="$(STB)" FETCH="$(FETCH)" STB_URL="$(STB_URL)" sh test/setup.sh flags` || exit 2

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
	@sh test/setup.sh install

# ---- Tests ----

test/test_janus: test/test_janus.c libjanus.a
	$(CC) $(CFLAGS) $(WARNINGS) -I. $(LDFLAGS) test/test_janus.c libjanus.a -o $@ $(LDLIBS)

# These include janus.c, to reach what is inside.
test/test_kernels: test/test_kernels.c janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/test_kernels.c -o $@ $(LDLIBS)

test/test_faults: test/test_faults.c janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/test_faults.c -o $@ $(LDLIBS)

build/libinternals.so: test/verify/internals.c janus.c janus.h
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/verify/internals.c -o $@ $(LDLIBS)

# Everything that needs no torch; alone: the C part, which needs no Python either.
test: janus libjanus.so test/test_janus test/test_kernels test/test_faults test/fuzz/replay
	@PYTHON="$(PYTHON)" FETCH="$(FETCH)" sh test/run.sh c python

test-c: janus test/test_janus test/test_kernels test/test_faults test/fuzz/replay
	@sh test/run.sh c

# The C tests once more under the address and undefined-behaviour sanitizers (stb's JPEG writer shifts a sign bit out).
test-asan:
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=shift-base \
	    -std=c99 $$stb -I. -DJANUS_LIBRARY janus.c test/test_janus.c -o build/test_janus $(LDLIBS) && \
	    $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -std=c99 $$stb -I. \
	    test/test_kernels.c -o build/test_kernels $(LDLIBS) && \
	    $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=shift-base \
	    -std=c99 $$stb -I. test/test_faults.c -o build/test_faults $(LDLIBS) && \
	    mkdir -p build/fuzz && $(CC) -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined \
	    -fno-sanitize=shift-base -std=c99 -DSTANDALONE -DJANUS_NO_SIMD $$stb -I. test/fuzz/fuzz.c -o build/fuzz/replay $(LDLIBS)
	@ASAN_OPTIONS=allocator_may_return_null=1 BUILT=build sh test/run.sh c

# ---- Fuzzing: make fuzz T=60 runs every target of test/fuzz for so many seconds ----

T = 60
CLANG = clang
FUZZ_SOURCES = test/fuzz/fuzz.c test/fuzz/mutate_gguf.h janus.c janus.h

# Replays the corpora and all that was ever found, on any compiler.
test/fuzz/replay: $(FUZZ_SOURCES)
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 -DSTANDALONE -DJANUS_NO_SIMD $$stb -I. $(LDFLAGS) test/fuzz/fuzz.c -o $@ $(LDLIBS)

build/fuzz/fuzz-model: $(FUZZ_SOURCES) test/fuzz/stb.ignore
	@mkdir -p build/fuzz
	@echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 99; }' >build/fuzz/probe.c; \
	if ! $(CLANG) -fsanitize=fuzzer,address build/fuzz/probe.c -o build/fuzz/probe 2>/dev/null; then \
	    echo "Fuzzing needs clang with its runtime libraries: make fuzz-deps (Debian: apt-get install clang llvm)"; exit 1; fi
	@$(FIND_STB); set -x; $(CLANG) -std=c99 -g1 -O1 -fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize-recover=all \
	    -fsanitize-ignorelist=test/fuzz/stb.ignore $$stb -I. test/fuzz/fuzz.c -o $@ $(LDLIBS)

fuzz: build/fuzz/fuzz-model
	@for target in image text ids options; do ln -f build/fuzz/fuzz-model build/fuzz/fuzz-$$target; done
	@sh test/fuzz/run.sh $(T)

fuzz-deps:
	apt-get install -y clang llvm

# ---- Checks with tools of their own: make check-deps installs them ----

FAULTS = -std=c99 $$stb -I. $(LDFLAGS) test/test_faults.c

# The thread pool, and sessions of one model in threads of their own, under ThreadSanitizer.
test-tsan:
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 -fsanitize=thread $(FAULTS) -o build/test_faults_tsan $(LDLIBS)
	build/test_faults_tsan threads

# Every operation once, and the inputs that ask for too much, under valgrind (which takes the best kernels that it knows).
test-valgrind:
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 $(FAULTS) -o build/test_faults_valgrind $(LDLIBS)
	valgrind -q --leak-check=full --show-leak-kinds=all --error-exitcode=9 build/test_faults_valgrind small bombs

# Which lines of janus.c the C tests and the Python tests of the program and the library run. Needs gcc.
coverage:
	@rm -rf build/coverage && mkdir -p build/coverage/fuzz
	@$(FIND_STB); set -x; cover="$(CC) --coverage -O0 -std=c99 $$stb -I. $(LDFLAGS)"; \
	    $$cover janus.c -o build/coverage/janus $(LDLIBS) && \
	    $$cover -fPIC -shared -DJANUS_LIBRARY janus.c -o build/coverage/libjanus.so $(LDLIBS) && \
	    $$cover -DJANUS_LIBRARY test/test_janus.c janus.c -o build/coverage/test_janus $(LDLIBS) && \
	    $$cover test/test_kernels.c -o build/coverage/test_kernels $(LDLIBS) && \
	    $$cover -DCOVERAGE test/test_faults.c -o build/coverage/test_faults $(LDLIBS) && \
	    $$cover -DSTANDALONE test/fuzz/fuzz.c -o build/coverage/fuzz/replay $(LDLIBS)
	GCOV_ERROR_FILE=/dev/null BUILT=build/coverage PYTHON="$(PYTHON)" JANUS_PROGRAM=$(CURDIR)/build/coverage/janus \
	    JANUS_LIBRARY=$(CURDIR)/build/coverage/libjanus.so \
	    PYTESTS="test/test_cli.py test/test_tokenizer.py test/test_preprocess.py" sh test/run.sh c python
	@$(PYTHON) test/analyse/coverage.py build/coverage

check-deps:
	apt-get install -y valgrind

# The same checkpoints through PyTorch and through ./janus, stage by stage.
verify: janus libjanus.so build/libinternals.so
	@PYTHON="$(PYTHON)" sh test/run.sh verify

# The real geometries with random weights: needs 40 GB of disk and half an hour.
verify-full: janus libjanus.so
	@PYTHON="$(PYTHON)" sh test/run.sh verify-full

# Builds for every platform whose tools are here, runs both tasks on each and compares; then make platforms-bare. A part of them
# with ROWS=PATTERN, which is for grep -E: make platforms ROWS='mips|big-endian'. What Debian does not package (newest stb, zig,
# Debian 13) it fetches itself.
ROWS =
platforms: janus
	@status=0; ROWS="$(ROWS)" STB="$(STB)" sh test/platforms/platforms.sh || status=1; ROWS="$(ROWS)" sh test/platforms/bare.sh || status=1; exit $$status

# make demo and make test in empty Debian systems, which it makes with debootstrap: WORK=DIR (build/bare), KEEP=1, ROWS=PATTERN.
platforms-bare: janus
	@WORK="$(WORK)" KEEP="$(KEEP)" ROWS="$(ROWS)" sh test/platforms/bare.sh

# janus.c with the oldest stb and with the newest, out of two Debian releases.
test-stb:
	@CC="$(CC)" sh test/platforms/stb.sh

# gcc-multilib would bring -m32 but excludes the cross compilers; its two pieces do not.
CROSS = alpha-linux-gnu:alpha aarch64-linux-gnu:arm64 arm-linux-gnueabi:armel arm-linux-gnueabihf:armhf hppa-linux-gnu:hppa \
    m68k-linux-gnu:m68k mips-linux-gnu:mips mips64-linux-gnuabi64:mips64 mips64el-linux-gnuabi64:mips64el mipsel-linux-gnu:mipsel \
    powerpc-linux-gnu:powerpc powerpc64-linux-gnu:ppc64 powerpc64le-linux-gnu:ppc64el riscv64-linux-gnu:riscv64 \
    s390x-linux-gnu:s390x sh4-linux-gnu:sh4 sparc64-linux-gnu:sparc64
platforms-deps:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y gcc debootstrap
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ clang tcc libc6-dev libstb-dev bmake \
	    musl-dev musl-tools libc6-dev-i386 lib32gcc-`gcc -dumpversion | cut -d. -f1`-dev mingw-w64-x86-64-dev gcc-mingw-w64-x86-64 \
	    mingw-w64-i686-dev gcc-mingw-w64-i686 wine wine64 lld wasi-libc libclang-rt-dev-wasm32 nodejs debootstrap python3-venv \
	    qemu-user `for pair in $(CROSS); do echo gcc-$${pair%:*} libc6-dev-$${pair#*:}-cross; done`

# Static analysers; test/analyse/ANALYSERS.md explains what they find.
analyse:
	@$(FIND_STB); sh test/analyse/analyse.sh "$$stb"

analyse-deps:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev libstb-dev clang clang-tidy cppcheck

# The small model's scores, through the library.
eval: libjanus.so
	@PYTHON="$(PYTHON)" sh test/run.sh eval

# ---- Measuring ----

# make bench [BENCH_ARGS="--tiny --json FILE ..."] [TYPES="bf16 q8_0"] [WORK=DIR] [KEEP=1]: every stage beside the machine's limits.
# make bench-peers [BENCH_ARGS="--quick ..."]: beside PyTorch and llama.cpp, which it installs in .venv-bench (llama.cpp from source).
# make quantisation: what smaller weights cost in quality.
BENCH_ARGS =
test/bench/bench: test/bench/bench.c janus.c janus.h
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/bench/bench.c -o $@ $(LDLIBS)

bench: test/bench/bench
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" TYPES="$(TYPES)" WORK="$(WORK)" KEEP="$(KEEP)" sh test/run.sh bench

build/libbench.so: test/bench/bench_stages.c janus.c janus.h
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/bench/bench_stages.c -o $@ $(LDLIBS)

bench-peers: build/libbench.so
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" sh test/run.sh bench-peers

quantisation: build/libbench.so
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" sh test/run.sh quantisation

# ---- Showing and installing ----

demo: janus
	@sh test/demo.sh

# The manual page is made from the program's own help.
build/janus.1: janus test/manpage.awk
	@mkdir -p build
	./janus --help | awk -v date=`date +%Y-%m-%d` -f test/manpage.awk >$@

build/janus.pc: janus.h Makefile
	@mkdir -p build
	printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: janus\nDescription: Janus-Pro in portable C\n' \
	    "$(PREFIX)" >$@
	sed -n 's/^#define JANUS_VERSION "\(.*\)"/Version: \1/p' janus.h >>$@
	printf 'Cflags: -I$${includedir}\nLibs: -L$${libdir} -ljanus -lm -lpthread\n' >>$@

install: janus libjanus.a build/janus.1
	@rm -f build/janus.pc; $(MAKE) build/janus.pc
	mkdir -p "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/lib/pkgconfig"
	mkdir -p "$(DESTDIR)$(PREFIX)/share/man/man1"
	cp janus "$(DESTDIR)$(PREFIX)/bin/janus"
	cp janus.h "$(DESTDIR)$(PREFIX)/include/janus.h"
	cp libjanus.a "$(DESTDIR)$(PREFIX)/lib/libjanus.a"
	cp build/janus.pc "$(DESTDIR)$(PREFIX)/lib/pkgconfig/janus.pc"
	cp build/janus.1 "$(DESTDIR)$(PREFIX)/share/man/man1/janus.1"
	cd "$(DESTDIR)$(PREFIX)" && chmod 755 bin/janus && \
	    chmod 644 include/janus.h lib/libjanus.a lib/pkgconfig/janus.pc share/man/man1/janus.1

uninstall:
	cd "$(DESTDIR)$(PREFIX)" && rm -f bin/janus include/janus.h lib/libjanus.a lib/pkgconfig/janus.pc share/man/man1/janus.1

clean:
	rm -rf janus libjanus.o libjanus.a libjanus.so test/test_janus test/test_kernels test/test_faults test/fuzz/replay test/bench/bench build

.PHONY: all deps test test-c test-stb test-asan test-tsan test-valgrind coverage check-deps fuzz fuzz-deps verify verify-full platforms \
    platforms-bare platforms-deps analyse analyse-deps bench bench-peers quantisation eval demo install uninstall clean
