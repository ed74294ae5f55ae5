/* SPDX-License-Identifier: MIT
   The program with one more number format, for test/python/test_formats.py: a row and a function. The format is Q8_0
   with the bytes of each block in reverse. */
#define _GNU_SOURCE
#include <stdint.h>

static void expand_toy(float *out, const unsigned char *in, int64_t count);
#define JANUS_EXTRA_FORMATS {"toy", 250, 32, 34, expand_toy},
#include "../../janus.c"

static void expand_toy(float *out, const unsigned char *in, int64_t count) {
    unsigned char block[Q8_0_BYTES];
    for (int64_t b = 0; b < count; b++) {
        for (int i = 0; i < Q8_0_BYTES; i++) block[i] = in[(b + 1) * Q8_0_BYTES - 1 - i];
        expand_q8_0(out + b * BLOCK, block, 1);
    }
}
