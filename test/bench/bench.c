/* SPDX-License-Identifier: MIT
   How close products and stages come to the limits of this machine. First the limits are measured: read bandwidth, and
   multiply-adds a second that never leave the registers. Then come the stages of model files or, without one, products
   of 1 to 64 rows for every type of weights, and of bf16 weights for 1, 2, 4, ... threads. Each time stands beside the
   bytes that must be read and the operations that must be done, counted from the sizes alone, so that a reader can redo
   the arithmetic:

       limit = max(bytes / read bandwidth, operations / peak),   % = limit / time
       (more than 100 % where small weights stay in the caches)

   A multiply-add is two operations. Bytes are those of weights and of keys and values, each read once; activations,
   norms, softmax and other element-wise work count nothing: they are what the percentage may lack.

       bench [--threads K] [--isa NAME] [--repeats N] [--kv f16|f32] [--pictures N] [--short] [--cpu] [MODEL ...] */
#define JANUS_LIBRARY
#include "../../janus.c"
#include "../c/random_rows.h"

enum { MAX_REPEATS = 64, PROMPT_TOKENS = 640 };

typedef struct {
    int threads, repeats, pictures, brief, processor_time;
    JanusCacheType cache;
    const char *isa;
} Options;

typedef struct { /* of all threads together: bytes and operations a second; 0: there is no such kernel */
    double read, f32, bf16, integers;
} Limits;

typedef struct { /* what one stage must do and read: of weights, keys and values */
    double operations, bytes;
} Cost;

typedef struct {
    double times[MAX_REPEATS];
    int count;
} Times;

typedef struct {
    Options options;
    Limits limits;
} Bench;

static void stop(const char *what, const char *why) {
    fprintf(stderr, "bench: %s: %s\n", what, why);
    exit(1);
}

static void *must(void *memory) {
    if (memory == NULL) stop("memory", "there is not enough");
    return memory;
}

static void check(JanusStatus status, const JanusError *error) {
    if (status != JANUS_OK) stop("failed", error->message);
}

static void fill_floats(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = next_float();
}

/* ---- Time ---- */

/* Seconds; with --cpu those that the processor spent on this program (for one thread on a machine that is shared). */
static double seconds(const Bench *bench) {
    if (bench->options.processor_time) return (double)clock() / CLOCKS_PER_SEC;
#ifdef _WIN32
    LARGE_INTEGER ticks, frequency;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&frequency);
    return (double)ticks.QuadPart / (double)frequency.QuadPart;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
#endif
}

static void keep_time(Times *times, double time) {
    if (times->count < MAX_REPEATS) times->times[times->count++] = time;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the times; returns their median. */
static double median(Times *times) {
    const int n = times->count;
    qsort(times->times, (size_t)n, sizeof *times->times, by_value);
    return (times->times[(n - 1) / 2] + times->times[n / 2]) / 2;
}

/* ---- The machine's limits ----

   A probe runs `n` rounds of twelve independent chains of vectors, enough to hide the latency of a multiply-add, and
   returns a value that depends on all of them. */

enum { CHAINS = 12 };

#define PEAK_PROBE(name, attribute, vector, start, step)                                                               \
    attribute static double name(int64_t n) {                                                                          \
        vector s[CHAINS], x = start(16), y = start(0); /* floats: times 1, so that no chain becomes subnormal */       \
        unsigned char bytes[sizeof s];                                                                                 \
        for (int j = 0; j < CHAINS; j++) s[j] = start(j);                                                              \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            UNROLL for (int j = 0; j < CHAINS; j++) s[j] = step(s[j], x, y);                                           \
        }                                                                                                              \
        memcpy(bytes, s, sizeof s);                                                                                    \
        return bytes[n % (int64_t)sizeof bytes];                                                                       \
    }
#if !defined(UNROLL)
#define UNROLL
#endif

/* Arrays of floats, as the plain kernels': as fast as the compiler makes them. */
enum { PLAIN_LANES = 16 };
static double peak_plain(int64_t n) {
    float s[CHAINS / 3][PLAIN_LANES], x = 0.999f, y = 1e-3f, total = 0;
    for (int j = 0; j < CHAINS / 3; j++)
        for (int i = 0; i < PLAIN_LANES; i++) s[j][i] = (float)(i + j);
    for (int64_t k = 0; k < n; k++)
        for (int j = 0; j < CHAINS / 3; j++)
            for (int i = 0; i < PLAIN_LANES; i++) s[j][i] = s[j][i] * x + y;
    for (int i = 0; i < CHAINS / 3 * PLAIN_LANES; i++) total += s[i / PLAIN_LANES][i % PLAIN_LANES];
    return total;
}

/* n bytes, a multiple of 64: as fast as memory is, also without vectors. */
static double read_plain(const char *p, int64_t n) {
    uint64_t s[8] = {0};
    const uint64_t *words = (const uint64_t *)(const void *)p;
    for (int64_t i = 0; i < n / 8; i += 8)
        for (int j = 0; j < 8; j++) s[j] += words[i + j];
    return (double)(s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7]);
}

