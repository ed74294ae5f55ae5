/* SPDX-License-Identifier: MIT
   janus.h as the page's worker calls it: one model, one session, numbers and pointers only. worker.js gives the files:
   the model is "model.gguf", a picture is written as "picture.png". A failed call leaves a message in web_message. */
#include "janus.h"

#include <stdio.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(#name))) name
#define IMPORT(name) __attribute__((import_module("page"), import_name(#name))) name

/* The session's callbacks are functions of the worker. */
int IMPORT(progress)(void *user, const char *stage, int64_t done, int64_t total);
int IMPORT(text)(void *user, const char *text, size_t length);
void IMPORT(tap)(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape, int dims);
int IMPORT(drawn)(void *user, const int32_t *ids, int count, int64_t done, int64_t total);

static JanusModel *model;
static JanusSession *session;
static JanusError error;

const char *EXPORT(web_message)(void) { return error.message; }

JanusStatus EXPORT(web_load)(void) {
    JanusSessionOptions options = janus_session_defaults();
    options.progress = progress;
    options.text = text;
    options.tap = tap;
    options.drawn = drawn;
    if (janus_load("model.gguf", &model, &error) != JANUS_OK) return error.status;
    return janus_session_new(model, &options, &session, &error);
}

/* The version, the model's sizes, the type of its weights and its name, one a line. */
const char *EXPORT(web_info)(void) {
    static char lines[512];
    const JanusInfo info = janus_info(model);
    snprintf(lines, sizeof lines, JANUS_VERSION "\n%d\n%d\n%d\n%.0f\n%s\n%.300s", info.image_size, info.image_tokens,
             info.codebook_size, (double)info.parameters, info.weight_type, info.name);
    return lines;
}

/* The text of a token, until the next call. */
const char *EXPORT(web_token)(int32_t id) {
    static char *name;
    free(name);
    name = NULL;
    return janus_detokenize(model, &id, 1, &name, NULL, &error) == JANUS_OK ? name : "";
}

/* The colour of every id, (codebook_size, 3). */
JanusStatus EXPORT(web_colours)(uint8_t *rgb) { return janus_codebook_colours(session, rgb, &error); }

/* Decodes ids to picture.png, with prompt and settings inside if there are any. */
static JanusStatus save(const int32_t *ids, const char *parameters) {
    JanusImage image = {0, 0, NULL};
    JanusStatus status = janus_decode_image(session, ids, &image, &error);
    if (status == JANUS_OK) status = janus_image_save_with_text("picture.png", &image, parameters, &error);
    janus_image_free(&image);
    return status;
}

/* ids has room for image_tokens, here and below. */
JanusStatus EXPORT(web_draw)(int32_t *ids, const char *prompt, const char *parameters, uint64_t seed, float guidance,
                             float temperature) {
    JanusGenerateOptions options = janus_generate_defaults();
    options.seed = seed;
    options.cfg_weight = guidance;
    options.temperature = temperature;
    const JanusStatus status = janus_generate_ids(session, prompt, &options, ids, &error);
    return status == JANUS_OK ? save(ids, parameters) : status;
}

/* Answers a question about an image file, in a conversation of its own. */
JanusStatus EXPORT(web_ask)(const uint8_t *bytes, size_t size, const char *question) {
    JanusImage image = {0, 0, NULL};
    JanusStatus status = janus_image_load_memory(bytes, size, &image, &error);
    janus_reset(session);
    if (status == JANUS_OK) status = janus_ask(session, question, &image, 1, NULL, NULL, &error);
    janus_image_free(&image);
    return status;
}

/* An image file to ids, and back to picture.png. */
JanusStatus EXPORT(web_encode)(int32_t *ids, const uint8_t *bytes, size_t size) {
    JanusImage image = {0, 0, NULL};
    JanusStatus status = janus_image_load_memory(bytes, size, &image, &error);
    if (status == JANUS_OK) status = janus_encode_image(session, &image, ids, &error);
    janus_image_free(&image);
    return status == JANUS_OK ? save(ids, NULL) : status;
}
