/* SPDX-License-Identifier: MIT
   fuzz.c - what a stranger may hand to janus.c, as fuzz targets for libFuzzer and AFL++ and as a plain program:

       model    a model file; when it loads, both tasks, both encoders and the decoder run on it
       image    the bytes of an image file, decoded and prepared for both encoders
       text     text to ids and back, ids to text, text as a question and as a prompt
       ids      the input of `janus decode` and `janus tokenize --decode`
       options  whole command lines, and the files and the stdin that they read
       json     a line of `janus batch`

   The program's name chooses the target: fuzz-model, fuzz-image, ... Compiled with -DSTANDALONE it is a program without
   a fuzzer, fuzz-replay FOLDER ... [-runs=N], which runs every file FOLDER/TARGET/NAME and then N mutations of them.
   Run it in the project's folder. janus.c is compiled in whole, but what it opens are files in memory, what it prints
   vanishes, and a model file ends exactly where its memory does, so that the address sanitizer sees each byte
   beyond. */

#define _GNU_SOURCE
#define JANUS_NO_MMAP
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../c/common.h"

/* ---- The world in which janus.c runs ---- */

typedef struct {
    char *bytes;
    size_t size;
} Bytes;

static struct {
    Bytes model, other;     /* what files named *.gguf hold, and all other files */
    FILE *nothing, *input;  /* stdout and stderr; stdin */
    int calls_left;         /* callbacks that go on before one cancels; negative: none does */
} world;

/* A file of no bytes is one whose only byte is read: fmemopen takes no empty memory. */
static FILE *open_bytes(Bytes bytes) {
    static char byte;
    FILE *file = bytes.size > 0 ? fmemopen(bytes.bytes, bytes.size, "rb") : fmemopen(&byte, 1, "rb");
    if (file != NULL && bytes.size == 0) getc(file);
    return file;
}

static FILE *world_open(const char *path, const char *mode) {
    const size_t length = strlen(path);
    if (mode[0] == 'r')
        return open_bytes(length > 5 && strcmp(path + length - 5, ".gguf") == 0 ? world.model : world.other);
    return fopen("/dev/null", "wb");
}

static int world_rename(const char *from, const char *to) { return from == to; }
static int world_remove(const char *path) { return path == NULL; }
static int world_mkdir(const char *path, mode_t mode) { return path == NULL || mode == 0; }

#undef stdin
#undef stderr
#undef getchar
#define stdin          world.input
#define stderr         world.nothing
#define getchar()      getc(world.input)
#define fopen          world_open
#define rename         world_rename
#define remove         world_remove
#define mkdir          world_mkdir
#define sysconf(name)  1L /* processors */
#define isatty(file)   ((void)(file), 1) /* progress is shown */
#define main           janus_program
#include "../../janus.c"
#undef main
#undef fopen
#undef stderr
extern FILE *stderr;

/* A promise that did not hold is a crash, for the fuzzer to see. */
static void promise(int kept, const char *what) {
    if (kept) return;
    fprintf(stderr, "broken promise: %s\n", what);
    abort();
}

/* A file of ours. */
static Bytes read_seed(const char *path) {
    Bytes bytes = {NULL, 0};
    bytes.bytes = need(read_file(path, &bytes.size));
    return bytes;
}

/* ---- Models: the input is a byte of switches and the beginning of a GGUF file, up to its tensors' data ---- */

enum { PLAIN_KERNELS = 1, HALF_CACHE = 2, DATA_KIND = 12, CANCEL = 0xF0, DATA_SIZE = 96 * 1024 };

/* Weights that mean something in every type: each 16 bits are 1 to 2 or minus that as F16, around 0.01 as BF16 and F32.
   Kind 1: any bits, with NaN, infinities and numbers too small. Kind 2: zeros. Kind 3: the file ends too early. */
static void fill_data(uint8_t *data, int kind) {
    uint32_t state = 2463534242u;
    for (int i = 0; i < DATA_SIZE; i += 2) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        write_u16(data + i, (uint16_t)(kind == 1 ? state >> 8 : kind == 2 ? 0 : (state >> 9 & 0x80ff) | 0x3c00));
    }
}