#ifdef HAVE_X86_KERNELS
#define FOR_AVX2           __attribute__((target("avx2,fma")))
#define FOR_AVX512         __attribute__((target("avx512f")))
#define FOR_AVX512BF16     __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#ifdef HAVE_AMX_KERNELS
/* As the kernel's four sums, from registers alone. */
static double peak_amx(int64_t n) {
    float sum[AMX_TILE];
    const TileSetup before = set_up_amx();
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    AMX_ZERO(4);
    AMX_ZERO(5);
    AMX_ZERO(6);
    AMX_ZERO(7);
    for (int64_t i = 0; i < n; i++) {
        AMX_MULTIPLY(0, 4, 6);
        AMX_MULTIPLY(1, 4, 7);
        AMX_MULTIPLY(2, 5, 6);
        AMX_MULTIPLY(3, 5, 7);
    }
    AMX_STORE(0, sum);
    restore_amx(&before);
    return sum[n % AMX_TILE];
}
#endif
#define START_256(v)       _mm256_set1_ps((float)(v) / 16)
#define START_512(v)       _mm512_set1_ps((float)(v) / 16)
#define START_INTEGER(v)   _mm512_set1_epi32(v)
#define FMA_256(s, x, y)   _mm256_fmadd_ps(s, x, y)
#define FMA_512(s, x, y)   _mm512_fmadd_ps(s, x, y)
#define PAIRS_512(s, x, y) _mm512_dpbf16_ps(s, (__m512bh)(x), (__m512bh)(y))
#define INT8_512(s, x, y)  _mm512_dpbusd_epi32(s, x, y)
PEAK_PROBE(peak_avx2, FOR_AVX2, __m256, START_256, FMA_256)
PEAK_PROBE(peak_avx512, FOR_AVX512, __m512, START_512, FMA_512)
PEAK_PROBE(peak_pairs, FOR_AVX512BF16, __m512, START_512, PAIRS_512)
PEAK_PROBE(peak_int8, FOR_AVX512BF16, __m512i, START_INTEGER, INT8_512)
#elif defined(HAVE_NEON_KERNELS)
#define START_NEON(v)       vdupq_n_f32((float)(v) / 16)
#define FMA_NEON(s, x, y)   vfmaq_f32(y, s, x)
PEAK_PROBE(peak_neon, , float32x4_t, START_NEON, FMA_NEON)
#ifdef __ARM_FEATURE_DOTPROD
#define START_DOTPROD(v)    vdupq_n_s32(v)
#define INT8_NEON(s, x, y)  vdotq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
PEAK_PROBE(peak_int8, , int32x4_t, START_DOTPROD, INT8_NEON)
#endif
#endif

typedef struct {
    double (*peak)(int64_t rounds); /* NULL: reading */
    double round_operations;
    const char *buffer;
    double *results; /* (threads), so that nothing is left out as unused */
} Probe;

static void probe_job(void *data, Chunk chunk) {
    const Probe *probe = data;
    double result = 0;
    if (probe->peak == NULL) result = read_plain(probe->buffer + chunk.begin, chunk.end - chunk.begin);
    for (int64_t i = chunk.begin; i < chunk.end && probe->peak != NULL; i++) result += probe->peak(1000);
    probe->results[chunk.thread] += result;
}

/* The best rate of several runs: bytes or operations a second; 0 without a probe. */
static double measure_rate(const Bench *bench, int threads, Probe probe, int64_t buffer_bytes) {
    if (probe.peak == NULL && probe.buffer == NULL) return 0;
    Pool *pool = must(pool_create(threads));
    const int64_t count = probe.peak == NULL ? buffer_bytes : (int64_t)threads * 512;
    const double work = (double)count * (probe.peak == NULL ? 1 : 1000 * probe.round_operations);
    double best = 0;
    probe.results = must(calloc((size_t)threads, sizeof *probe.results));
    for (int i = 0; i < (bench->options.brief ? 4 : 12); i++) {
        const double start = seconds(bench);
        pool_run(pool, probe_job, &probe, count, probe.peak == NULL ? 1 << 21 : 16);
        const double rate = work / (seconds(bench) - start);
        if (rate > best) best = rate;
    }
    free(probe.results);
    pool_free(pool);
    return best;
}

