/* SPDX-License-Identifier: MIT
   Holds the kernels of every instruction set this machine can run to plain sums in double precision, on every class
   of shape, and the results of 1, 2 and 3 threads to each other, bit by bit. Errors are relative to the largest
   magnitude that was summed up for an element, so that cancellation does not hide or fake an error. */
#if defined(__linux__) && defined(__x86_64__) && !defined(__TINYC__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "emulate_amx.h"
static int only_amx; /* the argument "amx": the kernels for AMX alone, emulated where the processor lacks it */
#ifndef EMULATED_AMX
#define EMULATED_AMX only_amx
#endif
#endif
#if !defined(_GNU_SOURCE) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdint.h>
#include <string.h>

/* Two more number formats: the floats of a block from the last to the first, in blocks smaller than a vector kernel's
   and in blocks that none of its steps is a multiple of. */
static void expand_backwards(float *out, const unsigned char *in, int64_t n) {
    for (int64_t i = 0; i < n; i++) memcpy(out + n - 1 - i, in + i * (int64_t)sizeof *out, sizeof *out);
}
static void expand_toy8(float *out, const unsigned char *in, int64_t count) {
    for (int64_t b = 0; b < count; b++) expand_backwards(out + 8 * b, in + 8 * 4 * b, 8);
}
static void expand_toy96(float *out, const unsigned char *in, int64_t count) {
    for (int64_t b = 0; b < count; b++) expand_backwards(out + 96 * b, in + 96 * 4 * b, 96);
}
#define JANUS_EXTRA_FORMATS {"toy8", 200, 8, 8 * 4, expand_toy8}, {"toy96", 201, 96, 96 * 4, expand_toy96},
#define JANUS_EXTRA_KERNELS "test/c/toy_kernels.h"
#define JANUS_LIBRARY
#include "../../janus.c"

#include "common.h"
#include "random_rows.h"

static const char *type_name(int type) { return find_format(type)->name; }

static void report(const char *name, double error, double tolerance) {
    check(error <= tolerance, 1, "%-72s error %.2e (at most %.0e)", name, error, tolerance); /* false for NaN */
}

static void *must_allocate(size_t bytes) { return need(malloc(bytes ? bytes : 1)); }