/* Makes the world's model from an input. */
static void set_model(const uint8_t *data, size_t size) {
    const int kind = size > 0 ? (data[0] & DATA_KIND) / 4 : 0;
    const size_t given = size > 0 ? size - 1 : 0, head = (given + 63) / 64 * 64;
    free(world.model.bytes);
    world.model.bytes = need(calloc(head + DATA_SIZE, 1));
    if (given > 0) memcpy(world.model.bytes, data + 1, given);
    fill_data((uint8_t *)world.model.bytes + head, kind);
    world.model.size = head + (kind == 3 ? 8192 : DATA_SIZE);
}

static int go_on(void) { return world.calls_left < 0 || world.calls_left-- > 0; }

static int check_progress(void *user, const char *stage, int64_t done, int64_t total) {
    promise(user == &world && stage[0] != 0 && done >= 0 && done <= total, "progress that makes sense");
    return !go_on();
}

static int check_text(void *user, const char *text, size_t length) {
    promise(user == &world && length > 0 && utf8_valid(text, length), "answers in UTF-8");
    return !go_on();
}

/* A failing call says why, on one line; a succeeding one says so. */
static int went_well(JanusStatus status, JanusError *error) {
    if (status != JANUS_OK) {
        promise(error->status == status && error->message[0] != 0, "a message for every error");
        promise(strpbrk(error->message, "\r\n") == NULL, "one line");
    }
    memset(error, 0, sizeof *error);
    return status == JANUS_OK;
}

static JanusImage small_image(void) {
    JanusImage image = {5, 3, need(malloc(45))};
    for (int i = 0; i < 45; i++) image.rgb[i] = (uint8_t)(i * 37);
    return image;
}

/* Whether both tasks are small enough to be run some hundred times a second. */
static int is_small(const JanusModel *model) {
    const JanusInfo info = janus_info(model);
    return info.vision_size <= 64 && info.vision_tokens <= 64 && info.image_tokens <= 16 && info.image_size <= 48 &&
           info.parameters * ((int64_t)info.image_size * info.image_size + 64) < 50000000;
}

static void run_question(JanusSession *session, const JanusImage *image, JanusError *error) {
    JanusAskOptions options = janus_ask_defaults();
    char *answer = NULL;
    options.max_tokens = 3;
    for (int turn = 0; turn < 2; turn++) {
        const int before = janus_conversation_length(session);
        if (went_well(janus_ask(session, "the fox?", image, 1 - turn, &options, &answer, error), error))
            promise(utf8_valid(answer, strlen(answer)) && janus_conversation_length(session) > before, "an answer");
        else promise(answer == NULL && janus_conversation_length(session) == before, "a failed turn leaves nothing");
        free(answer);
        answer = NULL;
        options.temperature = 0.7f;
        options.top_p = 0.9;
    }
    went_well(janus_ask(session, "again", image, 1, &options, NULL, error), error);
    janus_reset(session);
}

static void run_pictures(JanusSession *session, const JanusImage *image, JanusError *error) {
    const JanusInfo info = janus_info(session->model);
    JanusGenerateOptions options = janus_generate_defaults();
    JanusImage drawn[2] = {{0, 0, NULL}, {0, 0, NULL}}, decoded = {0, 0, NULL};
    int32_t *ids = need(malloc((size_t)info.image_tokens * sizeof *ids));
    options.count = 2;
    options.temperature = 0.5f;
    if (went_well(janus_generate(session, "a fox", &options, drawn, error), error))
        promise(drawn[1].rgb != NULL && drawn[1].width == info.image_size, "a picture");
    janus_image_free(&drawn[0]);
    janus_image_free(&drawn[1]);
    if (went_well(janus_encode_image(session, image, ids, error), error)) {
        for (int i = 0; i < info.image_tokens; i++)
            promise(ids[i] >= 0 && ids[i] < info.codebook_size, "ids of the codebook");
        went_well(janus_decode_image(session, ids, &decoded, error), error);
        janus_image_free(&decoded);
    }
    free(ids);
}

static void use_model(const JanusModel *model, int switches) {
    JanusSessionOptions options = janus_session_defaults();
    JanusSession *session = NULL;
    JanusError error;
    JanusImage image = small_image();
    options.threads = 1;
    options.isa = switches & PLAIN_KERNELS ? "plain" : NULL;
    options.cache = switches & HALF_CACHE ? JANUS_CACHE_F16 : JANUS_CACHE_F32;
    options.user = &world;
    options.progress = check_progress;
    options.text = check_text;
    world.calls_left = (switches & CANCEL) / 16 - 1;
    if (went_well(janus_session_new(model, &options, &session, &error), &error)) {
        run_question(session, &image, &error);
        run_pictures(session, &image, &error);
    }
    janus_session_free(session);
    janus_image_free(&image);
}

