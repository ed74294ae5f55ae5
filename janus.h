/* janus.h - Janus-Pro in portable C: see images, draw images.   SPDX-License-Identifier: MIT

   Complete use, without the error checks:

       JanusModel *model;      janus_load("janus-pro-1b.gguf", &model, NULL);
       JanusSession *session;  janus_session_new(model, NULL, &session, NULL);
       JanusImage picture;     janus_generate(session, "a red fox in the snow", NULL, &picture, NULL);
                               janus_image_save("fox.png", &picture, NULL);
       char *answer;           janus_ask(session, "What is in the picture?", &picture, 1, NULL, &answer, NULL);
                               puts(answer);
       free(answer);  janus_image_free(&picture);  janus_session_free(session);  janus_free(model);

   Build: compile janus.c with -DJANUS_LIBRARY (no main) and link with -lm -lpthread.
   A model is read-only once loaded: any number of sessions, also in several threads, may share it and it must outlive
   them. A session belongs to one thread at a time. After fork() the child may go on with models and sessions that no
   call was using: a session then starts its threads anew. The library keeps no global state, never prints and never
   exits.
   Text is UTF-8 and ends with a zero byte. Memory that a call hands over ("owned by the caller") is released with
   free() or with the function named there. */

#ifndef JANUS_H
#define JANUS_H

#include <stddef.h>
#include <stdint.h>

/* Marks what the library exports, also from a build with -fvisibility=hidden or as a DLL. */
#if defined(_WIN32) && defined(JANUS_LIBRARY)
#define JANUS_API __declspec(dllexport)
#elif defined(__GNUC__) && !defined(_WIN32)
#define JANUS_API __attribute__((visibility("default")))
#else
#define JANUS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define JANUS_VERSION "1.1.0"

/* ---- Errors. Every call that can fail returns a status. A call that fails leaves its outputs untouched or zeroed, and
   the session as it was before the call (after JANUS_CANCELLED too). ---- */

typedef enum {
    JANUS_OK = 0,
    JANUS_BAD_ARGUMENT, /* a value outside its range, text that is not UTF-8, a prompt that is empty or too long */
    JANUS_BAD_MODEL,    /* the model file is not one, is damaged, or asks for what this program does not know */
    JANUS_BAD_IMAGE,    /* the image file is not one, is damaged, or has a size outside the limits */
    JANUS_IO_ERROR,     /* a file cannot be opened, read or written */
    JANUS_NO_MEMORY,    /* an allocation failed */
    JANUS_CANCELLED     /* a callback asked to stop */
} JanusStatus;

/* Filled in by a failing call when the caller passes one; NULL is allowed everywhere. */
typedef struct {
    JanusStatus status;
    char message[400]; /* one line: what is wrong, where, and what to do about it */
} JanusError;

/* ---- Images ---- */

typedef struct {
    int width, height;
    uint8_t *rgb; /* (height, width, 3), 8 bits a channel, rows from the top, no padding; owned by the image */
} JanusImage;

/* Reads a PNG or JPEG of at most 16384 pixels a side and 178,956,970 in all (Pillow's limit), whatever its name.
   Transparency is dropped, not blended. The picture is turned and mirrored by the orientation in its EXIF data, as by
   Pillow's ImageOps.exif_transpose and the load_image of transformers; the official Janus loader ignores it, as
   janus_image_load_stored does. Damaged metadata are ignored. `image` is owned by the caller: janus_image_free.
   Errors: JANUS_BAD_ARGUMENT (NULL), JANUS_IO_ERROR, JANUS_BAD_IMAGE, JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_image_load(const char *path, JanusImage *image, JanusError *error);
JANUS_API JanusStatus janus_image_load_memory(const void *bytes, size_t length, JanusImage *image, JanusError *error);

/* Same without turning: the pixels as they are stored. */
JANUS_API JanusStatus janus_image_load_stored(const char *path, JanusImage *image, JanusError *error);
JANUS_API JanusStatus janus_image_load_memory_stored(const void *bytes, size_t length, JanusImage *image,
                                                     JanusError *error);

/* Writes a .png, .jpg or .jpeg (quality 95), by the ending of `path`: first under a temporary name in the same folder,
   then renamed, so that `path` always leads to a complete file, the old one or the new one. A symbolic link stays one:
   the file it leads to is replaced. A file that is replaced keeps its permissions; other hard links to it keep the old
   content. Errors: JANUS_BAD_ARGUMENT (another ending, an empty image), JANUS_IO_ERROR (also: the file is
   write-protected), JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_image_save(const char *path, const JanusImage *image, JanusError *error);

/* Same with a text in UTF-8: in a PNG the text "parameters", in a JPEG comments. NULL: none. The file depends on
   pixels and text alone. Errors: those of janus_image_save, JANUS_BAD_ARGUMENT (text that is not UTF-8). */