static float *random_floats(int64_t n) {
    float *x = must_allocate((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = next_float();
    return x;
}

/* A random weight in the given type, and the floats it stands for. */
static Weight random_weight(int type, int64_t rows, int64_t cols, float **values) {
    int64_t bytes = type_row_bytes(type, cols);
    char *data = must_allocate((size_t)(rows * bytes));
    Weight w = {type, data, rows, cols};
    *values = must_allocate((size_t)(rows * cols) * sizeof **values);
    for (int64_t r = 0; r < rows; r++) {
        random_row(data + r * bytes, type, cols);
        weight_row(*values + r * cols, &w, r);
    }
    return w;
}

static double worst(double so_far, double got, double want, double magnitude) {
    double error = fabs(got - want) / (magnitude > 0 ? magnitude : 1);
    return error > so_far || error != error ? error : so_far;
}

/* x, by blocks: the largest becomes `levels`, all become integers. */
static void round_blocks(float *x, int levels, int64_t n) {
    for (int64_t i = 0; i < n; i += BLOCK) {
        float scale = 0;
        for (int j = 0; j < BLOCK; j++) scale = fmaxf(scale, fabsf(x[i + j]) / (float)levels);
        for (int j = 0; j < BLOCK; j++) x[i + j] = scale * nearbyintf(x[i + j] * (1 / scale));
    }
}

/* To the nearest, ties to even. */
static void round_to_bf16(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = bf16_to_f32((uint16_t)((float_bits(x[i]) + 0x7fff + (float_bits(x[i]) >> 16 & 1)) >> 16));
}

/* What `fast` stands for, where there are kernels for it: x, in rows of I, to int8 with one scale a block, or x and W
   to bf16. */
static void round_operands(const Context *cx, int type, int64_t I, float *x, int64_t x_size, float *w, int64_t w_size) {
    const Method *m = choose_method(cx, type, I), *fast = cx->kernels->fast;
    if (m < fast || m >= fast + WEIGHT_CLASSES) return;
    if (m->words == 10) {
        round_blocks(x, 127, x_size);
        return;
    }
    round_to_bf16(x, x_size);
    round_to_bf16(w, w_size);
}

static void linear_case(Context *cx, int type, int64_t T, int64_t I, int64_t O, int with_bias, double tolerance) {
    float *values, *x = random_floats(T * I), *bias = random_floats(O), *out = random_floats(T * O);
    Weight w = random_weight(type, O, I, &values);
    double error = 0;
    char name[128];
    linear(cx, out, x, &w, with_bias ? bias : NULL, T);
    if (cx->options.fast) round_operands(cx, type, I, x, T * I, values, O * I);
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < O; o++) {
            double want = with_bias ? bias[o] : 0, magnitude = fabs(want);
            for (int64_t i = 0; i < I; i++) {
                double term = (double)x[t * I + i] * values[o * I + i];
                want += term;
                magnitude += fabs(term);
            }
            error = worst(error, out[t * O + o], want, magnitude);
        }
    snprintf(name, sizeof name, "%s linear %s T=%d I=%d O=%d%s%s", cx->kernels->name, type_name(type), (int)T, (int)I,
             (int)O, with_bias ? " bias" : "", cx->options.fast ? " fast" : "");
    report(name, error, tolerance);
    free(values);
    free(x);
    free(bias);
    free(out);
    free((void *)(uintptr_t)w.data);
}

static void conv_case(Context *cx, int type, ConvShape s, int64_t O) {
    const int64_t K = (int64_t)s.kernel * s.kernel * s.channels, up = s.upsample ? 2 : 1;
    const int64_t size = s.height * s.width * s.channels;
    float *values, *x = random_floats(size), *bias = random_floats(O);
    float *out = random_floats(s.out_height * s.out_width * O);
    Weight w = random_weight(type, O, K, &values);
    double error = 0;
    char name[160];
    conv2d(cx, out, x, &w, bias, &s);
    if (cx->options.fast) round_operands(cx, type, K, x, size, values, O * K);
    for (int64_t oy = 0; oy < s.out_height; oy++)
        for (int64_t ox = 0; ox < s.out_width; ox++)
            for (int64_t o = 0; o < O; o++) {
                double want = bias[o], magnitude = fabs(want);
                for (int64_t ky = 0; ky < s.kernel; ky++)
                    for (int64_t kx = 0; kx < s.kernel; kx++) {
                        int64_t y = oy * s.stride + ky - s.pad, xx = ox * s.stride + kx - s.pad;
                        if (y < 0 || xx < 0 || y >= s.height * up || xx >= s.width * up) continue;
                        for (int64_t i = 0; i < s.channels; i++) {
                            double term = (double)x[((y / up) * s.width + xx / up) * s.channels + i] *
                                          values[o * K + (ky * s.kernel + kx) * s.channels + i];
                            want += term;
                            magnitude += fabs(term);
                        }
                    }
                error = worst(error, out[(oy * s.out_width + ox) * O + o], want, magnitude);
            }
    snprintf(name, sizeof name, "%s conv2d %s %dx%d I=%d O=%d kernel %d stride %d pad %d%s", cx->kernels->name,
             type_name(type), (int)s.height, (int)s.width, (int)s.channels, (int)O, s.kernel, s.stride, s.pad,
             s.upsample ? " upsample" : cx->options.fast ? " fast" : "");
    report(name, error, 1e-6);
    free(values);
    free(x);
    free(bias);
    free(out);
    free((void *)(uintptr_t)w.data);
}

/* Random keys or values of `count` positions, G heads of d, as a cache holds them: (G, capacity, d), or of keys blocks
   of KEY_BLOCK positions; values (count, G, d) are the numbers that it holds. */
static void *random_cache(int type, int64_t count, int64_t G, int64_t d, bool keys, float *values) {
    const int64_t capacity = round_up(count, KEY_BLOCK);
    char *stored = must_allocate((size_t)type_row_bytes(type, G * capacity * d));
    random_row(stored, type, G * capacity * d);
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < G * d; i++) {
            const int64_t head = i / d * capacity * d, in_block = p % KEY_BLOCK;
            const int64_t at = keys ? head + (p - in_block) * d + i % d * KEY_BLOCK + in_block : head + p * d + i % d;
            expand_plain(&values[p * G * d + i], type, stored, at, 1);
        }
    return stored;
}

