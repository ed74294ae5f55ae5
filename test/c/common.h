/* common.h - what the C tests share: counted checks, and memory and files without which a test cannot go on.
   SPDX-License-Identifier: MIT */
#ifndef JANUS_TEST_COMMON_H
#define JANUS_TEST_COMMON_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int passed, failed;

/* ---- Checks ---- */

/* Counts a check; prints it when it fails, and always when `shown`. */
static inline int check(int good, int shown, const char *format, ...) {
    va_list arguments;
    if (good) passed++;
    else failed++;
    if (good && !shown) return good;
    printf("%-7s", good ? "OK" : "NOT OK");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    return good;
}

/* The last line of a test, which test/run.sh adds up, and its exit status. */
static inline int closing_line(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

/* ---- Memory and files ---- */

/* Memory or an open file; ends the test where it is NULL. */
static inline void *need(void *memory) {
    if (memory == NULL) {
        printf("NOT OK the test itself is out of memory or cannot open its files\n");
        exit(1);
    }
    return memory;
}

/* A complete file with a byte of room after it; NULL where it cannot be read. */
static inline unsigned char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    long size;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
        if (file != NULL) fclose(file);
        return NULL;
    }
    rewind(file);
    unsigned char *bytes = need(malloc((size_t)size + 1));
    *length = fread(bytes, 1, (size_t)size, file);
    fclose(file);
    return bytes;
}

static inline void write_file(const char *path, const void *bytes, size_t length) {
    FILE *file = fopen(path, "wb");
    const size_t written = file != NULL ? fwrite(bytes, 1, length, file) : 0;
    if (file == NULL || fclose(file) != 0 || written != length) {
        printf("NOT OK cannot write %s\n", path);
        exit(1);
    }
}

#endif