static void fuzz_model(const uint8_t *data, size_t size) {
    JanusModel *model = NULL;
    JanusError error;
    set_model(data, size);
    const int loads = went_well(janus_load("seed.gguf", &model, &error), &error);
    promise(loads == (model != NULL), "a model or an error");
    if (loads && is_small(model)) use_model(model, data[0]);
    janus_free(model);
}

/* ---- Everything else works on a model that loads, the seed test/fuzz/corpus/model/plain ---- */

static Bytes seed;
static JanusModel *seed_model;
static JanusSession *seed_session;

/* A file outside the corpus would be one more; the seed's name is its promise to stay. */
static void load_seed(void) {
    JanusSessionOptions options = janus_session_defaults();
    JanusError error = {JANUS_OK, ""};
    seed = read_seed("test/fuzz/corpus/model/plain");
    set_model((const uint8_t *)seed.bytes, seed.size);
    options.threads = 1;
    if (janus_load("seed.gguf", &seed_model, &error) != JANUS_OK ||
        janus_session_new(seed_model, &options, &seed_session, &error) != JANUS_OK) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
}

/* The same file as it is stored has the same sides, and the pixels of each corner at a corner. */
static void check_stored(const uint8_t *data, size_t size, const JanusImage *image) {
    const int64_t pixels = (int64_t)image->width * image->height, last = pixels - 1;
    JanusImage stored;
    if (pixels > 1 << 16) return; /* decoding twice takes too long */
    promise(janus_image_load_memory_stored(data, size, &stored, NULL) == JANUS_OK, "what can be turned can be read");
    promise((stored.width == image->width && stored.height == image->height) ||
            (stored.width == image->height && stored.height == image->width), "the same sides");
    const int64_t corners[] = {0, image->width - 1, last - image->width + 1, last};
    int found = 0;
    for (int i = 0; i < 4; i++) found |= memcmp(stored.rgb, image->rgb + 3 * corners[i], 3) == 0;
    promise(found, "the first pixel is at a corner");
    janus_image_free(&stored);
}

/* A file carries a text in UTF-8, none, or there is an error. */
static void check_carried_text(const uint8_t *data, size_t size) {
    JanusError error;
    char *text = NULL;
    if (!went_well(image_from_bytes(data, size, false, NULL, &text, "image.png", &error), &error))
        promise(text == NULL, "no text after an error");
    if (text != NULL) promise(utf8_valid(text, strlen(text)) && strlen(text) <= 2 * size, "a text in UTF-8");
    if (text != NULL) clean_controls(text, strlen(text), '\n');
    if (text != NULL) promise(utf8_valid(text, strlen(text)), "and without control characters");
    free(text);
}

static void fuzz_image(const uint8_t *data, size_t size) {
    const Config *c = &seed_model->config;
    const int64_t see = 3 * (int64_t)c->image_side * c->image_side, drawn = 3 * (int64_t)drawn_side(c) * drawn_side(c);
    JanusImage image;
    JanusError error;
    check_carried_text(data, size);
    if (!went_well(janus_image_load_memory(data, size, &image, &error), &error)) {
        promise(image.rgb == NULL, "no pixels after an error");
        return;
    }
    promise(image.width > 0 && image.height > 0 && image.rgb != NULL, "an image");
    check_stored(data, size, &image);
    /* each pixel is touched thrice below: too long with sanitizers */
    if ((int64_t)image.width * image.height > 1 << 24) {
        janus_image_free(&image);
        return;
    }
    float *pixels = need(malloc((size_t)max_i64(see, drawn) * sizeof *pixels));
    Context cx = {0};
    if (went_well(janus_preprocess(seed_model, &image, pixels, &error), &error))
        for (int64_t i = 0; i < see; i++) promise(pixels[i] >= -1 && pixels[i] <= 1, "pixels of -1 to 1");
    vq_pixels(&cx, c, &image, pixels);
    if (went_well(context_end(&cx, &error), &error))
        for (int64_t i = 0; i < drawn; i++) promise(pixels[i] >= -1 && pixels[i] <= 1, "pixels of -1 to 1");
    free(pixels);
    janus_image_free(&image);
}