static void attention_case(Context *cx, int type, int64_t T, int64_t S1, int64_t S2, int64_t H, int64_t KV, int64_t d,
                           int causal) {
    int64_t S = S1 + S2, row = KV * d;
    float *q = random_floats(T * H * d), *out = random_floats(T * H * d), *alone = random_floats(T * H * d);
    float *keys = random_floats(S * row), *values = random_floats(S * row);
    AttentionSequence sequence = {.out = out, .q = q, .span_count = S2 > 0 ? 2 : 1};
    for (int i = 0; i < sequence.span_count; i++) {
        const int64_t count = i == 0 ? S1 : S2, skip = i * S1 * row;
        void *k = random_cache(type, count, KV, d, true, keys + skip);
        void *v = random_cache(type, count, KV, d, false, values + skip);
        sequence.spans[i] = (KeyValue){k, v, true, type, count, d, round_up(count, KEY_BLOCK) * d};
    }
    AttentionShape shape = {T, H, KV, d, H * d, H * d, causal, 1 / (float)sqrt((double)d)};
    double *p = must_allocate((size_t)S * sizeof *p), error = 0;
    char name[160];
    for (int64_t i = 0; i < T * H * d; i++) q[i] *= 8; /* sharper softmax */
    attention(cx, &sequence, 1, &shape);
    for (int64_t t = 0; t < T; t++) { /* each query by itself */
        const int last = sequence.span_count - 1;
        AttentionSequence one = sequence;
        AttentionShape single = shape;
        single.T = 1;
        one.out = alone + t * H * d;
        one.q = q + t * H * d;
        if (causal) one.spans[last].count -= T - 1 - t;
        attention(cx, &one, 1, &single);
    }
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t visible = causal ? S - T + t + 1 : S, offset = h / (H / KV) * d;
            double max = -INFINITY, sum = 0;
            for (int64_t s = 0; s < visible; s++) {
                p[s] = 0;
                for (int64_t i = 0; i < d; i++)
                    p[s] += (double)q[(t * H + h) * d + i] * keys[s * row + offset + i] * shape.scale;
                max = p[s] > max ? p[s] : max;
            }
            for (int64_t s = 0; s < visible; s++) sum += p[s] = exp(p[s] - max);
            for (int64_t i = 0; i < d; i++) {
                double want = 0, magnitude = 0;
                for (int64_t s = 0; s < visible; s++) {
                    want += p[s] / sum * values[s * row + offset + i];
                    magnitude += fabs(p[s] / sum * values[s * row + offset + i]);
                }
                error = worst(error, out[(t * H + h) * d + i], want, magnitude);
            }
        }
    snprintf(name, sizeof name, "%s attention %s T=%d S=%d+%d H=%d KV=%d d=%d%s%s", cx->kernels->name, type_name(type),
             (int)T, (int)S1, (int)S2, (int)H, (int)KV, (int)d, causal ? " causal" : "",
             cx->options.fast ? " fast" : "");
    /* Scores of some 40 sums of 512 terms: their rounding passes through exp. */
    report(name, error, 1e-5);
    const size_t bytes = (size_t)(T * H * d) * sizeof *out;
    report("its queries one by one: numbers that differ", memcmp(out, alone, bytes) != 0, 0);
    for (int i = 0; i < sequence.span_count; i++) {
        free((void *)(uintptr_t)sequence.spans[i].k);
        free((void *)(uintptr_t)sequence.spans[i].v);
    }
    free(q);
    free(out);
    free(alone);
    free(keys);
    free(values);
    free(p);
}

static void norm_cases(Context *cx, int64_t T, int64_t D) {
    float *x = random_floats(T * D), *weight = random_floats(D), *bias = random_floats(D), *out = random_floats(T * D);
    char name[96];
    for (int64_t i = 0; i < T * D; i++) x[i] += 3;
    for (int centred = 0; centred < 2; centred++) {
        double error = 0;
        if (centred)
            layer_norm(cx, out, x, &(Norm){weight, bias}, T, D, 1e-6f);
        else
            rms_norm(cx, out, x, weight, T, D, 1e-6f);
        for (int64_t t = 0; t < T; t++) {
            double mean = 0, square = 0;
            for (int64_t i = 0; i < D && centred; i++) mean += x[t * D + i] / (double)D;
            for (int64_t i = 0; i < D; i++) square += (x[t * D + i] - mean) * (x[t * D + i] - mean) / (double)D;
            for (int64_t i = 0; i < D; i++) {
                double factor = 1 / sqrt(square + 1e-6), want = (x[t * D + i] - mean) * factor * weight[i];
                want += centred ? bias[i] : 0;
                error = worst(error, out[t * D + i], want, 4 * factor); /* x is up to 4 before the mean is taken off */
            }
        }
        snprintf(name, sizeof name, "%s %s T=%d D=%d", cx->kernels->name, centred ? "layer_norm" : "rms_norm", (int)T,
                 (int)D);
        report(name, error, 1e-6);
    }
    free(x);
    free(weight);
    free(bias);
    free(out);
}

static void group_norm_case(Context *cx, int64_t rows, int64_t channels, int groups, int swish) {
    float *x = random_floats(rows * channels), *weight = random_floats(channels), *bias = random_floats(channels);
    float *out = random_floats(rows * channels);
    int64_t width = channels / groups;
    double error = 0;
    char name[96];
    for (int64_t i = 0; i < rows * channels; i++) x[i] = 2 * x[i] + 0.1f * (float)(i % channels) + 1;
    group_norm(cx, out, x, &(Norm){weight, bias}, rows, channels, groups, 1e-6f, swish);
    for (int g = 0; g < groups; g++) {
        double mean = 0, square = 0, n = (double)(rows * width);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = g * width; c < (g + 1) * width; c++) mean += x[r * channels + c] / n;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = g * width; c < (g + 1) * width; c++)
                square += (x[r * channels + c] - mean) * (x[r * channels + c] - mean) / n;
        double factor = 1 / sqrt(square + 1e-6);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = g * width; c < (g + 1) * width; c++) {
                double want = (x[r * channels + c] - mean) * factor * weight[c] + bias[c];
                want = swish ? want / (1 + exp(-want)) : want;
                error = worst(error, out[r * channels + c], want, fabs(x[r * channels + c] * factor) + 1);
            }
    }
    snprintf(name, sizeof name, "%s group_norm rows=%d channels=%d groups=%d%s", cx->kernels->name, (int)rows,
             (int)channels, groups, swish ? " swish" : "");
    report(name, error, 1e-6);
    free(x);
    free(weight);
    free(bias);
    free(out);
}