static Limits measure_limits(const Bench *bench, const Kernels *isa, int threads) {
    const int64_t bytes = (int64_t)1 << 30; /* servers have hundreds of MiB of cache */
    Probe peak = {.peak = peak_plain, .round_operations = CHAINS / 3 * PLAIN_LANES * 2}, read = {0};
    Probe pairs = {.round_operations = CHAINS * 64}, integers = {.round_operations = CHAINS * 128};
    Limits limits;
#ifdef HAVE_X86_KERNELS
    if (isa == &kernels_avx2) peak.peak = peak_avx2, peak.round_operations = CHAINS * 16;
    else if (isa != &kernels_plain) peak.peak = peak_avx512, peak.round_operations = CHAINS * 32;
    if (isa == &kernels_avx512bf16) pairs.peak = peak_pairs, integers.peak = peak_int8;
#ifdef HAVE_AMX_KERNELS
    if (isa == &kernels_amx) pairs.peak = peak_amx, pairs.round_operations = 4 * 16 * 16 * BLOCK * 2;
#endif
#elif defined(HAVE_NEON_KERNELS)
    if (isa == &kernels_neon) peak.peak = peak_neon, peak.round_operations = CHAINS * 8;
#ifdef __ARM_FEATURE_DOTPROD
    if (isa == &kernels_neon) integers.peak = peak_int8, integers.round_operations = CHAINS * 32;
#endif
#endif
    char *memory = must(malloc((size_t)bytes));
    memset(memory, 1, (size_t)bytes); /* its pages are there */
    read.buffer = memory;
    limits.read = measure_rate(bench, threads, read, bytes);
    free(memory);
    limits.f32 = measure_rate(bench, threads, peak, 0);
    limits.bf16 = measure_rate(bench, threads, pairs, 0);
    limits.integers = measure_rate(bench, threads, integers, 0);
    return limits;
}

static void print_limits(const Limits *limits, int threads) {
    printf("%2d thread%s  read %5.1f GB/s   f32 %6.1f", threads, threads == 1 ? " " : "s", limits->read / 1e9,
           limits->f32 / 1e9);
    if (limits->bf16 > 0) printf("   bf16 %6.1f", limits->bf16 / 1e9);
    if (limits->integers > 0) printf("   int8 %6.1f", limits->integers / 1e9);
    printf(" Gop/s\n");
}

/* True if products with w round their operands. */
static bool is_rounded(const Context *cx, const Weight *w) {
    const Method *m = choose_method(cx, w->type, w->cols), *fast = cx->kernels->fast;
    return m >= fast && m < fast + WEIGHT_CLASSES;
}

/* The peak of products with w, operations a second, and its name: exact products on AMX take three of bf16 each. */
static double peak_of(const Bench *bench, const Context *cx, const Weight *w, const char **name) {
    const Method *m = choose_method(cx, w->type, w->cols);
    const Limits *l = &bench->limits;
    const bool floats = m == &cx->kernels->exact[OTHER_WEIGHTS], bytes = m->words == 10, rounded = is_rounded(cx, w);
    *name = floats ? "f32" : bytes ? "int8" : rounded ? "bf16" : "3 bf16";
    return floats ? l->f32 : bytes ? l->integers : rounded ? l->bf16 : l->bf16 / 3;
}

/* The percentage of the limit that a stage of products with w reaches; *bound says which limit that is. */
static double percent(const Bench *bench, const Context *cx, const Weight *w, const Cost *cost, double time,
                      const char **bound) {
    const double computing = cost->operations / peak_of(bench, cx, w, bound);
    const double reading = cost->bytes / bench->limits.read;
    if (reading > computing) *bound = "read";
    return 100 * (reading > computing ? reading : computing) / time;
}

/* ---- What a stage costs ---- */

/* T rows through a matrix. */
static void cost_matrix(Cost *cost, const Weight *w, double T) {
    cost->operations += 2.0 * (double)w->rows * (double)w->cols * T;
    cost->bytes += (double)w->rows * (double)type_row_bytes(w->type, w->cols);
}

static void cost_layers(Cost *cost, const Linear *layers, int count, double T) {
    for (int i = 0; i < count; i++) cost_matrix(cost, &layers[i].weight, T);
}

/* R sequences of T new tokens each behind `past` others. */
static void cost_transformer(Cost *cost, const JanusSession *session, double R, double T, double past) {
    const JanusModel *m = session->model;
    const int kv_bytes = kv_type(&session->context) == TYPE_F16 ? 2 : 4;
    const Config *c = &m->config;
    for (int i = 0; i < c->layers; i++) {
        const TransformerBlock *b = &m->blocks[i];
        const Weight *matrices[7] = {&b->q, &b->k, &b->v, &b->output, &b->gate, &b->up, &b->down};
        for (int k = 0; k < 7; k++) cost_matrix(cost, matrices[k], R * T);
        cost->operations += 4 * R * T * (past + (T + 1) / 2) * c->heads * c->head_dim;
        cost->bytes += 2 * R * (past + T) * c->kv_heads * c->head_dim * kv_bytes;
    }
}

/* The image head and the adaptor of the ids it leads to, for N pictures. */
static void cost_image_ids(Cost *cost, const JanusModel *m, double N) {
    cost_matrix(cost, &m->gen_head_proj.weight, 2 * N);
    cost_matrix(cost, &m->gen_head.weight, 2 * N);
    cost_layers(cost, m->gen_aligner, m->config.gen_aligner_depth, N);
}

