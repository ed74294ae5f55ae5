/* test_janus.c - tests of the library, in seconds and without Python.   SPDX-License-Identifier: MIT

       cc -I. test/c/test_janus.c -o test_janus -lm -lpthread
       ./test_janus [GOLDEN_FOLDER [TEMPORARY_FILE]]

   First `janus selftest` on four small models, whose stages PyTorch computed (test/golden, record_golden.py), with each
   kind of kernel that this machine has. Then what janus.h promises: sessions, turns, batches, cancellation, threads,
   errors. */

#define main janus_program
#include "janus.c"
#undef main

#include "common.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *golden_folder = "test/golden", *temporary = "test_janus.tmp";

typedef struct {
    JanusModel *model;
    JanusImage image;
    char path[512];
} Golden;

static Golden open_golden(const char *name) {
    Golden golden = {.image = {90, 60, need(malloc(3 * 90 * 60))}};
    JanusError error = {JANUS_OK, ""};
    for (int i = 0; i < 3 * 90 * 60; i++) golden.image.rgb[i] = (uint8_t)(i * 5 / 16);
    snprintf(golden.path, sizeof golden.path, "%s/%s.gguf", golden_folder, name);
    if (!check(janus_load(golden.path, &golden.model, &error) == JANUS_OK, 0, "load %s: %s", golden.path,
               error.message))
        exit(1);
    return golden;
}

/* Frees the model and a session of it, which may be NULL. */
static void close_golden(Golden *golden, JanusSession *session) {
    janus_session_free(session);
    janus_free(golden->model);
    janus_image_free(&golden->image);
}

static JanusSession *open_session(const JanusModel *model, const JanusSessionOptions *options) {
    JanusSession *session = NULL;
    JanusError error = {JANUS_OK, ""};
    if (!check(janus_session_new(model, options, &session, &error) == JANUS_OK, 0, "session: %s", error.message))
        exit(1);
    return session;
}

static JanusAskOptions greedy_answer(int max_tokens) {
    JanusAskOptions options = janus_ask_defaults();
    options.max_tokens = max_tokens;
    return options;
}

static JanusGenerateOptions greedy_drawing(int count) {
    JanusGenerateOptions options = janus_generate_defaults();
    options.count = count;
    options.temperature = 0;
    return options;
}

/* The text with white space around it, which a prompt loses; owned by the caller. */
static char *surrounded(const char *text) {
    const size_t size = strlen(text) + 16;
    char *padded = need(malloc(size));
    snprintf(padded, size, " \n\xe3\x80\x80%s\t \r\n", text);
    return padded;
}

/* Two turns, the first about the image. */
static int ask_twice(JanusSession *session, const Golden *golden, char *answers[2]) {
    const JanusAskOptions options = greedy_answer(3);
    return janus_ask(session, "What is in the picture?", &golden->image, 1, &options, &answers[0], NULL) == JANUS_OK &&
           janus_ask(session, "How many trees?", NULL, 0, &options, &answers[1], NULL) == JANUS_OK;
}

/* All kinds of kernels; which of them there are depends on the machine. */
static const char *const KERNEL_NAMES[] = {"plain", "simd128", "neon", "avx2", "avx512", "avx512bf16", "amx"};
enum { KERNEL_COUNT = sizeof KERNEL_NAMES / sizeof *KERNEL_NAMES };

static int is_usable(const JanusModel *model, const char *isa) {
    JanusSessionOptions options = janus_session_defaults();
    JanusSession *session = NULL;
    options.isa = isa;
    const int usable = janus_session_new(model, &options, &session, NULL) == JANUS_OK;
    janus_session_free(session);
    return usable;
}

/* Every stage of the golden models, with each kind of kernel that this machine has. */
static void test_golden(void) {
    static const char *const models[] = {"plain", "grouped", "tied", "quantised"}; /* f32, f16, bf16, all others */
    Golden golden = open_golden("plain");
    int usable[KERNEL_COUNT];
    for (int k = 0; k < KERNEL_COUNT; k++) usable[k] = is_usable(golden.model, KERNEL_NAMES[k]);
    close_golden(&golden, NULL);
    check(usable[0], 0, "the plain kernels work everywhere");
    for (int k = 0; k < KERNEL_COUNT; k++)
        for (int i = 0; i < 4 && usable[k]; i++) {
            char path[512], isa[16];
            snprintf(path, sizeof path, "%s/%s.gguf", golden_folder, models[i]);
            snprintf(isa, sizeof isa, "%s", KERNEL_NAMES[k]);
            char *arguments[] = {"janus", "selftest", "-q", "-t", "2", "--isa", isa, "-m", path, NULL};
            check(janus_main(9, arguments) == 0, 1, "%s, %s: every stage is PyTorch's", models[i], isa);
        }
}

/* ---- Results that must not depend on how they are computed ---- */

/* A fingerprint of everything that a session hands to its tap. */
static void hash_tap(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                     int dims) {
    uint64_t *hash = user;
    const unsigned char *bytes = data;
    int64_t count = type == JANUS_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(int32_t);
    for (int i = 0; i < dims; i++) count *= shape[i];
    for (; *name != 0; name++) *hash = (*hash ^ (unsigned char)*name) * 1099511628211u;
    for (int64_t i = 0; i < count; i++) *hash = (*hash ^ bytes[i]) * 1099511628211u;
}

/* Everything at once, on the given number of threads. */
static uint64_t fingerprint(Golden *golden, int threads) {
    uint64_t hash = 14695981039346656037u;
    JanusSessionOptions options = janus_session_defaults();
    JanusGenerateOptions drawing = janus_generate_defaults();
    JanusImage pictures[2] = {{0, 0, NULL}, {0, 0, NULL}};
    char *answers[2] = {NULL, NULL};
    int32_t *ids = need(malloc((size_t)janus_info(golden->model).image_tokens * sizeof *ids));
    options.threads = threads;
    options.tap = hash_tap;
    options.user = &hash;
    drawing.count = 2;
    drawing.seed = 7;
    JanusSession *session = open_session(golden->model, &options);
    check(ask_twice(session, golden, answers), 0, "two turns on %d threads", threads);
    check(janus_generate(session, "two blue cars", &drawing, pictures, NULL) == JANUS_OK, 0, "draw on %d threads",
          threads);
    check(janus_encode_image(session, &golden->image, ids, NULL) == JANUS_OK, 0, "encode on %d threads", threads);
    janus_image_free(&pictures[0]);
    janus_image_free(&pictures[1]);
    free(answers[0]);
    free(answers[1]);
    free(ids);
    janus_session_free(session);
    return hash;
}

static void test_threads(const char *name) {
    Golden golden = open_golden(name);
    const uint64_t one = fingerprint(&golden, 1);
    check(fingerprint(&golden, 1) == one, 1, "%s: the same twice", name);
    check(fingerprint(&golden, 2) == one, 1, "%s: 2 threads give the bits of 1", name);
    check(fingerprint(&golden, 3) == one, 1, "%s: 3 threads give the bits of 1", name);
    close_golden(&golden, NULL);
}

