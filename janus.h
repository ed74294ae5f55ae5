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
   Threads: a loaded model is read-only; any number of sessions in any threads may share it, and it must outlive them. A
   session or queue belongs to one thread at a time. After fork() the child may use models and sessions that no call was
   using: a session then restarts its threads. The library has no global state, never prints and never exits.
   Text is zero-terminated UTF-8. Memory "owned by the caller" is released with free() or the function named there.
   A required pointer that is NULL gives JANUS_BAD_ARGUMENT. Functions without a status require valid pointers, except
   those that free. */

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

#define JANUS_VERSION "2.0.0"

/* ---- Errors. Every call that can fail returns a status. After a failure (JANUS_CANCELLED, too) outputs are unchanged
   or zeroed and the session is as before the call. Any call may return JANUS_NO_MEMORY. ---- */

typedef enum {
    JANUS_OK = 0,
    JANUS_BAD_ARGUMENT, /* a value out of range, NULL, text that is not UTF-8, an empty or too long prompt */
    JANUS_BAD_MODEL,    /* not a model file, damaged, or it needs features this version lacks; results not finite */
    JANUS_BAD_IMAGE,    /* not an image file, damaged, or its size is out of range */
    JANUS_IO_ERROR,     /* a file cannot be opened, read or written */
    JANUS_NO_MEMORY,    /* an allocation failed */
    JANUS_CANCELLED     /* a callback requested it, or janus_queue_cancel */
} JanusStatus;

/* Filled by a call that fails. NULL is allowed everywhere. */
typedef struct {
    JanusStatus status;
    char message[400]; /* one line: the problem, the place, the remedy */
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
   Errors: JANUS_IO_ERROR, JANUS_BAD_IMAGE. */
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
   write-protected). */
JANUS_API JanusStatus janus_image_save(const char *path, const JanusImage *image, JanusError *error);

/* Same with a text in UTF-8: in a PNG the text "parameters", in a JPEG comments. NULL: none. The file depends on
   pixels and text alone. Errors: those of janus_image_save, JANUS_BAD_ARGUMENT (text that is not UTF-8). */
JANUS_API JanusStatus janus_image_save_with_text(const char *path, const JanusImage *image, const char *text,
                                                 JanusError *error);

/* Reads that text back, whoever wrote it; treat it as untrusted. `*text` is owned by the caller: free(); NULL if there
   is none, or if it is compressed. Errors: JANUS_IO_ERROR, JANUS_BAD_IMAGE. */
JANUS_API JanusStatus janus_image_text(const char *path, char **text, JanusError *error);

/* Releases the pixels and zeroes the struct. NULL and zeroed images are allowed. */
JANUS_API void janus_image_free(JanusImage *image);

/* ---- Model ---- */

typedef struct JanusModel JanusModel;

typedef struct {
    const char *name;            /* general.name of the file; owned by the model */
    const char *weight_type;     /* of the transformer's matrices: f32, f16, bf16, q8_0, q6_k, q4_k or q4_0 */
    int64_t file_bytes, parameters;
    /* transformer */
    int hidden_size, layers, heads, kv_heads, head_dim, mlp_size, vocab_size, context_length;
    /* images that are seen: side and patch in pixels, layers, width and tokens of the encoder */
    int vision_size, vision_layers, vision_width, vision_patch, vision_tokens;
    /* images that are drawn: side in pixels, ids of one, number of different ids */
    int image_size, image_tokens, codebook_size;
} JanusInfo;

/* Maps a GGUF file written by convert.py and checks every size in it. Weights are read from the mapping when they are
   needed, never copied. The file must not change during this call. While the model lives, the file may be
     removed, or replaced by renaming another over it (POSIX; Windows refuses both): the model is unaffected;
     changed in place: results change with its weights, but no other memory is touched;
     truncated: POSIX ends the process with SIGBUS at the next use of the missing part (Windows refuses it).
   With -DJANUS_NO_MMAP, and on big-endian machines, the whole file is read into memory and may then change.
   `*model` is owned by the caller: janus_free. Errors: JANUS_IO_ERROR, JANUS_BAD_MODEL. */