JANUS_API JanusStatus janus_image_save_with_text(const char *path, const JanusImage *image, const char *text,
                                                 JanusError *error);

/* Reads that text back, whoever wrote it; treat it as untrusted. `*text` is owned by the caller: free(); NULL if there
   is none. Errors: JANUS_BAD_ARGUMENT (NULL), JANUS_IO_ERROR, JANUS_BAD_IMAGE (also: a compressed text),
   JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_image_text(const char *path, char **text, JanusError *error);

/* Releases the pixels and zeroes the struct. NULL and zeroed images are allowed. */
JANUS_API void janus_image_free(JanusImage *image);

/* ---- Model ---- */

typedef struct JanusModel JanusModel;

/* What a model file holds; all sizes are counts unless noted. */
typedef struct {
    const char *name;            /* general.name of the file */
    const char *weight_type;     /* of the transformer's matrices: f32, f16, bf16, q8_0, q6_k, q4_k or q4_0 */
    int64_t file_bytes, parameters;
    int hidden_size, layers, heads, kv_heads, head_dim, mlp_size, vocab_size, context_length;
    int vision_size, vision_layers, vision_width, vision_patch, vision_tokens;  /* understanding: side in pixels, ... */
    int image_size, image_tokens, codebook_size;                                /* generation: side in pixels, ... */
} JanusInfo;

/* Maps the GGUF file that convert.py wrote and checks every size in it; weights are read from the mapping when they are
   needed and never copied. The file must not change while this call runs. While the model lives, the file may be
     removed, or replaced by renaming another over it (POSIX; Windows refuses both): the model stays what it was;
     changed in place: results change with its weights, and no memory is touched that should not be;
     cut off: POSIX ends the process with SIGBUS at the next use of what is missing (Windows refuses it).
   Compiled with -DJANUS_NO_MMAP, and on big-endian machines, the complete file is read, at the cost of that much
   memory, and nothing that happens to it later matters.
   Errors: JANUS_IO_ERROR, JANUS_BAD_MODEL, JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_load(const char *path, JanusModel **model, JanusError *error);
JANUS_API void janus_free(JanusModel *model);

/* The strings are owned by the model. */
JANUS_API JanusInfo janus_info(const JanusModel *model);

/* ---- Text ---- */

/* Text to token ids, without a beginning-of-sentence id. `*ids` is owned by the caller: free().
   Errors: JANUS_BAD_ARGUMENT (text is not UTF-8), JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_tokenize(const JanusModel *model, const char *text, size_t length, int32_t **ids,
                                     size_t *count, JanusError *error);

/* Token ids to text, special tokens included as their content; bytes that form no UTF-8 become U+FFFD. `*text` has a
   zero byte after its `*length` bytes and is owned by the caller: free(). `length` may be NULL.
   Errors: JANUS_BAD_ARGUMENT (an id outside 0..vocab_size-1), JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_detokenize(const JanusModel *model, const int32_t *ids, size_t count, char **text,
                                       size_t *length, JanusError *error);

/* ---- Session: a conversation's keys and values, the threads, and the callbacks ---- */

typedef struct JanusSession JanusSession;

typedef enum { JANUS_FLOAT32 = 0, JANUS_INT32 = 1 } JanusElement;

/* The elements of the keys and values that a session keeps. float16 takes half the memory and half the time of reading
   it; ids then leave those of float32 after some 150 steps of a drawing, and keys or values beyond 65504 are an
   error. */
typedef enum {
    JANUS_CACHE_AUTO = 0, /* float32, as PyTorch's; float16 with `fast` */
    JANUS_CACHE_F32 = 1,
    JANUS_CACHE_F16 = 2
} JanusCacheType;