/* Pictures drawn side by side are those drawn one by one, and each is the decoded form of its ids. */
static void test_batch(const char *name) {
    Golden golden = open_golden(name);
    JanusSession *session = open_session(golden.model, NULL);
    const JanusInfo info = janus_info(golden.model);
    const size_t tokens = (size_t)info.image_tokens, bytes = 3 * (size_t)info.image_size * (size_t)info.image_size;
    int32_t *ids = need(malloc(3 * tokens * sizeof *ids)), *single = need(malloc(tokens * sizeof *single));
    JanusGenerateOptions options = greedy_drawing(3);
    JanusImage pictures[3], decoded;
    char *prompt = surrounded("a red fox");
    check(janus_generate_ids(session, prompt, &options, ids, NULL) == JANUS_OK, 0, "three rows of ids");
    options.count = 1;
    check(janus_generate_ids(session, prompt, &options, single, NULL) == JANUS_OK, 0, "one row of ids");
    for (int i = 0; i < 3; i++)
        check(memcmp(ids + (size_t)i * tokens, single, tokens * sizeof *ids) == 0, 1,
              "greedy picture %d of 3 is the single one", i);
    check(janus_generate_ids(session, "a red fox", &options, ids, NULL) == JANUS_OK &&
              memcmp(single, ids, tokens * sizeof *ids) == 0,
          1, "white space around a prompt changes nothing");

    options.count = 3;
    options.temperature = 1;
    options.seed = 11;
    check(janus_generate_ids(session, prompt, &options, ids, NULL) == JANUS_OK, 0, "three sampled rows");
    check(janus_generate(session, prompt, &options, pictures, NULL) == JANUS_OK, 0, "three sampled pictures");
    for (int i = 0; i < 3; i++) {
        check(janus_decode_image(session, ids + (size_t)i * tokens, &decoded, NULL) == JANUS_OK, 0, "decode");
        check(pictures[i].width == info.image_size && pictures[i].height == info.image_size &&
                  memcmp(pictures[i].rgb, decoded.rgb, bytes) == 0,
              1, "sampled picture %d of 3 is its decoded ids", i);
        janus_image_free(&decoded);
        janus_image_free(&pictures[i]);
    }
    check(memcmp(ids, ids + tokens, tokens * sizeof *ids) != 0, 1, "sampled pictures differ");
    options.count = 1;
    options.temperature = 100; /* nearly any id */
    check(janus_generate_ids(session, prompt, &options, ids, NULL) == JANUS_OK, 0, "a seed");
    options.seed = 12;
    check(janus_generate_ids(session, prompt, &options, ids + tokens, NULL) == JANUS_OK, 0, "another seed");
    check(memcmp(ids, ids + tokens, tokens * sizeof *ids) != 0, 1, "another seed, another picture");
    free(ids);
    free(single);
    free(prompt);
    close_golden(&golden, session);
}

/* ---- The first logits of an answer ---- */

/* Largest difference relative to the largest value; infinite for anything that is not finite. */
static double relative_difference(const float *mine, const float *theirs, int64_t count) {
    double difference = 0, largest = 1e-30;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabs((double)mine[i]) < 1e30)) return HUGE_VAL;
        if (fabs((double)mine[i] - theirs[i]) > difference) difference = fabs((double)mine[i] - theirs[i]);
        if (fabs((double)theirs[i]) > largest) largest = fabs((double)theirs[i]);
    }
    return difference / largest;
}

typedef struct {
    float logits[4096];
    int64_t count; /* 0: nothing yet */
} KeptLogits;

static void keep_logits(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                        int dims) {
    KeptLogits *kept = user;
    (void)type, (void)dims;
    if (strcmp(name, "lm.logits") != 0 || kept->count != 0 || shape[0] > 4096) return;
    kept->count = shape[0];
    memcpy(kept->logits, data, (size_t)kept->count * sizeof *kept->logits);
}

/* The first logits of an answer about an image: exact or with rounded activations, with a type of cache. */
static KeptLogits answer_logits(const JanusModel *model, const JanusImage *image, int fast, JanusCacheType cache) {
    KeptLogits kept = {{0}, 0};
    JanusSessionOptions options = janus_session_defaults();
    const JanusAskOptions ask = greedy_answer(1);
    options.fast = fast;
    options.cache = cache;
    options.tap = keep_logits;
    options.user = &kept;
    JanusSession *session = open_session(model, &options);
    janus_ask(session, "What is it?", image, 1, &ask, NULL, NULL);
    janus_session_free(session);
    return kept;
}

/* Rounded activations barely move the first logits of quantised weights. */
static void test_fast(void) {
    Golden golden = open_golden("quantised");
    const KeptLogits exact = answer_logits(golden.model, &golden.image, 0, JANUS_CACHE_AUTO),
                     fast = answer_logits(golden.model, &golden.image, 1, JANUS_CACHE_AUTO);
    const double difference = relative_difference(fast.logits, exact.logits, exact.count);
    check(strcmp(janus_info(golden.model).weight_type, "q6_k") == 0, 1, "the type of the first block's matrices");
    check(exact.count > 0 && fast.count == exact.count && difference < 5e-2, 1,
          "rounded activations move the first logits by %.1e", difference);
    close_golden(&golden, NULL);
}

/* Keys and values in float16 cost half the memory and little accuracy; float32 is the default, whatever the weights
   are. */
static void test_cache_types(void) {
    static const char *const names[] = {"plain", "grouped", "tied"}; /* f32, f16, bf16 */
    for (int i = 0; i < 3; i++) {
        Golden golden = open_golden(names[i]);
        const KeptLogits whole = answer_logits(golden.model, &golden.image, 0, JANUS_CACHE_F32),
                         half = answer_logits(golden.model, &golden.image, 0, JANUS_CACHE_F16),
                         usual = answer_logits(golden.model, &golden.image, 0, JANUS_CACHE_AUTO);
        const double difference = relative_difference(half.logits, whole.logits, whole.count);
        check(whole.count > 0 && difference > 1e-7 && difference < 5e-3, 1,
              "%s: a float16 cache moves the first logits by %.1e", names[i], difference);
        check(memcmp(&usual, &whole, sizeof whole) == 0, 1, "%s: the cache is float32 by default", names[i]);
        close_golden(&golden, NULL);
    }
}

/* ---- Conversations ---- */

typedef struct {
    char text[4096];
    size_t length;
    int calls, stop_after, valid;
    int prompt_tokens; /* of the last text.token_ids */
} Stream;

static int stream_text(void *user, const char *text, size_t length) {
    Stream *stream = user;
    stream->calls++;
    if (length == 0 || !utf8_valid(text, length)) stream->valid = 0;
    if (stream->length + length < sizeof stream->text) {
        memcpy(stream->text + stream->length, text, length);
        stream->length += length;
        stream->text[stream->length] = 0;
    }
    return stream->stop_after > 0 && stream->calls >= stream->stop_after;
}

static void count_prompt(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                         int dims) {
    Stream *stream = user;
    (void)type, (void)data, (void)dims;
    if (strcmp(name, "text.token_ids") == 0) stream->prompt_tokens = (int)shape[0];
}