/* gelu and silu on a fine grid and on the special points; softmax, add, store_f16. */
static void element_cases(Context *cx) {
    enum { COUNT = 100003 };
    float *x = must_allocate(COUNT * sizeof *x), *y = must_allocate(COUNT * sizeof *y), *up = random_floats(COUNT);
    uint16_t *halves = must_allocate(COUNT * sizeof *halves);
    double gelu_error = 0, mul_error = 0, half_error = 0;
    char name[96];
    for (int i = 0; i < COUNT; i++) x[i] = (float)(i - COUNT / 2) * (i % 3 ? 2.0e-4f : 2.5e-3f);
    memcpy(y, x, COUNT * sizeof *x);
    gelu(cx, y, COUNT);
    for (int i = 0; i < COUNT; i++) gelu_error = worst(gelu_error, y[i], 0.5 * x[i] * erfc(-x[i] / sqrt(2)), 1);
    memcpy(y, x, COUNT * sizeof *x);
    silu_mul(cx, y, up, COUNT);
    for (int i = 0; i < COUNT; i++)
        mul_error = worst(mul_error, y[i], x[i] / (1 + exp(-(double)x[i])) * up[i], fabs(x[i]));
    cx->kernels->store_f16(halves, x, COUNT);
    for (int i = 0; i < COUNT; i++) half_error += read_u16(&halves[i]) != f32_to_f16(x[i]);
    snprintf(name, sizeof name, "%s gelu, absolute", cx->kernels->name);
    report(name, gelu_error, 8e-6); /* |x| reaches 125, where one ulp is 7.6e-6 */
    snprintf(name, sizeof name, "%s silu_mul", cx->kernels->name);
    report(name, mul_error, 4e-7);
    snprintf(name, sizeof name, "%s store_f16, numbers that differ from f32_to_f16", cx->kernels->name);
    report(name, half_error, 0);
    free(x);
    free(y);
    free(up);
    free(halves);
}

/* Every 16-bit number through both conversions and back; the roundings at the edges of f16. */
static void format_cases(void) {
    double f16_error = 0, bf16_error = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h), b = bf16_to_f32((uint16_t)h);
        f16_error += f != f ? f32_to_f16(f) == f32_to_f16(f) && !(f32_to_f16(f) & 0x3ff) : f32_to_f16(f) != h;
        bf16_error += float_bits(b) != h << 16;
        if ((h & 0x7fff) < 0x7bff) { /* half way to the next number: ties go to the even one, a hair more goes up */
            float next = f16_to_f32((uint16_t)(h + 1)), middle = (f + next) / 2;
            uint32_t even = h & 1 ? h + 1 : h;
            f16_error += f32_to_f16(middle) != even;
            f16_error += f32_to_f16(bits_float(float_bits(middle) + 1)) != h + 1;
            f16_error += f32_to_f16(bits_float(float_bits(middle) - 1)) != h;
        }
    }
    f16_error += f32_to_f16(65519.996f) != 0x7bff || f32_to_f16(65520.0f) != 0x7c00 || f32_to_f16(-1e30f) != 0xfc00;
    f16_error += f32_to_f16(2.9802322e-8f) != 0 || f32_to_f16(2.9802326e-8f) != 1 || f32_to_f16(-1e-30f) != 0x8000;
    report("f16 <-> f32, numbers that differ", f16_error, 0);
    report("bf16 -> f32, numbers that differ", bf16_error, 0);
}

