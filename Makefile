# SPDX-License-Identifier: MIT
# make builds ./janus; make help lists the targets. For GNU make and BSD make.
#
# Where the system has no stb_image.h of version 2.28 or newer, every target fetches it into build/ (test/setup.sh says how).
# STB=DIR names a folder that holds stb_image.h and stb_image_write.h instead; FETCH=no downloads and installs nothing.

CC = cc
CFLAGS = -O2
WARNINGS = -pedantic -Wall -Wextra -Wshadow
LDLIBS = -lm -lpthread
PREFIX = /usr/local
LIBDIR = $(PREFIX)/lib
DESTDIR =
PYTHON = python3

# Sets the shell variable $stb to the compiler's flags for the stb headers: finds or fetches them, or says how to get them.
FIND_STB = stb=`CC="$(CC)" CFLAGS="$(CFLAGS)" STB="$(STB)" FETCH="$(FETCH)" STB_URL="$(STB_URL)" sh test/setup.sh flags` || exit 2
COMPILE = @mkdir -p $(@D); $(FIND_STB); set -x; $(CC) $(CFLAGS) -std=c99 $$stb -I.
LINK = $(LDFLAGS) $(LDLIBS)
RUN = @PYTHON="$(PYTHON)" FETCH="$(FETCH)" BENCH_ARGS="$(BENCH_ARGS)" TYPES="$(TYPES)" WORK="$(WORK)" KEEP="$(KEEP)" sh test/run.sh
SOURCES = janus.c janus.h build/stb.found
# Not $(MAKE) itself in a recipe: make -n would run that line.
SUBMAKE = $(MAKE)

# ---- Using it ----

all: janus ## the program ./janus; what make alone does

janus: $(SOURCES)
	$(COMPILE) $(WARNINGS) janus.c -o $@ $(LINK)

demo: janus ## draws a picture and answers questions about it
	@sh test/demo.sh

libjanus.a: build/library.o ## the library for C programs (janus.h)
	ar rcs $@ build/library.o

libjanus.so: build/library.o ## the library for other languages
	name=; [ "`uname -s`" = Darwin ] || name=-Wl,-soname,libjanus.so.2; $(CC) -shared $$name build/library.o -o $@ $(LINK)

# A file, so that make -j fetches the headers once.
build/stb.found: test/setup.sh
	@$(FIND_STB); touch $@

# What is installed: below PREFIX, and below LIBDIR.
FILES = bin/janus include/janus.h share/janus/tiny.gguf share/janus/tiny.selftest share/doc/janus/LICENSE
LIBRARIES = libjanus.a libjanus.so libjanus.so.2 libjanus.so.2.* pkgconfig/janus.pc
PLACES = @umask 022; root="$(DESTDIR)$(PREFIX)"; lib="$(DESTDIR)$(LIBDIR)"; \
    version=`sed -n 's/^.define JANUS_VERSION "\(.*\)"/\1/p' janus.h`; set -ex

install: janus libjanus.a libjanus.so ## program, small model, library: PREFIX=/usr/local LIBDIR=PREFIX/lib DESTDIR=
	$(PLACES); mkdir -p "$$root/bin" "$$root/include" "$$root/share/janus" "$$root/share/doc/janus" "$$lib/pkgconfig"; \
	    cp janus "$$root/bin/"; cp janus.h "$$root/include/"; cp weights/tiny.gguf weights/tiny.selftest "$$root/share/janus/"; \
	    sed -n '/^.. MIT License/,$$p' janus.h | sed 's/^.. MIT/MIT/; s/^   //; s/ [*].$$//' >"$$root/share/doc/janus/LICENSE"; \
	    cp libjanus.a "$$lib/"; cp libjanus.so "$$lib/libjanus.so.$$version"; printf '%s\n' 'prefix=$(PREFIX)' \
	        'libdir=$(LIBDIR)' 'includedir=$${prefix}/include' '' 'Name: janus' 'Description: Janus-Pro in portable C' \
	        "Version: $$version" 'Cflags: -I"$${includedir}"' 'Libs: -L"$${libdir}" -ljanus -lm -lpthread' >"$$lib/pkgconfig/janus.pc"; \
	    (cd "$$root"; chmod 644 $(FILES); chmod 755 bin/janus); cd "$$lib"; ln -sf libjanus.so.$$version libjanus.so.2; \
	    ln -sf libjanus.so.2 libjanus.so; chmod 644 libjanus.a pkgconfig/janus.pc; chmod 755 libjanus.so.$$version

uninstall: ## removes what install put there
	$(PLACES); (cd "$$root"; rm -f $(FILES); rmdir share/janus share/doc/janus || :); cd "$$lib"; rm -f $(LIBRARIES)

deps: ## installs packages: WHAT=build|fuzz|check|machines|web|analyse|platforms
	@sh test/setup.sh install "$(WHAT)"

clean: ## removes what was built
	rm -rf janus libjanus.a libjanus.so build