/* Turns are not read again, sessions do not touch each other, the streamed text is the answer. */
static void test_conversation(void) {
    Golden golden = open_golden("plain");
    Stream stream;
    JanusSessionOptions options = janus_session_defaults();
    char *first[2] = {NULL, NULL}, *second[2] = {NULL, NULL}, *again = NULL;
    const char *question = "What is in the picture?", *second_question = "How many trees?";
    const JanusAskOptions ask = greedy_answer(3);
    memset(&stream, 0, sizeof stream);
    stream.valid = 1;
    options.text = stream_text;
    options.tap = count_prompt;
    options.user = &stream;
    JanusSession *a = open_session(golden.model, &options), *b = open_session(golden.model, NULL);

    check(janus_conversation_length(a) == 0, 1, "a new conversation is empty");
    check(janus_ask(a, question, &golden.image, 1, &ask, &first[0], NULL) == JANUS_OK, 0, "first turn");
    check(stream.valid && strcmp(stream.text, first[0]) == 0, 1,
          "the streamed text is the answer, in whole characters");
    const int length = janus_conversation_length(a), read = stream.prompt_tokens;
    check(length > read - 1, 1, "the conversation holds the prompt's %d tokens", read);
    check(janus_ask(b, question, &golden.image, 1, &ask, &second[0], NULL) == JANUS_OK, 0,
          "another session's first turn");
    check(janus_ask(a, second_question, NULL, 0, &ask, &first[1], NULL) == JANUS_OK, 0, "second turn");
    check(stream.prompt_tokens < read / 2, 1, "the second turn reads %d tokens, not the %d before it",
          stream.prompt_tokens, length);
    check(janus_ask(b, second_question, NULL, 0, &ask, &second[1], NULL) == JANUS_OK, 0,
          "another session's second turn");
    check(strcmp(first[0], second[0]) == 0 && strcmp(first[1], second[1]) == 0, 1,
          "two sessions in turn give the same answers");
    janus_reset(a);
    check(janus_conversation_length(a) == 0, 1, "reset forgets the conversation");
    check(janus_ask(a, question, &golden.image, 1, &ask, &again, NULL) == JANUS_OK && strcmp(again, first[0]) == 0, 1,
          "the first answer again after reset");
    for (int i = 0; i < 2; i++) {
        free(first[i]);
        free(second[i]);
    }
    free(again);
    janus_session_free(a);
    janus_session_free(b);
    close_golden(&golden, NULL);
}

/* What is heard of a drawing. */
typedef struct {
    int32_t ids[2][16];
    int64_t calls, stop_at;
    bool good;
    const JanusModel *model;
} Watch;

static int watch_drawing(void *user, const int32_t *ids, int count, int64_t done, int64_t total) {
    Watch *watch = user;
    watch->good &= count == 2 && done == ++watch->calls && total == janus_info(watch->model).image_tokens;
    for (int n = 0; n < count && total <= 16; n++) {
        watch->good &= memcmp(watch->ids[n], ids + n * total, (size_t)(done - 1) * sizeof *ids) == 0;
        memcpy(watch->ids[n], ids + n * total, (size_t)done * sizeof *ids);
    }
    if (done == 3) { /* another session may work in the call */
        const int32_t partial[16] = {ids[0], ids[1], ids[2]};
        JanusImage picture;
        JanusSession *other = open_session(watch->model, NULL);
        watch->good &= janus_decode_image(other, partial, &picture, NULL) == JANUS_OK;
        janus_image_free(&picture);
        janus_session_free(other);
    }
    return done == watch->stop_at;
}

/* Ids are heard as they are drawn, those that came before stay, and any of the calls can stop the drawing. */
static void test_drawn(void) {
    Golden golden = open_golden("plain");
    const JanusGenerateOptions drawing = greedy_drawing(2);
    const int T = janus_info(golden.model).image_tokens;
    JanusSessionOptions options = janus_session_defaults();
    int32_t *ids = need(calloc(2 * (size_t)T, sizeof *ids));
    Watch watch;
    JanusError error = {JANUS_OK, ""};
    options.drawn = watch_drawing;
    options.user = &watch;
    JanusSession *session = open_session(golden.model, &options);
    for (int stop = 0; stop <= T; stop++) {
        memset(&watch, 0, sizeof watch);
        watch.good = true;
        watch.stop_at = stop;
        watch.model = golden.model;
        const JanusStatus status = janus_generate_ids(session, "a heart", &drawing, ids, &error);
        check(status == (stop > 0 ? JANUS_CANCELLED : JANUS_OK) && watch.good && watch.calls == (stop > 0 ? stop : T),
              stop < 2, "a drawing is heard for %d steps of %d%s", (int)watch.calls, T, stop > 0 ? " and stopped" : "");
    }
    check(memcmp(watch.ids[0], ids, (size_t)T * sizeof *ids) == 0, 1, "what was heard is what was drawn");
    free(ids);
    close_golden(&golden, session);
}

/* A conversation until the context is full ends with an error and stays usable. */
static void test_full_context(void) {
    Golden golden = open_golden("tied");
    JanusSession *session = open_session(golden.model, NULL);
    JanusError error = {JANUS_OK, ""};
    const JanusAskOptions ask = greedy_answer(40);
    const int context = janus_info(golden.model).context_length;
    JanusStatus status = JANUS_OK;
    int turns = 0, length = 0;
    for (; turns < 200 && status == JANUS_OK; turns++) {
        length = janus_conversation_length(session);
        status = janus_ask(session, "How many trees are there?", NULL, 0, &ask, NULL, &error);
        check(janus_conversation_length(session) <= context, 0, "%d tokens after turn %d",
              janus_conversation_length(session), turns);
    }
    check(status == JANUS_BAD_ARGUMENT && turns > 1, 1, "turn %d would exceed the context: %s", turns, error.message);
    check(janus_conversation_length(session) == length, 1, "the refused turn leaves the conversation's %d tokens",
          length);
    janus_reset(session);
    check(janus_ask(session, "Hello", NULL, 0, &ask, NULL, NULL) == JANUS_OK, 1, "a new conversation after that");
    close_golden(&golden, session);
}

/* ---- Cancellation ---- */

typedef struct {
    int calls, stop_at; /* stop_at 0: never */
} Stopper;

static int stop_progress(void *user, const char *stage, int64_t done, int64_t total) {
    Stopper *stopper = user;
    if (stage == NULL || *stage == 0 || done < 0 || done > total) stopper->calls += 1000000;
    return ++stopper->calls == stopper->stop_at;
}

/* The colours of the codebook: nothing is heard of the work, the session is as before, and a second call agrees. */
static void test_colours(const char *name) {
    Golden golden = open_golden(name);
    const size_t bytes = 3 * (size_t)janus_info(golden.model).codebook_size;
    uint8_t *first = need(malloc(bytes)), *second = need(malloc(bytes));
    JanusSessionOptions options = janus_session_defaults();
    Stopper stopper = {0, 0};
    options.progress = stop_progress;
    options.user = &stopper;
    JanusSession *session = open_session(golden.model, &options);
    memset(first, 1, bytes);
    memset(second, 2, bytes);
    check(janus_codebook_colours(session, first, NULL) == JANUS_OK && stopper.calls == 0 &&
              janus_codebook_colours(session, second, NULL) == JANUS_OK && memcmp(first, second, bytes) == 0,
          1, "%s: the colours of the codebook", name);
    int different = 0;
    for (size_t i = 3; i < bytes; i++) different += first[i] != first[i % 3];
    check(different > (int)bytes / 4, 1, "%s: ids have colours of their own", name);
    free(first);
    free(second);
    close_golden(&golden, session);
}