static void cost_seeing(Cost *cost, const JanusModel *m) {
    const Config *c = &m->config;
    const double T = vision_tokens(c);
    cost_matrix(cost, &m->patch_embed.weight, T);
    for (int i = 0; i < c->vit_layers; i++) {
        const VitBlock *b = &m->vit_blocks[i];
        const Weight *matrices[4] = {&b->qkv.weight, &b->proj.weight, &b->fc1.weight, &b->fc2.weight};
        for (int k = 0; k < 4; k++) cost_matrix(cost, matrices[k], T);
        cost->operations += 4 * T * T * c->vit_width;
    }
    cost_layers(cost, m->aligner, c->aligner_depth, T);
}

static void cost_res_block(Cost *cost, const ResBlock *block, double pixels) {
    cost_matrix(cost, &block->conv1.weight, pixels);
    cost_matrix(cost, &block->conv2.weight, pixels);
    if (block->in != block->out) cost_matrix(cost, &block->shortcut.weight, pixels);
}

static void cost_attn_block(Cost *cost, const AttnBlock *block, double pixels) {
    const Weight *matrices[4] = {&block->q.weight, &block->k.weight, &block->v.weight, &block->proj.weight};
    for (int k = 0; k < 4; k++) cost_matrix(cost, matrices[k], pixels);
    cost->operations += 4 * pixels * pixels * block->width;
}

/* Direct convolutions of the VQ encoder or decoder. */
static void cost_vq(Cost *cost, const JanusModel *m, const VqHalf *half, int decoder) {
    const Config *c = &m->config;
    double side = decoder ? c->grid : drawn_side(c), T = (double)image_tokens(c);
    cost_matrix(cost, &half->conv_in.weight, side * side);
    for (int i = 0; i < c->vq_levels; i++) {
        for (int b = 0; b < c->res_blocks + decoder; b++) {
            cost_res_block(cost, &half->level[i].res[b], side * side);
            if (i == (decoder ? 0 : c->vq_levels - 1)) cost_attn_block(cost, &half->level[i].attn[b], side * side);
        }
        if (i == c->vq_levels - 1) break;
        side = decoder ? 2 * side : side / 2;
        cost_matrix(cost, &half->level[i].resample.weight, side * side);
    }
    cost_res_block(cost, &half->mid_res[0], T);
    cost_res_block(cost, &half->mid_res[1], T);
    cost_attn_block(cost, &half->mid_attn, T);
    cost_matrix(cost, &half->conv_out.weight, side * side);
    if (decoder) cost_matrix(cost, &m->post_quant_conv.weight, T);
    else cost_matrix(cost, &m->quant_conv.weight, T), cost_matrix(cost, &m->codebook, T);
}

/* ---- Products of few rows ---- */

enum { ROW_COUNTS = 7, MOST_ROWS = 64, WIDE = 5632, NARROW = 2048 }; /* the transformer's sizes in Janus-Pro-1B */

/* Copies of a random (WIDE, NARROW) weight, so many that none is in a cache when its turn comes. */
static Weight random_copies(const Bench *bench, int type, int *copies) {
    const int64_t row = type_row_bytes(type, NARROW), bytes = WIDE * row;
    *copies = (int)(((int64_t)(bench->options.brief ? 96 : 384) << 20) / bytes);
    char *data = must(malloc((size_t)(*copies * bytes)));
    for (int64_t o = 0; o < WIDE; o++) random_row(data + o * row, type, NARROW);
    for (int i = 1; i < *copies; i++) memcpy(data + i * bytes, data, (size_t)bytes);
    return (Weight){type, data, WIDE, NARROW};
}

/* Seconds of T rows through w, the median of as many runs as there are copies. */
static double time_rows(const Bench *bench, Context *cx, Weight w, int copies, const float *x, float *out, int64_t T) {
    const char *data = w.data;
    Times times = {{0}, 0};
    for (int i = 0; i < copies; i++) {
        w.data = data + i * w.rows * type_row_bytes(w.type, w.cols);
        const double start = seconds(bench);
        linear(cx, out, x, &w, NULL, T);
        keep_time(&times, seconds(bench) - start);
    }
    return median(&times);
}

/* Three lines: ms, by the time of two rows, percent of the limit. Returns the seconds of the most rows. */
static double print_rows(const Bench *bench, Context *cx, const Weight *w, int copies, const float *x, float *out) {
    const char *bound[ROW_COUNTS], *name = find_format(w->type)->name, *way = is_rounded(cx, w) ? "--fast" : "exact";
    double time[ROW_COUNTS], share[ROW_COUNTS];
    for (int i = 0; i < ROW_COUNTS; i++) {
        Cost cost = {0, 0};
        cost_matrix(&cost, w, 1 << i);
        time[i] = time_rows(bench, cx, *w, copies, x, out, 1 << i);
        share[i] = percent(bench, cx, w, &cost, time[i], &bound[i]);
    }
    printf("%-5s %-7s ms      ", name, way);
    for (int i = 0; i < ROW_COUNTS; i++) printf("%9.2f ", 1e3 * time[i]);
    printf("\n%13s : 2 rows", "");
    for (int i = 0; i < ROW_COUNTS; i++) printf("%8.2f  ", time[i] / time[1]);
    printf("\n%13s %% limit ", "");
    for (int i = 0; i < ROW_COUNTS; i++) printf("%4.0f %-5.5s", share[i], bound[i]);
    printf("\n");
    fflush(stdout);
    return time[ROW_COUNTS - 1];
}

