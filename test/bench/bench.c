/* SPDX-License-Identifier: MIT
   How close each stage comes to the limits of this machine. First the limits are measured: read bandwidth, and
   multiply-adds a second that never leave the registers. Then the stages run on model files, and each time stands
   beside the bytes that must be read and the operations that must be done, counted from the sizes of the model alone,
   so that a reader can redo the arithmetic:

       limit = max(bytes / read bandwidth, operations / f32 peak),   % = limit / time
       (more than 100 % where a small model's weights stay in the caches)

   A multiply-add is two operations. Bytes are those of weights and of keys and values, each read once; activations,
   norms, softmax and other element-wise work count nothing: they are what the percentage may lack.

       bench [--threads K] [--isa NAME] [--repeats N] [--kv f16|f32] [--pictures N] [--short] [--cpu] [--json FILE]
       MODEL ... */
#define JANUS_LIBRARY
#include "../../janus.c"
#include "../c/random_rows.h"

#if !defined(_WIN32)
#include <sys/resource.h>
#endif

enum { MAX_REPEATS = 64, PROMPT_TOKENS = 640 };

typedef struct {
    int threads, repeats, pictures, brief, processor_time;
    JanusCacheType cache;
    const char *isa, *json;
} Options;

typedef struct { /* of all threads together: bytes and operations a second; 0: there is no such kernel */
    double read, f32, bf16, integers;
} Limits;

typedef struct { /* what one stage must read and do */
    /* numbers: of weights, whatever their type; bytes: of weights, keys and values */
    double operations, numbers, bytes;
} Cost;

typedef struct {
    Options options;
    Limits limits;
    const char *model_type;
    int exact_peak;  /* the limit of products that are not rounded: as for report */
    double peak_mib; /* of the last stage, beside the mapped file; -1: unknown */
    FILE *json;
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

/* ---- Time and memory ---- */

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

/* MiB of a line of /proc/self/status, -1 where there is none. */
static double status_mib(const char *key) {
    char line[256];
    double kib = -1024;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) kib = atof(line + strlen(key));
    if (file != NULL) fclose(file);
    return kib / 1024;
}

/* Starts a new peak of memory (Linux). */
static void reset_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file == NULL) return;
    fputs("5", file);
    fclose(file);
}

/* The most memory since reset_peak beside the pages of mapped files, which are still mapped now. */
static void note_peak(Bench *bench) {
    const double peak = status_mib("VmHWM:"), mapped = status_mib("RssFile:");
    bench->peak_mib = peak < 0 || mapped < 0 ? -1 : peak - mapped;
}