/* One of the five long calls; the result is put into `ids` or `answer`. */
static JanusStatus long_call(int which, JanusSession *session, Golden *golden, int32_t *ids, char **answer) {
    const JanusAskOptions ask = greedy_answer(3);
    const JanusGenerateOptions drawing = greedy_drawing(2);
    static const int32_t drawn[9] = {5, 1, 4, 1, 3, 9, 2, 6, 7};
    JanusImage picture = {0, 0, NULL};
    JanusStatus status;
    if (which == 0) return janus_ask(session, "What is it?", &golden->image, 1, &ask, answer, NULL);
    if (which == 1) return janus_generate_ids(session, "a heart", &drawing, ids, NULL);
    if (which == 2) return janus_encode_image(session, &golden->image, ids, NULL);
    status = janus_decode_image(session, drawn, &picture, NULL);
    for (int i = 0; i < 4 && status == JANUS_OK; i++) ids[i] = picture.rgb[i];
    janus_image_free(&picture);
    return status;
}

/* Stops a call at every one of its progress calls; after each, the whole call gives the undisturbed result. */
static void test_cancel_call(int which, const char *what) {
    Golden golden = open_golden("plain");
    const size_t bytes = 2 * (size_t)janus_info(golden.model).image_tokens * sizeof(int32_t);
    int32_t *expected = need(calloc(1, bytes)), *ids = need(calloc(1, bytes));
    char *expected_answer = NULL, *answer = NULL;
    JanusSessionOptions options = janus_session_defaults();
    Stopper stopper = {0, 0};
    int cancelled = 0, same = 1, total;
    options.progress = stop_progress;
    options.user = &stopper;
    JanusSession *session = open_session(golden.model, &options);
    check(long_call(which, session, &golden, expected, &expected_answer) == JANUS_OK, 0, "%s", what);
    total = stopper.calls;
    for (int stop = 1; stop <= total; stop++) {
        const int length = (janus_reset(session), janus_conversation_length(session));
        stopper.calls = 0;
        stopper.stop_at = stop;
        cancelled += long_call(which, session, &golden, ids, &answer) == JANUS_CANCELLED;
        same &= answer == NULL && janus_conversation_length(session) == length;
        stopper.stop_at = 0;
        same &= long_call(which, session, &golden, ids, &answer) == JANUS_OK && memcmp(ids, expected, bytes) == 0 &&
                (answer == NULL) == (expected_answer == NULL) &&
                (answer == NULL || strcmp(answer, expected_answer) == 0);
        free(answer);
        answer = NULL;
    }
    check(cancelled == total && total > 0 && total < 1000000, 1, "%s stops at each of its %d progress calls", what,
          total);
    check(same, 1, "%s gives the same result after each of them", what);
    free(expected_answer);
    free(expected);
    free(ids);
    close_golden(&golden, session);
}

/* The text callback stops an answer; the turn is dropped from the conversation. */
static void test_cancel_text(void) {
    Golden golden = open_golden("grouped");
    Stream stream;
    JanusSessionOptions options = janus_session_defaults();
    const JanusAskOptions ask = greedy_answer(40);
    char *answer = NULL;
    JanusError error = {JANUS_OK, ""};
    memset(&stream, 0, sizeof stream);
    stream.stop_after = 2;
    options.text = stream_text;
    options.user = &stream;
    JanusSession *session = open_session(golden.model, &options);
    check(janus_ask(session, "Describe it.", &golden.image, 1, &ask, &answer, &error) == JANUS_CANCELLED &&
              answer == NULL && error.status == JANUS_CANCELLED && error.message[0] != 0,
          1, "the text callback stops an answer: %s", error.message);
    check(janus_conversation_length(session) == 0, 1, "the stopped turn is dropped");
    close_golden(&golden, session);
}

/* ---- Errors: arguments ---- */

/* A call failed with this status and one line of words; `error` is empty again. */
static void expect(JanusStatus status, JanusStatus wanted, JanusError *error, const char *what) {
    const int said = error->status == wanted && error->message[0] != 0 && strchr(error->message, '\n') == NULL;
    check(status == wanted && said, 0, "%s: status %d, expected %d; message: %s", what, (int)status, (int)wanted,
          error->message);
    memset(error, 0, sizeof *error);
}

static void test_bad_texts(void) {
    static const char *const bad[] = {"",        "   \n\t ", "\xff\xfe", "abc\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xc0\x80"};
    Golden golden = open_golden("plain");
    JanusSession *session = open_session(golden.model, NULL);
    JanusError error = {JANUS_OK, ""};
    const JanusInfo info = janus_info(golden.model);
    int32_t *ids = need(malloc((size_t)info.image_tokens * sizeof *ids)), *tokens = NULL;
    size_t count = 0, long_length = 12 * (size_t)info.context_length;
    char *text = need(malloc(long_length + 1));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        expect(janus_generate_ids(session, bad[i], NULL, ids, &error), JANUS_BAD_ARGUMENT, &error,
               "drawing a bad prompt");
        expect(janus_ask(session, bad[i], NULL, 0, NULL, NULL, &error), JANUS_BAD_ARGUMENT, &error,
               "asking a bad question");
        if (i < 2) continue;
        expect(janus_tokenize(golden.model, bad[i], strlen(bad[i]), &tokens, &count, &error), JANUS_BAD_ARGUMENT,
               &error, "tokenizing bad UTF-8");
    }
    for (size_t i = 0; i < long_length; i++) text[i] = "a b c9 "[i % 7];
    text[long_length] = 0;
    expect(janus_generate_ids(session, text, NULL, ids, &error), JANUS_BAD_ARGUMENT, &error,
           "drawing a prompt that is too long");
    expect(janus_ask(session, text, NULL, 0, NULL, NULL, &error), JANUS_BAD_ARGUMENT, &error,
           "asking too long a question");
    expect(janus_ask(session, "<image_placeholder> and <image_placeholder>", &golden.image, 1, NULL, NULL, &error),
           JANUS_BAD_ARGUMENT, &error, "two placeholders for one image");
    check(janus_tokenize(golden.model, "", 0, &tokens, &count, NULL) == JANUS_OK && count == 0, 1,
          "an empty text has no tokens");
    free(tokens);
    free(text);
    free(ids);
    close_golden(&golden, session);
}

static void test_bad_options(void) {
    Golden golden = open_golden("plain");
    JanusSession *session = open_session(golden.model, NULL), *none = NULL;
    JanusError error = {JANUS_OK, ""};
    int32_t *ids = need(malloc(65 * (size_t)janus_info(golden.model).image_tokens * sizeof *ids));
    for (int i = 0; i < 7; i++) {
        JanusGenerateOptions options = janus_generate_defaults();
        if (i == 0) options.count = 0;
        if (i == 1) options.count = 65;
        if (i == 2) options.cfg_weight = -1;
        if (i == 3) options.cfg_weight = (float)HUGE_VAL;
        if (i == 4) options.temperature = -0.5f;
        if (i == 5) options.temperature = 101;
        if (i == 6) options.temperature = (float)(HUGE_VAL - HUGE_VAL);
        expect(janus_generate_ids(session, "a cat", &options, ids, &error), JANUS_BAD_ARGUMENT, &error,
               "bad drawing options");
    }
    for (int i = 0; i < 6; i++) {
        JanusAskOptions options = janus_ask_defaults();
        if (i == 0) options.max_tokens = 0;
        if (i == 1) options.temperature = -1;
        if (i == 2) options.temperature = (float)(HUGE_VAL - HUGE_VAL);
        if (i == 3) options.top_p = 0;
        if (i == 4) options.top_p = 1.5;
        if (i == 5) options.top_k = -1;
        expect(janus_ask(session, "what?", NULL, 0, &options, NULL, &error), JANUS_BAD_ARGUMENT, &error,
               "bad asking options");
    }
    for (int i = 0; i < 4; i++) {
        JanusSessionOptions options = janus_session_defaults();
        if (i == 0) options.threads = -1;
        if (i == 1) options.threads = 257;
        if (i == 2) options.isa = "mmx";
        if (i == 3) options.cache = (JanusCacheType)3;
        expect(janus_session_new(golden.model, &options, &none, &error), JANUS_BAD_ARGUMENT, &error,
               "bad session options");
        check(none == NULL, 0, "a refused session is NULL");
    }
    JanusAskOptions precise = janus_ask_defaults();
    const double wanted = 0.8; /* a constant itself may have more bits (x87) */
    precise.top_p = wanted; /* as a float it would be larger, and could keep one id more than Python's */
    check(precise.top_p == wanted, 1, "top-p is as precise as Python's floats");
    free(ids);
    close_golden(&golden, session);
}