/* Every type of weights, exact and where it differs with --fast. */
static void bench_rows(const Bench *bench, Context *cx) {
    float *x = must(allocate(MOST_ROWS * NARROW, sizeof *x)), *out = must(allocate(MOST_ROWS * WIDE, sizeof *out));
    fill_floats(x, MOST_ROWS * NARROW);
    printf("\nrows of x through %d x %d:", WIDE, NARROW);
    for (int i = 0; i < ROW_COUNTS; i++) printf("%*d", i == 0 ? 1 : 10, 1 << i);
    printf("\n");
    for (int i = 0; i < NUMBER_FORMAT_COUNT; i++) {
        int copies;
        const Weight w = random_copies(bench, NUMBER_FORMATS[i].type, &copies);
        const bool rule = cx->pairs_pay;
        const double exact = print_rows(bench, cx, &w, copies, x, out);
        cx->options.fast = 1;
        cx->pairs_pay = true; /* whatever the rule says */
        if (is_rounded(cx, &w)) {
            const double fast = print_rows(bench, cx, &w, copies, x, out);
            if (choose_method(cx, w.type, w.cols)->if_pays && rule != (fast < exact))
                printf("  pairs_pay (section 14 of janus.c) is wrong for this processor\n");
        }
        cx->options.fast = 0;
        cx->pairs_pay = rule;
        free((void *)(uintptr_t)w.data);
    }
    free(x);
    free(out);
}

/* The limits and two rows, 64 rows of bf16 by 1, 2, 4, ... threads, in ms and times as fast as one. */
static void bench_threads(const Bench *bench, const char *isa) {
    float *x = must(allocate(MOST_ROWS * NARROW, sizeof *x)), *out = must(allocate(MOST_ROWS * WIDE, sizeof *out));
    double one[2] = {0, 0};
    int copies;
    const Weight w = random_copies(bench, TYPE_BF16, &copies);
    fill_floats(x, MOST_ROWS * NARROW);
    printf("\nthreads   GB/s read    f32 Gop/s    bf16, 2 rows: ms, speed-up    64 rows: ms, speed-up\n");
    for (int threads = 1; threads <= processor_count(); threads *= 2) {
        Context cx;
        if (context_init(&cx, threads, isa) != 0) stop("threads", "no memory");
        const Limits limits = measure_limits(bench, cx.kernels, threads);
        printf("%7d %11.1f %12.1f", threads, limits.read / 1e9, limits.f32 / 1e9);
        for (int i = 0; i < 2; i++) {
            const double time = time_rows(bench, &cx, w, copies, x, out, i == 0 ? 2 : MOST_ROWS);
            if (threads == 1) one[i] = time;
            printf("%18.2f %9.2f", 1e3 * time, one[i] / time);
        }
        printf("\n");
        context_free(&cx);
    }
    free((void *)(uintptr_t)w.data);
    free(x);
    free(out);
}

/* ---- Stages of a model ---- */

typedef struct {
    Bench *bench;
    JanusModel *model;
    JanusSession *session;
} Stage;

static void print_heading(void) {
    printf("%-46s %9s %9s %9s %8s %8s %8s %7s  %s\n", "stage", "ms", "fastest", "slowest", "Gop", "MB", "Gop/s", "GB/s",
           "limit");
}

/* One line: times, cost, rates, percent of the limit. w: of the stage's largest products. */
static void report(const Stage *s, const char *name, Times *times, const Cost *cost, const Weight *w) {
    const Context *cx = &s->session->context;
    const char *bound;
    char full[96];
    if (times->count == 0) return;
    snprintf(full, sizeof full, "%s%s", name, is_rounded(cx, w) ? ", --fast" : "");
    const double time = median(times), share = percent(s->bench, cx, w, cost, time, &bound);
    printf("%-46s %9.2f %9.2f %9.2f %8.2f %8.1f %8.1f %7.2f %3.0f%% %s\n", full, 1e3 * time, 1e3 * times->times[0],
           1e3 * times->times[times->count - 1], cost->operations / 1e9, cost->bytes / 1e6,
           cost->operations / time / 1e9, cost->bytes / time / 1e9, share, bound);
    fflush(stdout);
}

