/* test_faults.c - what fails, fails cleanly: memory, files, threads, and inputs that ask for too much.
   SPDX-License-Identifier: MIT

       cc -I. test/c/test_faults.c -o test_faults -lm -lpthread
       ./test_faults [PART ...]        memory, files, bombs, program, threads, processors, small; without a name: all
       but small

   janus.c is included with the calls by which it asks the system for something replaced. Each call can be made to fail
   at its k-th use, and for an operation k counts up from 1 until nothing is left to fail. Every failure must be a
   status with a message, lose no memory, leave files as they were, and the next try in the same session must give the
   same result. */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- The calls that can fail ---- */

typedef enum { MEMORY, OPENING, READING, WRITING, CLOSING, RENAMING, THREAD, KINDS } Kind;

static struct {
    pthread_mutex_t mutex;
    Kind kind;
    long calls, at;           /* calls of that kind so far; the one that fails, 0: none */
    bool from_there_on;       /* all later ones fail too */
    int error;                /* errno of the failure */
    bool no_mapping, trickle; /* files cannot be mapped; a read gives a few bytes at a time */
    long file_ends;           /* a file that was opened ends after so many bytes; -1: where it ends */
    long live;                /* allocations that were not freed */
    size_t largest;           /* the largest request */
    FILE *broken;             /* the stream with an error */
    FILE *writer;             /* the last file that was opened for writing: closing others cannot lose anything */
} fault = {PTHREAD_MUTEX_INITIALIZER, MEMORY, 0, 0, false, 0, false, false, -1, 0, 0, NULL, NULL};

/* Whether this call is the one to fail; errno is set then. */
static bool faulty(Kind kind) {
    bool fails = false;
    pthread_mutex_lock(&fault.mutex);
    if (kind == fault.kind && fault.at > 0) {
        fault.calls++;
        fails = fault.calls == fault.at || (fault.from_there_on && fault.calls > fault.at);
    }
    pthread_mutex_unlock(&fault.mutex);
    if (fails) errno = fault.error;
    return fails;
}

static void arm(Kind kind, long at, int error, bool from_there_on) {
    fault.kind = kind;
    fault.calls = 0;
    fault.at = at;
    fault.error = error;
    fault.from_there_on = from_there_on;
    fault.largest = 0;
}

/* Nothing fails any more; returns whether something did. */
static bool disarm(void) {
    const bool reached = fault.at > 0 && fault.calls >= fault.at;
    fault.at = 0;
    fault.broken = NULL;
    return reached;
}

static void count_live(long change, size_t size) {
    pthread_mutex_lock(&fault.mutex);
    fault.live += change;
    if (size > fault.largest) fault.largest = size;
    pthread_mutex_unlock(&fault.mutex);
}

static void *faulty_realloc(void *memory, size_t size) {
    void *grown = faulty(MEMORY) ? NULL : realloc(memory, size);
    count_live(memory == NULL && grown != NULL, size);
    return grown;
}

static void *faulty_malloc(size_t size) { return faulty_realloc(NULL, size); }

static void *faulty_calloc(size_t count, size_t size) {
    void *memory = faulty(MEMORY) ? NULL : calloc(count, size);
    count_live(memory != NULL, count * size);
    return memory;
}

static int faulty_memalign(void **memory, size_t alignment, size_t size) {
    const int result = faulty(MEMORY) ? ENOMEM : posix_memalign(memory, alignment, size);
    count_live(result == 0, size);
    return result;
}

static void counted_free(void *memory) {
    count_live(-(memory != NULL), 0);
    free(memory);
}

static FILE *faulty_fopen(const char *path, const char *mode) {
    FILE *file = faulty(OPENING) ? NULL : fopen(path, mode);
    pthread_mutex_lock(&fault.mutex);
    if (mode[0] == 'w') fault.writer = file;
    pthread_mutex_unlock(&fault.mutex);
    return file;
}
static void *faulty_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return fault.no_mapping ? MAP_FAILED : mmap(at, size, protection, flags, file, offset);
}

/* A read that fails still gives a few bytes, as one that a signal interrupts. */
static size_t faulty_fread(void *to, size_t size, size_t count, FILE *file) {
    const bool fails = faulty(READING);
    const long place = ftell(file);
    if ((fails || fault.trickle) && count > 700) count = 700;
    if (fault.file_ends >= 0 && place >= 0) count = place >= fault.file_ends ? 0 : count;
    if (fault.file_ends >= 0 && place >= 0 && (size_t)(fault.file_ends - place) < count)
        count = (size_t)(fault.file_ends - place);
    const size_t got = fread(to, size, count, file);
    if (fails) fault.broken = file, errno = fault.error;
    return got;
}

/* A full disk takes the first half. */
static size_t faulty_fwrite(const void *from, size_t size, size_t count, FILE *file) {
    if (!faulty(WRITING)) return fwrite(from, size, count, file);
    const size_t written = fwrite(from, size, count / 2, file);
    fault.broken = file;
    errno = fault.error;
    return written;
}

static int faulty_fclose(FILE *file) {
    pthread_mutex_lock(&fault.mutex);
    const bool written = fault.writer == file;
    if (fault.broken == file) fault.broken = NULL;
    if (written) fault.writer = NULL;
    pthread_mutex_unlock(&fault.mutex);
    const bool fails = written && faulty(CLOSING);
    const int result = fclose(file);
    if (fails) errno = fault.error;
    return fails ? EOF : result;
}

static int faulty_ferror(FILE *file) { return file == fault.broken || ferror(file); }
static void faulty_clearerr(FILE *file) {
    if (file == fault.broken) fault.broken = NULL;
    clearerr(file);
}
static int faulty_rename(const char *from, const char *to) { return faulty(RENAMING) ? -1 : rename(from, to); }
static int faulty_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
    return faulty(THREAD) ? EAGAIN : pthread_create(thread, NULL, run, argument);
}

#define malloc(size) faulty_malloc(size)
#define calloc(count, size) faulty_calloc(count, size)
#define realloc(memory, size) faulty_realloc(memory, size)
#define posix_memalign(memory, alignment, size) faulty_memalign(memory, alignment, size)
#define free counted_free
#define fopen(path, mode) faulty_fopen(path, mode)
#define mmap faulty_mmap
#define fread(to, size, count, file) faulty_fread(to, size, count, file)
#define fwrite(from, size, count, file) faulty_fwrite(from, size, count, file)
#define fclose(file) faulty_fclose(file)
#define ferror(file) faulty_ferror(file)
#define clearerr(file) faulty_clearerr(file)
#define rename(from, to) faulty_rename(from, to)
#define pthread_create(thread, attributes, run, argument) faulty_thread(thread, run, argument)
#define main janus_program
#include "../../janus.c"
#undef main
#undef pthread_create
#undef rename
#undef clearerr
#undef ferror
#undef fclose
#undef fwrite
#undef fread
#undef mmap
#undef fopen

#if defined(COVERAGE)
void __gcov_dump(void);
#endif

/* ---- Counting, and the folder that all files lie in ---- */

#include "common.h"

/* Every check of this program is printed. */
#define report(good, ...) check(good, 1, __VA_ARGS__)

static char folder[256], model_path[] = "test/golden/grouped.gguf";

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
    return hash;
}

/* The path of a file in the temporary folder; up to four are remembered. */
static const char *in_folder(const char *name) {
    static char paths[4][320];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* The hash of a file, 0 when there is none. */
static uint64_t hash_file(const char *path) {
    uint8_t bytes[4096];
    uint64_t hash = 1;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return 0;
    for (size_t got; (got = fread(bytes, 1, sizeof bytes, file)) > 0;) hash = hash_bytes(hash, bytes, got);
    fclose(file);
    return hash;
}

/* Whether the temporary folder holds this many files. */
static bool folder_holds(int count) {
    DIR *listing = need(opendir(folder));
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;) count -= entry->d_name[0] != '.';
    closedir(listing);
    return count == 0;
}

/* ---- Operations ---- */

typedef struct {
    JanusModel *model;
    JanusSession *session;  /* NULL for operations that need none */
    const char *file;       /* of the operation, in the temporary folder */
    JanusImage photo;
    JanusError error;
} World;

/* Does something and hashes what came out of it; what it made is freed. */
typedef JanusStatus (*Run)(World *world, uint64_t *hash);

/* Hashes a picture and frees it. */
static uint64_t hash_picture(uint64_t hash, JanusImage *image) {
    hash = hash_bytes(hash, image->rgb, 3 * (size_t)image->width * (size_t)image->height);
    janus_image_free(image);
    return hash;
}

static JanusStatus do_load(World *world, uint64_t *hash) {
    JanusModel *model = NULL;
    const JanusStatus status = janus_load(model_path, &model, &world->error);
    if (status == JANUS_OK) {
        const JanusInfo info = janus_info(model);
        *hash = (uint64_t)info.parameters * 31 + (uint64_t)info.vocab_size;
    }
    if (status != JANUS_OK && model != NULL) *hash = 0;
    janus_free(model);
    return status;
}