/* NULL where something is needed is an error, not a crash. */
static void test_null(void) {
    Golden golden = open_golden("plain");
    const JanusModel *m = golden.model;
    JanusSession *session = open_session(m, NULL), *none = NULL;
    JanusModel *model = NULL;
    JanusQueue *queue = NULL;
    JanusImage picture = {0, 0, NULL};
    JanusError error = {JANUS_OK, ""};
    const JanusAskOptions ask = greedy_answer(1);
    int32_t *ids = need(calloc((size_t)janus_info(m).image_tokens, sizeof *ids)), *tokens = NULL;
    float *pixels = need(malloc(3 * (size_t)janus_info(m).vision_size * (size_t)janus_info(m).vision_size * 4));
    uint8_t *rgb = need(malloc(3 * (size_t)janus_info(m).codebook_size));
    char *text = NULL;
    size_t count = 0;
    check(janus_queue_new(session, 1, &queue, NULL) == JANUS_OK, 0, "a queue");
    for (int i = 0; i < 31; i++) {
        JanusStatus status = JANUS_OK;
        if (i == 0) status = janus_load(NULL, &model, &error);
        if (i == 1) status = janus_load(golden.path, NULL, &error);
        if (i == 2) status = janus_session_new(NULL, NULL, &none, &error);
        if (i == 3) status = janus_session_new(m, NULL, NULL, &error);
        if (i == 4) status = janus_generate(NULL, "a", NULL, &picture, &error);
        if (i == 5) status = janus_generate(session, NULL, NULL, &picture, &error);
        if (i == 6) status = janus_generate(session, "a", NULL, NULL, &error);
        if (i == 7) status = janus_generate_ids(NULL, "a", NULL, ids, &error);
        if (i == 8) status = janus_generate_ids(session, NULL, NULL, ids, &error);
        if (i == 9) status = janus_generate_ids(session, "a", NULL, NULL, &error);
        if (i == 10) status = janus_ask(NULL, "a", NULL, 0, NULL, NULL, &error);
        if (i == 11) status = janus_ask(session, NULL, NULL, 0, NULL, NULL, &error);
        if (i == 12) status = janus_ask(session, "a", NULL, 1, NULL, NULL, &error);
        if (i == 13) status = janus_encode_image(NULL, &golden.image, ids, &error);
        if (i == 14) status = janus_encode_image(session, NULL, ids, &error);
        if (i == 15) status = janus_encode_image(session, &golden.image, NULL, &error);
        if (i == 16) status = janus_decode_image(NULL, ids, &picture, &error);
        if (i == 17) status = janus_decode_image(session, NULL, &picture, &error);
        if (i == 18) status = janus_decode_image(session, ids, NULL, &error);
        if (i == 19) status = janus_preprocess(NULL, &golden.image, pixels, &error);
        if (i == 20) status = janus_preprocess(m, NULL, pixels, &error);
        if (i == 21) status = janus_preprocess(m, &golden.image, NULL, &error);
        if (i == 22) status = janus_codebook_colours(NULL, rgb, &error);
        if (i == 23) status = janus_codebook_colours(session, NULL, &error);
        if (i == 24) status = janus_tokenize(m, NULL, 1, &tokens, &count, &error);
        if (i == 25) status = janus_tokenize(m, "a", 1, NULL, NULL, &error);
        if (i == 26) status = janus_detokenize(m, NULL, 1, &text, NULL, &error);
        if (i == 27) status = janus_detokenize(NULL, ids, 1, &text, NULL, &error);
        if (i == 28) status = janus_queue_new(NULL, 1, &queue, &error);
        if (i == 29) status = janus_queue_generate(NULL, "a", NULL, NULL, &error);
        if (i == 30) status = janus_queue_ask(queue, "a", NULL, 1, NULL, NULL, &error);
        expect(status, JANUS_BAD_ARGUMENT, &error, "NULL");
    }
    check(janus_generate_ids(session, "a", NULL, ids, NULL) == JANUS_OK &&
              janus_ask(session, "a", NULL, 0, &ask, NULL, NULL) == JANUS_OK &&
              janus_tokenize(m, NULL, 0, &tokens, &count, NULL) == JANUS_OK && count == 0,
          1, "NULL for options, images of none, an answer, an error and an empty text is taken");
    janus_queue_free(queue);
    janus_session_free(session);
    free(tokens);
    free(ids);
    free(pixels);
    free(rgb);
    close_golden(&golden, NULL);
}

static void test_bad_ids(void) {
    Golden golden = open_golden("plain");
    JanusSession *session = open_session(golden.model, NULL);
    JanusError error = {JANUS_OK, ""};
    const JanusInfo info = janus_info(golden.model);
    JanusImage picture = {0, 0, NULL};
    int32_t *ids = need(calloc((size_t)info.image_tokens, sizeof *ids));
    const int32_t bad[] = {-1, info.codebook_size, INT32_MAX, INT32_MIN};
    char *text = NULL;
    for (int i = 0; i < 4; i++) {
        ids[info.image_tokens - 1] = bad[i];
        expect(janus_decode_image(session, ids, &picture, &error), JANUS_BAD_ARGUMENT, &error,
               "decoding an id out of range");
        check(picture.rgb == NULL, 0, "no picture after a failed call");
        const int32_t token = i == 1 ? info.vocab_size : bad[i];
        expect(janus_detokenize(golden.model, &token, 1, &text, NULL, &error), JANUS_BAD_ARGUMENT, &error,
               "detokenizing an id out of range");
        check(text == NULL, 0, "no text after a failed call");
    }
    free(ids);
    close_golden(&golden, session);
}

/* ---- Errors: model files ---- */

static void expect_bad_model(const void *bytes, size_t length, const char *what) {
    JanusModel *model = NULL;
    JanusError error = {JANUS_OK, ""};
    write_file(temporary, bytes, length);
    expect(janus_load(temporary, &model, &error), JANUS_BAD_MODEL, &error, what);
    check(model == NULL, 0, "%s: no model after a failed load", what);
    janus_free(model);
}

/* Cut off at many lengths: everywhere in the header's first kilobyte, then ever more coarsely. */
static void test_truncated(const unsigned char *bytes, size_t length) {
    for (size_t cut = 0; cut < length; cut += cut < 512 ? 7 : cut < 65536 ? 997 : 30011)
        expect_bad_model(bytes, cut, "a truncated model");
}