/* Any bytes as a stream of text, in two parts, give what they give in one. */
static void check_stream(const char *bytes, size_t size) {
    Utf8Stream stream = {{0}, 0};
    TextBuffer whole = {0}, parts = {0};
    utf8_stream_write(&stream, (StringView){bytes, size}, &whole);
    utf8_stream_finish(&stream, &whole);
    utf8_stream_write(&stream, (StringView){bytes, size / 3}, &parts);
    utf8_stream_write(&stream, (StringView){bytes + size / 3, size - size / 3}, &parts);
    utf8_stream_finish(&stream, &parts);
    promise(whole.length <= 3 * size && whole.length == parts.length &&
            (whole.length == 0 || memcmp(whole.text, parts.text, whole.length) == 0), "streams have no seams");
    promise(utf8_valid(whole.text, whole.length), "streams are UTF-8");
    text_free(&whole);
    text_free(&parts);
}

/* The bytes as numbers around the vocabulary. */
static void check_ids(const uint8_t *data, size_t size, JanusError *error) {
    int32_t *ids = need(malloc((size + 1) * sizeof *ids));
    char *text = NULL;
    size_t length = 0;
    int good = 1;
    for (size_t i = 0; i < size; i++) {
        ids[i] = data[i] + (i > 0 && data[i - 1] > 127 ? 20 : 0);
        good = good && ids[i] < seed_model->config.vocab;
    }
    promise(good == went_well(janus_detokenize(seed_model, ids, size, &text, &length, error), error),
            "known ids are text");
    promise(!good || utf8_valid(text, length), "text is UTF-8");
    free(text);
    free(ids);
}

/* A text in UTF-8 comes back from a PNG and from a JPEG that carry it. */
static void check_carrying(const char *text) {
    JanusImage image = small_image();
    for (int jpeg = 0; jpeg < 2; jpeg++) {
        char *back = NULL;
        TextBuffer out = image_to_bytes(&image, jpeg != 0, text);
        promise(!out.failed, "a picture is written");
        promise(image_from_bytes(out.text, out.length, false, NULL, &back, "x", NULL) == JANUS_OK,
                "what was written is read");
        promise(strcmp(back != NULL ? back : "", text) == 0, "the text comes back from a picture");
        free(back);
        text_free(&out);
    }
    janus_image_free(&image);
}

static void fuzz_text(const uint8_t *data, size_t size) {
    JanusError error;
    JanusAskOptions ask = janus_ask_defaults();
    JanusImage image = small_image();
    int32_t *ids = NULL, drawn[4];
    char *back = NULL, *text = need(malloc(size + 1));
    size_t count = 0, length = 0;
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    const int valid = utf8_valid(text, size);
    promise(valid == went_well(janus_tokenize(seed_model, text, size, &ids, &count, &error), &error),
            "all UTF-8 has ids");
    if (valid) {
        promise(went_well(janus_detokenize(seed_model, ids, count, &back, &length, &error), &error), "ids have a text");
        promise(count <= size && length == size && memcmp(back, text, size) == 0, "the text comes back");
        check_carrying(text);
    }
    free(ids);
    free(back);
    check_stream(text, size);
    check_ids(data, size, &error);
    ask.max_tokens = 2;
    went_well(janus_ask(seed_session, text, &image, 1, &ask, NULL, &error), &error);
    went_well(janus_ask(seed_session, text, NULL, 0, &ask, NULL, &error), &error);
    janus_reset(seed_session);
    if (size < 64) went_well(janus_generate_ids(seed_session, text, NULL, drawn, &error), &error);
    janus_image_free(&image);
    free(text);
}

/* Runs the program with its stdin and with what the files hold that it reads. */
static int run_program_on(int count, char **arguments, Bytes input) {
    world.other = input;
    world.input = need(open_bytes(input));
    const int result = janus_main(count, arguments);
    fclose(world.input);
    promise(result >= 0 && result <= 2, "an exit code of 0, 1 or 2");
    return result;
}

static void fuzz_ids(const uint8_t *data, size_t size) {
    char *text = need(malloc(size + 1));
    char decode[2][12] = {"decode", "ids.txt"}, tokenize[3][12] = {"tokenize", "--decode", "-"};
    char *decode_line[] = {decode[0], decode[0], decode[1]},
         *tokenize_line[] = {tokenize[0], tokenize[0], tokenize[1], tokenize[2]};
    size_t count = 0;
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    const Bytes input = {text, size};
    JanusError error = {0};
    int32_t *ids = parse_ids(text, &count, &error);
    promise(ids == NULL || count <= size / 2 + 1, "an id takes room");
    free(ids);
    run_program_on(3, decode_line, input);
    run_program_on(4, tokenize_line, input);
    free(text);
}