static JanusStatus do_session(World *world, uint64_t *hash) {
    JanusSessionOptions options = janus_session_defaults();
    JanusSession *session = NULL;
    options.threads = 3;
    const JanusStatus status = janus_session_new(world->model, &options, &session, &world->error);
    *hash = session != NULL ? 2 : 1;
    janus_session_free(session);
    return status;
}

static JanusStatus do_ask(World *world, uint64_t *hash) {
    JanusAskOptions options = janus_ask_defaults();
    char *answer = NULL;
    options.max_tokens = 3;
    options.temperature = 1;
    options.top_p = 0.9;
    const JanusStatus status =
        janus_ask(world->session, "What is it?", &world->photo, 1, &options, &answer, &world->error);
    if (status == JANUS_OK)
        *hash = hash_bytes(1, answer, strlen(answer)) + (uint64_t)janus_conversation_length(world->session);
    else if (answer != NULL) *hash = 0;
    free(answer);
    return status;
}

static JanusStatus do_generate(World *world, uint64_t *hash) {
    JanusGenerateOptions options = janus_generate_defaults();
    JanusImage images[2];
    options.count = 2;
    memset(images, 0x5A, sizeof images); /* a failed call leaves them alone or zeroes them */
    const JanusStatus status = janus_generate(world->session, "a red heart", &options, images, &world->error);
    for (int i = 0; i < 2 && status == JANUS_OK; i++) *hash = hash_picture(*hash, &images[i]);
    return status;
}

/* A drawing and a question side by side. Where one fails, the other gives what it always gives, or fails too. */
static JanusStatus do_queue(World *world, uint64_t *hash) {
    static uint64_t usual[3]; /* by number of the job */
    JanusAskOptions ask = janus_ask_defaults();
    JanusQueue *queue = NULL;
    JanusResult result;
    ask.max_tokens = 3;
    JanusStatus status = janus_queue_new(world->session, 2, &queue, &world->error);
    if (status == JANUS_OK) status = janus_queue_generate(queue, "a red heart", NULL, NULL, &world->error);
    if (status == JANUS_OK)
        status = janus_queue_ask(queue, "What is it?", &world->photo, 1, &ask, NULL, &world->error);
    while (status == JANUS_OK && janus_queue_step(queue)) continue;
    for (; queue != NULL && janus_queue_collect(queue, &result); janus_result_free(&result)) {
        const bool good = result.error.status == JANUS_OK;
        const uint64_t met = good ? hash_bytes(1, result.ids, (size_t)result.id_count * sizeof *result.ids) : 0;
        if (good && usual[result.job] == 0) usual[result.job] = met;
        if (!good) status = result.error.status, world->error = result.error;
        if (met != (good ? usual[result.job] : 0) || good != (result.ids != NULL)) *hash = 0;
    }
    if (status == JANUS_OK) *hash = *hash * 31 + usual[1] + usual[2];
    janus_queue_free(queue);
    return status;
}

static JanusStatus do_encode(World *world, uint64_t *hash) {
    int32_t ids[64];
    const JanusStatus status = janus_encode_image(world->session, &world->photo, ids, &world->error);
    if (status == JANUS_OK) *hash = hash_bytes(1, ids, (size_t)janus_info(world->model).image_tokens * sizeof *ids);
    return status;
}

static JanusStatus do_decode(World *world, uint64_t *hash) {
    const int32_t ids[64] = {5, 80, 17, 3};
    JanusImage image;
    const JanusStatus status = janus_decode_image(world->session, ids, &image, &world->error);
    if (status == JANUS_OK) *hash = hash_picture(1, &image);
    else if (image.rgb != NULL) *hash = 0;
    return status;
}

static JanusStatus do_colours(World *world, uint64_t *hash) {
    uint8_t rgb[3 * 1024];
    const JanusStatus status = janus_codebook_colours(world->session, rgb, &world->error);
    if (status == JANUS_OK) *hash = hash_bytes(1, rgb, 3 * (size_t)janus_info(world->model).codebook_size);
    return status;
}

static JanusStatus do_texts(World *world, uint64_t *hash) {
    static const char text[] = "Hello <|User|>, 12345 na\xc3\xafve \xf0\x9f\xa6\x8a";
    int32_t *ids = NULL;
    size_t count = 0, length = 0;
    char *back = NULL;
    JanusStatus status = janus_tokenize(world->model, text, sizeof text - 1, &ids, &count, &world->error);
    if (status == JANUS_OK) status = janus_detokenize(world->model, ids, count, &back, &length, &world->error);
    if (status == JANUS_OK) *hash = hash_bytes(1, back, length) + count;
    free(ids);
    free(back);
    return status;
}

static JanusStatus do_preprocess(World *world, uint64_t *hash) {
    float pixels[3 * 24 * 24];
    const JanusStatus status = janus_preprocess(world->model, &world->photo, pixels, &world->error);
    if (status == JANUS_OK) *hash = hash_bytes(1, pixels, sizeof pixels);
    return status;
}

static JanusStatus do_read(World *world, uint64_t *hash) {
    JanusImage image;
    const JanusStatus status = janus_image_load(in_folder(world->file), &image, &world->error);
    if (status == JANUS_OK) *hash = hash_picture(1, &image);
    else if (image.rgb != NULL) *hash = 0;
    return status;
}

static JanusStatus do_write(World *world, uint64_t *hash) {
    const JanusStatus status = janus_image_save(in_folder(world->file), &world->photo, &world->error);
    if (status == JANUS_OK) *hash = hash_file(in_folder(world->file));
    return status;
}

static JanusStatus do_write_text(World *world, uint64_t *hash) {
    static const char text[] = "na\xc3\xafve \xf0\x9f\xa6\x8a";
    const JanusStatus status = janus_image_save_with_text(in_folder(world->file), &world->photo, text, &world->error);
    if (status == JANUS_OK) *hash = hash_file(in_folder(world->file));
    return status;
}

static JanusStatus do_read_text(World *world, uint64_t *hash) {
    char *text = NULL;
    const JanusStatus status = janus_image_text(in_folder(world->file), &text, &world->error);
    if (status == JANUS_OK && text != NULL) *hash = hash_bytes(1, text, strlen(text));
    if (status != JANUS_OK && text != NULL) *hash = 0;
    free(text);
    return status;
}

enum { /* places in the table */
    LOAD, SESSION, ASK, TURN, GENERATE, TAPS, QUEUE, ENCODE, DECODE, COLOURS, TEXTS, PREPROCESS, READ_PNG, READ_JPEG,
    READ_TURNED, READ_CMYK, READ_PNG_TEXT, READ_JPEG_TEXT, WRITE_PNG, WRITE_JPEG, WRITE_PNG_TEXT, WRITE_JPEG_TEXT,
    OPERATIONS
};

typedef struct {
    const char *name;
    Run run;
    enum { ALONE, IN_SESSION, SECOND_TURN, TAPPED, WRITES } needs; /* WRITES: a file that a failure leaves alone */
    const char *file;
} Operation;

static const Operation TABLE[OPERATIONS] = {{"load", do_load, ALONE, NULL},
                                            {"a session of three threads", do_session, ALONE, NULL},
                                            {"ask", do_ask, IN_SESSION, NULL},
                                            {"a second turn", do_ask, SECOND_TURN, NULL},
                                            {"generate two pictures", do_generate, IN_SESSION, NULL},
                                            {"generate with taps", do_generate, TAPPED, NULL},
                                            {"a drawing beside a question", do_queue, IN_SESSION, NULL},
                                            {"encode", do_encode, IN_SESSION, NULL},
                                            {"decode", do_decode, IN_SESSION, NULL},
                                            {"colours of the codebook", do_colours, IN_SESSION, NULL},
                                            {"tokenize and back", do_texts, ALONE, NULL},
                                            {"preprocess", do_preprocess, ALONE, NULL},
                                            {"read a PNG", do_read, ALONE, "in.png"},
                                            {"read a JPEG", do_read, ALONE, "in.jpg"},
                                            {"read a turned PNG", do_read, ALONE, "turned.png"},
                                            {"read a CMYK JPEG", do_read, ALONE, "cmyk.jpg"},
                                            {"read a PNG's text", do_read_text, ALONE, "in.png"},
                                            {"read a JPEG's text", do_read_text, ALONE, "in.jpg"},
                                            {"write a PNG", do_write, WRITES, "out.png"},
                                            {"write a JPEG", do_write, WRITES, "out.jpg"},
                                            {"write a PNG with a text", do_write_text, WRITES, "out.png"},
                                            {"write a JPEG with a text", do_write_text, WRITES, "out.jpg"}};

static void ignore_tap(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                       int dims) {
    *(uint64_t *)user = hash_bytes(*(uint64_t *)user, name, strlen(name)) + (uint64_t)type + (data != NULL) +
                        (uint64_t)(shape[0] * dims);
}

