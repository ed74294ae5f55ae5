#!/bin/sh
# SPDX-License-Identifier: MIT
# Which lines of janus.c the tests run, by gcc's gcov: coverage.sh, after make test made the environment in .venv.
cd "$(dirname "$0")/../.." || exit 1
DIR=build/coverage
rm -rf $DIR && mkdir -p $DIR
stb=$(CC=gcc sh test/setup.sh flags) || exit
cover="gcc --coverage -O0 -std=c99 $stb janus.c -lm -lpthread"
make c-tests BUILT=$DIR CC=gcc CFLAGS="--coverage -O0 -DCOVERAGE" && $cover -o $DIR/janus &&
    $cover -fPIC -shared -DJANUS_LIBRARY -o $DIR/libjanus.so || exit
GCOV_ERROR_FILE=/dev/null BUILT=$DIR JANUS_PROGRAM=$PWD/$DIR/janus JANUS_LIBRARY=$PWD/$DIR/libjanus.so \
    PYTESTS="test/python/test_cli.py test/python/test_tokenizer.py test/python/test_preprocess.py" sh test/run.sh c python
.venv/bin/python test/analyse/coverage.py $DIR