/* One argument a line up to an empty line; what follows is stdin and every file but models. */
static void fuzz_options(const uint8_t *data, size_t size) {
    enum { ARGUMENTS = 24 };
    char *text = need(malloc(size + 1)), *arguments[ARGUMENTS + 1];
    char name[] = "janus";
    int count = 0;
    size_t at = 0;
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    arguments[count++] = name;
    while (at < size && count < ARGUMENTS && text[at] != '\n') {
        char *argument = text + at;
        while (at < size && text[at] != '\n') at++;
        if (at < size) text[at++] = 0;
        arguments[count++] = argument;
    }
    arguments[count] = NULL;
    at += at < size && text[at] == '\n';
    const Bytes input = {text + at, size - at};
    run_program_on(count, arguments, input);
    free(text);
}

static void check_json_value(void *user, int depth, StringView key, JsonKind kind, StringView text) {
    size_t *values = user;
    promise(depth >= 0 && depth <= JSON_DEPTH && (depth == 0) == ((*values)++ == 0), "the value, then those in it");
    promise(utf8_valid(key.text, key.length) && key.text[key.length] == 0, "keys are UTF-8 and end");
    if (kind >= JSON_ARRAY) return;
    promise(utf8_valid(text.text, text.length) && text.text[text.length] == 0, "texts are UTF-8 and end");
    Request request;
    if (kind != JSON_NUMBER || !set_seed(&request, text.text) || !request.has_seed) return;
    promise((double)request.draw.seed == strtod(text.text, NULL), "a seed is the number");
}

static void take_again(void *user, int depth, StringView key, JsonKind kind, StringView text) {
    const StringView *expected = user;
    promise(depth == 0 && key.length == 0 && kind == JSON_STRING && text.length == expected->length &&
                memcmp(text.text, expected->text, text.length) == 0,
            "a string that was written is read");
}

/* Any bytes as a string: written, it is JSON without control characters; UTF-8 comes back. */
static void check_json_string(StringView text) {
    TextBuffer written = {0};
    Context cx = {0};
    json_write(&written, text.text, text.length);
    const size_t length = written.length;
    text_add(&written, "", 1);
    for (size_t i = 0; i < length; i++) promise((uint8_t)written.text[i] >= 0x20, "control characters are escaped");
    if (utf8_valid(text.text, text.length)) json_read(&cx, written.text, length, take_again, &text);
    promise(!has_failed(&cx), "what was written is JSON");
    free(written.text);
}

static void fuzz_json(const uint8_t *data, size_t size) {
    char *text = need(calloc(size + 1, 1));
    Context cx = {0};
    size_t values = 0;
    if (size > 0) memcpy(text, data, size);
    check_json_string((StringView){text, size});
    json_read(&cx, text, size, check_json_value, &values);
    promise(has_failed(&cx) || values > 0, "an error or a value");
    BatchJob *job = need(calloc(1, sizeof *job + size + 1));
    job->request = request_defaults();
    if (size > 0) memcpy(job->bytes, data, size);
    parse_job(job, size);
    promise(has_failed(&job->cx) == (job->cx.error.message[0] != 0), "an error has a message");
    promise(has_failed(&job->cx) || (!has_failed(&cx) && job->request.text != NULL), "a job is JSON and has a text");
    text_free(&job->reply);
    free(job);
    free(text);
}

/* ---- Fuzzers ---- */

typedef struct {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
} Target;

static const Target TARGETS[] = {
    {"model", fuzz_model}, {"image", fuzz_image}, {"text", fuzz_text}, {"ids", fuzz_ids}, {"options", fuzz_options},
    {"json", fuzz_json},
};
enum { TARGET_COUNT = sizeof TARGETS / sizeof TARGETS[0] };

static const Target *target;