/* The same work on 1, 2 and 3 threads: how many bytes differ. */
static void thread_case(const char *isa) {
    enum { T = 70, I = 200, O = 333, SIDE = 30, CHANNELS = 64 };
    float *values, *x = random_floats(SIDE * SIDE * I), *first = NULL;
    Weight w = random_weight(TYPE_BF16, O, I, &values), few = w, c = w;
    int64_t n = T * O + 3 * O + SIDE * SIDE * 20 + SIDE * SIDE * CHANNELS + 2 * T * CHANNELS;
    ConvShape shape = {SIDE, SIDE, 22, 3, 1, 1, SIDE, SIDE, 0};
    AttentionShape heads = {T, 2, 2, 32, 64, 64, 1, 0.2f};
    double differ = 0;
    char name[96];
    c.rows = 20;
    c.cols = 9 * 22;
    for (int threads = 1; threads <= 3; threads++) {
        Context cx;
        float *out = random_floats(n), *p = out;
        if (context_init(&cx, threads, isa) != 0) continue;
        linear(&cx, p, x, &w, NULL, T);
        linear(&cx, p += T * O, x, &few, NULL, 3);
        conv2d(&cx, p += 3 * O, x, &c, NULL, &shape);
        group_norm(&cx, p += SIDE * SIDE * 20, x, &(Norm){x, x}, SIDE * SIDE, CHANNELS, 32, 1e-6f, 1);
        p += SIDE * SIDE * CHANNELS;
        AttentionSequence two[2] = {{p, x, {{x, x + 5, false, TYPE_F32, 200, 64, 32}}, 1},
                                    {p + T * CHANNELS, x + 7, {{x, x + 9, false, TYPE_F32, 80, 64, 32}}, 1}};
        attention(&cx, two, 2, &heads);
        if (threads == 1)
            first = out;
        else {
            for (int64_t i = 0; i < n; i++) differ += memcmp(&first[i], &out[i], sizeof *out) != 0;
            free(out);
        }
        context_free(&cx);
    }
    snprintf(name, sizeof name, "%s numbers that differ with 1, 2 and 3 threads", isa);
    report(name, differ, 0);
    free(first);
    free(values);
    free(x);
    free((void *)(uintptr_t)w.data);
}

/* The bits of a row's results do not depend on the rows beside it: two weights at once for T rows give what each weight
   alone gives for the first 1, 2, ... T rows, and for the rows in calls of any sizes. */
static void order_case(Context *cx, int type, int64_t T, int64_t I) {
    enum { O = 37 };
    float *values, *more, *x = random_floats(T * I), *bias = random_floats(O);
    float *out = random_floats(2 * T * O), *alone = random_floats(2 * T * O);
    const Weight w = random_weight(type, O, I, &values), v = random_weight(type, O, I, &more);
    const Output outputs[] = {{out, &w, bias}, {out + T * O, &v, NULL}};
    int64_t differ = 0;
    char name[112];
    linears(cx, outputs, 2, x, T);
    for (int64_t rows = 1; rows <= T; rows++) {
        linear(cx, alone, x, &w, bias, rows);
        differ += memcmp(out, alone, (size_t)(rows * O) * sizeof *out) != 0;
    }
    for (int64_t t = 0, rows; t < T; t += rows) {
        rows = min_i64(T - t, 1 + (int64_t)(fabsf(next_float()) * 19));
        linear(cx, alone + t * O, x + t * I, &w, bias, rows);
        linear(cx, alone + (T + t) * O, x + t * I, &v, NULL, rows);
    }
    differ += memcmp(out, alone, (size_t)(2 * T * O) * sizeof *out) != 0;
    snprintf(name, sizeof name, "%s linears %s T=%d I=%d in other calls: calls that differ%s", cx->kernels->name,
             type_name(type), (int)T, (int)I, cx->options.fast ? ", fast" : "");
    report(name, (double)differ, 0);
    free(values);
    free(more);
    free(x);
    free(bias);
    free(out);
    free(alone);
    free((void *)(uintptr_t)w.data);
    free((void *)(uintptr_t)v.data);
}

/* Every format of the table; the lengths of rows are rounded up to complete blocks. */
static void linear_cases(Context *cx) {
    for (int i = 0; i < NUMBER_FORMAT_COUNT; i++) {
        const int type = NUMBER_FORMATS[i].type;
        const int64_t block = NUMBER_FORMATS[i].elements;
        for (int64_t T = 1; T <= 70; T += T < 14 ? 1 : 7)
            linear_case(cx, type, T, round_up(67 + T, block), 35 + T % 5, T % 2, 1e-6);
        for (int64_t T = 9; T <= 72; T += 9)
            linear_case(cx, type, T, round_up(67 + 9 * T, block > BLOCK ? block : BLOCK), 29 + T, T % 2, 1e-6);
        linear_case(cx, type, 2, round_up(2048, block), 64, 0, 1e-6);
        linear_case(cx, type, 70, round_up(1056, block), 70, 1, 1e-6);
        linear_case(cx, type, 33, round_up(96, block), 18, 0, 1e-6);
        linear_case(cx, type, 301, round_up(603, block), 131, 1, 1e-6);
        linear_case(cx, type, 1, block, 1, 1, 1e-6);
        linear_case(cx, type, 65, round_up(8, block), 3, 1, 1e-6);
        order_case(cx, type, 70, round_up(288, block));
        order_case(cx, type, 20, round_up(1605, block));
    }
}

