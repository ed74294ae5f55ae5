# SPDX-License-Identifier: MIT
# make builds ./janus; make help lists every target. For GNU make and BSD make.
#
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

# Sets the shell variable $stb to the compiler's flags for the stb headers: finds or brings them, or says how to get them.
FIND_STB = stb=`CC="$(CC)" CFLAGS="$(CFLAGS)" STB="$(STB)" FETCH="$(FETCH)" STB_URL="$(STB_URL)" sh test/setup.sh flags` || exit 2

# Made first, so that make -j fetches the headers once.
build/stb.found: test/setup.sh
	@$(FIND_STB); touch $@

# ---- Using it ----

all: janus ## the program ./janus; what make alone does

janus: janus.c janus.h build/stb.found
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) $(WARNINGS) $$stb $(LDFLAGS) janus.c -o $@ $(LDLIBS)

demo: janus ## draws a picture and answers questions about it
	@sh test/demo.sh

C_TESTS = build/test_janus build/test_kernels build/test_amx build/test_faults build/fuzz/replay

# Everything that needs no torch. Where Python is missing, the C part alone.
test: janus libjanus.so $(C_TESTS) ## the tests, in C and in Python
	@PYTHON="$(PYTHON)" FETCH="$(FETCH)" sh test/run.sh c python

libjanus.a: libjanus.o ## the library for C programs (janus.h)
	ar rcs $@ libjanus.o

libjanus.so: libjanus.o ## the library for other languages
	name=; [ "`uname -s`" = Darwin ] || name=-Wl,-soname,libjanus.so.1; \
	    $(CC) -shared $$name $(LDFLAGS) libjanus.o -o $@ $(LDLIBS)

libjanus.o: janus.c janus.h build/stb.found
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) $(WARNINGS) $$stb -fPIC -DJANUS_LIBRARY -c janus.c -o $@

# What is installed, below PREFIX; the library also under the names without its version.
INSTALLED = bin/janus include/janus.h lib/libjanus.a lib/pkgconfig/janus.pc share/janus/tiny.gguf share/janus/tiny.selftest \
    share/doc/janus/LICENSE
FIND_VERSION = version=`sed -n 's/^.define JANUS_VERSION "\(.*\)"/\1/p' janus.h`

install: janus libjanus.a libjanus.so ## program, small model, library: PREFIX=/usr/local DESTDIR=
	@rm -f build/janus.pc; $(MAKE) build/janus.pc
	for file in $(INSTALLED); do mkdir -p "$(DESTDIR)$(PREFIX)/$${file%/*}" || exit 1; done
	cp janus "$(DESTDIR)$(PREFIX)/bin/janus"
	cp janus.h "$(DESTDIR)$(PREFIX)/include/janus.h"
	cp libjanus.a "$(DESTDIR)$(PREFIX)/lib/libjanus.a"
	cp build/janus.pc "$(DESTDIR)$(PREFIX)/lib/pkgconfig/janus.pc"
	cp weights/tiny.gguf weights/tiny.selftest "$(DESTDIR)$(PREFIX)/share/janus/"
	sed -n '/^.. MIT License/,$$p' janus.h | sed 's/^.. MIT/MIT/; s/^   //; s/ [*].$$//' >"$(DESTDIR)$(PREFIX)/share/doc/janus/LICENSE"
	cd "$(DESTDIR)$(PREFIX)" && chmod 644 $(INSTALLED) && chmod 755 bin/janus
	$(FIND_VERSION); cp libjanus.so "$(DESTDIR)$(PREFIX)/lib/libjanus.so.$$version" && cd "$(DESTDIR)$(PREFIX)/lib" && \
	    chmod 755 libjanus.so.$$version && ln -sf libjanus.so.$$version libjanus.so.1 && ln -sf libjanus.so.1 libjanus.so

uninstall: ## takes away what install put there
	cd "$(DESTDIR)$(PREFIX)" && rm -f $(INSTALLED) lib/libjanus.so lib/libjanus.so.1 lib/libjanus.so.1.*
	cd "$(DESTDIR)$(PREFIX)/share" 2>/dev/null && rmdir janus doc/janus 2>/dev/null || :

build/janus.pc: janus.h Makefile
	@mkdir -p build
	printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: janus\nDescription: Janus-Pro in portable C\n' \
	    "$(PREFIX)" >$@
	sed -n 's/^#define JANUS_VERSION "\(.*\)"/Version: \1/p' janus.h >>$@
	printf 'Cflags: -I$${includedir}\nLibs: -L$${libdir} -ljanus -lm -lpthread\n' >>$@

WHAT = build
deps: ## installs packages: WHAT=build|fuzz|check|machines|analyse|platforms
	@sh test/setup.sh install $(WHAT)

clean: ## removes what was built
	rm -rf janus libjanus.o libjanus.a libjanus.so test/bench/bench build

