/* SPDX-License-Identifier: MIT
   The program with one more number format, for test/python/test_formats.py: a row and two functions. The format is Q8_0
   with the bytes of each block in reverse. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>

static void expand_toy(float *out, const unsigned char *in, int64_t count);
static void encode_toy(unsigned char *out, const float *x, int64_t count);
#define JANUS_EXTRA_FORMATS {"toy", 250, 99, 32, 34, expand_toy, encode_toy},
#include "../../janus.c"

static void reverse_block(unsigned char *out, const unsigned char *in) {
    for (int i = 0; i < Q8_0_BYTES; i++) out[i] = in[Q8_0_BYTES - 1 - i];
}

static void expand_toy(float *out, const unsigned char *in, int64_t count) {
    unsigned char block[Q8_0_BYTES];
    for (int64_t b = 0; b < count; b++) {
        reverse_block(block, in + b * Q8_0_BYTES);
        expand_q8_0(out + b * BLOCK, block, 1);
    }
}

static void encode_toy(unsigned char *out, const float *x, int64_t count) {
    unsigned char block[Q8_0_BYTES];
    for (int64_t b = 0; b < count; b++) {
        encode_q8_0(block, x + b * BLOCK, 1);
        reverse_block(out + b * Q8_0_BYTES, block);
    }
}