/* The session in which the operation begins. */
static void open_session(World *world, int which) {
    static uint64_t tapped;
    const Operation *operation = &TABLE[which];
    JanusSessionOptions options = janus_session_defaults();
    uint64_t hash = 0;
    options.threads = 1;
    options.cache = operation->needs == TAPPED ? JANUS_CACHE_F16 : JANUS_CACHE_F32;
    options.tap = operation->needs == TAPPED ? ignore_tap : NULL;
    options.user = &tapped;
    world->session = NULL;
    world->file = operation->file;
    if (operation->needs == ALONE || operation->needs == WRITES) return;
    if (janus_session_new(world->model, &options, &world->session, NULL) != JANUS_OK) need(NULL);
    if (operation->needs == SECOND_TURN && do_ask(world, &hash) != JANUS_OK) need(NULL);
}

static void close_session(World *world) {
    janus_session_free(world->session);
    world->session = NULL;
}

/* Runs an operation in a session of its own. */
static JanusStatus run_once(World *world, int which, uint64_t *hash) {
    open_session(world, which);
    const JanusStatus status = TABLE[which].run(world, hash);
    close_session(world);
    return status;
}

/* Tries the operation with the k-th call of a kind failing, for every k; `expected` is the status that it must have
   then, JANUS_OK where the program must get along without. All later calls fail too when `hopeless`. Of the many calls
   of COLOURS only some are tried after the first hundred. */
static void fail_each(World *world, int which, Kind kind, int error, JanusStatus expected, bool hopeless) {
    static const char *const CALLS[KINDS] = {"allocation", "opening", "read", "write", "close", "rename", "thread"};
    const Operation *operation = &TABLE[which];
    const bool writes = operation->needs == WRITES;
    const long live = fault.live;
    uint64_t normal = 1;
    int wrong = 0, at = 0;
    bool more = true;
    const bool works = run_once(world, which, &normal) == JANUS_OK;
    while (more && wrong < 3 && at < 100000) {
        uint64_t hash = 1, again = 1;
        at += which == COLOURS && at > 100 ? 97 : 1;
        open_session(world, which);
        const long before = fault.live;
        const int length = world->session != NULL ? janus_conversation_length(world->session) : 0;
        if (writes) write_file(in_folder(operation->file), "old", 3);
        memset(&world->error, 0, sizeof world->error);
        arm(kind, at, error, hopeless);
        const JanusStatus status = operation->run(world, &hash);
        more = disarm();
        /* what was not needed for both jobs of a queue at once may be there for each alone */
        const bool managed = which == QUEUE && kind == MEMORY && status == JANUS_OK;
        const JanusStatus wanted = more && !managed ? expected : JANUS_OK;
        bool good = status == wanted && hash == (wanted == JANUS_OK ? normal : 1);
        if (wanted != JANUS_OK)
            good = good && world->error.status == status && strlen(world->error.message) > 10 &&
                   (!writes || hash_file(in_folder(operation->file)) == hash_bytes(1, "old", 3)) &&
                   (world->session == NULL ||
                    (janus_conversation_length(world->session) == length && world->session->context.arena.top == NULL));
        if (world->session == NULL) good = good && fault.live == before;
        if (more && wanted != JANUS_OK) good = good && operation->run(world, &again) == JANUS_OK && again == normal;
        close_session(world);
        good = good && fault.live == live;
        if (!good)
            printf("        at %s %d: status %d \"%s\", %ld allocations left\n", CALLS[kind], at, (int)status,
                   world->error.message, fault.live - live);
        wrong += !good;
    }
    report(works && wrong == 0 && at > 1, "%s: each %s%s of %d may fail (errno %d)", operation->name, CALLS[kind],
           hopeless ? " and all after it" : "", at - 1, error);
}

/* Pictures of the kinds that janus.c does not write: a PNG with an orientation, a JPEG of one block of four channels
   without Adobe's marker. */
static void write_other_images(void) {
    static const char EXIF[] = "\0\0\0\x1a" "eXIfMM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0crc";
    static const char TABLES[] =
        "\xFF\xC4\0\x26\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    static const char FRAME[] = "\xFF\xC0\0\x14\x08\0\x08\0\x08\4\1\x11\0\2\x11\0\3\x11\0\4\x11";
    static const char SCAN[] = "\xFF\xDA\0\x0E\4\1\0\2\0\3\0\4\0\0\x3F\0\0\xFF\xD9";
    TextBuffer png = {0};
    uint8_t jpeg[2 + 69 + sizeof TABLES + sizeof FRAME + sizeof SCAN - 1] = "\xFF\xD8\xFF\xDB\0\x43";
    if (file_read(in_folder("in.png"), 1 << 20, &png) != 0) need(NULL);
    uint8_t *turned = need(malloc(png.length + sizeof EXIF));
    memcpy(turned, png.text, 33), memcpy(turned + 33, EXIF, sizeof EXIF),
        memcpy(turned + 33 + sizeof EXIF, png.text + 33, png.length - 33);
    write_file(in_folder("turned.png"), turned, png.length + sizeof EXIF);
    memset(jpeg + 7, 1, 64);
    memcpy(jpeg + 71, TABLES, sizeof TABLES), memcpy(jpeg + 71 + sizeof TABLES, FRAME, sizeof FRAME);
    memcpy(jpeg + 71 + sizeof TABLES + sizeof FRAME, SCAN, sizeof SCAN - 1);
    write_file(in_folder("cmyk.jpg"), jpeg, sizeof jpeg);
    free(turned);
    text_free(&png);
}

static void open_world(World *world) {
    memset(world, 0, sizeof *world);
    world->photo.width = 40;
    world->photo.height = 30;
    world->photo.rgb = need(malloc(3 * 40 * 30));
    for (int i = 0; i < 3 * 40 * 30; i++) world->photo.rgb[i] = (uint8_t)(i % 7 == 0 ? i * 37 : i / 90);
    if (!report(janus_load(model_path, &world->model, &world->error) == JANUS_OK, "load %s %s", model_path,
                world->error.message))
        exit(1);
    janus_image_save_with_text(in_folder("in.png"), &world->photo, "na\xc3\xafve", NULL);
    janus_image_save_with_text(in_folder("in.jpg"), &world->photo, "na\xc3\xafve", NULL);
    write_other_images();
}

static void close_world(World *world) {
    static const char *const FILES[] = {"in.png",  "in.jpg",  "turned.png", "cmyk.jpg",
                                        "out.png", "out.jpg", "out.gguf"};
    janus_image_free(&world->photo);
    janus_free(world->model);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) remove(in_folder(FILES[i]));
    report(folder_holds(0), "no temporary file is left");
    report(fault.live == 0, "no memory is left: %ld allocations", fault.live);
}

static void test_memory(void) {
    World world;
    open_world(&world);
    for (int which = 0; which < OPERATIONS; which++)
        for (int hopeless = 0; hopeless < 2; hopeless++)
            fail_each(&world, which, MEMORY, ENOMEM, JANUS_NO_MEMORY, hopeless == 1);
    fault.no_mapping = true;
    fail_each(&world, LOAD, MEMORY, ENOMEM, JANUS_NO_MEMORY, false);
    fault.no_mapping = false;
    close_world(&world);
}

/* ---- Files ---- */

/* The model and the images read in every awkward way. */
static void test_reading(World *world) {
    static const int READERS[] = {LOAD, READ_PNG, READ_JPEG};
    fail_each(world, READ_PNG_TEXT, OPENING, EACCES, JANUS_IO_ERROR, false);
    fail_each(world, READ_JPEG_TEXT, READING, EIO, JANUS_IO_ERROR, false);
    for (int i = 0; i < 3; i++) {
        const int which = READERS[i];
        const char *name = TABLE[which].name;
        fault.no_mapping = true;
        fail_each(world, which, OPENING, EACCES, JANUS_IO_ERROR, false);
        fail_each(world, which, READING, EIO, JANUS_IO_ERROR, false);
        fault.trickle = true;
        if (which != LOAD) fail_each(world, which, READING, EIO, JANUS_IO_ERROR, false);
        if (which != LOAD) fail_each(world, which, READING, EINTR, JANUS_OK, false);
        uint64_t normal = 1, hash = 1;
        const JanusStatus trickled = run_once(world, which, &hash);
        fault.trickle = false;
        fail_each(world, which, READING, EINTR, JANUS_OK, false);
        const JanusStatus whole = run_once(world, which, &normal);
        report(whole == JANUS_OK && trickled == JANUS_OK && hash == normal, "%s in short reads", name);
        int refused = 0, tries = 0;
        for (long end = 0; end < 2000; end += 37, tries++) { /* it shrinks after it was opened */
            fault.file_ends = which == READ_JPEG ? end % 620 : end;
            refused += run_once(world, which, &hash) == (which == LOAD ? JANUS_BAD_MODEL : JANUS_BAD_IMAGE) &&
                       world->error.message[0] != 0;
        }
        fault.file_ends = -1;
        fault.no_mapping = false;
        report(refused == tries, "%s: the file shrinks after it was opened, %d of %d times refused", name, refused,
               tries);
    }
}