/* Where `text` stands in the bytes; -1 for nowhere. */
static long find_bytes(const unsigned char *bytes, size_t length, const char *text) {
    const size_t size = strlen(text);
    for (size_t i = 0; i + size <= length; i++)
        if (memcmp(bytes + i, text, size) == 0) return (long)i;
    return -1;
}

/* A copy of the model in which `count` bytes at `at` are replaced. */
static void expect_bad_patch(const unsigned char *bytes, size_t length, long at, const void *patch, size_t count,
                             const char *what) {
    unsigned char *copy = need(malloc(length));
    if (!check(at >= 0, 0, "%s: nothing to damage", what)) exit(1);
    memcpy(copy, bytes, length);
    memcpy(copy + at, patch, count);
    expect_bad_model(copy, length, what);
    free(copy);
}

/* Numbers replaced in the file's first bytes or behind a name, or a name itself. */
static void test_damaged(const unsigned char *bytes, size_t length) {
    enum { ITSELF = -1 };
#define BIG "\0\0\0\0\0\0\0\x10"
#define NORM "output_norm.weight" /* one dimension: 4 bytes for their number, 8 its size, 4 the type, 8 the offset */
#define EPSILON "janus.attention.layer_norm_rms_epsilon"
#define MERGES "janus.tokenizer.merges"
    static const struct {
        const char *what, *name;
        int skip, count; /* bytes between the name and the patch; those of the patch */
        const char *patch;
    } ROWS[] = {{"another magic", "", 0, 4, "GGML"},
                {"another GGUF version", "", 4, 1, "\2"},
                {"2^60 tensors", "", 8, 8, BIG},
                {"2^60 metadata entries", "", 16, 8, BIG},
                {"a key of 2^60 bytes", "", 24, 8, BIG},
                {"another architecture", "general.architecture", 12, 5, "llama"},
                {"a missing tensor", NORM, ITSELF, 11, "output_morn"},
                {"a tensor that nobody knows", "output.weight", ITSELF, 1, "x"},
                {"another number of dimensions", NORM, 0, 1, "\2"},
                {"a misshapen tensor", NORM, 4, 2, "\7\0"},
                {"a tensor of 2^60 numbers", NORM, 4, 8, BIG},
                {"an unknown tensor type", NORM, 12, 1, "\x63"},
                {"an offset behind the file", NORM, 16, 8, "\0\0\0\0\x40\0\0\0"},
                {"an offset that overflows", NORM, 16, 8, "\xC0\xFF\xFF\xFF\xFF\xFF\xFF\xFF"},
                {"an offset that is not aligned", NORM, 16, 1, "\1"},
                {"a matrix of 2^60 rows", "token_embd.weight", 12, 8, BIG},
                {"an epsilon of zero", EPSILON, 4, 4, "\0\0\0\0"},
                {"a negative epsilon", EPSILON, 4, 4, "\0\0\x80\xBF"},
                {"an infinite epsilon", EPSILON, 4, 4, "\0\0\x80\x7F"},
                {"an epsilon that is no number", EPSILON, 4, 4, "\0\0\xC0\x7F"},
                {"no system prompt", "janus.prompt.system", ITSELF, 1, "x"},
                {"no types of tokens", "tokenizer.ggml.token_type", ITSELF, 1, "x"},
                {"strings that are numbers", "tokenizer.ggml.tokens", 0, 4, "\5\0\0\0"},
                {"merges that are no array", MERGES, 0, 4, "\5\0\0\0"},
                {"merges of floats", MERGES, 4, 4, "\6\0\0\0"},
                {"a merge of no tokens", MERGES, 16, 4, "\377\377\377\377"},
                {"split rules of unknown flags", "janus.tokenizer.split_rules", 16, 4, "\4\0\0\0"}};
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        const long name = find_bytes(bytes, length, ROWS[i].name);
        const long behind = ROWS[i].skip == ITSELF ? 0 : (long)strlen(ROWS[i].name) + ROWS[i].skip;
        expect_bad_patch(bytes, length, name < 0 ? name : name + behind, ROWS[i].patch, (size_t)ROWS[i].count,
                         ROWS[i].what);
    }
}

/* Every size in the metadata set to what no model has: refused, or harmless, but never a crash. */
static void test_absurd_sizes(const unsigned char *bytes, size_t length) {
    static const char *const keys[] = {
        "janus.embedding_length", "janus.block_count", "janus.feed_forward_length", "janus.vocab_size",
        "janus.attention.head_count", "janus.attention.head_count_kv", "janus.attention.key_length",
        "janus.vision.image_size", "janus.vision.patch_size", "janus.vision.embedding_length",
        "janus.vision.block_count", "janus.vision.feed_forward_length", "janus.vision.attention.head_count",
        "janus.aligner.depth", "janus.gen_aligner.depth", "janus.gen_head.embedding_length", "janus.vq.codebook_size",
        "janus.vq.codebook_dim", "janus.vq.base_channels", "janus.vq.res_blocks", "janus.vq.z_channels",
        "janus.vq.group_count", "janus.vq.grid_size", "tokenizer.ggml.bos_token_id",
        "janus.tokenizer.image_placeholder_id",
        "janus.format_version"};
    static const unsigned char values[3][4] = {{0, 0, 0, 0}, {0xFF, 0xFF, 0xFF, 0xFF}, {0xFF, 0xFF, 0xFF, 0x7F}};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const long key = find_bytes(bytes, length, keys[k]);
        for (int v = 0; v < 3; v++) {
            if (strstr(keys[k], "_id") != NULL && v == 0) continue; /* 0 is an id */
            expect_bad_patch(bytes, length, key < 0 ? key : key + (long)strlen(keys[k]) + 4, values[v], 4, keys[k]);
        }
    }
}

/* Random damage to the header: whatever happens, it must be a status. A model that still loads must still be readable.
 */
static void test_random_damage(const unsigned char *bytes, size_t length, int rounds) {
    unsigned char *copy = need(malloc(length));
    const long header = find_bytes(bytes, length, "output_norm.weight") + 4096;
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < rounds; round++) {
        JanusModel *model = NULL;
        memcpy(copy, bytes, length);
        for (int i = 0; i < 1 + round % 4; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            copy[random % (uint64_t)header] ^= (unsigned char)(1 + (random >> 40) % 255);
        }
        write_file(temporary, copy, length);
        if (janus_load(temporary, &model, NULL) == JANUS_OK)
            check(janus_info(model).parameters > 0, 0, "a damaged model that loads can be read");
        janus_free(model);
    }
    free(copy);
}

static void test_model_files(void) {
    char path[512];
    JanusModel *model = NULL;
    JanusError error = {JANUS_OK, ""};
    size_t length = 0;
    snprintf(path, sizeof path, "%s/tied.gguf", golden_folder);
    unsigned char *bytes = need(read_file(path, &length));
    expect(janus_load("no/such/model.gguf", &model, &error), JANUS_IO_ERROR, &error, "a missing model");
    expect(janus_load(golden_folder, &model, &error), JANUS_IO_ERROR, &error, "a folder as model");
    expect_bad_model("GGUF", 4, "four bytes");
    expect_bad_model("Not a model at all, but long enough to be looked at.", 52, "a text as model");
    test_truncated(bytes, length);
    test_damaged(bytes, length);
    test_absurd_sizes(bytes, length);
    test_random_damage(bytes, length, 400);
    free(bytes);
    remove(temporary);
}

