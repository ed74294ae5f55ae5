/* An instruction set of vectors of four floats, in plain C: what the list of primitives in janus.c asks for and no
   more. test_kernels.c names it as JANUS_EXTRA_KERNELS, so that it stands beside the machine's own.
   SPDX-License-Identifier: MIT */
#define TARGET
#define vf           Toy4f
#define vb           Toy16b
#define VL           4
#define X_ROWS        3
#define VALUE_VECTORS 1
#define INT8_ROWS     6

typedef struct { float at[VL]; } Toy4f;
typedef struct { int32_t at[VL]; } Toy4i;
typedef struct { int8_t at[16]; } Toy16b;

/* A function of vectors and what it makes of each element i. */
#define EACH(result, name, parameters, element)                                                                        \
    static inline result name parameters {                                                                             \
        result r;                                                                                                      \
        for (int i = 0; i < (int)(sizeof r / sizeof r.at[0]); i++) r.at[i] = element;                                  \
        return r;                                                                                                      \
    }
static inline float toy_float(const void *p, int64_t i) { /* at any address */
    float x;
    memcpy(&x, (const char *)p + i * (int64_t)sizeof x, sizeof x);
    return x;
}
static inline float toy_from_f16(const uint64_t *q, int i) { return f16_to_f32((uint16_t)(q[i / 4] >> i % 4 * 16)); }
static inline uint16_t toy_u16(const void *p, int i) { return read_u16((const char *)p + 2 * i); }

EACH(vf, v_zero, (void), (0))
EACH(vf, v_set1, (float s), s)
EACH(vf, v_load, (const float *p), toy_float(p, i))
EACH(vf, v_add, (vf a, vf b), a.at[i] + b.at[i])
EACH(vf, v_sub, (vf a, vf b), a.at[i] - b.at[i])
EACH(vf, v_mul, (vf a, vf b), a.at[i] * b.at[i])
EACH(vf, v_div, (vf a, vf b), a.at[i] / b.at[i])
EACH(vf, v_maximum, (vf a, vf b), a.at[i] > b.at[i] ? a.at[i] : b.at[i])
EACH(vf, v_minimum, (vf a, vf b), a.at[i] < b.at[i] ? a.at[i] : b.at[i])
EACH(vf, v_fma, (vf a, vf b, vf c), a.at[i] * b.at[i] + c.at[i])
EACH(vf, v_round, (vf a), rintf(a.at[i]))
EACH(vf, v_power, (vf n), bits_float((uint32_t)((int)n.at[i] + 127) << 23))
EACH(vf, v_load_f16, (const void *p), f16_to_f32(toy_u16(p, i)))
EACH(vf, v_load_bf16, (const void *p), bf16_to_f32(toy_u16(p, i)))
EACH(vf, v_from_f16, (const uint64_t *q), toy_from_f16(q, i))
EACH(vf, v_zip_low, (vf a, vf b), i % 2 == 0 ? a.at[i / 2] : b.at[i / 2])
EACH(vf, v_zip_high, (vf a, vf b), i % 2 == 0 ? a.at[2 + i / 2] : b.at[2 + i / 2])
EACH(vf, v_zip_low2, (vf a, vf b), i < 2 ? a.at[i] : b.at[i - 2])
EACH(vf, v_zip_high2, (vf a, vf b), i < 2 ? a.at[2 + i] : b.at[i])
EACH(vf, v_gather, (const float *const *rows, int64_t k), toy_float(rows[0], k + i))
static inline void v_store(float *p, vf a) { memcpy(p, a.at, sizeof a.at); }
static inline void v_store_f16(uint16_t *p, vf a) { store_f16_plain(p, a.at, VL); }
static inline void v_add4(float *p, const float *q, vf a) {
    for (int i = 0; i < VL; i++) p[i] = q[i] + a.at[i];
}

EACH(vb, b_load, (const void *p), ((const int8_t *)p)[i])
EACH(vb, b_bits, (vb b, int n, int mask), (int8_t)((uint8_t)b.at[i] >> n & mask))
EACH(vb, b_join, (vb low, vb high), (int8_t)(low.at[i] | (uint8_t)high.at[i] << 4))
EACH(vb, b_less, (vb b, int n), (int8_t)(b.at[i] - n))
static inline void v_widen(vf *w, vb b) {
    for (int i = 0; i < 16; i++) w[i / VL].at[i % VL] = b.at[i];
}

/* Products of int8, added up by fours. They are copied as floats, whose bits x87 registers do not keep. */
#if __FLT_EVAL_METHOD__ == 0
#define vi Toy4i
#endif
static inline Toy4i i_bits(vf a) {
    Toy4i n;
    memcpy(&n, &a, sizeof n);
    return n;
}
static inline int32_t toy_dot(const void *w, const void *x, int i) {
    const int8_t *a = (const int8_t *)w + 4 * i, *b = (const int8_t *)x + 4 * i;
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}
EACH(vf, i_float, (Toy4i n), (float)n.at[i])
EACH(Toy4i, i_dot, (Toy4i sums, vf w, vf x), sums.at[i] + toy_dot(&w, &x, i))
static inline vf i_bytes(vf a) { return a; }
static inline vf toy_halves(vf a, int shift) {
    uint8_t bytes[sizeof a];
    memcpy(bytes, &a, sizeof a);
    for (int i = 0; i < (int)sizeof a; i++) bytes[i] = (uint8_t)((bytes[i] >> shift & 15) - 8);
    memcpy(&a, bytes, sizeof a);
    return a;
}
static inline vf i_low(vf a) { return toy_halves(a, 0); }
static inline vf i_high(vf a) { return toy_halves(a, 4); }
static inline int32_t KERNEL(round_block)(void *out, const float *x, float inverse) {
    for (int i = 0; i < BLOCK; i++) ((int8_t *)out)[i] = (int8_t)rintf(x[i] * inverse);
    return 0;
}
#undef EACH
