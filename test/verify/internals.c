/* SPDX-License-Identifier: MIT */
/* janus.c with some of its inner functions made visible, for test/verify/verify_rng.py and test/test_formats.py:
   test_NAME calls NAME. */
#define JANUS_LIBRARY
#include "../../janus.c"

void test_torch_rng_seed(TorchRng *rng, int kind, uint64_t seed) { torch_rng_seed(rng, kind, seed); }
void test_torch_exponential(TorchRng *rng, float *q, int64_t count) { torch_exponential(rng, q, count); }

/* What needs a context is called with one of two threads; the results count only if it has not failed. */
static Context opened(void) {
    Context cx;
    if (context_init(&cx, 2, NULL) != 0) abort();
    return cx;
}
static void closed(Context *cx) {
    if (has_failed(cx)) abort();
    context_free(cx);
}
int test_torch_multinomial(TorchRng *rng, int *ids, const float *probs, int N, int V) {
    Context cx = opened();
    const int drawn = torch_multinomial(&cx, rng, ids, probs, N, V);
    closed(&cx);
    return drawn;
}
void test_scale_temperature(float *x, int V, double temperature) {
    Context cx = opened();
    scale_temperature(&cx, x, V, temperature);
    closed(&cx);
}
void test_softmax_probs(float *probs, const float *logits, int N, int V) {
    Context cx = opened();
    memcpy(probs, logits, (size_t)N * (size_t)V * sizeof *probs);
    softmax(&cx, probs, N, V);
    closed(&cx);
}

void test_keep_top_k(float *logits, int V, int top_k, float *largest) { keep_top_k(logits, V, top_k, largest); }
void test_keep_top_p(float *logits, int V, double top_p, RankedLogit *ranked) { keep_top_p(logits, V, top_p, ranked); }
void test_expand_row(float *out, int type, const void *row, int64_t begin, int64_t n) {
    expand_plain(out, type, row, begin, n);
}
void test_quantize_row(void *out, int type, const float *x, int64_t cols) { encode_row(out, type, x, cols); }