static void test_writing(World *world) {
    for (int which = WRITE_PNG; which <= WRITE_JPEG_TEXT; which++) {
        fail_each(world, which, OPENING, EACCES, JANUS_IO_ERROR, false);
        fail_each(world, which, CLOSING, ENOSPC, JANUS_IO_ERROR, false);
        fail_each(world, which, RENAMING, EXDEV, JANUS_IO_ERROR, false);
        fail_each(world, which, WRITING, ENOSPC, JANUS_IO_ERROR, false);
        fail_each(world, which, WRITING, EINTR, JANUS_IO_ERROR, true);
    }
}

/* Writes a copy of the model as out.gguf, and loads it; returns its bytes. */
static TextBuffer copy_model(World *world) {
    TextBuffer bytes = {0};
    if (file_read(model_path, SIZE_MAX - 1, &bytes) != 0) need(NULL);
    write_file(in_folder("out.gguf"), bytes.text, bytes.length);
    if (janus_load(in_folder("out.gguf"), &world->model, &world->error) != JANUS_OK) need(NULL);
    return bytes;
}

/* A model that is mapped may be removed or replaced; one that was read may be changed in any way. */
static void test_changed_models(World *world) {
    for (int way = 0; way < 3; way++) {
        static const char *const WAYS[] = {"removed while it is mapped", "replaced while it is mapped",
                                           "cut off after it was read"};
        World mine = *world;
        uint64_t expected = 1, hash = 2;
        fault.no_mapping = way == 2;
        TextBuffer bytes = copy_model(&mine);
        text_free(&bytes);
        fault.no_mapping = false;
        if (way == 0) remove(in_folder("out.gguf"));
        if (way == 1)
            write_file(in_folder("out.png"), "no model", 8), rename(in_folder("out.png"), in_folder("out.gguf"));
        if (way == 2) write_file(in_folder("out.gguf"), "", 0);
        const bool same = run_once(world, ASK, &expected) == JANUS_OK && run_once(&mine, ASK, &hash) == JANUS_OK;
        report(same && hash == expected, "a model that is %s answers as before", WAYS[way]);
        janus_free(mine.model);
    }
}

/* Bytes that are changed under a model that is mapped change its results, and never what memory is used. */
static void test_overwritten_models(const World *world) {
    static const Run RUNS[] = {do_ask, do_generate, do_encode, do_decode, do_texts, do_preprocess};
    uint64_t random = 88172645463325252u;
    int sound = 0, tries = 0;
    for (int round = 0; round < 6; round++) {
        World mine = *world;
        TextBuffer bytes = copy_model(&mine);
        for (size_t i = 0; i < bytes.length; i++) { /* ever more of the file, in the end all of it */
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            if (round == 5 || random % 997 < 1u << (2 * round)) bytes.text[i] = (char)(random >> 32);
        }
        FILE *file = need(fopen(in_folder("out.gguf"), "r+b"));
        if (fwrite(bytes.text, 1, bytes.length, file) != bytes.length || fclose(file) != 0) need(NULL);
        text_free(&bytes);
        open_session(&mine, ASK);
        for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++, tries++) {
            uint64_t hash = 1;
            mine.error.message[0] = 0;
            const JanusStatus status = RUNS[i](&mine, &hash);
            sound += status == JANUS_OK || mine.error.message[0] != 0;
        }
        close_session(&mine);
        janus_free(mine.model);
    }
    report(sound == tries, "models that are overwritten while they are mapped: %d of %d operations end with a status",
           sound, tries);
}

/* Files and folders that this user may not use. */
static void test_permissions(World *world) {
    const bool root = geteuid() == 0;
    JanusModel *model = NULL;
    JanusImage image;
    char locked[300];
    snprintf(locked, sizeof locked, "%s", in_folder("locked"));
    write_file(in_folder("secret.gguf"), "GGUF", 4);
    chmod(in_folder("secret.gguf"), 0);
    mkdir(locked, 0700);
    write_file(in_folder("locked/x.png"), "old", 3);
    chmod(locked, 0500);
    chmod(folder, 0755);
    if (root && seteuid(65534) != 0) need(NULL);
    const JanusStatus statuses[] = {janus_load(in_folder("secret.gguf"), &model, &world->error),
                                    janus_image_load(in_folder("secret.gguf"), &image, NULL),
                                    janus_image_save(in_folder("locked/x.png"), &world->photo, NULL),
                                    janus_image_save(in_folder("locked/new.jpg"), &world->photo, NULL)};
    if (root && seteuid(0) != 0) need(NULL);
    for (int i = 0; i < 4; i++) report(statuses[i] == JANUS_IO_ERROR, "without permission: %s", world->error.message);
    chmod(locked, 0700);
    report(hash_file(in_folder("locked/x.png")) == hash_bytes(1, "old", 3) &&
               hash_file(in_folder("locked/new.jpg")) == 0,
           "without permission the old picture stays");
    remove(in_folder("locked/x.png"));
    remove(in_folder("secret.gguf"));
    rmdir(locked);
    mkfifo(in_folder("pipe.gguf"), 0600);
    report(janus_load(in_folder("pipe.gguf"), &model, &world->error) == JANUS_IO_ERROR, "a pipe as model: %s",
           world->error.message);
    report(janus_image_load(folder, &image, &world->error) == JANUS_IO_ERROR, "a folder as image: %s",
           world->error.message);
    remove(in_folder("pipe.gguf"));
}

/* What a picture written under each kind of name does to it and to what it leads to. */
static void test_links(World *world) {
    static const struct {
        const char *what, *link, *leads_to, *target; /* the name; its link's text; the file that is meant */
        bool dangling, refused;
    } ROWS[] = {{"a link", "l.png", "t.png", "t.png", false, false},
                {"a link to a file of another ending", "l.png", "t.txt", "t.txt", false, false},
                {"a link from another folder", "sub/l.png", "../t.png", "t.png", false, false},
                {"a link to another folder", "l.png", "sub/t.png", "sub/t.png", false, false},
                {"a link with a complete path", "sub/l.png", "@t.png", "t.png", false, false},
                {"a name in a linked folder", "way/t.png", NULL, "sub/t.png", false, false},
                {"a link that leads nowhere yet", "sub/l.png", "new.png", "sub/new.png", true, false},
                {"a link to a link", "l.png", "sub/chain", "t.png", false, false},
                {"a link to a missing folder", "l.png", "no/t.png", NULL, true, true},
                {"a link to a folder", "l.png", "sub", NULL, false, true},
                {"a link to itself", "l.png", "l.png", NULL, true, true}};
    char way[300], sub[300], text[300];
    uint64_t expected = 1;
    snprintf(sub, sizeof sub, "%s", in_folder("sub"));
    snprintf(way, sizeof way, "%s", in_folder("way"));
    if (mkdir(sub, 0700) != 0 || symlink("sub", way) != 0 || run_once(world, WRITE_PNG, &expected) != JANUS_OK ||
        symlink("../t.png", in_folder("sub/chain")) != 0)
        need(NULL);
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        struct stat link, target;
        char name[300];
        snprintf(name, sizeof name, "%s", in_folder(ROWS[i].link));
        const char *leads_to = ROWS[i].leads_to;
        if (leads_to != NULL && leads_to[0] == '@') snprintf(text, sizeof text, "%s", in_folder(leads_to + 1));
        else if (leads_to != NULL) snprintf(text, sizeof text, "%s", leads_to);
        if (leads_to != NULL && symlink(text, name) != 0) need(NULL);
        if (!ROWS[i].dangling && ROWS[i].target != NULL) {
            write_file(in_folder(ROWS[i].target), "old", 3);
            chmod(in_folder(ROWS[i].target), 0640);
        }
        const JanusStatus status = janus_image_save(name, &world->photo, &world->error);
        bool good = status == (ROWS[i].refused ? JANUS_IO_ERROR : JANUS_OK);
        if (leads_to != NULL) good = good && lstat(name, &link) == 0 && S_ISLNK(link.st_mode);
        if (good && ROWS[i].target != NULL)
            good = lstat(in_folder(ROWS[i].target), &target) == 0 && S_ISREG(target.st_mode) &&
                   (ROWS[i].dangling || (target.st_mode & 07777) == 0640) &&
                   hash_file(in_folder(ROWS[i].target)) == expected;
        report(good, "-o %s: %s", ROWS[i].what, ROWS[i].refused ? world->error.message : "its target is written");
        if (leads_to != NULL) remove(name);
        if (ROWS[i].target != NULL) remove(in_folder(ROWS[i].target));
    }
    remove(in_folder("sub/chain"));
    remove(way);
    report(rmdir(sub) == 0 && folder_holds(7), "links leave no temporary file");
}