/* Parts of rows, as tiles and embeddings take them, are what the row is there. */
static void expand_cases(const Kernels *isa) {
    enum { N = 1536 };
    float part[N];
    char name[96];
    for (int i = 0; i < NUMBER_FORMAT_COUNT; i++) {
        const NumberFormat *format = &NUMBER_FORMATS[i];
        float *values;
        Weight w = random_weight(format->type, 1, N, &values);
        double differ = 0;
        for (int64_t begin = 0; begin < N; begin += 1 + begin / 3)
            for (int64_t n = 1; begin + n <= N; n += 1 + n / 2) {
                expand_plain(part, format->type, w.data, begin, n);
                differ += memcmp(part, values + begin, (size_t)n * sizeof *part) != 0;
            }
        for (int64_t begin = 0; begin < N; begin += BLOCK) {
            isa->expand(part, format->type, w.data, begin, BLOCK);
            differ += memcmp(part, values + begin, BLOCK * sizeof *part) != 0;
        }
        isa->expand(part, format->type, w.data, 0, N);
        differ += memcmp(part, values, sizeof part) != 0;
        isa->expand(part, format->type, w.data, 768, 512);
        differ += memcmp(part, values + 768, 512 * sizeof *part) != 0;
        snprintf(name, sizeof name, "%s parts of a row of %s that differ", isa->name, format->name);
        report(name, differ, 0);
        free(values);
        free((void *)(uintptr_t)w.data);
    }
}

/* -1 everywhere, so that a block's integers are the largest: their products must not overflow. Weights in Q8_0 are
   -128, which other programs may write, with a scale of 1/128. */
static void largest_products_case(Context *cx, int type, int64_t T) {
    enum { I = 256, O = 24 };
    float *x = random_floats(T * I), *out = random_floats(T * O), row[I];
    const int64_t bytes = type_row_bytes(type, I);
    char *data = must_allocate((size_t)(O * bytes)), name[80];
    const Weight w = {type, data, O, I};
    double error = 0;
    for (int64_t j = 0; j < T * I; j++) x[j] = -1;
    memset(data, type == TYPE_Q8_0 ? -128 : 0, (size_t)(O * bytes)); /* Q4_0: 0 is -8 */
    for (int64_t j = 0; j < O * I && type == TYPE_BF16; j++) store_float(data + 2 * j, type, -1);
    for (int64_t block = 0; block < O * I / BLOCK && type != TYPE_BF16; block++)
        store_float(data + block * (bytes / (I / BLOCK)), TYPE_F16, type == TYPE_Q8_0 ? 1.0f / 128 : 1.0f / 8);
    weight_row(row, &w, 0);
    linear(cx, out, x, &w, NULL, T);
    for (int64_t j = 0; j < T * O; j++) error = worst(error, out[j], -I * (double)row[0], I);
    snprintf(name, sizeof name, "%s linear %s of equal numbers, fast, T=%d", cx->kernels->name, type_name(type),
             (int)T);
    report(name, error, 1e-6);
    free(x);
    free(out);
    free(data);
}

