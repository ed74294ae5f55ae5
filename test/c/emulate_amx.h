/* emulate_amx.h - the instructions of Intel's AMX that janus.c uses, for processors that lack them: the illegal
   instruction is decoded, executed in plain C and skipped. A processor that has them runs them itself. Linux on x86-64;
   for any program:

       cc -DEMULATED_AMX -D_GNU_SOURCE -include test/c/emulate_amx.h janus.c -o janus -lm -lpthread

   SPDX-License-Identifier: MIT */
#ifndef EMULATE_AMX_H
#define EMULATE_AMX_H

#include <cpuid.h>
#include <float.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* How the instructions run in this process. LDTILECFG and STTILECFG run on the processor as soon as the system has set
   the two tile bits of XCR0, but an instruction on tile data then still raises SIGILL until the process has asked for
   permission. So the two kinds must not be mixed: with the bits set, all run on the processor (native), or, where the
   permission is refused or the processor has no products of bf16, none can be used at all (refused). */
static enum { AMX_EMULATED, AMX_NATIVE, AMX_REFUSED } amx_mode;

static int find_amx_mode(void) {
    enum { BF16 = 1 << 22, TILES = 1 << 24, XCR0_TILES = 3 << 17, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d, saved;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return AMX_EMULATED;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if ((saved & XCR0_TILES) != XCR0_TILES) return AMX_EMULATED;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILES)) != (BF16 | TILES)) return AMX_REFUSED;
    return syscall(SYS_arch_prctl, (long)REQUEST_PERMISSION, (long)TILE_DATA) == 0 ? AMX_NATIVE : AMX_REFUSED;
}

typedef struct {
    unsigned char config[64], tiles[8][16][64];
    long done; /* instructions */
} EmulatedAmx;
static __thread EmulatedAmx amx; /* each thread has its own tiles */

static int amx_rows(int t) { return amx.config[48 + t]; }
static int amx_bytes(int t) { return amx.config[16 + 2 * t]; }

typedef float AmxFloats __attribute__((vector_size(16))); /* a quarter of a tile's row, which every x86-64 can add */
typedef int32_t AmxWords __attribute__((vector_size(16)));

/* Subnormal numbers become zeros of their sign. */
static inline AmxFloats flushed(AmxFloats x) {
    const AmxWords tiny = (x < FLT_MIN) & (x > -FLT_MIN);
    return (AmxFloats)((AmxWords)x & (~tiny | INT32_MIN));
}

/* TDPBF16PS: sums over the first and over the second of each pair apart, then both, as the manual has it. A product of
   two bf16 is exact in float (above 2^-126), so that multiplying and adding rounds as one fused operation does. */
static void amx_multiply(int sums, int a, int b) {
    for (int m = 0; m < amx_rows(sums); m++)
        for (int n = 0; n < amx_bytes(sums); n += 16) {
            AmxFloats first = {0}, second = {0}, old;
            for (int k = 0; k < amx_bytes(a) / 4; k++) {
                uint32_t pair;
                AmxWords pairs;
                memcpy(&pair, amx.tiles[a][m] + 4 * k, sizeof pair);
                memcpy(&pairs, amx.tiles[b][k] + n, sizeof pairs);
                const AmxWords x = (AmxWords){0} + (int32_t)(pair << 16);
                const AmxWords y = (AmxWords){0} + (int32_t)(pair & 0xFFFF0000u);
                first = flushed(first + flushed((AmxFloats)x) * flushed((AmxFloats)(pairs << 16)));
                second = flushed(second + flushed((AmxFloats)y) * flushed((AmxFloats)(pairs & (int32_t)0xFFFF0000)));
            }
            memcpy(&old, amx.tiles[sums][m] + n, sizeof old);
            old = flushed(flushed(old) + flushed(first + second));
            memcpy(amx.tiles[sums][m] + n, &old, sizeof old);
        }
}

/* What an instruction's operands are: registers, or memory with the stride that the index register holds. */
typedef struct {
    int reg, rm, third;
    unsigned char *memory; /* NULL: rm is a register */
    int64_t stride;
    const unsigned char *end;
} AmxOperands;

static AmxOperands amx_operands(const unsigned char *ip, const greg_t *registers) {
    static const int NAMES[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const int x = ip[1] & 64 ? 0 : 8, b = ip[1] & 32 ? 0 : 8, mode = ip[4] >> 6;
    AmxOperands o = {ip[4] >> 3 & 7, ip[4] & 7, ~ip[2] >> 3 & 15, NULL, 0, ip + 5};
    int base = o.rm, index = 4;
    int32_t displacement = 0;
    if (mode == 3) return o;
    if (o.rm == 4) {
        base = o.end[0] & 7;
        index = (o.end[0] >> 3 & 7) + x;
        o.stride = index == 4 ? 0 : registers[NAMES[index]] * (1 << (o.end[0] >> 6));
        o.end++;
    }
    const int bare = mode == 0 && base == 5; /* only a displacement: from the next instruction on, or from 0 */
    if (mode == 1) displacement = (int8_t)*o.end++;
    else if (mode == 2 || bare) {
        memcpy(&displacement, o.end, sizeof displacement);
        o.end += sizeof displacement;
    }
    const greg_t from = !bare ? registers[NAMES[base + b]] : o.rm == 4 ? 0 : (greg_t)(uintptr_t)o.end;
    o.memory = (unsigned char *)(uintptr_t)(from + displacement); /* NOLINT: an address */
    return o;
}

static void on_illegal_instruction(int number, siginfo_t *info, void *user) {
    greg_t *registers = ((ucontext_t *)user)->uc_mcontext.gregs;
    const unsigned char *ip = (const unsigned char *)(uintptr_t)registers[REG_RIP];
    (void)info;
    const int prefix = ip[2] & 3, what = ip[0] == 0xC4 && (ip[1] & 31) == 2 ? ip[3] << 4 | prefix : 0;
    const AmxOperands o = amx_operands(ip, registers);
    const int t = o.reg;
    switch (what) {
    case 0x490: /* LDTILECFG, or without memory TILERELEASE */
        memset(amx.tiles, 0, sizeof amx.tiles);
        if (o.memory != NULL) memcpy(amx.config, o.memory, sizeof amx.config);
        else memset(amx.config, 0, sizeof amx.config);
        break;
    case 0x491: memcpy(o.memory, amx.config, sizeof amx.config); break; /* STTILECFG */
    case 0x493: memset(amx.tiles[t], 0, sizeof amx.tiles[t]); break;    /* TILEZERO */
    case 0x4B3: /* TILELOADD */
    case 0x4B2: /* TILESTORED */
        if (amx.config[0] != 1) abort();
        for (int r = 0; r < amx_rows(t); r++) {
            unsigned char *row = o.memory + r * o.stride;
            if (prefix == 3) memcpy(amx.tiles[t][r], row, (size_t)amx_bytes(t));
            else memcpy(row, amx.tiles[t][r], (size_t)amx_bytes(t));
        }
        break;
    case 0x5C2: amx_multiply(t, o.rm, o.third); break; /* TDPBF16PS */
    default: signal(number, SIG_DFL); return;          /* not ours: it is illegal again */
    }
    amx.done++;
    registers[REG_RIP] = (greg_t)(uintptr_t)o.end;
}

__attribute__((constructor)) static void emulate_amx(void) {
    struct sigaction action;
    amx_mode = find_amx_mode();
    if (amx_mode != AMX_EMULATED) return;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, NULL);
}

#endif