/* A sequence that has read `length` tokens, with room for `more`: its keys and values are made up. */
static Sequence made_up_sequence(const Stage *s, int64_t length, int64_t more) {
    const Config *c = &s->model->config;
    Context *cx = &s->session->context;
    const int type = kv_type(cx);
    const int64_t count = (length + more) * c->kv_heads * c->head_dim;
    Sequence sequence;
    JanusError error;
    memset(&sequence, 0, sizeof sequence);
    kv_cache_reserve(cx, &sequence.own, c, length + more);
    check(context_end(cx, &error), &error);
    for (int i = 0; i < 2 * c->layers; i++) {
        char *rows = i < c->layers ? sequence.own.keys[i] : sequence.own.values[i - c->layers];
        random_row(rows, type, count);
    }
    sequence.own.length = length;
    return sequence;
}

/* R sequences of `past` tokens side by side go T tokens further: the transformer alone. */
static void bench_forward(const Stage *s, int64_t R, int64_t T, int64_t past, const char *what) {
    const int64_t width = s->model->config.hidden;
    Sequence *sequences = must(allocate(R, sizeof *sequences)), **pointers = must(allocate(R, sizeof *pointers));
    float *x = must(allocate(R * T * width, sizeof *x));
    Cost cost = {0, 0};
    Times times = {{0}, 0};
    JanusError error;
    char name[96];
    for (int64_t r = 0; r < R; r++) {
        sequences[r] = made_up_sequence(s, past, T);
        pointers[r] = &sequences[r];
    }
    for (int i = T > 1 ? 0 : -1; i < s->bench->options.repeats; i++) { /* the first short one is not counted */
        fill_floats(x, R * T * width);
        const double start = seconds(s->bench);
        transformer_forward(&s->session->context, s->model, x, T, pointers, R, false);
        check(context_end(&s->session->context, &error), &error);
        if (i >= 0) keep_time(&times, seconds(s->bench) - start);
        for (int64_t r = 0; r < R; r++) sequences[r].own.length = past;
    }
    cost_transformer(&cost, s->session, (double)R, (double)T, (double)past);
    snprintf(name, sizeof name, "%s, %d tokens after %d", what, (int)(R * T), (int)past);
    report(s, name, &times, &cost, &s->model->blocks[0].q);
    for (int64_t r = 0; r < R; r++) kv_cache_free(&sequences[r].own);
    free(sequences);
    free(pointers);
    free(x);
}

static JanusImage made_up_image(int width, int height) {
    JanusImage image;
    image.width = width;
    image.height = height;
    image.rgb = must(allocate((int64_t)width * height, 3));
    for (int i = 0; i < width * height * 3; i++)
        image.rgb[i] = (uint8_t)(128 + 60 * next_float() + 60 * sinf((float)i * 0.001f));
    return image;
}

static void bench_pictures(const Stage *s) {
    enum { SEE, DECODE, ENCODE };
    Bench *bench = s->bench;
    const Config *c = &s->model->config;
    const JanusImage image = made_up_image(c->image_side, c->image_side);
    float *seen = must(allocate((int64_t)vision_tokens(c) * c->hidden, sizeof *seen));
    int32_t *ids = must(allocate(image_tokens(c), sizeof *ids));
    for (int64_t i = 0; i < image_tokens(c); i++) ids[i] = (int32_t)(i * 7919 % c->codebook);
    for (int task = SEE; task <= ENCODE; task++) {
        Times times = {{0}, 0};
        Cost cost = {0, 0};
        JanusError error;
        char name[64];
        const int side = task == SEE ? c->image_side : drawn_side(c);
        for (int i = 0; i < bench->options.repeats; i++) {
            JanusImage drawn = {0, 0, NULL};
            const double start = seconds(bench);
            if (task == SEE) {
                see_image(&s->session->context, s->model, &image, seen);
                check(context_end(&s->session->context, &error), &error);
            }
            else if (task == DECODE) check(janus_decode_image(s->session, ids, &drawn, &error), &error);
            else check(janus_encode_image(s->session, &image, ids, &error), &error);
            keep_time(&times, seconds(bench) - start);
            janus_image_free(&drawn);
        }
        if (task == SEE) cost_seeing(&cost, s->model);
        else cost_vq(&cost, s->model, task == DECODE ? &s->model->vq_decoder : &s->model->vq_encoder, task == DECODE);
        snprintf(name, sizeof name, "%s %d x %d",
                 task == SEE      ? "understanding encoder"
                 : task == DECODE ? "VQ decode"
                                  : "VQ encode",
                 side, side);
        report(s, name, &times, &cost, &(task == SEE ? &s->model->aligner[0] : &s->model->vq_decoder.conv_in)->weight);
    }
    free(image.rgb);
    free(seen);
    free(ids);
}

/* Takes the time at every unit of one stage of the public calls; stops the call after `limit` of them. */
typedef struct {
    const Bench *bench;
    const char *stage;
    double last;
    Times times;
    int limit;
} Stopwatch;

static int note_progress(void *user, const char *stage, int64_t done, int64_t total) {
    Stopwatch *watch = user;
    (void)done;
    (void)total;
    if (strcmp(stage, watch->stage) != 0) return 0;
    const double now = seconds(watch->bench);
    keep_time(&watch->times, now - watch->last);
    watch->last = now;
    return watch->times.count >= watch->limit;
}