static void conv_cases(Context *cx) {
    const ConvShape shapes[] = {
        {5, 7, 3, 3, 1, 1, 5, 7, 0},    {9, 9, 16, 3, 1, 1, 9, 9, 0},     {12, 10, 33, 3, 1, 1, 12, 10, 0},
        {8, 8, 32, 3, 2, 0, 4, 4, 0},   {9, 11, 20, 3, 2, 0, 4, 5, 0},    {6, 5, 32, 3, 1, 1, 12, 10, 1},
        {7, 7, 19, 3, 1, 1, 14, 14, 1}, {6, 6, 40, 1, 1, 0, 6, 6, 0},     {32, 32, 3, 16, 16, 0, 2, 2, 0},
        {1, 1, 8, 3, 1, 1, 1, 1, 0},    {24, 24, 64, 3, 1, 1, 24, 24, 0}, {40, 26, 130, 3, 1, 1, 40, 26, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        conv_case(cx, TYPE_F32, shapes[i], 3);
        conv_case(cx, TYPE_F16, shapes[i], 32);
        conv_case(cx, TYPE_BF16, shapes[i], 45);
    }
}

static void attention_cases(Context *cx) {
    for (int half = 0; half < 2; half++) {
        int type = half ? TYPE_F16 : TYPE_F32;
        attention_case(cx, type, 1, 1, 0, 2, 1, 16, 1);
        attention_case(cx, type, 1, 100, 37, 4, 2, 128, 1);
        attention_case(cx, type, 2, 65, 0, 4, 4, 20, 1);
        attention_case(cx, type, 5, 64, 3, 4, 4, 33, 1);
        attention_case(cx, type, 70, 70, 0, 2, 2, 64, 1);
        attention_case(cx, type, 130, 30, 130, 2, 1, 64, 1);
        attention_case(cx, type, 201, 201, 0, 3, 3, 64, 0);
        attention_case(cx, type, 9, 144, 0, 1, 1, 512, 0);
    }
}

/* What the processor was asked, and what gcc's library knows of it. (Some libraries of clang know nothing: zig cc.) */
static void dispatch_case(void) {
#if defined(HAVE_X86_KERNELS) && !defined(__clang__)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    int bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"), amx = 0;
#ifdef HAVE_AMX_KERNELS
    char flag[32] = "";
    FILE *flags = fopen("/proc/cpuinfo", "r");
    while (flags != NULL && fscanf(flags, "%31s", flag) == 1) amx |= strcmp(flag, "amx_bf16") == 0;
    if (flags != NULL) fclose(flags);
    amx = amx && bf16 && syscall(SYS_arch_prctl, 0x1023L, 18L) == 0; /* may a process have the tiles? */
#endif
    report("kernels that this processor runs", fabs((double)(processor_level() - (avx2 + avx512 + bf16 + amx))), 0);
#endif
}

#if defined(EMULATED_AMX) && defined(HAVE_AMX_KERNELS)
/* A thread's own set-up of the tiles is there again after a product. */
static void set_up_case(void) {
    enum { T = 3, O = 40, I = 64 };
    Context cx;
    TileSetup mine = {{1}}, after;
    float *values, *x = random_floats(T * I), *out = random_floats(T * O);
    const Weight w = random_weight(TYPE_BF16, O, I, &values);
    if (context_init(&cx, 1, "amx") != 0) exit(1);
    mine.bytes[16] = 8, mine.bytes[48] = 3;
    __asm__ volatile("ldtilecfg %0" ::"m"(mine));
    linear(&cx, out, x, &w, NULL, T);
    __asm__ volatile("sttilecfg %0" : "=m"(after));
    report("amx: the thread's set-up comes back", memcmp(&mine, &after, sizeof mine) != 0, 0);
    context_free(&cx);
    free(values);
    free(x);
    free(out);
    free((void *)(uintptr_t)w.data);
}
#endif

/* ---- Drawing with drafts ---- */

static int64_t random_below(int64_t n) { return (int64_t)((double)n * (next_float() + 1) / 2) % n; }

/* The scores of all places of a drawing: (places, 2, K). */
typedef struct {
    float *logits;
    int64_t K, count; /* rows of K so far */
} Scores;

static void keep_scores(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                        int dims) {
    Scores *scores = user;
    (void)type, (void)shape, (void)dims;
    if (strcmp(name, "generation.logits.cond") != 0 && strcmp(name, "generation.logits.uncond") != 0) return;
    memcpy(scores->logits + scores->K * scores->count++, data, (size_t)scores->K * sizeof(float));
}

/* Reads a known drawing again in windows of 1 to 8 places, most of which have a wrong draft somewhere, and returns the
   number of scores whose bits are not those of one place at a time. */
static int64_t differing_scores(Context *cx, const JanusModel *m, const JanusGenerateOptions *options, int32_t *ids,
                                const Scores *scores) {
    enum { MOST = 8 };
    const int64_t P = image_tokens(&m->config), D = m->config.hidden, K = m->config.codebook;
    int32_t *again = must_allocate((size_t)P * sizeof *again), read[MOST];
    float *x = must_allocate((size_t)(2 * MOST * D) * sizeof *x);
    float *logits = must_allocate((size_t)(2 * MOST * K) * sizeof *logits);
    Task task = {.drawing = *options, .ids = again};
    Sequence *rows[] = {&task.pictures[0], &task.pictures[1]};
    int64_t differ = 0, right;
    start_drawing(cx, m, &task, "a red circle");
    for (int64_t place = 1; place < P; place += right) {
        const int64_t T = min_i64(1 + random_below(MOST), P - place);
        right = 1 + random_below(T); /* places whose ids before are right */
        for (int64_t t = 0; t < T; t++) read[t] = (ids[place - 1 + t] + (t >= right)) % m->config.codebook;
        embed_image_ids(cx, m, read, T, x);
        memcpy(x + T * D, x, (size_t)(T * D) * sizeof *x);
        transformer_forward(cx, m, x, T, rows, 2, false);
        image_head(cx, m, logits, x, 2 * T);
        for (int64_t r = 0; r < 2; r++) {
            for (int64_t t = 0; t < right; t++)
                differ += memcmp(logits + (r * T + t) * K, scores->logits + (2 * (place + t) + r) * K,
                                 (size_t)K * sizeof *x) != 0;
            rows[r]->own.length += right - T;
        }
    }
    task_free(&task);
    free(again);
    free(x);
    free(logits);
    return differ;
}

/* Drawings of grid x grid places by random weights: scores in windows, and ids with drafts. */
static void drafts_case(const char *file, const char *isa, int fast, int grid) {
    static const int drafts[] = {1, 3, 7, 15, 63};
    JanusModel *model;
    JanusSession *session;
    JanusSessionOptions options = janus_session_defaults();
    if (janus_load(file, &model, NULL) != JANUS_OK) {
        check(0, 1, "%s can be read", file);
        return;
    }
    model->config.grid = grid;
    model->config.context = 1024;
    const int64_t P = image_tokens(&model->config), K = model->config.codebook;
    int32_t *ids = must_allocate((size_t)(4 * P) * sizeof *ids), *same = must_allocate((size_t)(4 * P) * sizeof *ids);
    Scores scores = {must_allocate((size_t)(2 * P * K) * sizeof(float)), K, 0};
    JanusGenerateOptions drawing = janus_generate_defaults();
    options.isa = isa;
    options.fast = fast;
    options.threads = 1;
    options.tap = keep_scores;
    options.user = &scores;
    if (janus_session_new(model, &options, &session, NULL) != JANUS_OK) abort();
    session->context.pairs_pay = true;
    janus_generate_ids(session, "a red circle", &drawing, ids, NULL);
    session->context.options.tap = NULL;
    check(drafts_that_pay(&session->context, model, &drawing) == 0, 1, "%s: none pay in the cache", isa);
    report("scores of several places in a pass that differ", scores.count != 2 * P ||
           differing_scores(&session->context, model, &drawing, ids, &scores) != 0, 0);
    for (drawing.count = 1; drawing.count <= 4; drawing.count += 3) {
        drawing.drafts = 0;
        janus_generate_ids(session, "a red circle", &drawing, ids, NULL);
        for (size_t i = 0; i < sizeof drafts / sizeof *drafts; i += (size_t)drawing.count) { /* of four, 1 and 63 */
            drawing.drafts = drafts[i];
            janus_generate_ids(session, "a red circle", &drawing, same, NULL);
            check(memcmp(ids, same, (size_t)(drawing.count * P) * sizeof *ids) == 0, 1,
                  "%s%s, %s: %d pictures with %d drafts have the same ids", isa, fast ? " fast" : "", file,
                  drawing.count, drafts[i]);
        }
    }
    free(ids);
    free(same);
    free(scores.logits);
    janus_session_free(session);
    janus_free(model);
}

/* All cases of one table of kernels. */
static int kernel_cases(const char *name) {
    Context cx;
    if (context_init(&cx, 2, name) != 0) return 1;
    cx.pairs_pay = true; /* also where the processor has faster ones */
    expand_cases(cx.kernels);
    linear_cases(&cx);
    cx.options.fast = 1;
    linear_cases(&cx);
    for (int64_t T = 2; T <= 32; T += 30) {
        largest_products_case(&cx, TYPE_BF16, T);
        largest_products_case(&cx, TYPE_Q8_0, T);
        largest_products_case(&cx, TYPE_Q4_0, T);
    }
    conv_cases(&cx);
    attention_cases(&cx);
    cx.options.fast = 0;
    conv_cases(&cx);
    attention_cases(&cx);
    norm_cases(&cx, 3, 64);
    norm_cases(&cx, 70, 1024);
    norm_cases(&cx, 2, 77);
    group_norm_case(&cx, 9, 32, 32, 0);
    group_norm_case(&cx, 577, 64, 32, 1);
    group_norm_case(&cx, 130, 96, 32, 1);
    element_cases(&cx);
    report("no allocation failed", has_failed(&cx), 0);
    context_free(&cx);
    thread_case(name);
    const bool first = strcmp(name, kernels_at(0)->name) == 0 && strcmp(name, "amx") != 0; /* the emulator is slow */
    for (int fast = 0; fast < 2; fast++) {
        drafts_case("test/golden/tied.gguf", name, fast, first && !fast ? 24 : 8);
        drafts_case("test/golden/quantised.gguf", name, fast, 3);
    }
    return 0;
}

/* The kernels for AMX; "left out" where the system refuses the tiles of a processor that has them, and where the
   processor lacks the AVX-512 beside them, which nothing emulates. */
static int amx_cases(void) {
#if defined(EMULATED_AMX) && defined(HAVE_AMX_KERNELS)
    only_amx = 1;
    format_cases();
    if (amx_mode == AMX_REFUSED) {
        printf("AMX: left out, since this system refuses the processor's tiles to programs\n");
        return 0;
    }
    if (strcmp(kernels_at(0)->name, "amx") != 0) {
        printf("AMX: left out, since this processor has no AVX-512 with bf16\n");
        return 0;
    }
    set_up_case();
    if (kernel_cases("amx") != 0) return 1;
    if (amx_mode == AMX_NATIVE) printf("AMX: native\n");
    else check(amx.done > 0, 1, "AMX: emulated, %ld instructions", amx.done);
#else
    check(strcmp(kernels_at(0)->name, "amx") != 0, 1, "AMX: this build has no kernels for it");
#endif
    return 0;
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "amx") == 0) return amx_cases() != 0 ? 1 : closing_line();
#ifdef EMULATED_AMX
    if (!EMULATED_AMX) dispatch_case();
#else
    dispatch_case();
#endif
    format_cases();
    for (int i = 0; kernels_at(i) != NULL; i++)
        if (kernel_cases(kernels_at(i)->name) != 0) return 1;
    return closing_line();
}
