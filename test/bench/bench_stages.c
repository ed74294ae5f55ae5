/* SPDX-License-Identifier: MIT */
/* janus.c with its stages made callable one by one, for bench_peers.py and quantisation.py beside it. Every call
   returns 0, or a JanusStatus. */
#define JANUS_LIBRARY
#include "../../janus.c"

enum { MOST_SEQUENCES = 2 };

typedef struct {
    JanusModel *model;
    JanusSession *session;
    Sequence sequences[MOST_SEQUENCES];
    /* what note_progress does: the time at each unit of `stage`, until there are `limit` of them */
    const char *stage;
    double *times;
    int count, limit;
    JanusError error;
} Stages;

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int note_progress(void *user, const char *stage, int64_t done, int64_t total) {
    Stages *s = user;
    (void)done;
    (void)total;
    if (s->stage == NULL || strcmp(stage, s->stage) != 0) return 0;
    if (s->count == s->limit) return 1; /* only now are the ids before this one kept */
    s->times[s->count++] = now_seconds();
    return 0;
}

const char *stages_error(const Stages *s) { return s->error.message; }

void stages_forget(Stages *s) {
    for (int r = 0; r < MOST_SEQUENCES; r++) kv_cache_free(&s->sequences[r].own);
    janus_reset(s->session);
}

void stages_close(Stages *s) {
    if (s->session != NULL) stages_forget(s);
    janus_session_free(s->session);
    janus_free(s->model);
    free(s);
}

/* NULL, with the reason on stderr, when the model cannot be used. */
Stages *stages_open(const char *path, int threads, int cache, int fast) {
    Stages *s = calloc(1, sizeof *s);
    JanusSessionOptions options = janus_session_defaults();
    if (s == NULL) return NULL;
    options.threads = threads;
    options.cache = (JanusCacheType)cache;
    options.fast = fast;
    options.progress = note_progress;
    options.user = s;
    if (janus_load(path, &s->model, &s->error) == JANUS_OK &&
        janus_session_new(s->model, &options, &s->session, &s->error) == JANUS_OK)
        return s;
    fprintf(stderr, "%s\n", s->error.message);
    stages_close(s);
    return NULL;
}

/* The same T embeddings x (T, D) go to the end of R sequences; logits (R, V) are those of the last position: of the LM
   head, or with `draws` (R, K) of the image head. `all`: of every position of the only sequence, (T, ...). */
static int read_embeddings(Stages *s, const float *x, int T, int R, int draws, int all, float *logits) {
    const Config *c = &s->model->config;
    Context *cx = &s->session->context;
    const int64_t width = c->hidden, rows = all ? T : R;
    float *hidden = scratch(cx, (int64_t)R * T, width), *last = scratch(cx, rows, width);
    Sequence *sequences[MOST_SEQUENCES];
    for (int r = 0; r < R && !has_failed(cx); r++) {
        sequences[r] = &s->sequences[r];
        copy(cx, hidden + r * T * width, x, T * width);
    }
    if (!has_failed(cx)) transformer_forward(cx, s->model, hidden, T, sequences, R, false);
    for (int64_t r = 0; r < rows && !has_failed(cx); r++)
        copy(cx, last + r * width, hidden + (all ? r : (r + 1) * T - 1) * width, width);
    if (draws) image_head(cx, s->model, logits, last, rows);
    else linear(cx, logits, last, &s->model->lm_head, NULL, rows);
    return context_end(cx, &s->error);
}

/* Text ids (T), seen pictures in the places of placeholders, at the end of R sequences; logits (R, V) of the last, or
   of `all` positions (T, V). */
int stages_read(Stages *s, const int32_t *ids, const float *seen, int T, int R, int all, float *logits) {
    const int64_t width = s->model->config.hidden;
    float *x = allocate(T * width, sizeof *x);
    if (x == NULL) return JANUS_NO_MEMORY;
    int shown = 0, end = 0; /* the placeholders of the one picture; an answer may say that id once more */
    while (seen != NULL && end < T && shown < vision_tokens(&s->model->config))
        shown += ids[end++] == s->model->config.image_placeholder;
    embed_prompt(&s->session->context, s->model, ids, end, 0, seen, x);
    embed_prompt(&s->session->context, s->model, ids + end, T - end, T - end, NULL, x + end * width);
    const int status = read_embeddings(s, x, T, R, 0, all, logits);
    free(x);
    return status;
}