/* A file that is replaced keeps its permissions; one that must not be written is refused, also for root. */
static void test_modes(World *world) {
    static const mode_t MODES[] = {0600, 0640, 0666, 0755, 0444, 0400, 0};
    uint64_t expected = 1;
    run_once(world, WRITE_PNG, &expected);
    for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++) {
        struct stat after;
        const bool refused = (MODES[i] & 0222) == 0;
        chmod(in_folder("out.png"), 0600);
        write_file(in_folder("out.png"), "old", 3);
        chmod(in_folder("out.png"), MODES[i]);
        const JanusStatus status = janus_image_save(in_folder("out.png"), &world->photo, &world->error);
        bool good = status == (refused ? JANUS_IO_ERROR : JANUS_OK);
        good = good && stat(in_folder("out.png"), &after) == 0 && (after.st_mode & 07777) == MODES[i];
        chmod(in_folder("out.png"), 0600);
        report(good && hash_file(in_folder("out.png")) == (refused ? hash_bytes(1, "old", 3) : expected),
               "a file with the permissions %03o is %s", (unsigned)MODES[i],
               refused ? "refused" : "replaced and keeps them");
    }
    write_file(in_folder("out.png"), "old", 3);
    if (link(in_folder("out.png"), in_folder("other.png")) != 0) need(NULL);
    report(janus_image_save(in_folder("out.png"), &world->photo, NULL) == JANUS_OK &&
               hash_file(in_folder("out.png")) == expected &&
               hash_file(in_folder("other.png")) == hash_bytes(1, "old", 3),
           "another hard link keeps the old content");
    remove(in_folder("other.png"));
    uint64_t hash = 1;
    arm(OPENING, 1, EEXIST, false); /* somebody has this temporary name */
    const JanusStatus status = run_once(world, WRITE_PNG, &hash);
    report(disarm() && status == JANUS_OK && hash == expected, "a temporary name that is taken is left alone");
}

static void test_files(void) {
    World world;
    open_world(&world);
    for (int i = 0; i < 3; i++) write_file(in_folder(i == 0 ? "out.png" : i == 1 ? "out.jpg" : "out.gguf"), "old", 3);
    test_reading(&world);
    test_writing(&world);
    report(folder_holds(7), "what failed left no temporary file");
    fail_each(&world, SESSION, THREAD, EAGAIN, JANUS_OK, false);
    test_changed_models(&world);
    test_overwritten_models(&world);
    test_permissions(&world);
    test_links(&world);
    test_modes(&world);
    close_world(&world);
}

/* ---- Inputs that ask for too much ---- */

typedef struct {
    uint8_t bytes[1 << 16];
    size_t count;
} Bytes;

/* A number of `size` bytes, little-endian. */
static void put(Bytes *out, uint64_t value, int size) {
    for (int i = 0; i < size; i++) out->bytes[out->count++] = (uint8_t)(value >> (8 * i));
}

static void put_text(Bytes *out, const char *text) {
    put(out, strlen(text), 8);
    memcpy(out->bytes + out->count, text, strlen(text));
    out->count += strlen(text);
}

/* The beginning of a model file: header and the two entries that come before the tensors. */
static Bytes *model_start(uint64_t tensors, uint64_t entries) {
    Bytes *out = need(calloc(1, sizeof *out));
    put(out, 0x46554747, 4), put(out, 3, 4), put(out, tensors, 8), put(out, entries + 1, 8);
    put_text(out, "general.architecture");
    put(out, GGUF_STRING, 4), put_text(out, "janus");
    put_text(out, "general.alignment");
    put(out, GGUF_U32, 4), put(out, 64, 4);
    return out;
}

/* Refused with this status, and never asked for more memory than the input can need. */
static void refuse(JanusStatus status, JanusStatus expected, const JanusError *error, size_t most, const char *what) {
    report(status == expected && error->status == expected && error->message[0] != 0 && fault.largest <= most,
           "%s: %s (largest request %ld bytes)", what, error->message, (long)fault.largest);
    fault.largest = 0;
}

static void refuse_model(Bytes *bytes, const char *what) {
    JanusModel *model = NULL;
    JanusError error = {JANUS_OK, ""};
    memset(bytes->bytes + bytes->count, 0, 64);
    write_file(in_folder("bomb.gguf"), bytes->bytes, bytes->count + 64);
    fault.largest = 0;
    const JanusStatus status = janus_load(in_folder("bomb.gguf"), &model, &error);
    refuse(status, JANUS_BAD_MODEL, &error, 2 << 20, what);
    janus_free(model);
    free(bytes);
    remove(in_folder("bomb.gguf"));
}

static void test_metadata_bombs(void) {
    static const struct {
        const char *what;
        uint32_t type;
        uint64_t count;
    } ARRAYS[] = {{"2^40 bytes", GGUF_U8, 1ull << 40},     {"2^40 strings", GGUF_STRING, 1ull << 40},
                  {"2^61 doubles", GGUF_F64, 1ull << 61},  {"2^64-1 numbers", GGUF_U32, UINT64_MAX},
                  {"2^40 arrays", GGUF_ARRAY, 1ull << 40}, {"an unknown type", 77, 1}};
    char what[64];
    for (size_t i = 0; i < sizeof ARRAYS / sizeof *ARRAYS; i++) {
        Bytes *bytes = model_start(0, 2);
        put_text(bytes, "tokenizer.ggml.tokens");
        put(bytes, GGUF_ARRAY, 4), put(bytes, ARRAYS[i].type, 4), put(bytes, ARRAYS[i].count, 8);
        snprintf(what, sizeof what, "an array of %s", ARRAYS[i].what);
        refuse_model(bytes, what);
    }
    Bytes *bytes = model_start(0, 2);
    put_text(bytes, "nested");
    put(bytes, GGUF_ARRAY, 4);
    for (int i = 0; i < 5000; i++) put(bytes, GGUF_ARRAY, 4), put(bytes, 1, 8);
    refuse_model(bytes, "arrays in arrays, 5000 deep");
    bytes = model_start(0, 2);
    put(bytes, 1ull << 63, 8);
    refuse_model(bytes, "a key of 2^63 bytes");
    bytes = model_start(0, 2);
    put_text(bytes, "general.name");
    put(bytes, GGUF_STRING, 4), put(bytes, UINT64_MAX - 3, 8);
    refuse_model(bytes, "a string of nearly 2^64 bytes");
    refuse_model(model_start(8193, 1), "8193 tensors");
    refuse_model(model_start(8192, 1), "8192 tensors that are not there");
    refuse_model(model_start(0, 4096), "4097 metadata entries");
    refuse_model(model_start(0, 4095), "4096 metadata entries that are not there");
    refuse_model(model_start(0, 1), "no tensors at all");
}

static void test_tensor_bombs(void) {
    static const struct {
        const char *what;
        uint32_t dims, type;
        uint64_t sizes[5], offset;
    } TENSORS[] = {{"sizes that overflow", 4, TYPE_F32, {1 << 26, 1 << 26, 1 << 26, 1 << 26, 0}, 0},
                   {"sizes just below an overflow", 3, TYPE_F32, {1 << 26, 1 << 26, 1 << 8, 0, 0}, 0},
                   {"bytes that overflow", 3, TYPE_F32, {1 << 26, 1 << 26, 1 << 10, 0, 0}, 0},
                   {"a size of 2^63", 1, TYPE_F32, {1ull << 63, 0, 0, 0, 0}, 0},
                   {"a size of 2^32 + 1", 2, TYPE_F16, {(1ull << 32) + 1, 4, 0, 0, 0}, 0},
                   {"a size of 0", 2, TYPE_F32, {4, 0, 0, 0, 0}, 0},
                   {"no dimensions", 0, TYPE_F32, {0}, 0},
                   {"five dimensions", 5, TYPE_F32, {1, 1, 1, 1, 1}, 0},
                   {"2^32-1 dimensions", UINT32_MAX, TYPE_F32, {1, 1, 1, 1, 1}, 0},
                   {"a type of 2^32-1", 1, UINT32_MAX, {4, 0, 0, 0, 0}, 0},
                   {"rows that are no whole blocks", 1, TYPE_Q4_0, {33, 0, 0, 0, 0}, 0},
                   {"an offset near 2^64", 1, TYPE_F32, {4, 0, 0, 0, 0}, UINT64_MAX - 63},
                   {"data behind the end", 1, TYPE_F32, {17, 0, 0, 0, 0}, 64}};
    char what[64];
    for (size_t i = 0; i < sizeof TENSORS / sizeof *TENSORS; i++) {
        Bytes *bytes = model_start(1, 1);
        put_text(bytes, "x");
        put(bytes, TENSORS[i].dims, 4);
        for (uint32_t k = 0; k < TENSORS[i].dims && k < 5; k++) put(bytes, TENSORS[i].sizes[k], 8);
        put(bytes, TENSORS[i].type, 4), put(bytes, TENSORS[i].offset, 8);
        snprintf(what, sizeof what, "a tensor with %s", TENSORS[i].what);
        refuse_model(bytes, what);
    }
    Bytes *bytes = model_start(1, 1);
    put(bytes, NAME_LIMIT, 8);
    for (int i = 0; i < NAME_LIMIT; i++) put(bytes, 'x', 1);
    put(bytes, 1, 4), put(bytes, 4, 8), put(bytes, TYPE_F32, 4), put(bytes, 0, 8);
    refuse_model(bytes, "a tensor with a name that is too long");
}