JANUS_API JanusStatus janus_load(const char *path, JanusModel **model, JanusError *error);
JANUS_API void janus_free(JanusModel *model);

JANUS_API JanusInfo janus_info(const JanusModel *model);

/* ---- Text ---- */

/* Text of `length` bytes to `*count` token ids, without BOS. `*ids` is owned by the caller: free().
   Errors: JANUS_BAD_ARGUMENT (the text is not UTF-8, or longer than 128 MiB). */
JANUS_API JanusStatus janus_tokenize(const JanusModel *model, const char *text, size_t length, int32_t **ids,
                                     size_t *count, JanusError *error);

/* Token ids to text. Special tokens are written out; bytes that are not UTF-8 become U+FFFD. `*text` has a zero byte
   after its `*length` bytes and is owned by the caller: free(). `length` may be NULL.
   Errors: JANUS_BAD_ARGUMENT (an id outside 0..vocab_size-1). */
JANUS_API JanusStatus janus_detokenize(const JanusModel *model, const int32_t *ids, size_t count, char **text,
                                       size_t *length, JanusError *error);

/* ---- Session: a conversation's keys and values, the threads, and the callbacks ---- */

typedef struct JanusSession JanusSession;

typedef enum { JANUS_FLOAT32 = 0, JANUS_INT32 = 1 } JanusElement;

/* Type of the keys and values that a session keeps. float16 halves their memory and the time to read them; the ids of a
   drawing then diverge from float32's after about 150 steps, and keys or values beyond 65504 are an error. */
typedef enum {
    JANUS_CACHE_AUTO = 0, /* float32, as PyTorch's; float16 with `fast` */
    JANUS_CACHE_F32 = 1,
    JANUS_CACHE_F16 = 2
} JanusCacheType;

/* A callback that returns an int returns 0 to continue, anything else to cancel the call. Pointers that a callback
   receives are valid during the callback only. */
typedef struct {
    int threads;     /* 1..256; 0: one for each processor available to the process (on Windows, of the machine).
                        Results do not depend on it. */
    const char *isa; /* kernels: "plain", "avx2", "avx512", "avx512bf16", "amx", "neon", "simd128"; NULL: the best */
    JanusCacheType cache;
    int fast;        /* 1: activations are rounded to integers or bf16 where that is faster; 0: float32, as PyTorch */
    void *user;      /* passed to the callbacks */
    /* `done` of `total` units of a stage are finished: "see", "read", "draw", "decode", "answer" or "encode" */
    int (*progress)(void *user, const char *stage, int64_t done, int64_t total);
    /* the next part of an answer: whole UTF-8 characters, not zero-terminated */
    int (*text)(void *user, const char *text, size_t length);
    /* every named intermediate tensor: row-major, `dims` sizes in `shape` */
    void (*tap)(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape, int dims);
    /* after each step of a drawing: ids is (count, total), of which the first `done` of each row are drawn */
    int (*drawn)(void *user, const int32_t *ids, int count, int64_t done, int64_t total);
} JanusSessionOptions;

JANUS_API JanusSessionOptions janus_session_defaults(void);

/* `options` NULL: defaults. `*session` is owned by the caller: janus_session_free. Errors: JANUS_BAD_ARGUMENT. */
JANUS_API JanusStatus janus_session_new(const JanusModel *model, const JanusSessionOptions *options,
                                        JanusSession **session, JanusError *error);
JANUS_API void janus_session_free(JanusSession *session);

/* ---- Task 1: text -> picture (report, section 2; official generation_inference.py) ---- */

