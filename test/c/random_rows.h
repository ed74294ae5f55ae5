/* random_rows.h - random numbers and rows of weights, for test_kernels.c and bench.c; include it after janus.c.
   SPDX-License-Identifier: MIT */
#ifndef JANUS_RANDOM_ROWS_H
#define JANUS_RANDOM_ROWS_H

/* A fixed sequence of pseudo-random floats in [-1, 1): xorshift. */
static inline float next_float(void) {
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* One float as an element of a format without blocks, or as 4 bytes in the machine's order. */
static inline void store_float(void *out, int type, float x) {
    if (type == TYPE_F16) write_u16(out, f32_to_f16(x));
    else if (type == TYPE_BF16) write_u16(out, (uint16_t)(float_bits(x) >> 16));
    else memcpy(out, &x, sizeof x);
}

/* A row of weights of magnitude 1 or so. A block is random bytes with one or two scales among them. */
static inline void random_row(void *row, int type, int64_t cols) {
    unsigned char *out = row;
    const int bytes = (int)type_row_bytes(type, find_format(type)->elements);
    const int64_t count = cols / find_format(type)->elements;
    const float largest = type == TYPE_Q8_0 ? 128 : type == TYPE_Q4_0 ? 8 : type == TYPE_Q4_K ? 63 * 15 : 128 * 32;
    const int quantised = type == TYPE_Q8_0 || type == TYPE_Q4_0 || type == TYPE_Q4_K || type == TYPE_Q6_K;
    if (!quantised) {
        const int size = type == TYPE_F16 || type == TYPE_BF16 ? 2 : 4;
        for (int64_t i = 0; i < count * bytes / size; i++) store_float(out + i * size, type, next_float());
        return;
    }
    for (int64_t b = 0; b < count; b++, out += bytes) {
        for (int i = 0; i < bytes; i++) out[i] = (unsigned char)(int)(128 + 128 * next_float());
        write_u16(out + (type == TYPE_Q6_K ? 208 : 0), f32_to_f16(next_float() / largest));
        if (type == TYPE_Q4_K) write_u16(out + 2, f32_to_f16(next_float() / 63));
    }
}

#endif