typedef struct {
    int threads;     /* 1..256; 0: as many as the process may use processors. Results do not depend on it. */
    /* kernels: "plain", "avx2", "avx512", "avx512bf16", "amx", "neon", "simd128"; NULL: the best that this machine
       has */
    const char *isa;
    JanusCacheType cache;
    /* 1: products round activations to int8 or int16 (quantised weights) or, of many rows, to bf16 (bf16 weights; with
       AMX quantised ones and attention, too), where the machine multiplies these faster; 0: float32, as exact as
       PyTorch's */
    int fast;
    void *user;      /* handed to the callbacks */
    /* Called as work goes on: `stage` is a word ("see", "read", "draw", "decode", "answer", "encode"), `done` of
       `total` units are finished. Returns 0 to go on, anything else to cancel. */
    int (*progress)(void *user, const char *stage, int64_t done, int64_t total);
    /* Receives an answer as it is written: complete UTF-8 characters, not zero-terminated. Returns 0 to go on. */
    int (*text)(void *user, const char *text, size_t length);
    /* Receives every named intermediate tensor, C order, `shape` of `dims` numbers; the data is only valid in the
       call. */
    void (*tap)(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape, int dims);
    /* Called after each step of a drawing: of every row of ids (count, total) the first `done` are drawn. They are only
       valid in the call. Returns 0 to go on, anything else to cancel. */
    int (*drawn)(void *user, const int32_t *ids, int count, int64_t done, int64_t total);
} JanusSessionOptions;

JANUS_API JanusSessionOptions janus_session_defaults(void);

/* `options` NULL: defaults. Errors: JANUS_BAD_ARGUMENT, JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_session_new(const JanusModel *model, const JanusSessionOptions *options,
                                        JanusSession **session, JanusError *error);
JANUS_API void janus_session_free(JanusSession *session);

/* ---- Task 1: text -> picture (report, section 2; official generation_inference.py) ---- */

typedef struct {
    int count;          /* pictures of the one prompt, as one batch, 1..64; default 1 */
    uint64_t seed;      /* as torch.manual_seed(seed) on the CPU, PyTorch 2.7 and later; default 0 */
    float cfg_weight;   /* guidance: uncond + w (cond - uncond), 0..100; default 5 */
    float temperature;  /* 0..100; 0: always the most probable id; default 1 */
} JanusGenerateOptions;

JANUS_API JanusGenerateOptions janus_generate_defaults(void);

/* Draws options->count pictures of image_size x image_size into images[0..count-1], each owned by the caller. The
   session's conversation is untouched. Errors: JANUS_BAD_ARGUMENT, JANUS_NO_MEMORY, JANUS_CANCELLED. */
JANUS_API JanusStatus janus_generate(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                                     JanusImage *images, JanusError *error);

/* The same up to the ids: ids is (count, image_tokens) int32, raster order, provided by the caller. */
JANUS_API JanusStatus janus_generate_ids(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                                         int32_t *ids, JanusError *error);

/* What each id of the codebook looks like, roughly: rgb is (codebook_size, 3), provided by the caller. It is a linear
   map from the numbers of a code to a colour, fitted to the middles of 64 pictures of 3 x 3 equal ids, which cost about
   as much as decoding one picture of 24 x 24. Errors: JANUS_NO_MEMORY, JANUS_BAD_MODEL (they are not finite). */
JANUS_API JanusStatus janus_codebook_colours(JanusSession *session, uint8_t *rgb, JanusError *error);

/* ---- Task 2: picture(s) + question -> answer (report, section 2; official inference.py) ---- */

typedef struct {
    int max_tokens;     /* of the answer, 1..16777216; default 512 */
    float temperature;  /* 0..100; 0: greedy; default 0 */
    double top_p;       /* 1e-6..1; 1: off; default 1. Only used with temperature > 0. A double, as Python's floats */
    int top_k;          /* 0..16777216; 0: off; default 50, as transformers' generate. Only used with temperature > 0 */
    uint64_t seed;      /* default 0 */
} JanusAskOptions;

JANUS_API JanusAskOptions janus_ask_defaults(void);

/* Adds a user turn to the session's conversation (the images, then the question) and writes the assistant's answer.
   Earlier turns are not computed again. `answer` (may be NULL when the text callback is enough) is owned by the caller:
   free(). Errors: JANUS_BAD_ARGUMENT (also: the conversation would exceed the context), JANUS_NO_MEMORY,
   JANUS_CANCELLED (what was said up to then is dropped from the conversation). */
JANUS_API JanusStatus janus_ask(JanusSession *session, const char *question, const JanusImage *images, int image_count,
                                const JanusAskOptions *options, char **answer, JanusError *error);

/* Forgets the conversation; the system prompt comes with the next question. */
JANUS_API void janus_reset(JanusSession *session);

/* The number of tokens in the conversation, images included. */
JANUS_API int janus_conversation_length(const JanusSession *session);