# The targets that say what they do after two #, below the headings of this file.
help: ## this list
	@awk '/^# ---- .* ----$$/ { sub(/^# ---- /, ""); sub(/ ----$$/, ""); heading = $$0 } \
	    /^[a-z][a-z.-]*:.* ## / { if (heading != "") print (shown++ ? "\n" : "") heading; heading = ""; name = $$1; \
	    sub(/:.*/, "", name); sub(/.* ## /, ""); printf "    make %-16s %s\n", name, $$0 }' Makefile

# ---- Equal to PyTorch ----

verify: janus libjanus.so build/libinternals.so ## small checkpoints through PyTorch and ./janus, stage by stage; installs torch
	@PYTHON="$(PYTHON)" sh test/run.sh verify

verify-full: janus libjanus.so ## the 1B and 7B geometries with random weights: half an hour, 40 GB below WORK=/tmp
	@PYTHON="$(PYTHON)" sh test/run.sh verify-full

eval: libjanus.so ## the small model's scores
	@PYTHON="$(PYTHON)" sh test/run.sh eval

# janus.c with some inner functions made visible.
build/libinternals.so: test/verify/internals.c janus.c janus.h build/stb.found
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/verify/internals.c -o $@ $(LDLIBS)

# ---- The tests in C, also under sanitizers and valgrind ----

test-c: janus $(C_TESTS) ## the tests in C alone
	@sh test/run.sh c

build/test_janus: test/c/test_janus.c test/c/common.h libjanus.a
	@mkdir -p build
	$(CC) $(CFLAGS) $(WARNINGS) -I. $(LDFLAGS) test/c/test_janus.c libjanus.a -o $@ $(LDLIBS)

# These include janus.c, to reach what is inside.
build/test_kernels: test/c/test_kernels.c test/c/common.h test/c/random_rows.h janus.c janus.h build/stb.found
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/c/test_kernels.c -o $@ $(LDLIBS)

# The same with the instructions of AMX emulated, for processors without them.
build/test_amx: test/c/test_kernels.c test/c/emulate_amx.h test/c/common.h test/c/random_rows.h janus.c janus.h build/stb.found
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 -DEMULATED_AMX $$stb -I. $(LDFLAGS) test/c/test_kernels.c -o $@ $(LDLIBS)

build/test_faults: test/c/test_faults.c test/c/common.h janus.c janus.h build/stb.found
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/c/test_faults.c -o $@ $(LDLIBS)

# stb's JPEG writer shifts a sign bit out: shift-base is off where it is compiled.
UNDEFINED = -fno-sanitize-recover=undefined
SANITIZED = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined $(UNDEFINED) -std=c99 $$stb -I.
test-asan: ## the tests in C under the address and undefined-behaviour sanitizers
	@mkdir -p build/asan/fuzz
	@$(FIND_STB); set -x; shift=-fno-sanitize=shift-base; \
	    $(CC) $(SANITIZED) $$shift -DJANUS_LIBRARY janus.c test/c/test_janus.c -o build/asan/test_janus $(LDLIBS) && \
	    $(CC) $(SANITIZED) test/c/test_kernels.c -o build/asan/test_kernels $(LDLIBS) && \
	    $(CC) $(SANITIZED) -DEMULATED_AMX test/c/test_kernels.c -o build/asan/test_amx $(LDLIBS) && \
	    $(CC) $(SANITIZED) $$shift test/c/test_faults.c -o build/asan/test_faults $(LDLIBS) && \
	    $(CC) $(SANITIZED) $$shift -DSTANDALONE -DJANUS_NO_SIMD test/fuzz/fuzz.c -o build/asan/fuzz/replay $(LDLIBS)
	@ASAN_OPTIONS=allocator_may_return_null=1 BUILT=build/asan sh test/run.sh c

FAULTS = -std=c99 $$stb -I. $(LDFLAGS) test/c/test_faults.c
test-tsan: ## threads, and sessions of one model in threads of their own, under ThreadSanitizer
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 -fsanitize=thread $(FAULTS) -o build/test_faults_tsan $(LDLIBS)
	build/test_faults_tsan threads

# Valgrind takes the best kernels that it knows.
test-valgrind: ## every operation once, and files that ask for too much, under valgrind
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) -g -O1 $(FAULTS) -o build/test_faults_valgrind $(LDLIBS)
	valgrind -q --leak-check=full --show-leak-kinds=all --error-exitcode=9 build/test_faults_valgrind small bombs

coverage: ## which lines of janus.c the tests run; needs gcc
	@rm -rf build/coverage && mkdir -p build/coverage/fuzz
	@$(FIND_STB); set -x; cover="$(CC) --coverage -O0 -std=c99 $$stb -I. $(LDFLAGS)"; \
	    $$cover janus.c -o build/coverage/janus $(LDLIBS) && \
	    $$cover -fPIC -shared -DJANUS_LIBRARY janus.c -o build/coverage/libjanus.so $(LDLIBS) && \
	    $$cover -DJANUS_LIBRARY test/c/test_janus.c janus.c -o build/coverage/test_janus $(LDLIBS) && \
	    $$cover test/c/test_kernels.c -o build/coverage/test_kernels $(LDLIBS) && \
	    $$cover -DCOVERAGE test/c/test_faults.c -o build/coverage/test_faults $(LDLIBS) && \
	    $$cover -DSTANDALONE test/fuzz/fuzz.c -o build/coverage/fuzz/replay $(LDLIBS)
	GCOV_ERROR_FILE=/dev/null BUILT=build/coverage PYTHON="$(PYTHON)" JANUS_PROGRAM=$(CURDIR)/build/coverage/janus \
	    JANUS_LIBRARY=$(CURDIR)/build/coverage/libjanus.so \
	    PYTESTS="test/python/test_cli.py test/python/test_tokenizer.py test/python/test_preprocess.py" sh test/run.sh c python
	@$(PYTHON) test/analyse/coverage.py build/coverage