# The targets that say what they do after two #, below the headings of this file.
help: ## this list
	@awk '/^# ---- .* ----$$/ { sub(/^# ---- /, ""); sub(/ ----$$/, ""); heading = $$0 } \
	    /^[a-z][a-z.-]*:.* ## / { if (heading != "") print (shown++ ? "\n" : "") heading; heading = ""; name = $$1; \
	    sub(/:.*/, "", name); sub(/.* ## /, ""); printf "    make %-16s %s\n", name, $$0 }' Makefile

# ---- Testing it ----

BUILT = build
PARTS = c python
C_TESTS = $(BUILT)/test_janus $(BUILT)/test_kernels $(BUILT)/test_faults $(BUILT)/fuzz/replay

test: ## all that needs no torch: PARTS="c python"; the C part alone: SAN=address|thread|valgrind
	@MAKE="$(SUBMAKE)" SAN="$(SAN)" RUNNER="$(RUNNER)" PYTHON="$(PYTHON)" FETCH="$(FETCH)" sh test/run.sh build $(PARTS)

c-tests: $(C_TESTS)

$(BUILT)/library.o: $(SOURCES)
	$(COMPILE) $(WARNINGS) -fPIC -DJANUS_LIBRARY -c janus.c -o $@

$(BUILT)/test_janus: test/c/test_janus.c test/c/common.h $(SOURCES)
	$(COMPILE) $(WARNINGS) test/c/test_janus.c -o $@ $(LINK)

$(BUILT)/test_kernels: test/c/test_kernels.c test/c/emulate_amx.h
$(BUILT)/test_faults: test/c/test_faults.c
$(BUILT)/test_kernels $(BUILT)/test_faults: test/c/common.h $(SOURCES)
	$(COMPILE) test/c/$(@F).c -o $@ $(LINK)

FUZZ_SOURCES = test/fuzz/fuzz.c test/fuzz/mutate_gguf.h test/c/common.h $(SOURCES)
$(BUILT)/fuzz/replay: $(FUZZ_SOURCES)
	$(COMPILE) -DSTANDALONE -DJANUS_NO_SIMD test/fuzz/fuzz.c -o $@ $(LINK)

T = 60
CLANG = clang
fuzz: build/fuzz/fuzz-model ## every target of test/fuzz for T=60 seconds
	@for target in image text ids options json; do ln -f build/fuzz/fuzz-model build/fuzz/fuzz-$$target; done
	@sh test/fuzz/run.sh $(T)

build/fuzz/fuzz-model: $(FUZZ_SOURCES) test/fuzz/stb.ignore
	@command -v $(CLANG) >/dev/null || { echo "fuzzing needs clang and llvm: make deps WHAT=fuzz"; exit 1; }
	@$(FIND_STB); set -x; mkdir -p $(@D); $(CLANG) -std=c99 -g1 -O1 -DJANUS_NO_SIMD -fsanitize=fuzzer,address,undefined,float-cast-overflow \
	    -fno-sanitize-recover=all -fsanitize-ignorelist=test/fuzz/stb.ignore $$stb -I. test/fuzz/fuzz.c -o $@ $(LINK)

platforms: janus ## builds, runs and compares for every platform whose tools are here: ROWS="mips|big-endian"
	@status=0; ROWS="$(ROWS)" STB="$(STB)" sh test/platforms/platforms.sh || status=1; \
	    ROWS="$(ROWS)" WORK="$(WORK)" KEEP="$(KEEP)" sh test/platforms/bare.sh || status=1; exit $$status

# ---- In a browser ----

web: ## the page, in build/web, for any static host
	@$(FIND_STB); CLANG="$(CLANG)" STB="$$stb" sh test/web/web.sh
web-serve: web ## the page on this machine
	@$(PYTHON) test/web/serve.py
web-test: janus web ## the page in Chromium and Firefox, which make deps WHAT=web installs

# ---- Equal to PyTorch ----

verify: janus libjanus.so build/libinternals.so ## small checkpoints through PyTorch and ./janus, stage by stage; installs torch
verify-full: janus libjanus.so ## the 1B and 7B geometries with random weights: half an hour, 40 GB below WORK=/tmp
eval: libjanus.so ## the small model's scores

# janus.c with some inner functions made visible.
build/libinternals.so: test/verify/internals.c $(SOURCES)
	$(COMPILE) -fPIC -shared test/verify/internals.c -o $@ $(LINK)

# ---- Measuring ----

bench: build/benchmark ## the time of every stage beside the machine's limits: BENCH_ARGS=--tiny TYPES="bf16 q8_0"
bench-peers: build/libbench.so ## beside PyTorch and llama.cpp, which it installs: QUICK=1 takes about 15 minutes
quantisation: build/libbench.so ## what smaller weights cost in quality

verify verify-full eval bench bench-peers quantisation web-test:
	$(RUN) $@

build/benchmark: test/bench/bench.c $(SOURCES)
	$(COMPILE) test/bench/bench.c -o $@ $(LINK)

build/libbench.so: test/bench/bench_stages.c $(SOURCES)
	$(COMPILE) -fPIC -shared test/bench/bench_stages.c -o $@ $(LINK)

.PHONY: all demo test install uninstall deps clean help verify verify-full eval fuzz platforms bench bench-peers quantisation web web-serve web-test