/* A picture's ids (T) behind a prompt's ids (P), one sequence: logits (T, K) of the image head for each of them. */
int stages_read_picture(Stages *s, const int32_t *prompt, int P, const int32_t *ids, int T, float *logits) {
    const int64_t width = s->model->config.hidden;
    float *x = allocate((P + T) * width, sizeof *x),
          *all = allocate((P + T) * (int64_t)s->model->config.codebook, sizeof *all);
    int status = x == NULL || all == NULL ? JANUS_NO_MEMORY : JANUS_OK;
    if (status == JANUS_OK) embed_prompt(&s->session->context, s->model, prompt, P, P, NULL, x);
    if (status == JANUS_OK) {
        embed_image_ids(&s->session->context, s->model, ids, T, x + P * width);
        status = context_end(&s->session->context, &s->error);
    }
    if (status == JANUS_OK) status = read_embeddings(s, x, P + T - 1, 1, 1, 1, all);
    if (status == JANUS_OK)
        memcpy(logits, all + (P - 1) * (int64_t)s->model->config.codebook,
               (size_t)(T * (int64_t)s->model->config.codebook) * sizeof *all);
    free(x);
    free(all);
    return status;
}

/* The prompt of a picture as ids; returns how many there are, at most `room`, or -1. */
int stages_drawing_prompt(Stages *s, const char *prompt, int32_t *ids, int room) {
    IdList list = {0};
    drawing_prompt(&s->session->context, s->model, prompt, &list);
    const int ok = context_end(&s->session->context, &s->error) == JANUS_OK && list.count <= (size_t)room;
    const int count = ok ? (int)list.count : -1;
    if (ok) memcpy(ids, list.ids, list.count * sizeof *ids);
    free(list.ids);
    return count;
}

/* A first question about one picture as ids, as stages_drawing_prompt. */
int stages_question(Stages *s, const char *question, int32_t *ids, int room) {
    IdList list = {0};
    turn_prompt(&s->session->context, s->model, &s->session->conversation, question, 1, &list);
    const int ok = context_end(&s->session->context, &s->error) == JANUS_OK && list.count <= (size_t)room;
    const int count = ok ? (int)list.count : -1;
    if (ok) memcpy(ids, list.ids, list.count * sizeof *ids);
    free(list.ids);
    return count;
}

/* The first `steps` ids of a picture of a prompt: times[0] is the start, times[i] that of the i-th id. */
int stages_draw(Stages *s, const char *prompt, int steps, uint64_t seed, int32_t *ids, double *times) {
    JanusGenerateOptions options = janus_generate_defaults();
    options.seed = seed;
    s->stage = "draw", s->count = 0, s->limit = steps, s->times = times + 1;
    times[0] = now_seconds();
    const int status = janus_generate_ids(s->session, prompt, &options, ids, &s->error);
    s->stage = NULL;
    return status == JANUS_CANCELLED ? JANUS_OK : status;
}

/* The first `tokens` tokens of the answer to a question about a picture, timed likewise; *said is how many there
   were. */
int stages_ask(Stages *s, const char *question, uint8_t *rgb, int width, int height, int tokens, double *times,
               int *said) {
    JanusImage image = {width, height, NULL};
    JanusAskOptions options = janus_ask_defaults();
    image.rgb = rgb;
    options.max_tokens = tokens + 1;
    janus_reset(s->session);
    s->stage = "answer", s->count = 0, s->limit = tokens, s->times = times + 1;
    times[0] = now_seconds();
    const int status = janus_ask(s->session, question, &image, 1, &options, NULL, &s->error);
    s->stage = NULL;
    *said = s->count;
    return status == JANUS_CANCELLED ? JANUS_OK : status;
}

/* ids -> rgb (side, side, 3) */
int stages_decode(Stages *s, const int32_t *ids, uint8_t *rgb) {
    JanusImage image;
    const int status = janus_decode_image(s->session, ids, &image, &s->error);
    if (status == JANUS_OK) memcpy(rgb, image.rgb, (size_t)image.width * (size_t)image.height * 3);
    janus_image_free(&image);
    return status;
}

int stages_encode(Stages *s, uint8_t *rgb, int width, int height, int32_t *ids) {
    JanusImage image = {width, height, NULL};
    image.rgb = rgb;
    return janus_encode_image(s->session, &image, ids, &s->error);
}

/* A picture as embeddings (tokens, D). */
int stages_see(Stages *s, uint8_t *rgb, int width, int height, float *seen) {
    JanusImage image = {width, height, NULL};
    image.rgb = rgb;
    see_image(&s->session->context, s->model, &image, seen);
    return context_end(&s->session->context, &s->error);
}

int stages_size(const Stages *s, const char *name) {
    const Config *c = &s->model->config;
    if (strcmp(name, "side") == 0) return drawn_side(c);
    if (strcmp(name, "image_tokens") == 0) return (int)image_tokens(c);
    if (strcmp(name, "vision_tokens") == 0) return vision_tokens(c);
    if (strcmp(name, "vision_side") == 0) return c->image_side;
    if (strcmp(name, "codebook") == 0) return c->codebook;
    if (strcmp(name, "vocab") == 0) return c->vocab;
    if (strcmp(name, "context") == 0) return c->context;
    if (strcmp(name, "pad") == 0) return c->pad;
    if (strcmp(name, "eos") == 0) return c->eos;
    return strcmp(name, "hidden") == 0 ? c->hidden : -1;
}