static JanusSession *open_session(const Bench *bench, const JanusModel *model, Stopwatch *watch) {
    JanusSessionOptions options = janus_session_defaults();
    JanusSession *session = NULL;
    JanusError error;
    options.threads = bench->options.threads;
    options.isa = bench->options.isa;
    options.cache = bench->options.cache;
    options.user = watch;
    options.progress = watch != NULL ? note_progress : NULL;
    check(janus_session_new(model, &options, &session, &error), &error);
    return session;
}

static const char PROMPT[] = "a red fox in the snow, oil painting";

/* A step of drawings in a queue, each of `count` pictures and a prompt of its own: with heads and sampling. */
static void bench_queue(const Stage *s, int jobs, int count) {
    Bench *bench = s->bench;
    const int pictures = jobs * count;
    JanusGenerateOptions options = janus_generate_defaults();
    JanusQueue *queue = NULL;
    JanusError error;
    Times times = {{0}, 0};
    Cost cost = {0, 0};
    char name[96], prompt[sizeof PROMPT];
    options.count = count;
    check(janus_queue_new(s->session, pictures, &queue, &error), &error);
    for (int i = 0; i < jobs; i++) {
        snprintf(prompt, sizeof prompt, "%.*s", 8 + i % 16, PROMPT);
        options.seed = (uint64_t)i;
        check(janus_queue_generate(queue, prompt, &options, NULL, &error), &error);
        janus_queue_step(queue);
    }
    for (int i = -1; i < bench->options.repeats; i++) { /* the first is not counted */
        const double start = seconds(bench);
        janus_queue_step(queue);
        if (i >= 0) keep_time(&times, seconds(bench) - start);
    }
    janus_queue_free(queue);
    cost_transformer(&cost, s->session, 2.0 * pictures, 1, 20 + bench->options.repeats / 2.0);
    cost_image_ids(&cost, s->model, pictures);
    snprintf(name, sizeof name, "queue: step of %d drawing%s, %d picture%s", jobs, jobs == 1 ? "" : "s", pictures,
             pictures == 1 ? "" : "s");
    report(s, name, &times, &cost, &s->model->blocks[0].q);
}

/* A pass of a drawing with drafts, at the picture's beginning, and a picture by such passes if as many drafts are right
   as the small model's, which makes passes fewer by `fewer`: random weights themselves accept nearly none. */
static void bench_drafts(const Stage *s) {
    enum { KINDS = 6 };
    static const int drafts[KINDS] = {0, 1, 2, 3, 7, 15};
    static const double fewer[KINDS] = {1, 1.35, 1.61, 1.82, 2.49, 3.09};
    Context *cx = &s->session->context;
    Times times[KINDS] = {{{0}, 0}};
    const int64_t tokens = image_tokens(&s->model->config);
    Task task = {.drawing = janus_generate_defaults(), .ids = must(allocate(tokens, sizeof *task.ids))};
    JanusError error;
    task.drawing.drafts = drafts[KINDS - 1];
    start_drawing(cx, s->model, &task, PROMPT);
    for (int i = -1; i < s->bench->options.repeats; i++) /* the first round is not counted */
        for (int k = 0; k < KINDS; k++) {
            task.drawn = 1;
            for (int r = 0; r < 2; r++) task.rows[r].own.length = 0;
            for (int64_t t = 1; t < tokens; t++) task.ids[t] = -1;
            task.drawing.drafts = drafts[k];
            const double start = seconds(s->bench);
            step_with_drafts(cx, s->model, &task);
            check(context_end(cx, &error), &error);
            if (i >= 0) keep_time(&times[k], seconds(s->bench) - start);
        }
    for (int k = 0; k < KINDS; k++) {
        const double time = median(&times[k]), one = median(&times[0]);
        printf("%2d drafts, %2d rows a pass %22.2f %9.2f; %5.2f of no drafts; a picture %8.1f s, %5.2f\n", drafts[k],
               2 * drafts[k] + 2, 1e3 * time, 1e3 * times[k].times[0], time / one,
               time * (double)(tokens - 1) / fewer[k], time / one / fewer[k]);
    }
    free(task.ids);
    task_free(&task);
}