/* ---- Many jobs ---- */

/* Job i of a queue: drawings of several counts, questions with a picture and without, a prompt that is refused. */
typedef struct {
    const char *text;
    JanusGenerateOptions drawing; /* count 0: a question */
    JanusAskOptions question;
    int images;
} TestJob;

static TestJob test_job(int i) {
    static const char *const texts[] = {"a red fox in the snow", "a", "two blue cars and a very long green train"};
    static const int counts[] = {1, 0, 2, 13, 0, 1, 7, 1, 0, 3};
    TestJob job = {texts[i % 3], janus_generate_defaults(), janus_ask_defaults(), i % 2};
    job.drawing.count = counts[i % 10];
    job.drawing.seed = job.question.seed = (uint64_t)(i / 2);
    job.drawing.cfg_weight = (float)(1 + i % 6);
    job.drawing.temperature = (float)(i % 4) / 2;
    job.question.temperature = (float)(i % 3);
    job.question.max_tokens = 1 + i % 12;
    if (i == 11) job.text = "  ";
    return job;
}

static JanusStatus queue_job(JanusQueue *queue, const TestJob *job, const JanusImage *image, int64_t *number) {
    if (job->drawing.count > 0) return janus_queue_generate(queue, job->text, &job->drawing, number, NULL);
    return janus_queue_ask(queue, job->text, image, job->images, &job->question, number, NULL);
}

/* Whether the result is what the job gives alone. */
static int is_alone_result(JanusSession *session, int tokens, const TestJob *job, const JanusImage *image,
                           const JanusResult *result) {
    const int64_t count = (int64_t)job->drawing.count * tokens;
    int32_t *ids = need(malloc((size_t)(count + 1) * sizeof *ids));
    char *answer = NULL;
    JanusError error = {JANUS_OK, ""};
    int same;
    if (job->drawing.count > 0) janus_generate_ids(session, job->text, &job->drawing, ids, &error);
    else janus_ask(session, job->text, image, job->images, &job->question, &answer, &error);
    janus_reset(session);
    same = error.status == result->error.status && strcmp(error.message, result->error.message) == 0;
    if (same && error.status == JANUS_OK && job->drawing.count > 0)
        same = result->answer == NULL && result->id_count == count &&
               memcmp(ids, result->ids, (size_t)count * sizeof *ids) == 0;
    else if (same && error.status == JANUS_OK) same = strcmp(answer, result->answer) == 0;
    free(ids);
    free(answer);
    return same;
}

/* All jobs through a queue of some places, some of them added amid the work: each gives what it gives alone. */
static void test_queue_of(const JanusModel *model, const JanusImage *image, const char *isa, int fast, int places) {
    enum { JOBS = 20 };
    JanusSessionOptions options = janus_session_defaults();
    JanusQueue *queue = NULL;
    JanusResult result;
    int64_t number = 0;
    int added = 0, met = 0, same = 0;
    options.isa = isa;
    options.fast = fast;
    JanusSession *session = open_session(model, &options);
    check(janus_queue_new(session, places, &queue, NULL) == JANUS_OK, 0, "a queue");
    for (int more = 1; more || added < JOBS;) {
        for (int i = 0; i < 3 && added < JOBS; i++) {
            const TestJob job = test_job(added);
            added += queue_job(queue, &job, image, &number) == JANUS_OK && number == added + 1;
        }
        for (int i = 0; i < 20; i++) more = janus_queue_step(queue);
        while (janus_queue_collect(queue, &result)) {
            const TestJob job = test_job((int)result.job - 1);
            met++;
            same += is_alone_result(session, janus_info(model).image_tokens, &job, image, &result);
            janus_result_free(&result);
        }
    }
    check(met == JOBS && same == JOBS, 1, "%s%s, %s, %d places: %d of %d jobs give what they give alone",
          isa, fast ? " fast" : "", janus_info(model).weight_type, places, same, JOBS);
    janus_queue_free(queue);
    janus_session_free(session);
}

static void test_queue(void) {
    static const char *const models[] = {"plain", "grouped", "tied", "quantised"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Golden golden = open_golden(models[i]);
        for (int k = 0; k < KERNEL_COUNT; k++) {
            if (!is_usable(golden.model, KERNEL_NAMES[k])) continue;
            test_queue_of(golden.model, &golden.image, KERNEL_NAMES[k], 0, 16);
            test_queue_of(golden.model, &golden.image, KERNEL_NAMES[k], 1, k % 2 == 0 ? 5 : 64);
        }
        close_golden(&golden, NULL);
    }
}

/* Jobs that are cancelled, waiting or running, and a queue that is freed amid its work. */
static void test_queue_ends(void) {
    Golden golden = open_golden("plain");
    JanusSession *session = open_session(golden.model, NULL);
    JanusQueue *queue = NULL;
    JanusResult result;
    JanusGenerateOptions many = janus_generate_defaults();
    JanusError error = {JANUS_OK, ""};
    int64_t numbers[3];
    expect(janus_queue_new(session, 65, &queue, &error), JANUS_BAD_ARGUMENT, &error, "65 places");
    check(queue == NULL, 1, "there is no queue after a failure");
    const int places = janus_queue_places(golden.model, NULL);
    check(places >= 1 && places <= 64, 1, "%d places by default", places);
    check(janus_queue_new(session, 1, &queue, NULL) == JANUS_OK, 0, "a queue of one place");
    check(janus_queue_step(queue) == 0 && janus_queue_collect(queue, &result) == 0, 1, "an empty queue is done");
    many.count = 65;
    expect(janus_queue_generate(queue, "a", &many, NULL, &error), JANUS_BAD_ARGUMENT, &error, "65 pictures");
    for (int i = 0; i < 3; i++)
        check(janus_queue_generate(queue, "a", NULL, &numbers[i], NULL) == JANUS_OK, 0, "a job");
    check(janus_queue_step(queue) == 1 && janus_queue_waiting(queue) == 2, 1, "one runs, two wait");
    check(janus_queue_progress(queue, numbers[0]) > 0 && janus_queue_progress(queue, numbers[1]) == 0, 1,
          "a running job is on its way, a waiting one is not");
    check(janus_queue_cancel(queue, numbers[0]) && janus_queue_cancel(queue, numbers[2]), 1, "two are cancelled");
    check(!janus_queue_cancel(queue, numbers[0]) && janus_queue_waiting(queue) == 1, 1, "and are not there any more");
    for (int i = 0; i < 2; i++) {
        check(janus_queue_collect(queue, &result) == 1 && result.job == numbers[2 * i] && result.ids == NULL &&
                  result.error.status == JANUS_CANCELLED, 1, "a cancelled job has no result");
        janus_result_free(&result);
    }
    while (janus_queue_step(queue)) continue;
    check(janus_queue_collect(queue, &result) == 1 && result.job == numbers[1] && result.error.status == JANUS_OK, 1,
          "the third is drawn");
    janus_result_free(&result);
    check(janus_queue_generate(queue, "a", NULL, NULL, NULL) == JANUS_OK && janus_queue_step(queue) == 1, 0,
          "one more");
    check(janus_queue_ask(queue, "a", &golden.image, 1, NULL, NULL, NULL) == JANUS_OK, 0, "a question that waits");
    janus_queue_free(queue);
    close_golden(&golden, session);
}