static void refuse_image(const uint8_t *bytes, size_t count, size_t most, const char *what) {
    JanusImage image;
    JanusError error = {JANUS_OK, ""};
    fault.largest = 0;
    const JanusStatus status = janus_image_load_memory(bytes, count, &image, &error);
    report(image.rgb == NULL && image.width == 0, "%s: no image", what);
    refuse(status, JANUS_BAD_IMAGE, &error, most, what);
    janus_image_free(&image);
}

static void big_endian_at(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> (24 - 8 * i));
}

typedef struct {
    uint8_t *bytes;
    size_t bits;
} BitWriter;

/* Bits of a deflate stream fill each byte from below; a code word's highest bit comes first. */
static void put_code(BitWriter *w, unsigned code, int count) {
    for (int i = count - 1; i >= 0; i--, w->bits++) w->bytes[w->bits / 8] |= (uint8_t)((code >> i & 1) << w->bits % 8);
}

/* A PNG of 16 x 16 pixels whose data unpack to `bytes` zeros, in deflate's fixed code: a run of 258 is thirteen
   bits. */
static uint8_t *unpacking_png(size_t bytes, size_t *count) {
    enum { ZERO = 0x30, RUN_OF_258 = 0xC5 };
    uint8_t *png = need(calloc(1, bytes / 100 + 200));
    memcpy(png, "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0\0\0\0\0\0\0\0\0IDAT\x78\x5e", 43);
    BitWriter w = {png, 43 * 8};
    put_code(&w, 6, 3); /* the last block, and the fixed code: 1, then 01 from below */
    put_code(&w, ZERO, 8);
    for (size_t i = 0; i < (bytes - 1) / 258; i++) put_code(&w, RUN_OF_258, 8), put_code(&w, 0, 5);
    for (size_t i = 0; i < (bytes - 1) % 258; i++) put_code(&w, ZERO, 8);
    put_code(&w, 0, 7); /* the end */
    const size_t end = (w.bits + 7) / 8 + 4; /* a checksum, which stb does not read */
    big_endian_at(png + 33, (uint32_t)(end - 41));
    memcpy(png + end + 4, "\0\0\0\0IEND\0\0\0\0", 12);
    *count = end + 16;
    return png;
}

static void test_image_bombs(void) {
    static const uint32_t SIZES[][2] = {{100000, 100000},         {16384, 16384},  {16385, 1},     {1, 16385},
                                        {0x7FFFFFFF, 0x7FFFFFFF}, {0xFFFFFFFF, 2}, {13378, 13378}, {0, 5}};
    TextBuffer file = {0};
    char what[80];
    size_t count;
    if (file_read(in_folder("in.png"), 1 << 20, &file) != 0) need(NULL);
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        snprintf(what, sizeof what, "a PNG that says %lu x %lu", (unsigned long)SIZES[i][0],
                 (unsigned long)SIZES[i][1]);
        uint8_t *bytes = (uint8_t *)file.text;
        big_endian_at(bytes + 16, SIZES[i][0]), big_endian_at(bytes + 20, SIZES[i][1]);
        refuse_image(bytes, file.length, 1 << 20, what);
    }
    text_free(&file);
    if (file_read(in_folder("in.jpg"), 1 << 20, &file) != 0) need(NULL);
    for (size_t at = 0; at + 9 < file.length; at++)
        if (memcmp(file.text + at, "\xFF\xC0", 2) == 0) memset(file.text + at + 5, 0xFF, 4);
    refuse_image((uint8_t *)file.text, file.length, 1 << 20, "a JPEG that says 65535 x 65535");
    text_free(&file);
    JanusImage image;
    uint8_t *png = unpacking_png(50000000, &count);
    refuse_image(png, count, 2 << 20, "a PNG of 16 x 16 pixels that unpacks to 50 MB");
    free(png);
    png = unpacking_png(16 * 49, &count);
    report(janus_image_load_memory(png, count, &image, NULL) == JANUS_OK && image.width == 16,
           "the same one with its 784 bytes is read");
    janus_image_free(&image);
    free(png);
}

static void count_tokens(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape,
                         int dims) {
    (void)type, (void)data, (void)dims;
    if (strcmp(name, "text.token_ids") == 0) *(int64_t *)user = shape[0];
}

/* A prompt, then a question, that with what follows is one token shorter than the context, fills it, and is one too
   long. */
static void test_context(World *world) {
    static const char TOKEN[] = "<|User|>";
    const JanusInfo info = janus_info(world->model);
    JanusSessionOptions options = janus_session_defaults();
    JanusSession *session = NULL;
    JanusAskOptions ask = janus_ask_defaults();
    int64_t tokens = 0, base[2] = {0, 0};
    int32_t ids[64];
    char *text = need(malloc((size_t)info.context_length * sizeof TOKEN + 16)), *answer = NULL;
    options.threads = 1;
    options.tap = count_tokens;
    options.user = &tokens;
    ask.max_tokens = 50;
    if (janus_session_new(world->model, &options, &session, NULL) != JANUS_OK) need(NULL);
    for (int task = 0; task < 2; task++)
        for (int by = -2; by <= 1; by++) { /* -2: measures the prompt alone */
            const int64_t room = info.context_length - (task == 0 ? info.image_tokens : 2);
            const int64_t count = by == -2 ? 0 : room + by - base[task];
            JanusError error = {JANUS_OK, ""};
            strcpy(text, "x");
            for (int64_t i = 0; i < count; i++) memcpy(text + 1 + i * (int64_t)(sizeof TOKEN - 1), TOKEN, sizeof TOKEN);
            tokens = 0;
            janus_reset(session);
            const JanusStatus status = task == 0 ? janus_generate_ids(session, text, NULL, ids, &error)
                                                 : janus_ask(session, text, NULL, 0, &ask, &answer, &error);
            free(answer);
            answer = NULL;
            if (by == -2) base[task] = tokens;
            const bool fits = by <= 0;
            report(status == (fits ? JANUS_OK : JANUS_BAD_ARGUMENT) && (!fits || tokens == base[task] + count) &&
                       janus_conversation_length(session) <= info.context_length,
                   "%s of %ld tokens in a context of %d: %s", task == 0 ? "a prompt" : "a question",
                   (long)(base[task] + count), info.context_length, fits ? "fits" : error.message);
        }
    janus_session_free(session);
    free(text);
}

/* ---- Numbers that are none, arguments ---- */

/* The last norm's weights become `value`: scores that are no numbers are an error, scores that are all equal are
   not. */
static void test_odd_scores(const World *world, float value, JanusStatus expected) {
    World mine = *world;
    JanusImage images[3];
    JanusGenerateOptions drawing = janus_generate_defaults();
    JanusAskOptions ask = janus_ask_defaults();
    if (janus_load(model_path, &mine.model, &mine.error) != JANUS_OK) need(NULL);
    const int64_t width = mine.model->config.hidden;
    float *weights = need(malloc((size_t)width * sizeof *weights));
    for (int64_t i = 0; i < width; i++) weights[i] = value;
    mine.model->output_norm = weights;
    open_session(&mine, ASK);
    memset(images, 0x5A, sizeof images);
    drawing.count = 3;
    ask.max_tokens = 4;
    ask.temperature = 1;
    ask.top_p = 0.5;
    ask.top_k = 0;
    JanusStatus status = janus_generate(mine.session, "a cat", &drawing, images, &mine.error);
    report(status == expected, "drawing with scores of %g: %s", (double)value, mine.error.message);
    for (int i = 0; i < 3 && status == JANUS_OK; i++) janus_image_free(&images[i]);
    status = janus_ask(mine.session, "What?", &mine.photo, 1, &ask, NULL, &mine.error);
    report(status == expected && (janus_conversation_length(mine.session) > 0) == (status == JANUS_OK),
           "answering with scores of %g: %s", (double)value, mine.error.message);
    close_session(&mine);
    janus_free(mine.model);
    free(weights);
}

static void test_arguments(World *world) {
    const JanusImage empty = {0, 0, NULL};
    int32_t ids[64], *tokens = NULL;
    size_t count = 0;
    open_session(world, ASK);
    report(janus_ask(world->session, "What?", &empty, 1, NULL, NULL, &world->error) == JANUS_BAD_ARGUMENT, "asking: %s",
           world->error.message);
    report(janus_encode_image(world->session, &empty, ids, &world->error) == JANUS_BAD_ARGUMENT, "encoding: %s",
           world->error.message);
    close_session(world);
    report(janus_tokenize(world->model, "x", (size_t)TEXT_LIMIT + 1, &tokens, &count, &world->error) ==
               JANUS_BAD_ARGUMENT,
           "tokenizing: %s", world->error.message);
    report(janus_image_load_memory("x", (size_t)INT_MAX + 1, &world->photo, &world->error) == JANUS_BAD_IMAGE,
           "an image: %s", world->error.message);
}