/* From a question about a picture to the answer's first token, and the tokens after it. */
static void bench_answer(const Stage *s) {
    static const char QUESTION[] = "What is in the picture?";
    Bench *bench = s->bench;
    const JanusModel *m = s->model;
    const JanusImage image = made_up_image(640, 480);
    Times first = {{0}, 0}, rest = {{0}, 0};
    Cost first_cost = {0, 0}, rest_cost = {0, 0};
    double T = 0;
    for (int i = 0; i < 3; i++) {
        Stopwatch watch = {.bench = bench, .stage = "answer", .limit = i < 2 ? 1 : 1 + bench->options.repeats};
        JanusSession *session = open_session(bench, m, &watch);
        IdList list = {0};
        JanusError error;
        turn_prompt(&session->context, m, &session->conversation, QUESTION, 1, &list);
        check(context_end(&session->context, &error), &error);
        T = (double)list.count;
        free(list.ids);
        watch.last = seconds(bench);
        const JanusStatus status = janus_ask(session, QUESTION, &image, 1, NULL, NULL, &error);
        if (status != JANUS_CANCELLED && status != JANUS_OK) stop("answering", error.message);
        for (int k = 0; k < watch.times.count; k++) keep_time(k == 0 ? &first : &rest, watch.times.times[k]);
        janus_session_free(session);
    }
    cost_seeing(&first_cost, m);
    cost_transformer(&first_cost, s->session, 1, T, 0);
    cost_matrix(&first_cost, &m->lm_head, 1);
    cost_transformer(&rest_cost, s->session, 1, 1, T + bench->options.repeats / 2.0);
    cost_matrix(&rest_cost, &m->lm_head, 1);
    report(s, "image question to first token", &first, &first_cost, &m->blocks[0].q);
    report(s, "token of its answer (LM head included)", &rest, &rest_cost, &m->blocks[0].q);
    free(image.rgb);
}

static void bench_model(Bench *bench, const char *path) {
    JanusModel *model = NULL;
    JanusError error;
    check(janus_load(path, &model, &error), &error);
    const JanusInfo info = janus_info(model);
    const int past = info.image_tokens / 2 + 16, pictures = bench->options.pictures;
    const Stage s = {bench, model, open_session(bench, model, NULL)};
    Context *cx = &s.session->context;
    printf("\n%s: %s, %.1f million parameters, %.1f MB, keys and values in %s\n", info.name, info.weight_type,
           (double)info.parameters / 1e6, (double)info.file_bytes / 1e6, kv_type(cx) == TYPE_F16 ? "f16" : "f32");
    print_heading();
    bench_forward(&s, 2, 1, past, "picture's step"); /* brings the transformer's pages into memory */
    bench_forward(&s, 1, 1, past, "answer's step");
    for (int fast = 0; fast < 2; fast++) {
        cx->options.fast = fast;
        if (fast && !is_rounded(cx, &model->blocks[0].q)) break;
        bench_forward(&s, 2 * pictures, 1, past, "many pictures' step");
        bench_forward(&s, 1, min_i64(PROMPT_TOKENS, model->config.context), 0, "prefill");
    }
    cx->options.fast = 0;
    bench_queue(&s, 1, 1);
    bench_queue(&s, 1, pictures);
    bench_queue(&s, pictures, 1);
    bench_drafts(&s);
    bench_pictures(&s);
    bench_answer(&s);
    janus_session_free(s.session);
    janus_free(model);
}

/* ---- Command line ---- */

static int usage(void) {
    fprintf(stderr, "bench [--threads K] [--isa NAME] [--repeats N] [--kv f16|f32] [--pictures N] [--short] [--cpu] "
            "[MODEL ...]\n");
    return 2;
}

/* Returns the index of the first model, or 0 if used wrongly. */
static int parse(Options *o, int count, char **arguments) {
    int i = 1;
    for (; i < count && arguments[i][0] == '-'; i++) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        if (strcmp(name, "--cpu") == 0) o->processor_time = 1;
        else if (strcmp(name, "--short") == 0) o->brief = 1;
        else if (++i, strcmp(name, "--threads") == 0) o->threads = atoi(value);
        else if (strcmp(name, "--repeats") == 0) o->repeats = atoi(value);
        else if (strcmp(name, "--pictures") == 0) o->pictures = atoi(value);
        else if (strcmp(name, "--kv") == 0) o->cache = strcmp(value, "f16") == 0 ? JANUS_CACHE_F16 : JANUS_CACHE_F32;
        else if (strcmp(name, "--isa") == 0) o->isa = value;
        else return 0;
    }
    if (o->processor_time) o->threads = 1;
    if (o->threads == 0) o->threads = processor_count();
    const bool usable = o->threads >= 1 && o->pictures >= 1 && o->pictures <= 64;
    return i <= count && usable && o->repeats >= 1 && o->repeats < MAX_REPEATS / 2 ? i : 0;
}

int main(int count, char **arguments) {
    Bench bench = {.options = {.threads = 0, .repeats = 7, .pictures = 16}};
    const int first = parse(&bench.options, count, arguments);
    Context cx;
    if (first == 0) return usage();
    if (context_init(&cx, bench.options.threads, bench.options.isa) != 0) stop("--isa", "no such instruction set here");
    bench.limits = measure_limits(&bench, cx.kernels, bench.options.threads);
    printf("kernels: %s; a multiply-add is two operations\n", cx.kernels->name);
    print_limits(&bench.limits, bench.options.threads);
    if (first == count) bench_rows(&bench, &cx);
    if (first == count && !bench.options.processor_time) bench_threads(&bench, bench.options.isa);
    context_free(&cx);
    for (int i = first; i < count; i++) bench_model(&bench, arguments[i]);
    return 0;
}