typedef struct {
    int count;          /* pictures of the prompt, drawn together, 1..64; default 1 */
    uint64_t seed;      /* as torch.manual_seed(seed) on the CPU, PyTorch 2.7 and later; default 0 */
    float cfg_weight;   /* guidance: uncond + w (cond - uncond), 0..100; default 5 */
    float temperature;  /* 0..100; 0: always the most probable id; default 1 */
    int drafts;         /* ids guessed ahead and checked in one pass, 0..63; the result is the same with any; with
                           a tap 0; default JANUS_DRAFTS_AUTO: as many as make this machine faster */
} JanusGenerateOptions;
enum { JANUS_DRAFTS_AUTO = -1 };

JANUS_API JanusGenerateOptions janus_generate_defaults(void);

/* Draws options->count pictures of image_size x image_size pixels into images[0..count-1], each owned by the caller:
   janus_image_free. `options` NULL: defaults. The conversation is unaffected.
   Errors: JANUS_BAD_ARGUMENT, JANUS_BAD_MODEL, JANUS_CANCELLED. */
JANUS_API JanusStatus janus_generate(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                                     JanusImage *images, JanusError *error);

/* Same up to the ids: (count, image_tokens), rows of a picture from the top, memory provided by the caller. */
JANUS_API JanusStatus janus_generate_ids(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                                         int32_t *ids, JanusError *error);

/* The approximate colour of every id: rgb is (codebook_size, 3), provided by the caller. A linear map from code vector
   to colour, fitted on the centres of 64 decoded 3 x 3 pictures; costs as much as decoding about one 24 x 24 picture.
   Errors: JANUS_BAD_MODEL. */
JANUS_API JanusStatus janus_codebook_colours(JanusSession *session, uint8_t *rgb, JanusError *error);

/* ---- Task 2: picture(s) + question -> answer (report, section 2; official inference.py) ---- */

typedef struct {
    int max_tokens;     /* of the answer, 1..16777216; default 512 */
    float temperature;  /* 0..100; 0: greedy; default 0 */
    double top_p;       /* 1e-6..1; 1: off; default 1. Used if temperature > 0. A double, as Python's floats */
    int top_k;          /* 0..16777216; 0: off; default 50, as in transformers' generate. Used if temperature > 0 */
    uint64_t seed;      /* default 0 */
} JanusAskOptions;

JANUS_API JanusAskOptions janus_ask_defaults(void);

/* Adds a user turn (image_count images, 0..64, then the question) to the session's conversation and writes the answer.
   If the question contains <image_placeholder>, once for each image, the images replace it. Earlier turns are not
   computed again. `*answer` is owned by the caller: free(); `answer` may be NULL. A failed turn leaves no trace.
   Errors: JANUS_BAD_ARGUMENT (also: the conversation would exceed the context), JANUS_BAD_MODEL, JANUS_CANCELLED. */
JANUS_API JanusStatus janus_ask(JanusSession *session, const char *question, const JanusImage *images, int image_count,
                                const JanusAskOptions *options, char **answer, JanusError *error);

/* Ends the conversation. The next question begins a new one, with the system prompt. */
JANUS_API void janus_reset(JanusSession *session);

/* Number of tokens in the conversation, images included. */
JANUS_API int janus_conversation_length(const JanusSession *session);

/* ---- Many jobs: drawings and questions side by side ----

   A queue runs jobs with any prompts, lengths, seeds and options together, so that the weights, whose reading is the
   cost of a step on a CPU, are read once for all of them. Results are bit-identical to running each job alone. A job
   that fails does not affect the others.

       janus_queue_new(session, 0, &queue, NULL);
       janus_queue_generate(queue, "a red fox", NULL, &fox, NULL);      any number of jobs, at any time
       janus_queue_ask(queue, "What is in the picture?", &picture, 1, NULL, &question, NULL);
       do {
           more = janus_queue_step(queue);
           while (janus_queue_collect(queue, &result)) { ...; janus_result_free(&result); }
       } while (more);
       janus_queue_free(queue);

   The queue uses the session's threads and kernels, but neither its callbacks nor its conversation. The session must
   outlive the queue and may make other calls between two steps. ---- */