/* ---- Many jobs: drawings and questions side by side ----

   A queue runs drawings and questions of any prompts, lengths, seeds and options together: the weights, whose reading
   is what a step costs on a CPU, are read once for all of them. A job's ids are to the bit those that the same call
   alone gives, whatever runs beside it. A job that fails does not touch the others.

       janus_queue_new(session, 0, &queue, NULL);
       janus_queue_generate(queue, "a red fox", NULL, &fox, NULL);      any number of jobs, at any time
       janus_queue_ask(queue, "What is in the picture?", &picture, 1, NULL, &question, NULL);
       do {
           more = janus_queue_step(queue);
           while (janus_queue_collect(queue, &result)) { ...; janus_result_free(&result); }
       } while (more);
       janus_queue_free(queue);

   The queue uses the session's threads and kernels, not its callbacks nor its conversation. The session must outlive it
   and may be used for other calls between two steps; both belong to one thread at a time. ---- */

typedef struct JanusQueue JanusQueue;

/* What has become of a job. */
typedef struct {
    int64_t job;        /* its number */
    JanusError error;   /* status JANUS_OK, or why there is no result */
    int32_t *ids;       /* of a drawing: (count, image_tokens), for janus_decode_image; of an answer: its tokens */
    int64_t id_count;
    char *answer;       /* NULL for a drawing */
} JanusResult;

/* The places that a queue has by default: pictures that are drawn together, as memory and processors suggest, 1..64.
   Half of the memory beside the model holds their keys and values. `options` NULL: defaults. */
JANUS_API int janus_queue_places(const JanusModel *model, const JanusSessionOptions *options);

/* `places` are the pictures and questions that run together, 1..64; 0: janus_queue_places. A drawing of more pictures
   runs alone. Errors: JANUS_BAD_ARGUMENT, JANUS_NO_MEMORY. */
JANUS_API JanusStatus janus_queue_new(JanusSession *session, int places, JanusQueue **queue, JanusError *error);

/* Drops what waits, runs or was not collected. */
JANUS_API void janus_queue_free(JanusQueue *queue);

/* Adds a job: a drawing of options->count pictures of the prompt; a question in a conversation of its own. Text and
   images are copied. `*job` (`job` may be NULL) is its number: 1, 2, ... Errors, with nothing added:
   JANUS_BAD_ARGUMENT (options, images), JANUS_NO_MEMORY. What is wrong with the text is the job's own error. */
JANUS_API JanusStatus janus_queue_generate(JanusQueue *queue, const char *prompt, const JanusGenerateOptions *options,
                                           int64_t *job, JanusError *error);
JANUS_API JanusStatus janus_queue_ask(JanusQueue *queue, const char *question, const JanusImage *images,
                                      int image_count, const JanusAskOptions *options, int64_t *job, JanusError *error);

/* Does the next piece of work: where a place is free for the job that has waited longest, its prompt is read and its
   first ids are drawn; else every running job gets its next id. Returns 1 while there is more to do, else 0. */
JANUS_API int janus_queue_step(JanusQueue *queue);

/* Hands over the next job that is done or has failed, in the order in which they ended. Returns 1, or 0: there is none.
   `result` is owned by the caller: janus_result_free, which also takes zeroed ones. */
JANUS_API int janus_queue_collect(JanusQueue *queue, JanusResult *result);
JANUS_API void janus_result_free(JanusResult *result);

/* Ends a job that waits or runs: its result is JANUS_CANCELLED. Returns 1, or 0: there is no such job any more. */
JANUS_API int janus_queue_cancel(JanusQueue *queue, int64_t job);

/* The number of jobs that wait for a place, and how far a running one is, 0..1 (an answer: of max_tokens; else 0). */
JANUS_API int janus_queue_waiting(const JanusQueue *queue);
JANUS_API double janus_queue_progress(const JanusQueue *queue, int64_t job);

/* ---- The encoders and the decoder on their own ---- */

/* What the understanding encoder sees: pixels is (vision_size, vision_size, 3) float, provided by the caller.
   Equal to the official VLMImageProcessor, byte for byte before normalisation. */
JANUS_API JanusStatus janus_preprocess(const JanusModel *model, const JanusImage *image, float *pixels,
                                       JanusError *error);

/* Picture -> ids of the VQ codebook; ids is (image_tokens) int32, provided by the caller. The picture is resized so
   that its short side is image_size and cropped around its centre. */
JANUS_API JanusStatus janus_encode_image(JanusSession *session, const JanusImage *image, int32_t *ids,
                                         JanusError *error);

/* Ids (image_tokens of them, each 0..codebook_size-1) -> picture of image_size x image_size, owned by the caller. */
JANUS_API JanusStatus janus_decode_image(JanusSession *session, const int32_t *ids, JanusImage *image,
                                         JanusError *error);

#ifdef __cplusplus
}
#endif

#endif

/* MIT License

   Copyright (c) 2025-2026 the janus.c authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
   documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
   rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
   permit persons to whom the Software is furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
   Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
   WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
   COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
   OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