test-ray: janus ## README's program for Ray Data, over two processes of janus batch; installs ray
	@PYTHON="$(PYTHON)" sh test/run.sh ray

# ---- Fuzzing and analysers ----

T = 60
CLANG = clang
FUZZ_SOURCES = test/fuzz/fuzz.c test/fuzz/mutate_gguf.h janus.c janus.h build/stb.found

fuzz: build/fuzz/fuzz-model ## every target of test/fuzz for T=60 seconds
	@for target in image text ids options json; do ln -f build/fuzz/fuzz-model build/fuzz/fuzz-$$target; done
	@sh test/fuzz/run.sh $(T)

# Replays the corpora and all that was ever found, on any compiler.
build/fuzz/replay: $(FUZZ_SOURCES)
	@mkdir -p build/fuzz
	@$(FIND_STB); set -x; \
	    $(CC) $(CFLAGS) -std=c99 -DSTANDALONE -DJANUS_NO_SIMD $$stb -I. $(LDFLAGS) test/fuzz/fuzz.c -o $@ $(LDLIBS)

build/fuzz/fuzz-model: $(FUZZ_SOURCES) test/fuzz/stb.ignore
	@mkdir -p build/fuzz
	@echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 99; }' >build/fuzz/probe.c; \
	if ! $(CLANG) -fsanitize=fuzzer,address build/fuzz/probe.c -o build/fuzz/probe 2>/dev/null; then \
	    echo "Fuzzing needs clang with its runtime libraries: make deps WHAT=fuzz"; exit 1; fi
	@$(FIND_STB); set -x; $(CLANG) -std=c99 -g1 -O1 -fsanitize=fuzzer,address,undefined,float-cast-overflow \
	    -fno-sanitize-recover=all -fsanitize-ignorelist=test/fuzz/stb.ignore $$stb -I. test/fuzz/fuzz.c -o $@ $(LDLIBS)

analyse: ## the static analysers; test/analyse/ANALYSERS.md explains what they find
	@$(FIND_STB); sh test/analyse/analyse.sh "$$stb"

# ---- Platforms ----

# What Debian does not package (newest stb, zig, Debian 13) it fetches itself.
ROWS =
platforms: janus ## builds for every platform whose tools are here, runs and compares: ROWS='mips|big-endian'
	@status=0; ROWS="$(ROWS)" STB="$(STB)" sh test/platforms/platforms.sh || status=1; \
	    ROWS="$(ROWS)" sh test/platforms/bare.sh || status=1; exit $$status

platforms-bare: janus ## make demo and make test in empty Debian systems: WORK=build/bare KEEP=1 ROWS=PATTERN
	@WORK="$(WORK)" KEEP="$(KEEP)" ROWS="$(ROWS)" sh test/platforms/bare.sh

# ---- Measuring ----

# BENCH_ARGS="--tiny --json FILE ..." TYPES="bf16 q8_0" WORK=DIR KEEP=1
BENCH_ARGS =
bench: test/bench/bench ## the time of every stage beside the machine's limits: BENCH_ARGS=--tiny TYPES="bf16 q8_0"
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" TYPES="$(TYPES)" WORK="$(WORK)" KEEP="$(KEEP)" sh test/run.sh bench

bench-peers: build/libbench.so ## beside PyTorch and llama.cpp, which it installs: QUICK=1 takes some fifteen minutes
	@PYTHON="$(PYTHON)" BENCH_ARGS="$${QUICK:+--quick} $(BENCH_ARGS)" sh test/run.sh bench-peers

quantisation: build/libbench.so ## what smaller weights cost in quality
	@PYTHON="$(PYTHON)" BENCH_ARGS="$(BENCH_ARGS)" sh test/run.sh quantisation

test/bench/bench: test/bench/bench.c test/c/random_rows.h janus.c janus.h build/stb.found
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. $(LDFLAGS) test/bench/bench.c -o $@ $(LDLIBS)

build/libbench.so: test/bench/bench_stages.c janus.c janus.h build/stb.found
	@mkdir -p build
	@$(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I. -fPIC -shared $(LDFLAGS) test/bench/bench_stages.c -o $@ $(LDLIBS)

.PHONY: all demo test install uninstall deps clean help verify verify-full eval test-c test-asan test-tsan test-valgrind coverage \
    test-ray fuzz analyse platforms platforms-bare bench bench-peers quantisation
