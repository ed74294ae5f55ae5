/* embed.c - a program that uses the installed library; reads as C99 and as C++.   SPDX-License-Identifier: MIT

       cc test/platforms/embed.c `pkg-config --cflags --libs janus` -o embed
       ./embed MODEL IMAGE FOLDER ISA

   Prints what platforms.sh also gets out of the command line: the ids of three pictures that it draws, those of IMAGE,
   and two answers about IMAGE. The drawn pixels go to FOLDER, a number a line. */

#include <janus.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static JanusError error;

static void need(JanusStatus status) {
    if (status == JANUS_OK) return;
    fprintf(stderr, "embed: %s\n", error.message);
    exit(1);
}

static void print_ids(const int32_t *ids, int count) {
    for (int i = 0; i < count; i++) printf("%d%c", (int)ids[i], i + 1 < count ? ' ' : '\n');
}

static void draw(JanusSession *session, const char *prompt, float temperature, const char *folder, const char *name,
                 int32_t *ids, int count) {
    JanusGenerateOptions options = janus_generate_defaults();
    JanusImage picture;
    char path[1024];
    FILE *file;
    options.seed = 5;
    options.temperature = temperature;
    need(janus_generate_ids(session, prompt, &options, ids, &error));
    print_ids(ids, count);
    need(janus_decode_image(session, ids, &picture, &error));
    snprintf(path, sizeof path, "%s/%s.pixels", folder, name);
    if ((file = fopen(path, "w")) == NULL) {
        perror(path);
        exit(1);
    }
    for (int i = 0; i < picture.width * picture.height * 3; i++) fprintf(file, "%d\n", picture.rgb[i]);
    fclose(file);
    janus_image_free(&picture);
}

static void ask(JanusSession *session, const char *question, const JanusImage *image) {
    JanusAskOptions options = janus_ask_defaults();
    char *answer;
    options.max_tokens = 24;
    janus_reset(session);
    need(janus_ask(session, question, image, 1, &options, &answer, &error));
    puts(answer);
    free(answer);
}

int main(int argc, char **argv) {
    JanusModel *model;
    JanusSession *session;
    JanusSessionOptions options = janus_session_defaults();
    JanusImage image;
    if (argc != 5) {
        fprintf(stderr, "usage: embed MODEL IMAGE FOLDER ISA\n");
        return 2;
    }
    options.isa = argv[4];
    need(janus_load(argv[1], &model, &error));
    need(janus_session_new(model, &options, &session, &error));
    need(janus_image_load(argv[2], &image, &error));

    const int count = janus_info(model).image_tokens;
    int32_t *ids = (int32_t *)malloc((size_t)count * sizeof *ids);
    if (ids == NULL) return 1;
    draw(session, "two red hearts", 0, argv[3], "greedy", ids, count);
    draw(session, "un c\xc5\x93ur rouge", 0, argv[3], "accents", ids, count);
    draw(session, "a green tree", 1, argv[3], "seeded", ids, count);
    need(janus_encode_image(session, &image, ids, &error));
    print_ids(ids, count);
    ask(session, "What is in the picture?", &image);
    ask(session, "O\xc3\xb9 est le c\xc5\x93ur ?", &image);

    free(ids);
    janus_image_free(&image);
    janus_session_free(session);
    janus_free(model);
    return 0;
}
