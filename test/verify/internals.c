/* SPDX-License-Identifier: MIT */
/* janus.c with some of its inner functions made visible, for test/verify/verify_rng.py and test/python/test_formats.py:
   test_NAME calls NAME. */
#define JANUS_LIBRARY
#include "../../janus.c"

void test_torch_rng_seed(TorchRng *rng, uint64_t seed) { torch_rng_seed(rng, seed); }
void test_torch_exponential(TorchRng *rng, float *q, int64_t count) {
    for (int64_t i = 0; i < count; i++) q[i] = (float)-log1p(-next_uniform(rng));
}
/* Rows in order, as a drawing's. Returns 0, nothing drawn, where torch.multinomial raises. */
int test_multinomial(TorchRng *rng, int32_t *ids, const float *probs, int64_t N, int64_t V) {
    Context cx;
    TorchRng after = *rng, *starts = malloc((size_t)N * sizeof *starts);
    if (starts == NULL || context_init(&cx, 1, "plain") != 0) return 0;
    for (int64_t n = 0; n < N; n++) {
        starts[n] = after;
        torch_rng_skip(&after, 2 * V);
    }
    multinomial(&cx, starts, ids, probs, N, V);
    int drawn = context_end(&cx, NULL) == JANUS_OK;
    for (int64_t n = 0; n < N; n++) drawn = drawn && ids[n] >= 0;
    if (drawn) *rng = after;
    context_free(&cx);
    free(starts);
    return drawn;
}
void test_scale_temperature(float *x, int64_t V, double temperature) { scale_temperature(x, V, temperature); }
void test_softmax_probs(float *probs, const float *logits, int64_t V) {
    memcpy(probs, logits, (size_t)V * sizeof *probs);
    softmax(probs, V);
}
void test_keep_top_k(float *logits, int64_t V, int top_k, float *largest) { keep_top_k(logits, V, top_k, largest); }
void test_keep_top_p(float *logits, int64_t V, double top_p, RankedLogit *ranked) {
    keep_top_p(logits, V, top_p, ranked);
}
void test_expand_row(float *out, int type, const void *row, int64_t begin, int64_t n) {
    expand_plain(out, type, row, begin, n);
}