static void test_bombs(void) {
    World world;
    JanusImage photo;
    open_world(&world);
    test_odd_scores(&world, NAN, JANUS_BAD_MODEL);
    test_odd_scores(&world, 0, JANUS_OK);
    photo = world.photo;
    test_arguments(&world);
    world.photo = photo;
    test_metadata_bombs();
    test_tensor_bombs();
    test_image_bombs();
    test_context(&world);
    close_world(&world);
}

/* ---- The program ---- */

/* Runs the command line (words with spaces between them) in a child with the k-th call of a kind failing. Returns its
   exit code; 90: memory is left, 91: there was nothing to fail any more, 92: it was killed. stdin is a text, or a file
   of the temporary folder for "<NAME"; stdout and stderr go to files. */
static int run_words(const char *command, const char *input, Kind kind, int at, int error) {
    char words[2048], *arguments[32] = {NULL};
    int count = 0, status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        snprintf(words, sizeof words, "janus %s", command);
        for (char *word = strtok(words, " "); word != NULL && count < 31; word = strtok(NULL, " "))
            arguments[count++] = word;
        write_file(in_folder("stdin"), input, strlen(input));
        if (freopen(in_folder(input[0] == '<' ? input + 1 : "stdin"), "rb", stdin) == NULL ||
            freopen(in_folder("stdout"), "wb", stdout) == NULL || freopen(in_folder("stderr"), "wb", stderr) == NULL ||
            chdir(folder) != 0)
            _exit(93);
        const long live = fault.live;
        arm(kind, at, error, false);
        int code = janus_program(count, arguments);
        if (!disarm()) code = code == 0 || code == EXIT_FAILED ? 91 : code;
        if (fault.live != live) code = 90;
        fflush(NULL);
#if defined(COVERAGE)
        __gcov_dump();
#endif
        _exit(code);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) need(NULL);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 92;
}

static void print_stderr(void) {
    char line[300];
    FILE *file = fopen(in_folder("stderr"), "rb");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) printf("        | %s", line);
    if (file != NULL) fclose(file);
}

/* Whether stderr holds at least one line of the program's own, with something to say. */
static bool complained(void) {
    TextBuffer image = {0};
    bool found = false;
    if (file_read(in_folder("stderr"), 1 << 20, &image) != 0) return false;
    for (size_t i = 0; i + 20 < image.length; i++)
        found |= (i == 0 || image.text[i - 1] == '\n') && memcmp(image.text + i, "janus: ", 7) == 0;
    text_free(&image);
    return found;
}

/* Removes the files of a folder, and the folder. */
static void remove_folder(const char *path) {
    DIR *listing = opendir(path);
    for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;) {
        char name[600];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') remove(name);
    }
    if (listing != NULL) closedir(listing);
    rmdir(path);
}

/* How a command ends that cannot have what it asks for: with an error; a chat says so and goes on; a batch puts it into
   the result of a job and goes on, or does each job alone where memory is missing for all at once. */
typedef enum { FAILS, GOES_ON, BATCH } Ending;

static bool ended_well(Ending ending, int code, Kind kind) {
    if (ending == BATCH) {
        TextBuffer results = {0};
        const bool told = file_read(in_folder("stdout"), 1 << 20, &results) == 0 &&
                          strstr(results.text, "\"error\": ") != NULL;
        text_free(&results);
        return code == EXIT_FAILED ? told || complained() : code == EXIT_DONE && kind == MEMORY && !told;
    }
    return (code == EXIT_FAILED || (ending == GOES_ON && code == EXIT_DONE)) && complained() &&
           (ending == GOES_ON || hash_file(in_folder("janus-1.png")) == 0);
}

static void fail_command(const char *command, const char *input, Kind kind, Ending ending) {
    static const char *const CALLS[KINDS] = {"allocation", "opening", "read", "write", "close"};
    static const int ERRORS[KINDS] = {ENOMEM, EACCES, EIO, ENOSPC, ENOSPC};
    int at = 0, wrong = 0;
    for (bool more = true; more && wrong < 3 && at < 5000;) {
        const int code = run_words(command, input, kind, ++at, ERRORS[kind]);
        more = code != 91;
        const bool good = !more || ended_well(ending, code, kind);
        if (!good) printf("        at %d: exit code %d\n", at, code), print_stderr();
        wrong += !good;
        remove(in_folder("out.png"));
        remove(in_folder("janus-1.png"));
        remove_folder(in_folder("dump"));
    }
    report(wrong == 0 && at > 1, "janus %.60s: each %s of %d may fail", command, CALLS[kind], at - 1);
}

/* Command lines, the calls that fail in them (letters of CALLS), and their input. */
static void test_program(void) {
    static const struct {
        const char *command, *calls, *input;
        Ending ending;
    } LINES[] = {{"tokenize -m %s one", "a", "", FAILS},
                 {"tokenize -m %s -", "a", "one", FAILS},
                 {"tokenize --decode -m %s 5", "a", "", FAILS},
                 {"encode -m %s --threads 1 -i in.jpg", "a", "", FAILS},
                 {"encode -m %s --threads 1 -i -", "ar", "<in.jpg", FAILS},
                 {"decode -m %s --threads 1 -o out.png", "a", "1 2 3 4", FAILS},
                 {"decode -m %s --threads 1", "aow", "1 2 3 4", FAILS}, /* under a name that is free */
                 {"info -m %s", "a", "", FAILS},
                 {"info in.jpg", "a", "", FAILS}, /* its text */
                 {"ask -m %s --threads 1 --max-tokens 2 -i in.jpg --dump dump x", "aowc", "", FAILS},
                 {"generate -m %s --threads 1 -o out.png -", "r", "a cat\n", FAILS},
                 {"chat -m %s --threads 1 --max-tokens 1", "a", "Hi\n/image no\n/draw x\n/quit\n", GOES_ON},
                 {"batch -m %s --threads 1 -", "awo",
                  "{\"prompt\": \"a\", \"seed\": 1, \"output\": \"out.png\"}\n"
                  "{\"question\": \"Hi\", \"max_tokens\": 2, \"image\": \"in.jpg\"}\n"
                  "{\"prompt\": \"b\", \"seed\": 2, \"output\": \"janus-1.png\"}\n",
                  BATCH}};
    static const char letters[] = "aorwc";
    World world;
    char command[2048], model[1024] = "";
    open_world(&world);
    if (getcwd(model, 900) == NULL) need(NULL);
    strcat(strcat(model, "/"), model_path);
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++) {
        snprintf(command, sizeof command, LINES[i].command, model);
        for (const char *call = LINES[i].calls; *call != 0; call++)
            fail_command(command, LINES[i].input, (Kind)(strchr(letters, *call) - letters), LINES[i].ending);
    }
    remove(in_folder("stdin")), remove(in_folder("stdout")), remove(in_folder("stderr"));
    close_world(&world);
}

/* ---- Threads ---- */

typedef struct {
    const World *world;
    int which;
    uint64_t hash;
    int threads, rounds;
    JanusStatus status;
} Together;

static void *run_together(void *argument) {
    Together *mine = argument;
    World world = *mine->world;
    world.file = TABLE[mine->which].file;
    JanusSessionOptions options = janus_session_defaults();
    options.threads = mine->threads;
    mine->status = janus_session_new(world.model, &options, &world.session, NULL);
    for (int i = 0; i < mine->rounds && mine->status == JANUS_OK; i++) {
        uint64_t hash = 1;
        janus_reset(world.session);
        mine->status = TABLE[mine->which].run(&world, &hash);
        mine->hash = i == 0 || mine->hash == hash ? hash : 0;
    }
    janus_session_free(world.session);
    return NULL;
}

static void sum_job(void *data, Chunk chunk) {
    int64_t *sums = data;
    for (int64_t i = chunk.begin; i < chunk.end; i++) sums[i] += i * i + (chunk.thread < 0);
}

/* Jobs of every size, one after the other, on pools that come and go. */
static void test_pool(void) {
    enum { MOST = 300 };
    static int64_t sums[MOST];
    bool good = true;
    for (int threads = 1; threads <= 4; threads++) {
        Pool *pool = need(pool_create(threads));
        for (int64_t count = 0; count <= MOST; count += 7)
            for (int64_t grain = 1; grain <= 100; grain *= 5) {
                memset(sums, 0, sizeof sums);
                pool_run(pool, sum_job, sums, count, grain);
                for (int64_t i = 0; i < MOST; i++) good = good && sums[i] == (i < count ? i * i : 0);
            }
        pool_free(pool);
    }
    report(good, "every job of a pool of 1 to 4 threads is done once");
}

/* Sessions of one model in threads of their own, each with a pool, do what each does alone. */
#if !defined(__has_feature)
#define __has_feature(name) 0
#endif
/* ThreadSanitizer starts no threads in a child of fork(), and the program's list of unfinished files is for one thread;
   the library has none. */