typedef struct JanusQueue JanusQueue;

typedef struct {
    int64_t job;        /* its number */
    JanusError error;   /* status JANUS_OK, or why there is no result */
    int32_t *ids;       /* of a drawing: (count, image_tokens), for janus_decode_image; of an answer: its tokens */
    int64_t id_count;
    char *answer;       /* NULL for a drawing */
} JanusResult;

/* Default number of concurrent pictures and questions, 1..64, from processor count and memory: half of what the model
   leaves is for keys and values. `options` NULL: defaults. */
JANUS_API int janus_queue_places(const JanusModel *model, const JanusSessionOptions *options);

/* `places`: the most pictures and questions that run together, 1..64; 0: janus_queue_places. A drawing of more pictures
   runs alone. `*queue` is owned by the caller: janus_queue_free, which drops all jobs. Errors: JANUS_BAD_ARGUMENT. */
JANUS_API JanusStatus janus_queue_new(JanusSession *session, int places, JanusQueue **queue, JanusError *error);
JANUS_API void janus_queue_free(JanusQueue *queue);

/* Adds a job: a drawing, or a question in a conversation of its own. Text and images are copied. `*job` (`job` may be
   NULL) is its number: 1, 2, ... Errors, with nothing added: JANUS_BAD_ARGUMENT (options, images). A bad text is an
   error of the job's result. */
JANUS_API JanusStatus janus_queue_generate(JanusQueue *queue, const char *prompt, const JanusGenerateOptions *options,
                                           int64_t *job, JanusError *error);
JANUS_API JanusStatus janus_queue_ask(JanusQueue *queue, const char *question, const JanusImage *images,
                                      int image_count, const JanusAskOptions *options, int64_t *job, JanusError *error);

/* Starts the job that has waited longest, if a place is free: reads its prompt and picks its first ids. Otherwise picks
   the next id of every running job. Returns 1 while jobs wait or run, else 0. */
JANUS_API int janus_queue_step(JanusQueue *queue);

/* Moves the next result into `result`, in the order in which jobs ended or failed. Returns 1, or 0 if there is none.
   `result` is owned by the caller: janus_result_free, which also accepts zeroed results. */
JANUS_API int janus_queue_collect(JanusQueue *queue, JanusResult *result);
JANUS_API void janus_result_free(JanusResult *result);

/* Ends a waiting or running job with JANUS_CANCELLED. Returns 1, or 0 if no such job waits or runs. */
JANUS_API int janus_queue_cancel(JanusQueue *queue, int64_t job);

/* Number of waiting jobs; progress of a running job, 0..1 (of an answer: tokens / max_tokens), 0 for any other. */
JANUS_API int janus_queue_waiting(const JanusQueue *queue);
JANUS_API double janus_queue_progress(const JanusQueue *queue, int64_t job);

/* ---- The encoders and the decoder on their own ---- */

/* The input of the understanding encoder: pixels is (vision_size, vision_size, 3), provided by the caller. Equal to the
   official VLMImageProcessor, byte for byte before normalisation. Errors: JANUS_BAD_ARGUMENT. */
JANUS_API JanusStatus janus_preprocess(const JanusModel *model, const JanusImage *image, float *pixels,
                                       JanusError *error);

/* Image -> ids (image_tokens), provided by the caller. The image is resized so that its short side is image_size, then
   cropped to the middle square.
   Errors: JANUS_BAD_ARGUMENT (also: the image is too long and thin), JANUS_BAD_MODEL, JANUS_CANCELLED. */
JANUS_API JanusStatus janus_encode_image(JanusSession *session, const JanusImage *image, int32_t *ids,
                                         JanusError *error);

/* Ids (image_tokens), each 0..codebook_size-1, -> picture of image_size x image_size pixels, owned by the caller:
   janus_image_free. Errors: JANUS_BAD_ARGUMENT, JANUS_BAD_MODEL, JANUS_CANCELLED. */
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