#ifdef STANDALONE
/* A few random changes of bytes. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t limit) {
    for (int changes = 1 + rand() % 4; changes > 0; changes--) {
        const size_t at = size > 0 ? (size_t)rand() % size : 0;
        const int kind = rand() % 4;
        if (kind == 0 && size < limit) {
            memmove(data + at + 1, data + at, size++ - at);
            data[at] = (uint8_t)rand();
        } else if (kind == 1 && size > 1) memmove(data + at, data + at + 1, --size - at);
        else if (kind == 2 && size > 0) data[at] = (uint8_t)(rand() % 2 ? rand() : 255 * (rand() % 2));
        else if (size > 0) data[at] = (uint8_t)(data[at] ^ 1 << rand() % 8);
    }
    return size;
}
#else
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t limit);
#endif
#include "mutate_gguf.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t limit, unsigned int random_seed) {
    return target->run == fuzz_model ? mutate_model(data, size, limit, random_seed)
                                     : LLVMFuzzerMutate(data, size, limit);
}

static void on_timer(int number) { promise(number == 0, "10 seconds of the processor are enough"); }

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    const char *slash = strrchr((*arguments)[0], '/'), *name = slash != NULL ? slash + 1 : (*arguments)[0];
    (void)count;
    for (int i = 0; i < TARGET_COUNT && target == NULL; i++)
        if (strncmp(name, "fuzz-", 5) == 0 && strcmp(name + 5, TARGETS[i].name) == 0) target = &TARGETS[i];
#ifndef STANDALONE
    if (target == NULL) {
        fprintf(stderr,
                "the program's name chooses the target: fuzz-model, -image, -text, -ids, -options or -json\n");
        exit(1);
    }
    if (freopen("/dev/null", "wb", stdout) == NULL) exit(1);
#endif
    signal(SIGPROF, on_timer);
    unsetenv("JANUS_MODEL");
    world.nothing = need(fopen("/dev/null", "wb"));
    world.calls_left = -1;
    load_seed();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct itimerval limit = {{0, 0}, {10, 0}}, none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_PROF, &limit, NULL); /* a busy machine makes no hang */
    if (target->run != fuzz_model && world.model.bytes == NULL) set_model((const uint8_t *)seed.bytes, seed.size);
    target->run(data, size);
    setitimer(ITIMER_PROF, &none, NULL);
    return 0;
}

#ifdef STANDALONE
/* Runs a file and then `runs` mutations of it. */
static void replay_file(const char *path, long runs) {
    enum { LIMIT = 1 << 16 };
    const Bytes file = read_seed(path);
    uint8_t *exact = need(malloc(file.size > 0 ? file.size : 1)), *changed = need(malloc(LIMIT));
    size_t size = file.size;
    memcpy(exact, file.bytes, file.size);
    LLVMFuzzerTestOneInput(exact, file.size);
    for (long run = 0; run < runs && file.size <= LIMIT; run++) {
        if (run % 8 == 0) memcpy(changed, file.bytes, size = file.size);
        size = LLVMFuzzerCustomMutator(changed, size, LIMIT, (unsigned)run);
        LLVMFuzzerTestOneInput(changed, size);
    }
    free(exact);
    free(changed);
    free(file.bytes);
}

/* Runs every file of FOLDER/TARGET in a process of its own. */
static void replay(FILE *results, const char *folder, long runs) {
    char path[1024];
    struct dirent *entry;
    snprintf(path, sizeof path, "%s/%s", folder, target->name);
    DIR *listing = opendir(path);
    while (listing != NULL && (entry = readdir(listing)) != NULL) {
        int status = 1;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s/%s", folder, target->name, entry->d_name);
        fflush(results);
        const pid_t child = fork();
        if (child == 0) {
            closedir(listing);
            replay_file(path, runs);
            exit(0);
        }
        const bool good = child > 0 && waitpid(child, &status, 0) == child && status == 0;
        passed += good;
        failed += !good;
        if (!good) fprintf(results, "NOT OK  %s\n", path);
    }
    if (listing != NULL) closedir(listing);
}

int main(int count, char **arguments) {
    FILE *results = fdopen(dup(1), "w");
    long runs = 0;
    if (results == NULL || freopen("/dev/null", "wb", stdout) == NULL) return 1;
    LLVMFuzzerInitialize(&count, &arguments);
    for (int i = 1; i < count; i++)
        if (strncmp(arguments[i], "-runs=", 6) == 0) runs = atol(arguments[i] + 6);
    for (int i = 1; i < count; i++)
        for (target = TARGETS; target < TARGETS + TARGET_COUNT && arguments[i][0] != '-'; target++)
            replay(results, arguments[i], runs);
    janus_session_free(seed_session);
    janus_free(seed_model);
    free(seed.bytes);
    free(world.model.bytes);
    fprintf(results, "%d passed, %d failed\n", passed, failed);
    return fclose(results) != 0 || passed == 0 || failed > 0;
}
#endif