#if !defined(__SANITIZE_THREAD__) && !__has_feature(thread_sanitizer)
static void *save_often(void *argument) {
    const World *world = argument;
    char path[300];
    intptr_t failures = 0;
    snprintf(path, sizeof path, "%s/out.png", folder);
    for (int i = 0; i < 60; i++) failures += janus_image_save(path, &world->photo, NULL) != JANUS_OK;
    return (void *)failures;
}

/* Two threads write one file while it is read: every save works, and every picture that is read is complete. */
static void test_race(const World *world) {
    World worlds[2] = {*world, *world};
    pthread_t savers[2];
    void *failures[2];
    JanusImage image;
    char path[300];
    int bad = 0;
    snprintf(path, sizeof path, "%s", in_folder("out.png"));
    worlds[1].photo.height /= 2;
    janus_image_save(path, &world->photo, NULL);
    for (int i = 0; i < 2; i++)
        if (pthread_create(&savers[i], NULL, save_often, &worlds[i]) != 0) need(NULL);
    for (int i = 0; i < 100; i++) {
        bad += janus_image_load(path, &image, NULL) != JANUS_OK;
        janus_image_free(&image);
    }
    for (int i = 0; i < 2; i++) pthread_join(savers[i], &failures[i]);
    report(failures[0] == NULL && failures[1] == NULL && bad == 0,
           "two threads save to one name: %ld saves failed, %d pictures were incomplete",
           (long)((intptr_t)failures[0] + (intptr_t)failures[1]), bad);
}

typedef enum { USE, FREE, NEW_SESSION, CHILD_OF_CHILD } InChild;

/* What a child does with the session that its parent used; its exit status is 0 if the result is as expected. */
static int run_in_child(World *world, InChild what, uint64_t expected) {
    int status = 1;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        uint64_t hash = 1;
        bool good = true;
        alarm(60); /* a child that hangs is killed */
        if (what == NEW_SESSION) {
            JanusSessionOptions options = janus_session_defaults();
            options.threads = 2;
            good = janus_session_new(world->model, &options, &world->session, NULL) == JANUS_OK;
        }
        if (what != FREE) good = good && do_generate(world, &hash) == JANUS_OK && hash == expected;
        if (what == CHILD_OF_CHILD) good = good && run_in_child(world, USE, expected) == 0;
        janus_session_free(world->session);
        _exit(good ? 0 : 1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) need(NULL);
    return status;
}

/* A session that was used before fork() works in the child and goes on in the parent. */
static void test_fork(World *world) {
    static const char *const WHAT[] = {"is used", "is freed", "is left for a new one", "is used in its own child, too"};
    for (int threads = 1; threads <= 3; threads++) {
        JanusSessionOptions options = janus_session_defaults();
        uint64_t expected = 1, after = 1;
        options.threads = threads;
        if (janus_session_new(world->model, &options, &world->session, NULL) != JANUS_OK) need(NULL);
        do_generate(world, &expected);
        for (int what = USE; what <= CHILD_OF_CHILD; what++)
            report(run_in_child(world, (InChild)what, expected) == 0, "a session of %d threads %s after fork()",
                   threads, WHAT[what]);
        report(do_generate(world, &after) == JANUS_OK && after == expected, "the parent's session goes on");
        close_session(world);
    }
}
#else
static void test_race(const World *world) { (void)world; }
static void test_fork(World *world) { (void)world; }
#endif

static void test_threads(void) {
    static const int WHICH[] = {ASK, GENERATE, QUEUE, ENCODE, TEXTS, READ_JPEG, PREPROCESS};
    enum { COUNT = sizeof WHICH / sizeof *WHICH };
    World world;
    Together all[COUNT];
    pthread_t threads[COUNT];
    open_world(&world);
    test_pool();
    test_race(&world);
    test_fork(&world);
    for (int number = 1; number <= 3; number++) {
        for (int i = 0; i < COUNT; i++) {
            const Together one = {&world, WHICH[i], 0, number == 1 ? 1 : 2, number, JANUS_OK};
            all[i] = one;
            if (pthread_create(&threads[i], NULL, run_together, &all[i]) != 0) need(NULL);
        }
        for (int i = 0; i < COUNT; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < COUNT; i++) {
            Together alone = {&world, WHICH[i], 0, 1, 1, JANUS_OK};
            run_together(&alone);
            report(all[i].status == JANUS_OK && all[i].hash == alone.hash && alone.hash != 0,
                   "operation %d of %d at once gives what it gives alone", i + 1, COUNT);
        }
    }
    close_world(&world);
}

/* ---- Processors ---- */

#if defined(__linux__)
/* Writes a file below the temporary folder, and the folders on the way. */
static void write_below(const char *name, const char *text) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (char *slash = path + strlen(folder) + 1; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = 0;
        mkdir(path, 0777);
    }
    write_file(path, text, strlen(text));
}

/* What cgroups show of a process, and how many of 8 processors they leave. */
static void test_quotas(void) {
    static const struct {
        const char *what;
        int expected;
        const char *groups, *files[2][2]; /* /proc/self/cgroup; files below /sys/fs/cgroup */
    } ROWS[] = {{"no cgroups", 8, NULL, {{NULL}}},
                {"no limit", 8, "0::/\n", {{"cpu.max", "max 100000\n"}}},
                {"two and a half", 2, "0::/\n", {{"cpu.max", "250000 100000\n"}}},
                {"a half", 1, "0::/a\n", {{"a/cpu.max", "50000 100000\n"}}},
                {"more than there are", 8, "0::/a\n", {{"a/cpu.max", "99900000 100000\n"}}},
                {"the parent's", 3, "0::/a/b\n", {{"a/b/cpu.max", "max 100000\n"}, {"a/cpu.max", "300000 100000\n"}}},
                {"the least of two", 2, "0::/a/b\n", {{"a/b/cpu.max", "400000 100000\n"}, {"a/cpu.max", "20 10\n"}}},
                {"no numbers", 8, "0::\n::::\n\n0::/a", {{"a/cpu.max", "100000\n"}, {"cpu.max", "x y\n"}}},
                {"other controllers before it", 2, "2:cpu:/x\n1:name=systemd:/\n0::/a\n", {{"a/cpu.max", "2 1\n"}}}};
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        char text[600];
        write_below("sys/fs/cgroup/unused", "");
        if (ROWS[i].groups != NULL) write_below("proc/self/cgroup", ROWS[i].groups);
        for (int k = 0; k < 2 && ROWS[i].files[k][0] != NULL; k++) {
            snprintf(text, sizeof text, "sys/fs/cgroup/%s", ROWS[i].files[k][0]);
            write_below(text, ROWS[i].files[k][1]);
        }
        const int count = quota_processors(folder, 8);
        report(count == ROWS[i].expected, "processors, %s: %d of 8", ROWS[i].what, count);
        snprintf(text, sizeof text, "rm -rf '%s/proc' '%s/sys'", folder, folder);
        if (system(text) != 0) need(NULL);
    }
}

static void test_processors(void) {
    unsigned char all[1024] = {0}, one[1024] = {0};
    int first = 0;
    test_quotas();
    const long size = syscall(SYS_sched_getaffinity, 0L, sizeof all, all);
    while (first < 8 * size && (all[first / 8] >> first % 8 & 1) == 0) first++;
    one[first / 8] = (unsigned char)(1 << first % 8);
    const bool bound = syscall(SYS_sched_setaffinity, 0L, sizeof one, one) == 0;
    const int alone = processor_count();
    const bool freed = syscall(SYS_sched_setaffinity, 0L, sizeof all, all) == 0;
    report(bound && alone == 1, "bound to one processor: %d is used", alone);
    report(freed && processor_count() >= 1, "bound to all that it had: %d are used", processor_count());
}
#else
static void test_processors(void) { report(processor_count() >= 1, "%d processors", processor_count()); }
#endif

/* Each operation once, for slow machines and tools. */
static void test_small(void) {
    World world;
    open_world(&world);
    for (int which = 0; which < OPERATIONS; which++) {
        uint64_t hash = 1;
        report(run_once(&world, which, &hash) == JANUS_OK && hash != 1, "%s", TABLE[which].name);
    }
    close_world(&world);
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(void);
    } PARTS[] = {{"memory", test_memory},   {"files", test_files},     {"bombs", test_bombs},
                 {"program", test_program}, {"threads", test_threads}, {"processors", test_processors},
                 {"small", test_small}};
    enum { PART_COUNT = sizeof PARTS / sizeof *PARTS };
    const char *place = getenv("TMPDIR");
    setvbuf(stdout, NULL, _IOLBF, 4096);
    snprintf(folder, sizeof folder, "%.200s/test_faults.XXXXXX", place != NULL ? place : "/tmp");
    need(mkdtemp(folder));
    for (int i = 0; i < PART_COUNT; i++) {
        bool wanted = count < 2 && i + 1 < PART_COUNT;
        for (int k = 1; k < count; k++) wanted |= strcmp(arguments[k], PARTS[i].name) == 0;
        if (wanted) PARTS[i].run();
    }
    report(rmdir(folder) == 0, "the temporary folder is empty at the end");
    return closing_line();
}