static double process_peak(void) {
#if defined(__linux__)
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0) return (double)usage.ru_maxrss / 1024;
#endif
    return -1;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- The machine's limits ----

   A probe runs `n` rounds of twelve independent chains of vectors, enough to hide the latency of a multiply-add, and
   returns a value that depends on all of them. read_NAME adds up `n` bytes, a multiple of 1024, by whole cache
   lines. */

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
#define READ_PROBE(name, attribute, vector, zero, load, add)                                                           \
    attribute static double name(const char *p, int64_t n) {                                                           \
        vector s[8];                                                                                                   \
        unsigned char bytes[sizeof s];                                                                                 \
        for (int j = 0; j < 8; j++) s[j] = zero;                                                                       \
        for (int64_t i = 0; i < n; i += (int64_t)sizeof s) {                                                           \
            UNROLL for (int j = 0; j < 8; j++) s[j] = add(s[j], load(p + i + j * (int64_t)sizeof s[0]));               \
        }                                                                                                              \
        memcpy(bytes, s, sizeof s);                                                                                    \
        return bytes[n % 7];                                                                                           \
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
#define LOAD_256(p)        _mm256_load_si256((const void *)(p))
#define LOAD_512(p)        _mm512_load_si512((const void *)(p))
PEAK_PROBE(peak_avx2, FOR_AVX2, __m256, START_256, FMA_256)
PEAK_PROBE(peak_avx512, FOR_AVX512, __m512, START_512, FMA_512)
PEAK_PROBE(peak_pairs, FOR_AVX512BF16, __m512, START_512, PAIRS_512)
PEAK_PROBE(peak_int8, FOR_AVX512BF16, __m512i, START_INTEGER, INT8_512)
READ_PROBE(read_avx2, FOR_AVX2, __m256i, _mm256_setzero_si256(), LOAD_256, _mm256_add_epi64)
READ_PROBE(read_avx512, FOR_AVX512, __m512i, _mm512_setzero_si512(), LOAD_512, _mm512_add_epi64)
#elif defined(HAVE_NEON_KERNELS)
#define START_NEON(v)       vdupq_n_f32((float)(v) / 16)
#define FMA_NEON(s, x, y)   vfmaq_f32(y, s, x)
#define LOAD_NEON(p)        vld1q_u64((const void *)(p))
PEAK_PROBE(peak_neon, , float32x4_t, START_NEON, FMA_NEON)
READ_PROBE(read_neon, , uint64x2_t, vdupq_n_u64(0), LOAD_NEON, vaddq_u64)
#ifdef __ARM_FEATURE_DOTPROD
#define START_DOTPROD(v)    vdupq_n_s32(v)
#define INT8_NEON(s, x, y)  vdotq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
PEAK_PROBE(peak_int8, , int32x4_t, START_DOTPROD, INT8_NEON)
#endif
#endif

typedef struct {
    double (*peak)(int64_t rounds);
    double round_operations;
    double (*read)(const char *p, int64_t n);
    const char *buffer;
    double *results; /* (threads), so that nothing is left out as unused */
} Probe;

static void probe_job(void *data, Chunk chunk) {
    const Probe *probe = data;
    double result = 0;
    if (probe->read != NULL) result = probe->read(probe->buffer + chunk.begin, chunk.end - chunk.begin);
    for (int64_t i = chunk.begin; i < chunk.end && probe->read == NULL; i++) result += probe->peak(1000);
    probe->results[chunk.thread] += result;
}

/* The best rate of several runs: bytes or operations a second. */
static double measure_rate(const Bench *bench, int threads, Probe probe, int64_t buffer_bytes) {
    Pool *pool = must(pool_create(threads));
    const int64_t count = probe.read != NULL ? buffer_bytes : (int64_t)threads * 512;
    const double work = probe.read != NULL ? (double)count : (double)count * 1000 * probe.round_operations;
    double best = 0;
    probe.results = must(calloc((size_t)threads, sizeof *probe.results));
    for (int i = 0; i < (bench->options.brief ? 4 : 12); i++) {
        const double start = seconds(bench);
        pool_run(pool, probe_job, &probe, count, probe.read != NULL ? 1 << 21 : 16);
        const double rate = work / (seconds(bench) - start);
        if (rate > best) best = rate;
    }
    free(probe.results);
    pool_free(pool);
    return best;
}

static Limits measure_limits(const Bench *bench, const Kernels *isa, int threads) {
    const int64_t bytes = (int64_t)1 << 30; /* servers have hundreds of MiB of cache */
    Probe peak = {peak_plain, CHAINS / 3 * PLAIN_LANES * 2, NULL, NULL, NULL}, read = {NULL, 0, read_plain, NULL, NULL};
    Probe pairs = {NULL, CHAINS * 64, NULL, NULL, NULL}, integers = {NULL, CHAINS * 128, NULL, NULL, NULL};
    Limits limits = {0, 0, 0, 0};
#ifdef HAVE_X86_KERNELS
    if (isa == &kernels_avx2) peak.peak = peak_avx2, peak.round_operations = CHAINS * 16, read.read = read_avx2;
    if (isa != &kernels_avx2 && isa != &kernels_plain)
        peak.peak = peak_avx512, peak.round_operations = CHAINS * 32, read.read = read_avx512;
    if (isa == &kernels_avx512bf16) pairs.peak = peak_pairs;
    if (isa->fast[BLOCK_WEIGHTS].words == 10) integers.peak = peak_int8;
#ifdef HAVE_AMX_KERNELS
    if (isa == &kernels_amx) pairs.peak = peak_amx, pairs.round_operations = 4 * 16 * 16 * BLOCK * 2;
#endif
#elif defined(HAVE_NEON_KERNELS)
    if (isa == &kernels_neon) peak.peak = peak_neon, peak.round_operations = CHAINS * 8, read.read = read_neon;
#ifdef __ARM_FEATURE_DOTPROD
    if (isa->fast[BLOCK_WEIGHTS].words == 10) integers.peak = peak_int8, integers.round_operations = CHAINS * 32;
#endif
#endif
    char *memory = must(malloc((size_t)bytes + 64));
    memset(memory, 1, (size_t)bytes + 64); /* its pages are there */
    read.buffer = memory + (64 - (uintptr_t)memory % 64) % 64;
    limits.read = measure_rate(bench, threads, read, bytes);
    free(memory);
    limits.f32 = measure_rate(bench, threads, peak, 0);
    if (pairs.peak != NULL) limits.bf16 = measure_rate(bench, threads, pairs, 0);
    if (integers.peak != NULL) limits.integers = measure_rate(bench, threads, integers, 0);
    return limits;
}

static void print_limits(const Bench *bench, const Kernels *isa, const Limits *limits, int threads) {
    printf("%2d thread%s  read %5.1f GB/s   f32 %6.1f", threads, threads == 1 ? " " : "s", limits->read / 1e9,
           limits->f32 / 1e9);
    if (limits->bf16 > 0) printf("   bf16 %6.1f", limits->bf16 / 1e9);
    if (limits->integers > 0) printf("   int8 %6.1f", limits->integers / 1e9);
    printf(" Gop/s\n");
    if (bench->json != NULL)
        fprintf(bench->json,
            "{\"limits\": {\"isa\": \"%s\", \"threads\": %d, \"read\": %.4g, \"f32\": %.4g, "
            "\"bf16\": %.4g, \"integers\": %.4g}}\n",
            isa->name, threads, limits->read, limits->f32, limits->bf16, limits->integers);
}

/* ---- What a stage costs ---- */

/* T rows through a matrix. */
static void cost_matrix(Cost *cost, const Weight *w, double T) {
    cost->operations += 2.0 * (double)w->rows * (double)w->cols * T;
    cost->numbers += (double)w->rows * (double)w->cols;
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

/* ---- Rows of the table ---- */

typedef struct {
    double times[MAX_REPEATS];
    int count;
} Times;

static void keep_time(Times *times, double time) {
    if (times->count < MAX_REPEATS) times->times[times->count++] = time;
}

static void print_heading(void) {
    printf("%-46s %9s %9s %9s %8s %8s %8s %8s %7s %-6s %9s\n", "stage", "ms", "fastest", "slowest", "Gop", "M numb.",
           "MB", "Gop/s", "GB/s", "limit", "peak MiB");
}

/* What a row's name ends with: 3 are exact products of pieces on AMX. */
static const char *rounded_label(int peak) { return peak == 1 || peak == 2 ? ", --fast" : ""; }

/* One row: times, cost, rates, percent of the limit. `peak` names the limit of its operations: 0 f32, 1 bf16, 2
   integers, 3 bf16 with three products of pieces; 0 stands for that of exact products. */
static void report(const Bench *bench, const char *stage, Times *times, const Cost *cost, int peak) {
    static const char *const PEAKS[] = {"f32", "bf16", "int", "3 bf16"};
    const Limits *l = &bench->limits;
    if (peak == 0) peak = bench->exact_peak;
    const double rates[] = {l->f32, l->bf16, l->integers, l->bf16 / 3}, rate = rates[peak];
    const double memory = bench->peak_mib;
    if (times->count == 0) return;
    qsort(times->times, (size_t)times->count, sizeof *times->times, by_value);
    const double *t = times->times, median = (t[(times->count - 1) / 2] + t[times->count / 2]) / 2;
    const double reading = cost->bytes / l->read, computing = cost->operations / rate;
    const double percent = 100 * (reading > computing ? reading : computing) / median;
    const char *bound = reading > computing ? "memory" : PEAKS[peak];
    printf("%-46s %9.2f %9.2f %9.2f %8.2f %8.2f %8.1f %8.1f %7.2f %3.0f%% %-6s", stage, 1e3 * median, 1e3 * t[0],
           1e3 * t[times->count - 1], cost->operations / 1e9, cost->numbers / 1e6, cost->bytes / 1e6,
           cost->operations / median / 1e9, cost->bytes / median / 1e9, percent, bound);
    if (memory >= 0) printf(" %5.0f", memory);
    printf("\n");
    fflush(stdout);
    if (bench->json != NULL)
        fprintf(bench->json,
            "{\"model\": \"%s\", \"stage\": \"%s\", \"median\": %.6g, \"fastest\": %.6g, \"slowest\": %.6g, "
            "\"runs\": %d, \"operations\": %.6g, \"numbers\": %.6g, \"bytes\": %.6g, \"percent\": %.4g, "
            "\"limit\": \"%s\", \"peak_mib\": %.5g}\n",
            bench->model_type, stage, median, t[0], t[times->count - 1], times->count, cost->operations, cost->numbers,
            cost->bytes, percent, bound, memory);
}

/* ---- Stages ---- */

typedef struct {
    Bench *bench;
    JanusModel *model;
    JanusSession *session;
} Stage;


/* From here on activations are rounded where that is faster, or not. The limit that then holds for products of many
   rows with such weights, as for report. */
static int round_activations(const Stage *s, const Weight *w, int fast) {
    Context *cx = &s->session->context;
    cx->options.fast = fast;
    const Method *m = choose_method(cx, w->type, w->cols);
    if (m == &cx->kernels->exact[OTHER_WEIGHTS]) return 0;
    return m->words == 10 ? 2 : m->words == BLOCK / 2 ? 1 : 3;
}

/* x (T, W) through a matrix of the size of the ViT's fc1, of the transformer's type: the first of many rows, then with
   activations rounded as the fastest kernels want them. */
static void bench_product(const Stage *s) {
    const Config *c = &s->model->config;
    const int64_t T = vision_tokens(c), I = c->vit_width, O = c->vit_mlp;
    Context *cx = &s->session->context;
    reset_peak();
    const int type = type_row_bytes(s->model->blocks[0].q.type, I) > 0 ? s->model->blocks[0].q.type : TYPE_F32;
    const int64_t row_bytes = type_row_bytes(type, I);
    float *x = must(allocate(T * I, sizeof *x)), *out = must(allocate(T * O, sizeof *out));
    char *data = must(allocate(O, (size_t)row_bytes)), name[64];
    const Weight w = {type, data, O, I};
    fill_floats(x, T * I);
    for (int64_t o = 0; o < O; o++) random_row(data + o * row_bytes, type, I);
    const bool rule = cx->pairs_pay;
    double medians[2] = {0, 0};
    cx->pairs_pay = true; /* whatever the rule says */
    for (int fast = 0; fast < 2; fast++) {
        Cost cost = {0, 0, 0};
        Times times = {{0}, 0};
        const int peak = round_activations(s, &w, fast);
        if (fast && peak == s->bench->exact_peak) break;
        cost_matrix(&cost, &w, (double)T);
        linear(cx, out, x, &w, NULL, T);
        for (int i = 0; i < 2 * s->bench->options.repeats; i++) {
            const double start = seconds(s->bench);
            linear(cx, out, x, &w, NULL, T);
            keep_time(&times, seconds(s->bench) - start);
        }
        snprintf(name, sizeof name, "product %d x %d x %d, %s", (int)T, (int)I, (int)O,
                 peak == 1 ? "bf16" : peak == 3 ? "pieces of bf16" : peak == 2 ? "int8" : "f32");
        note_peak(s->bench);
        report(s->bench, name, &times, &cost, peak);
        medians[fast] = times.times[times.count / 2]; /* report sorted them */
        if (fast && peak == 1 && rule != (medians[1] < medians[0]))
            printf("  pairs_pay (section 14 of janus.c) is wrong for this processor: rounded operands are %s\n",
                   rule ? "slower" : "faster");
    }
    cx->pairs_pay = rule;
    round_activations(s, &w, 0);
    free(x);
    free(out);
    free(data);
}

/* A sequence that has read `length` tokens: its keys and values are made up. */
static Sequence made_up_sequence(const Stage *s, int64_t length) {
    const Config *c = &s->model->config;
    Context *cx = &s->session->context;
    const int type = kv_type(cx);
    const int64_t count = (length + 1) * c->kv_heads * c->head_dim;
    Sequence sequence;
    JanusError error;
    memset(&sequence, 0, sizeof sequence);
    kv_cache_reserve(cx, &sequence.own, c, length + 1);
    check(context_end(cx, &error), &error);
    for (int i = 0; i < 2 * c->layers; i++) {
        char *rows = i < c->layers ? sequence.own.keys[i] : sequence.own.values[i - c->layers];
        random_row(rows, type, count);
    }
    sequence.own.length = length;
    return sequence;
}

/* R sequences of `past` tokens side by side go one token further: the transformer alone. */
static void bench_step(const Stage *s, int64_t R, int64_t past, const char *what, int peak) {
    Bench *bench = s->bench;
    const int64_t width = s->model->config.hidden;
    Sequence *sequences = must(allocate(R, sizeof *sequences)), **pointers = must(allocate(R, sizeof *pointers));
    float *x = must(allocate(R * width, sizeof *x));
    Cost cost = {0, 0, 0};
    Times times = {{0}, 0};
    JanusError error;
    char name[96];
    reset_peak();
    for (int64_t r = 0; r < R; r++) {
        sequences[r] = made_up_sequence(s, past);
        pointers[r] = &sequences[r];
    }
    for (int i = -1; i < bench->options.repeats; i++) { /* the first is not counted */
        fill_floats(x, R * width);
        const double start = seconds(bench);
        transformer_forward(&s->session->context, s->model, x, 1, pointers, R, false);
        check(context_end(&s->session->context, &error), &error);
        if (i >= 0) keep_time(&times, seconds(bench) - start);
        for (int64_t r = 0; r < R; r++) sequences[r].own.length = past;
    }
    cost_transformer(&cost, s->session, (double)R, 1, (double)past);
    snprintf(name, sizeof name, "%s, after %d tokens%s", what, (int)past, rounded_label(peak));
    note_peak(bench);
    report(bench, name, &times, &cost, peak);
    for (int64_t r = 0; r < R; r++) kv_cache_free(&sequences[r].own);
    free(sequences);
    free(pointers);
    free(x);
}

static void bench_prefill(const Stage *s, int peak) {
    Bench *bench = s->bench;
    const int64_t width = s->model->config.hidden, T = min_i64(PROMPT_TOKENS, s->model->config.context);
    float *x = must(allocate(T * width, sizeof *x));
    Cost cost = {0, 0, 0};
    Times times = {{0}, 0};
    JanusError error;
    char name[64];
    reset_peak();
    for (int i = 0; i < bench->options.repeats; i++) {
        Sequence sequence, *pointer = &sequence;
        memset(&sequence, 0, sizeof sequence);
        fill_floats(x, T * width);
        const double start = seconds(bench);
        transformer_forward(&s->session->context, s->model, x, T, &pointer, 1, false);
        check(context_end(&s->session->context, &error), &error);
        keep_time(&times, seconds(bench) - start);
        kv_cache_free(&sequence.own);
    }
    cost_transformer(&cost, s->session, 1, (double)T, 0);
    snprintf(name, sizeof name, "prefill of %d tokens%s", (int)T, rounded_label(peak));
    note_peak(bench);
    report(bench, name, &times, &cost, peak);
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
        Cost cost = {0, 0, 0};
        JanusError error;
        char name[64];
        const int side = task == SEE ? c->image_side : drawn_side(c);
        reset_peak();
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
        note_peak(bench);
        report(bench, name, &times, &cost, 0);
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

/* From nothing to the first id of a picture, the file's pages being in memory; and whole steps, sampling included. */
static void bench_drawing(Bench *bench, const char *path) {
    Times first = {{0}, 0}, steps = {{0}, 0};
    Cost first_cost = {0, 0, 0}, step_cost = {0, 0, 0};
    int32_t *ids = NULL;
    for (int i = 0; i < 3; i++) {
        reset_peak();
        Stopwatch watch = {.bench = bench,
                           .stage = "draw",
                           .last = seconds(bench),
                           .limit = i < 2 ? 1 : 1 + bench->options.repeats};
        JanusModel *model = NULL;
        JanusError error;
        check(janus_load(path, &model, &error), &error);
        JanusSession *session = open_session(bench, model, &watch);
        const Config *c = &model->config;
        const int64_t count = image_tokens(c);
        ids = must(allocate(count, sizeof *ids));
        const JanusStatus status = janus_generate_ids(session, PROMPT, NULL, ids, &error);
        if (status != JANUS_CANCELLED && status != JANUS_OK) stop("drawing", error.message);
        keep_time(&first, watch.times.times[0]);
        for (int k = 1; k < watch.times.count; k++) keep_time(&steps, watch.times.times[k]);
        if (i == 2) {
            IdList list = {0};
            drawing_prompt(&session->context, model, PROMPT, &list);
            check(context_end(&session->context, &error), &error);
            const double T = (double)list.count;
            cost_transformer(&first_cost, session, 2, T, 0);
            cost_transformer(&step_cost, session, 2, 1, T + bench->options.repeats / 2.0);
            cost_image_ids(&first_cost, model, 1);
            cost_image_ids(&step_cost, model, 1);
            free(list.ids);
        }
        free(ids);
        note_peak(bench);
        janus_session_free(session);
        janus_free(model);
    }
    report(bench, "start to first image id (load, read)", &first, &first_cost, 0);
    report(bench, "whole step of a picture (heads, draw)", &steps, &step_cost, 0);
}

/* A step of drawings in a queue, each of `count` pictures and a prompt of its own: with heads and sampling. */
static void bench_queue(const Stage *s, int jobs, int count) {
    Bench *bench = s->bench;
    const int pictures = jobs * count;
    JanusGenerateOptions options = janus_generate_defaults();
    JanusQueue *queue = NULL;
    JanusError error;
    Times times = {{0}, 0};
    Cost cost = {0, 0, 0};
    char name[96], prompt[sizeof PROMPT];
    options.count = count;
    reset_peak();
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
    note_peak(bench);
    report(bench, name, &times, &cost, 0);
}

/* From a question about a picture to the answer's first token, and the tokens after it. */
static void bench_answer(const Stage *s) {
    static const char QUESTION[] = "What is in the picture?";
    Bench *bench = s->bench;
    const JanusModel *m = s->model;
    const JanusImage image = made_up_image(640, 480);
    Times first = {{0}, 0}, rest = {{0}, 0};
    Cost first_cost = {0, 0, 0}, rest_cost = {0, 0, 0};
    double T = 0;
    reset_peak();
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
        note_peak(bench);
        janus_session_free(session);
    }
    cost_seeing(&first_cost, m);
    cost_transformer(&first_cost, s->session, 1, T, 0);
    cost_matrix(&first_cost, &m->lm_head, 1);
    cost_transformer(&rest_cost, s->session, 1, 1, T + bench->options.repeats / 2.0);
    cost_matrix(&rest_cost, &m->lm_head, 1);
    report(bench, "image question to first token", &first, &first_cost, 0);
    report(bench, "token of its answer (LM head included)", &rest, &rest_cost, 0);
    free(image.rgb);
}

static void bench_model(Bench *bench, const char *path) {
    JanusModel *model = NULL;
    JanusError error;
    char name[64];
    check(janus_load(path, &model, &error), &error);
    const JanusInfo info = janus_info(model);
    const int past = info.image_tokens / 2 + 16, pictures = bench->options.pictures;
    bench->model_type = info.weight_type;
    Stage s = {bench, model, open_session(bench, model, NULL)};
    printf("\n%s: %s, %.1f million parameters, %.1f MB, keys and values in %s\n", info.name, info.weight_type,
           (double)info.parameters / 1e6, (double)info.file_bytes / 1e6,
           kv_type(&s.session->context) == TYPE_F16 ? "f16" : "f32");
    print_heading();
    bench->exact_peak = round_activations(&s, &model->blocks[0].q, 0);
    bench_step(&s, 2, past, "picture step, 2 rows", 0); /* brings the transformer's pages into memory */
    bench_drawing(bench, path);
    bench_step(&s, 1, past, "answer step, 1 row", 0);
    snprintf(name, sizeof name, "%d pictures' step, %d rows", pictures, 2 * pictures);
    for (int fast = 0; fast < 2; fast++) {
        const int peak = round_activations(&s, &model->blocks[0].q, fast);
        if (fast && peak == bench->exact_peak) break; /* no other kernels for these weights */
        bench_step(&s, 2 * pictures, past, name, peak);
        bench_prefill(&s, peak);
    }
    s.session->context.options.fast = 0;
    bench_queue(&s, 1, 1);
    bench_queue(&s, 1, pictures < 64 ? pictures : 64);
    bench_queue(&s, pictures < 64 ? pictures : 64, 1);
    bench_product(&s);
    bench_pictures(&s);
    bench_answer(&s);
    printf("peak memory of the process, mapped file included: %.0f MiB\n", process_peak());
    janus_session_free(s.session);
    janus_free(model);
}

/* ---- Command line ---- */

static int usage(void) {
    fprintf(
        stderr,
        "bench [--threads K] [--isa NAME] [--repeats N] [--kv f16|f32] [--pictures N] [--short] "
        "[--cpu] [--json FILE] MODEL ...\n");
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
        else if (strcmp(name, "--json") == 0) o->json = value;
        else return 0;
    }
    if (o->processor_time) o->threads = 1;
    if (o->threads == 0) o->threads = processor_count();
    return i < count && o->threads >= 1 && o->repeats >= 1 && o->repeats < MAX_REPEATS / 2 && o->pictures >= 1 ? i : 0;
}

int main(int count, char **arguments) {
    Bench bench = {.options = {.threads = 0, .repeats = 7, .pictures = 16}};
    const int first = parse(&bench.options, count, arguments);
    Context cx;
    if (first == 0) return usage();
    if (context_init(&cx, 1, bench.options.isa) != 0) stop("--isa", "no such instruction set here");
    const Kernels *isa = cx.kernels;
    context_free(&cx);
    if (bench.options.json != NULL && (bench.json = fopen(bench.options.json, "a")) == NULL)
        stop(bench.options.json, strerror(errno));
    printf("kernels: %s; a multiply-add is two operations\n", isa->name);
    if (bench.options.threads > 1) {
        const Limits one = measure_limits(&bench, isa, 1);
        print_limits(&bench, isa, &one, 1);
    }
    bench.limits = measure_limits(&bench, isa, bench.options.threads);
    print_limits(&bench, isa, &bench.limits, bench.options.threads);
    for (int i = first; i < count; i++) bench_model(&bench, arguments[i]);
    if (bench.json != NULL) fclose(bench.json);
    return 0;
}