/* ---- Images ---- */

static void test_image_files(void) {
    char path[560];
    JanusError error = {JANUS_OK, ""};
    JanusImage image = {0, 0, NULL}, back = {0, 0, NULL};
    size_t length = 0;
    uint8_t rgb[5 * 3 * 3];
    for (int i = 0; i < 45; i++) rgb[i] = (uint8_t)(i * 37);
    image.width = 5;
    image.height = 3;
    image.rgb = rgb;
    snprintf(path, sizeof path, "%s.png", temporary);
    check(janus_image_save(path, &image, NULL) == JANUS_OK && janus_image_load(path, &back, NULL) == JANUS_OK &&
              back.width == 5 && back.height == 3 && memcmp(back.rgb, rgb, 45) == 0,
          1, "a PNG comes back as it was written");
    janus_image_free(&back);
    unsigned char *bytes = need(read_file(path, &length));
    for (size_t cut = 0; cut < length; cut++) {
        const JanusStatus status = janus_image_load_memory(bytes, cut, &back, &error);
        if (status == JANUS_OK && cut >= length - 20) janus_image_free(&back); /* all pixels are there, as for Pillow */
        else expect(status, JANUS_BAD_IMAGE, &error, "a truncated PNG");
    }
    remove(path);
    memcpy(bytes + 16, "\x7F\xFF\xFF\xFF\x7F\xFF\xFF\xFF", 8);
    expect(janus_image_load_memory(bytes, length, &back, &error), JANUS_BAD_IMAGE, &error,
           "a PNG of 2^31 pixels a side");
    memcpy(bytes + 16, "\0\0\x40\0\0\0\x40\0", 8);
    expect(janus_image_load_memory(bytes, length, &back, &error), JANUS_BAD_IMAGE, &error,
           "a PNG of 268 million pixels");
    expect(janus_image_load_memory("hello", 5, &back, &error), JANUS_BAD_IMAGE, &error, "five bytes as image");
    expect(janus_image_load("no/such.png", &back, &error), JANUS_IO_ERROR, &error, "a missing image");
    free(bytes);
    snprintf(path, sizeof path, "%s.gif", temporary);
    expect(janus_image_save(path, &image, &error), JANUS_BAD_ARGUMENT, &error, "an ending that is not known");
    expect(janus_image_save("no/such/folder/x.png", &image, &error), JANUS_IO_ERROR, &error, "a missing folder");
    image.width = 0;
    snprintf(path, sizeof path, "%s.png", temporary);
    expect(janus_image_save(path, &image, &error), JANUS_BAD_ARGUMENT, &error, "an empty image");
    snprintf(path, sizeof path, "%s.jpg", temporary);
    image.width = 5;
    check(janus_image_save(path, &image, NULL) == JANUS_OK && janus_image_load(path, &back, NULL) == JANUS_OK &&
              back.width == 5,
          1, "a JPEG is written and read");
    janus_image_free(&back);
    remove(path);
    janus_image_free(&back);
    janus_image_free(NULL);
}

/* Images of every awkward shape go through both preprocessors. */
static void test_image_shapes(void) {
    static const int sizes[][2] = {{1, 1}, {1, 300}, {300, 1}, {2, 3}, {1000, 7}, {24, 24}, {1, 16384}, {16384, 1}};
    Golden golden = open_golden("plain");
    JanusSession *session = open_session(golden.model, NULL);
    const JanusInfo info = janus_info(golden.model);
    float *pixels = need(malloc(3 * (size_t)info.vision_size * (size_t)info.vision_size * sizeof *pixels));
    int32_t *ids = need(malloc((size_t)info.image_tokens * sizeof *ids));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        JanusImage image;
        JanusError error = {JANUS_OK, ""};
        image.width = sizes[i][0];
        image.height = sizes[i][1];
        image.rgb = need(malloc(3 * (size_t)image.width * (size_t)image.height));
        memset(image.rgb, 200, 3 * (size_t)image.width * (size_t)image.height);
        check(janus_preprocess(golden.model, &image, pixels, &error) == JANUS_OK, 0, "%d x %d: %s", image.width,
              image.height, error.message);
        const JanusStatus status = janus_encode_image(session, &image, ids, &error);
        check(status == JANUS_OK || (status == JANUS_BAD_ARGUMENT && error.message[0] != 0), 0, "encoding %d x %d: %s",
              image.width, image.height, error.message);
        for (int t = 0; t < info.image_tokens && status == JANUS_OK; t++)
            if (ids[t] < 0 || ids[t] >= info.codebook_size)
                check(0, 1, "encoding %d x %d: an id out of range", image.width, image.height);
        janus_image_free(&image);
    }
    Golden larger = open_golden("tied");
    JanusSession *other = open_session(larger.model, NULL);
    JanusImage thin = {16384, 1, need(calloc(16384, 3))};
    JanusError error = {JANUS_OK, ""};
    check(janus_encode_image(other, &thin, ids, &error) == JANUS_BAD_ARGUMENT, 1, "16384 x 1: %s", error.message);
    janus_image_free(&thin);
    close_golden(&larger, other);
    free(pixels);
    free(ids);
    close_golden(&golden, session);
}

/* ---- Text ---- */

static void test_text_round_trip(void) {
    static const char *const texts[] = {"Hello, world!",
                                        " leading and  double  spaces ",
                                        "tabs\tand\r\nlines\n\n",
                                        "na\xc3\xafve caf\xc3\xa9",
                                        "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c",
                                        "\xf0\x9f\xa6\x8a\xf0\x9f\x8f\xbd",
                                        "12345 3.14",
                                        "<|User|>: hi<image_placeholder><|Assistant|>:",
                                        "\x01\x02\x7f",
                                        "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82"};
    Golden golden = open_golden("plain");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t *ids = NULL;
        char *text = NULL;
        size_t count = 0, length = 0;
        const int good = janus_tokenize(golden.model, texts[i], strlen(texts[i]), &ids, &count, NULL) == JANUS_OK &&
                         janus_detokenize(golden.model, ids, count, &text, &length, NULL) == JANUS_OK;
        check(good && length == strlen(texts[i]) && strcmp(text, texts[i]) == 0, 0, "decode(encode(x)) is x: %s",
              texts[i]);
        free(ids);
        free(text);
    }
    close_golden(&golden, NULL);
}

int main(int count, char **arguments) {
    if (count > 1) golden_folder = arguments[1];
    if (count > 2) temporary = arguments[2];
    setvbuf(stdout, NULL, _IOLBF, 4096);
    test_golden();
    test_threads("plain");
    test_threads("grouped");
    test_threads("tied");
    test_batch("plain");
    test_batch("grouped");
    test_batch("tied");
    test_cache_types();
    test_conversation();
    test_drawn();
    test_colours("plain");
    test_colours("tied");
    test_full_context();
    test_cancel_call(0, "an answer");
    test_cancel_call(1, "a drawing");
    test_cancel_call(2, "encoding");
    test_cancel_call(3, "decoding");
    test_cancel_text();
    test_bad_texts();
    test_bad_options();
    test_null();
    test_bad_ids();
    test_model_files();
    test_fast();
    test_queue();
    test_queue_ends();
    test_image_files();
    test_image_shapes();
    test_text_round_trip();
    remove(temporary);
    return closing_line();
}
