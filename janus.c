#ifndef KERNEL_PASS
/* janus.c - Janus-Pro in one file of C99: see images, draw images.   SPDX-License-Identifier: MIT

   One autoregressive transformer reads and writes one sequence in which text and images stand side by side. Seeing and
   drawing want different things from an image, so vision is decoupled into two encoders, and there are two heads:

     see   image -> understanding encoder (SigLIP ViT) -> understanding adaptor --+
           text  -> tokenizer -> token embedding ---------------------------------+-> transformer -> LM head -> text

     draw  text  -> tokenizer -> token embedding ---------------------------------+
           image ids (so far) -> generation embedding -> generation adaptor ------+-> transformer -> image head -> id
           24 x 24 ids -> image decoder (VQ) -> picture        picture -> generation encoder (VQ) -> ids

   No diffusion: a picture is 576 discrete tokens, sampled one after the other in raster order, then decoded at once.

   Part I alone, from top to bottom, is what Janus-Pro computes. Of the other parts it uses what section 2 declares,
   with shapes. Each of these uses the sections above it, what section 2 and janus.h declare, and functions of Part I.

   Part I    THE MODEL
       1  The checkpoint ............ sizes and weights as data
       2  What the model stands on .. the layers, the tokenizer and the rest of the file, as the model sees them
       3  Understanding encoder ..... SigLIP ViT and its adaptor: what the model sees
       4  Transformer ............... Llama blocks with a key/value cache
       5  Heads and sampling ........ LM head, image head, guidance, from scores to an id
       6  Generation encoder ........ VQ: picture -> ids, and ids -> embeddings
       7  Image decoder ............. VQ: ids -> picture
       8  The two tasks ............. drawing and answering, step by step
   Part II   THE ENGINE
       9  Random numbers ............ PyTorch's generator, and how it draws an id
      10  Platform .................. files, mapped memory, processors: what differs between systems
      11  Errors and memory ......... how calls fail; scratch memory
      12  Threads ................... a pool that splits a loop
      13  Number formats ............ f16, bf16, quantised blocks
      14  Vector kernels ............ the heavy loops: plain definitions, and one fast source for all instruction sets
      15  Layers .................... linear, convolution, attention, norms over the kernels and threads
   Part III  THE FILES
      16  Text ...................... byte-level BPE tokenizer
      17  Model file ................ GGUF: sizes, weights, all checked
      18  Images .................... decode and encode files, resize as Pillow does, normalise
   Part IV   THE PROGRAM
      19  Public API ................ what janus.h promises
      20  Many jobs ................. drawings and questions side by side, in one pass over the weights
      21  JSON ...................... the lines of janus batch
      22  Command line .............. main()

   One vocabulary of sizes in Part I:
       T  tokens (rows of activations)     D  width of the transformer     F  width of its MLP     V  vocabulary
       H  query heads    G  key/value heads    d  elements of a head    R  sequences side by side    N  pictures
       W  width of the ViT           C  channels of a picture        E  width of the image head      K  codebook size
       P  tokens of a picture
   Activations are float32 rows: a text is (T, D), a picture is (height * width, C), channels last. A Linear layer has
   its weight as (out, in) and computes y = x W^T + b; a convolution is a Linear layer over gathered rows.

   Ten facts that are easy to get wrong:
     1  gelu is the exact one, x/2 (1 + erf(x / sqrt 2)), everywhere.
     2  Rotary embedding rotates the pairs (i, i + d/2), halves, not neighbours.
     3  Image ids are embedded by a table of their own (gen_embed), not by the VQ codebook.
     4  Codebook rows and the vectors matched against them have unit length.
     5  The unconditional row of a drawing is the prompt with all ids but the first and the last replaced by the pad id;
        these pads are attended to like any other token, and positions count them.
     6  Downsampling pads with zeros to the right and below only.
     7  Pixels are cut off to bytes, not rounded.
     8  The ViT's final norm is applied; its attention pool, which checkpoints hold, is not.
     9  Pictures are resized in 8-bit fixed point as Pillow does, antialiased, and the resized side is truncated.
    10  <begin_of_image> is part of a drawing's prompt; BOS comes once, in front.

   What this file is not: it has no GPU code, does not train, and draws the one size of picture that a checkpoint has.
   Where that would change: the side of a picture is Config.grid alone (drawn_side, image_tokens, vq_room), and square
   (conv3x3, vq_levels); a model that draws without ids, as JanusFlow does, replaces image_head, pick_image_ids and
   embed_image_ids where section 8 calls them, sections 6 and 7, and the sizes that section 17 reads.

   Sources: the Janus-Pro report (arXiv 2501.17811) and the official code, github.com/deepseek-ai/Janus, cited by file.

   Switches (cc -DNAME): JANUS_LIBRARY no main(); JANUS_NO_THREADS; JANUS_NO_MMAP read the model instead of mapping it;
   JANUS_NO_SIMD plain C only. */

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* calls of the system beyond C99; macOS and the BSDs show them anyway */
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64
#endif

#include "janus.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* ******************************************************************************************************************
   PART I    THE MODEL
   ****************************************************************************************************************** */

/* ==================================================================================================================
   1  The checkpoint: what a model file holds, as data. Nothing is hard-wired to the published models: sizes come from
      the file (Janus-Pro-1B's in brackets), and weights stay in it, in the type in which they are stored.
   ================================================================================================================== */

enum { LEVEL_LIMIT = 8, RES_LIMIT = 8, ALIGNER_LIMIT = 8 };

typedef struct { /* a text in UTF-8, not zero-terminated, not owned */
    const char *text;
    size_t length;
} StringView;

typedef struct {
    /* transformer: D [2048], [24], F [5632], H [16], G [16], d [128], V [102400], [16384] */
    int hidden, layers, mlp, heads, kv_heads, head_dim, vocab, context;
    float rms_epsilon, rope_base; /* rope_theta of config.json [10000] */
    /* understanding encoder: [384], [16], W [1024], [24], [4096], [16] */
    int image_side, patch, vit_width, vit_layers, vit_mlp, vit_heads;
    float vit_epsilon;
    int aligner_depth, gen_aligner_depth, gen_head_width; /* [2], [2], E [2048] */
    /* VQ: K [16384], [8], [256], [24], [128], [5], [1 1 2 2 4], [2], [32] */
    int codebook, code_dim, z_channels, grid, base_channels, vq_levels, multipliers[LEVEL_LIMIT], res_blocks, groups;
    float group_epsilon;
    int min_side, background[3]; /* how an image that is seen is prepared: vit_pixels [14], [127 127 127] */
    float mean[3], std[3];       /* [0.5 0.5 0.5], both */
    double rescale;              /* [1/255] */
    bool normalize;
    int bos, eos, pad, image_placeholder, begin_of_image, end_of_image; /* token ids */
    StringView system_prompt, user_role, assistant_role;
} Config;

typedef struct {
    int type;         /* GGUF's number of a number format */
    const void *data; /* (rows, cols), row-major */
    int64_t rows, cols;
} Weight;

typedef struct {
    Weight weight;     /* (out, in); of a convolution (out, kernel*kernel*in) */
    const float *bias; /* (out), NULL: none */
} Linear;

typedef struct {
    const float *weight, *bias; /* (width); bias NULL for RMSNorm */
} Norm;

typedef struct {
    Norm norm1, norm2;              /* (W) */
    Linear qkv, proj;               /* (3W, W), (W, W) */
    Linear fc1, fc2;                /* (mlp, W), (W, mlp) */
} VitBlock;

typedef struct {
    const float *attn_norm, *ffn_norm; /* (D) */
    Weight q, k, v, output;            /* (H*d, D), (G*d, D), (G*d, D), (D, H*d) */
    Weight gate, up, down;             /* (F, D), (F, D), (D, F) */
} TransformerBlock;

typedef struct {
    int in, out;
    Norm norm1, norm2;              /* (in), (out) */
    Linear conv1, conv2, shortcut;  /* (out, 3*3*in), (out, 3*3*out), (out, in); shortcut only where in != out */
} ResBlock;

typedef struct {
    int width;
    Norm norm;                      /* (C) */
    Linear q, k, v, proj;           /* (C, C) */
} AttnBlock;

typedef struct {
    ResBlock res[RES_LIMIT + 1];    /* res_blocks of them in the encoder, one more in the decoder */
    AttnBlock attn[RES_LIMIT + 1];  /* on the deepest level only */
    Linear resample;                /* (C, 3*3*C): downsample or upsample; none on the last level */
} VqLevel;

/* One half of the VQ model: conv_in, levels (encoder: shallow to deep, then mid; decoder: mid, then deep to shallow),
   norm_out, conv_out. */
typedef struct {
    int mid_width, out_width;       /* channels at the mid block and before conv_out */
    Linear conv_in, conv_out;
    ResBlock mid_res[2];
    AttnBlock mid_attn;
    VqLevel level[LEVEL_LIMIT];
    Norm norm_out;
} VqHalf;

struct JanusModel {
    Config config;
    /* understanding encoder and adaptor */
    Linear patch_embed;             /* (W, patch*patch*3) */
    const float *pos_embed;         /* (tokens of an image, W) */
    VitBlock *vit_blocks;
    Norm vit_norm;
    Linear aligner[ALIGNER_LIMIT];  /* (D, W), then (D, D) */
    /* transformer and heads */
    Weight token_embed;             /* (V, D) */
    TransformerBlock *blocks;
    const float *output_norm;       /* (D) */
    Weight lm_head;                 /* (V, D) */
    Linear gen_head_proj, gen_head; /* (E, D), (K, E) */
    /* generation: embedding and adaptor, VQ encoder and decoder */
    Weight gen_embed;               /* (K, code_dim) */
    Linear gen_aligner[ALIGNER_LIMIT]; /* (D, code_dim), then (D, D) */
    VqHalf vq_encoder, vq_decoder;
    Linear quant_conv, post_quant_conv; /* (code_dim, z), (z, code_dim) */
    Weight codebook;                /* (K, code_dim) */
    struct Storage *storage;        /* what all this points into, and the tokenizer: Part III */
};

/* Sizes that follow from others: the tokens of an image that is seen, */
static int vision_tokens(const Config *c) { return (c->image_side / c->patch) * (c->image_side / c->patch); }

/* the side of pictures that are drawn, and the tokens of one. */
static int drawn_side(const Config *c) { return c->grid << (c->vq_levels - 1); }
static int64_t image_tokens(const Config *c) { return (int64_t)c->grid * c->grid; }

/* ==================================================================================================================
   2  What the model stands on: all that Part I uses of the other parts. Rows are contiguous unless a stride is given.
      Every function takes the context of a call. The first error is recorded there; every later function is a no-op,
      and the caller of the model checks once at the end, so the model returns no status codes.
   ================================================================================================================== */

typedef struct Context Context; /* threads, kernels, scratch memory, the caller's callbacks, the error */

static bool has_failed(const Context *cx);
static JanusError *first_error(Context *cx); /* to be filled in; NULL if there is one already */
static int fail(JanusError *error, int status, const char *format, ...);
#define context_fail(cx, ...) ((void)fail(first_error(cx), __VA_ARGS__))
static void context_take_error(Context *cx, JanusError *error); /* the context then goes on without */

/* Scratch memory: contents undefined, NULL after a failure. A stage marks, takes and releases. */
typedef struct ArenaBlock ArenaBlock;
static ArenaBlock *scratch_mark(const Context *cx);
static float *scratch(Context *cx, int64_t rows, int64_t cols);
static void *scratch_bytes(Context *cx, int64_t count, size_t size);
static void scratch_release(Context *cx, const ArenaBlock *mark);

/* Layers. out (T, rows of W) = x (T, columns of W) W^T + bias; `apply` is the same for a Linear. */
static void linear(Context *cx, float *out, const float *x, const Weight *w, const float *bias, int64_t T);
static void apply(Context *cx, float *out, const float *x, const Linear *layer, int64_t T);

/* Same for several weights that share the input x; with few rows they run as one job. */
typedef struct {
    float *out; /* (T, rows of the weight) */
    const Weight *weight;
    const float *bias; /* NULL: none */
} Output;
static void linears(Context *cx, const Output *outputs, int count, const float *x, int64_t T);

typedef struct {
    int64_t height, width, channels; /* of the image, before upsampling */
    int kernel, stride;
    int pad;         /* zeros above and to the left; right and bottom follow from the output's size */
    int64_t out_height, out_width;
    int upsample;    /* 1: the image is first doubled, each pixel becoming 2 x 2 */
} ConvShape;

/* out (out_height*out_width, rows of w) = the convolution of the image x (height*width, channels) with w + bias */
static void conv2d(Context *cx, float *out, const float *x, const Weight *w, const float *bias, const ConvShape *shape);

/* Every one of T queries attends to every one of T keys: out (T, heads*d); q, k, v are rows `stride` apart. */
static void full_attention(Context *cx, float *out, const float *q, const float *k, const float *v, int64_t T,
                           int64_t heads, int64_t d, int64_t stride);

/* Norms over rows of D: rms_norm x / rms(x) * weight; layer_norm (x - mean) / deviation * weight + bias. group_norm is
   over all rows and a group of channels, then x sigmoid(x) if `swish`. out may be x. */
static void rms_norm(Context *cx, float *out, const float *x, const float *weight, int64_t T, int64_t D, float eps);
static void layer_norm(Context *cx, float *out, const float *x, const Norm *norm, int64_t T, int64_t D, float eps);
static void group_norm(Context *cx, float *out, const float *x, const Norm *norm, int64_t rows, int64_t channels,
                       int groups, float eps, int swish);

/* n elements: x = gelu(x); gate = silu(gate) * up; out = out + x; out = x */
static void gelu(Context *cx, float *x, int64_t n);
static void silu_mul(Context *cx, float *gate, const float *up, int64_t n);
static void add(Context *cx, float *out, const float *x, int64_t n);
static void softmax_rows(Context *cx, float *x, int64_t rows, int64_t V, double temperature); /* by all threads */
static void copy(const Context *cx, float *out, const float *x, int64_t n);

/* out (cols) = one row of a table */
static void weight_row(float *out, const Weight *w, int64_t row);

/* Keys and values of one sequence. Invariant: the value of position p of head g of a layer lies at (g * capacity + p) *
   d; KEY_BLOCK keys lie side by side, (G, capacity / KEY_BLOCK, d, KEY_BLOCK), so that a vector holds one element of
   many keys. Positions from `length` on are undefined; all layers are equally long. */
enum { KEY_BLOCK = 32 };
typedef struct {
    int64_t length, capacity; /* positions; capacity is a multiple of KEY_BLOCK */
    int layers, type;         /* TYPE_F32, or TYPE_F16 for half the memory */
    void **keys, **values;    /* (layers), each all heads */
} KvCache;

/* A sequence may continue a shared prefix: all pictures of a drawing share its prompt. */
typedef struct {
    const KvCache *shared; /* NULL: none */
    KvCache own;
} Sequence;

/* Makes room for `length` positions; what is there stays, also after a failure. */
static void kv_cache_reserve(Context *cx, KvCache *cache, const Config *c, int64_t length);
static void kv_cache_free(KvCache *cache);

/* q (R*T, H*d), k and v (R*T, G*d) of a layer and R sequences: q and k are rotated in place by rope, then k and v are
   appended to each sequence's cache, whose length does not change yet. cosines, sines: (R, T, d/2) */
static void rotate_and_cache(Context *cx, const Config *c, Sequence *const *sequences, int64_t R, int64_t T, int layer,
                             float *q, float *k, const float *v, const float *cosines, const float *sines);
/* out (R*T, H*d): each query attends to all positions of its sequence up to its own. */
static void cached_attention(Context *cx, const Config *c, Sequence *const *sequences, int64_t R, int64_t T, int layer,
                             const float *q, float *out);
/* The drafts of step_with_drafts: as the options say, or as many as make this machine faster; 0 beside a tap. */
static int drafts_that_pay(const Context *cx, const JanusModel *m, const JanusGenerateOptions *options);

/* The caller's callbacks. tap ends a stage: it checks that the result, (a), (a, b) or (a, b, c) with unused sizes 0, is
   finite, and reports it by name if the tap callback is set. tap_sequences: x (R*T, width) as name.i, or name if i < 0;
   if `tapped`, one (T, width) for each of the first two sequences, as name and as "uncond." and name. */
static bool is_tapped(const Context *cx);
static void check_finite(Context *cx, const char *name, const float *x, int64_t count);
static void tap(Context *cx, const char *name, const float *data, int64_t a, int64_t b, int64_t c);
static void tap_sequences(Context *cx, const char *name, int i, const float *x, int64_t R, int64_t T, int64_t width,
                          bool tapped);
static void tap_ids(Context *cx, const char *name, const int32_t *ids, int64_t a, int64_t b);
static void tap_pixels(Context *cx, const uint8_t *rgb, int64_t side);
static void progress(Context *cx, const char *stage, int64_t done, int64_t total);
static void tell_drawn(Context *cx, const int32_t *ids, int64_t N, int64_t done, int64_t T); /* ids (N, T) */

/* Text. A growing list of ids. */
typedef struct {
    int32_t *ids;
    size_t count, capacity;
} IdList;
static void id_list_add(Context *cx, IdList *list, int32_t id, int64_t times);
static void id_list_free(IdList *list);
static void tokenize(Context *cx, const JanusModel *m, StringView text, IdList *list); /* adds the text's ids */
static StringView view_of(const char *text);
/* Text as scratch memory, as printf writes it; VIEW hands a StringView to %.*s. */
#define VIEW(view) (int)(view).length, (view).text
static StringView format_text(Context *cx, const char *format, ...);
/* A prompt or question without the white space around it; `after_images`: what is before it stays, as the message is
   stripped as a unit. `what` names it in messages. */
static StringView checked_text(Context *cx, const char *text, const char *what, bool after_images);

typedef struct Answer Answer; /* an answer's text so far, in whole UTF-8 characters */
static void answer_token(Context *cx, const JanusModel *m, Answer *answer, int32_t id); /* id < 0: the end */
static bool answer_is_empty(const Answer *answer);

/* PyTorch's generator of random numbers, and torch.multinomial: ids (N) ~ probs (N, V), whose rows need not add up to
   1; -1 for a row that is no distribution. Row n takes the next 2V words of the generator starts[n]. The ids of a seed
   are PyTorch's. */
typedef struct {
    uint32_t words[624];
    int next; /* the first word that is not used; 624: all are */
} TorchRng;
static void torch_rng_seed(TorchRng *rng, uint64_t seed);
static void torch_rng_skip(TorchRng *rng, int64_t words); /* as if so many were used */
static void multinomial(Context *cx, TorchRng *starts, int32_t *ids, const float *probs, int64_t N, int64_t V);

/* An image as the two encoders were trained on it (report, section 3.1).
   vit_pixels: (image_side, image_side, 3). A question may be about any part of the image, so nothing is cropped: its
   long side is scaled to fit, and the square padded with the mean colour, which normalising turns into about 0.
   vq_pixels: (drawn_side, drawn_side, 3). What is drawn fills its square, so nothing is padded: the short side is
   scaled to fit, and the middle square kept, in -1..1, the range that the decoder returns. */
static void vit_pixels(Context *cx, const Config *c, const JanusImage *image, float *pixels);
static void vq_pixels(Context *cx, const Config *c, const JanusImage *image, float *pixels);

/* job(own, data, i) for each i < count, side by side, each with a context of its own, whose error it must collect; a
   single one works in the caller's context, with all threads. */
typedef void LoneJob(Context *own, void *data, int64_t i);
static void each_alone(Context *cx, LoneJob *job, void *data, int64_t count);

static int64_t min_i64(int64_t a, int64_t b);
static int64_t max_i64(int64_t a, int64_t b);
static int64_t checked_product(int64_t a, int64_t b, int64_t c); /* -1: more than fits, or a factor is negative */

/* ---- Two adaptors have one form ---- */

/* Linear, then (gelu, Linear) for each further layer. out (T, D), x (T, width of the encoder); hidden (T, D) is
   scratch. official: MlpProjector, projector_type mlp_gelu */
static void adaptor(Context *cx, float *out, const float *x, const Linear *layers, int depth, int64_t T,
                    float *hidden) {
    const int64_t width = layers[0].weight.rows;
    float *to = depth % 2 == 1 ? out : hidden, *from;
    apply(cx, to, x, &layers[0], T);
    for (int i = 1; i < depth; i++) {
        from = to;
        to = from == out ? hidden : out;
        gelu(cx, from, T * width);
        apply(cx, to, from, &layers[i], T);
    }
}

/* ==================================================================================================================
   3  Understanding encoder: SigLIP ViT, then the understanding adaptor.    image (side, side, 3) -> (T, D)
      Cut into T = (side / patch)^2 patches; each becomes a token: a Linear layer over its pixels, plus a learned
      position. Then blocks of  x += proj(attention(norm1(x)));  x += fc2(gelu(fc1(norm2(x))))  in which every patch
      attends to every other; LayerNorm; and the adaptor, which turns what was seen into embeddings beside the words'.
      official: siglip_vit.py, clip_encoder.py, projector.py
   ================================================================================================================== */

/* x (T, W) -> x (T, W); h (T, W) and wide (T, max(3W, mlp)) are scratch. */
static void vit_block(Context *cx, const Config *c, const VitBlock *block, float *x, int64_t T, float *h, float *wide) {
    const int64_t width = c->vit_width, d = width / c->vit_heads;
    const float *q = wide, *k = wide + width, *v = wide + 2 * width; /* of the first row; the next is 3W further */
    /* x += proj(attention(norm1(x))), without a mask */
    layer_norm(cx, h, x, &block->norm1, T, width, c->vit_epsilon);
    apply(cx, wide, h, &block->qkv, T);
    full_attention(cx, h, q, k, v, T, c->vit_heads, d, 3 * width);
    apply(cx, wide, h, &block->proj, T);
    add(cx, x, wide, T * width);

    /* x += fc2(gelu(fc1(norm2(x)))) */
    layer_norm(cx, h, x, &block->norm2, T, width, c->vit_epsilon);
    apply(cx, wide, h, &block->fc1, T);
    gelu(cx, wide, T * c->vit_mlp);
    apply(cx, h, wide, &block->fc2, T);
    add(cx, x, h, T * width);
}

/* An image becomes T embeddings for the transformer: out (T, D). */
static void see_image(Context *cx, const JanusModel *m, const JanusImage *image, float *out) {
    const Config *c = &m->config;
    const int64_t T = vision_tokens(c), width = c->vit_width, side = c->image_side, grid = side / c->patch;
    const ArenaBlock *mark = scratch_mark(cx);
    float *pixels = scratch(cx, side, 3 * side), *x = scratch(cx, T, width), *h = scratch(cx, T, width);
    float *wide = scratch(cx, T, max_i64(3 * width, c->vit_mlp)), *hidden = scratch(cx, T, c->hidden);
    const ConvShape patches = {.height = side, .width = side, .channels = 3, .kernel = c->patch, .stride = c->patch,
                               .out_height = grid, .out_width = grid};
    vit_pixels(cx, c, image, pixels);
    tap(cx, "vision.pixel_values", pixels, side, side, 3);
    /* a patch becomes a token; its position is added */
    conv2d(cx, x, pixels, &m->patch_embed.weight, m->patch_embed.bias, &patches);
    tap(cx, "vision.patch_embed", x, T, width, 0);
    add(cx, x, m->pos_embed, T * width);
    for (int i = 0; i < c->vit_layers; i++) {
        vit_block(cx, c, &m->vit_blocks[i], x, T, h, wide);
        tap_sequences(cx, "vision.block", i, x, 1, T, width, true);
        progress(cx, "see", i + 1, c->vit_layers);
    }
    layer_norm(cx, x, x, &m->vit_norm, T, width, c->vit_epsilon);
    tap(cx, "vision.output", x, T, width, 0);
    /* to the width of the transformer */
    adaptor(cx, out, x, m->aligner, c->aligner_depth, T, hidden);
    tap(cx, "aligner.output", out, T, c->hidden, 0);
    scratch_release(cx, mark);
}

/* ==================================================================================================================
   4  Transformer: Llama. It reads T embeddings (words, seen images and drawn tokens alike) and returns as many hidden
       states; what it has read is kept as keys and values, so that each token is read once.    (T, D) -> (T, D)
       Block:  x += output(attention(rope(q), rope(k), v));  x += down(silu(gate(y)) * up(y)),  y = rms_norm(x).
       Causal; G key/value heads serve H query heads; no biases. Several sequences of equal length run side by side, so
       that the weights are read once for all of them.
       official: LlamaForCausalLM as language_model in modeling_vlm.py
   ================================================================================================================== */

/* Rotary embedding tables for T positions from `first` on: cosines and sines (T, d/2). The angle of pair i is
   position / base^(2i/d), rounded to float32 at each step as PyTorch does. */
static void rope_table(const Config *c, int64_t first, int64_t T, float *cosines, float *sines) {
    const int half = c->head_dim / 2;
    for (int i = 0; i < half; i++) {
        const float exponent = (float)(2 * i) / (float)c->head_dim;
        const float frequency = 1.0f / (float)pow((double)c->rope_base, (double)exponent);
        for (int64_t t = 0; t < T; t++) {
            const float angle = (float)(first + t) * frequency;
            cosines[t * half + i] = (float)cos((double)angle);
            sines[t * half + i] = (float)sin((double)angle);
        }
    }
}

/* Rotates T rows of a head in place, `stride` apart: pairs are (i, i + d/2), halves, not neighbours. */
static void rope(float *x, int64_t stride, int64_t T, int d, const float *cosines, const float *sines) {
    const int half = d / 2;
    for (int64_t t = 0; t < T; t++) {
        const float *cosine = cosines + t * half, *sine = sines + t * half;
        float *low = x + t * stride, *high = low + half;
        for (int i = 0; i < half; i++) {
            const float a = low[i], b = high[i];
            low[i] = a * cosine[i] - b * sine[i];
            high[i] = b * cosine[i] + a * sine[i];
        }
    }
}

/* Scratch of one pass over R sequences of T tokens. */
typedef struct {
    int64_t R, T;
    float *h, *q;            /* (R*T, max(D, H*d)) */
    float *k, *v;            /* (R*T, G*d) */
    float *gate, *up;        /* (R*T, F) */
    float *cosines, *sines;  /* (R, T, d/2) */
} TransformerScratch;

/* x (R*T, D) -> x (R*T, D) */
static void transformer_block(Context *cx, const Config *c, const TransformerBlock *block, int layer,
                              const TransformerScratch *s, Sequence *const *sequences, float *x) {
    const int64_t rows = s->R * s->T;
    const Output qkv[] = {{s->q, &block->q, NULL}, {s->k, &block->k, NULL}, {s->v, &block->v, NULL}};
    const Output gate_up[] = {{s->gate, &block->gate, NULL}, {s->up, &block->up, NULL}};
    /* x += output(attention(rope(q), rope(k), v)) */
    rms_norm(cx, s->h, x, block->attn_norm, rows, c->hidden, c->rms_epsilon);
    linears(cx, qkv, 3, s->h, rows);
    rotate_and_cache(cx, c, sequences, s->R, s->T, layer, s->q, s->k, s->v, s->cosines, s->sines);
    cached_attention(cx, c, sequences, s->R, s->T, layer, s->q, s->h);
    linear(cx, s->q, s->h, &block->output, NULL, rows);
    add(cx, x, s->q, rows * c->hidden);

    /* x += down(silu(gate) * up) */
    rms_norm(cx, s->h, x, block->ffn_norm, rows, c->hidden, c->rms_epsilon);
    linears(cx, gate_up, 2, s->h, rows);
    silu_mul(cx, s->gate, s->up, rows * c->mlp);
    linear(cx, s->h, s->gate, &block->down, NULL, rows);
    add(cx, x, s->h, rows * c->hidden);
}

/* Reads T embeddings a sequence: x (R*T, D) in, the hidden states after the final norm out, and all keys and values are
   kept. After a failure every sequence is as long as before. `prompt`: progress and taps are told of its blocks. */
static void transformer_forward(Context *cx, const JanusModel *m, float *x, int64_t T, Sequence *const *sequences,
                                int64_t R, bool prompt) {
    const Config *c = &m->config;
    const int64_t rows = R * T, d = c->head_dim, widest = max_i64(c->heads * d, c->hidden);
    const ArenaBlock *mark = scratch_mark(cx);
    const TransformerScratch s = {
        .R = R, .T = T, .h = scratch(cx, rows, widest), .q = scratch(cx, rows, widest),
        .k = scratch(cx, rows, c->kv_heads * d), .v = scratch(cx, rows, c->kv_heads * d),
        .gate = scratch(cx, rows, c->mlp), .up = scratch(cx, rows, c->mlp),
        .cosines = scratch(cx, rows, d / 2), .sines = scratch(cx, rows, d / 2)};
    for (int64_t r = 0; r < R; r++) kv_cache_reserve(cx, &sequences[r]->own, c, sequences[r]->own.length + T);
    if (has_failed(cx)) return;
    for (int64_t r = 0; r < R; r++) { /* positions count the shared prefix, too */
        const KvCache *shared = sequences[r]->shared, *own = &sequences[r]->own;
        const int64_t offset = r * T * (d / 2), first = (shared != NULL ? shared->length : 0) + own->length;
        rope_table(c, first, T, s.cosines + offset, s.sines + offset);
    }
    for (int i = 0; i < c->layers; i++) {
        transformer_block(cx, c, &m->blocks[i], i, &s, sequences, x);
        tap_sequences(cx, "transformer.block", i, x, R, T, c->hidden, prompt);
        if (prompt) progress(cx, "read", i + 1, c->layers);
    }
    rms_norm(cx, x, x, m->output_norm, rows, c->hidden, c->rms_epsilon);
    tap_sequences(cx, "transformer.hidden", -1, x, R, T, c->hidden, prompt);
    for (int64_t r = 0; r < R && !has_failed(cx); r++) sequences[r]->own.length += T;
    scratch_release(cx, mark);
}

/* ==================================================================================================================
   5  Heads and sampling: the hidden state of the last position becomes the scores of the next token, and these an id.
       LM head: one matrix, (D) -> (V).  Image head: Linear, gelu, Linear, (D) -> (E) -> (K).
       Guidance: logits = uncond + w (cond - uncond): w > 1 moves away from what would be drawn without the prompt.
       official: vision_head in modeling_vlm.py, generation_inference.py; transformers' generation/logits_process.py
   ================================================================================================================== */

/* logits (R, K) from hidden states (R, D) */
static void image_head(Context *cx, const JanusModel *m, float *logits, const float *hidden, int64_t R) {
    const ArenaBlock *mark = scratch_mark(cx);
    float *h = scratch(cx, R, m->config.gen_head_width);
    apply(cx, h, hidden, &m->gen_head_proj, R);
    gelu(cx, h, R * m->config.gen_head_width);
    apply(cx, logits, h, &m->gen_head, R);
    scratch_release(cx, mark);
}

/* n logits from those of the two rows of one picture; each operation is rounded, as PyTorch's are */
static void guide(float *logits, const float *cond, const float *uncond, int64_t n, float cfg_weight) {
    for (int64_t i = 0; i < n; i++) {
        const float difference = cond[i] - uncond[i];
        const float step = cfg_weight * difference;
        logits[i] = uncond[i] + step;
    }
}

/* The most probable id; the first on ties. */
static int32_t argmax(const float *logits, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* ---- From logits to probabilities ----

   An id of a picture is drawn from softmax(logits / temperature). An id of an answer is drawn as transformers'
   generate(do_sample=True, temperature, top_p) does (generation/utils.py, _get_logits_processor):

       logits / temperature  ->  top-k  ->  top-p  ->  softmax

   top-k keeps all ids whose logit is >= the k-th largest; nobody asks for it, but GenerationConfig's default is 50.
   top-p sorts the rest upwards and drops ids while the running sum of softmax is <= 1 - top_p, never the last one.
   Temperature and top_p are doubles as in Python: 1 - top_p is a double, then everything is float but torch's running
   sum (double). Probabilities agree with torch's to a few units in the last place: its exp is vectorised. Of equal
   logits at the edge of top-p the lower id is dropped first; torch's sort promises no order. */

/* logits (V) -> logits / temperature */
static void scale_temperature(float *logits, int64_t V, double temperature) {
    for (int64_t v = 0; v < V; v++) logits[v] /= (float)temperature;
}

static float softmax_weight(float x, float max) {
    const float shifted = x - max;
    return shifted > -INFINITY ? (float)exp((double)shifted) : 0;
}

/* x in: logits (V); out: softmax(logits). Logits of -inf get 0. */
static void softmax(float *x, int64_t V) {
    const float max = x[argmax(x, V)];
    double sum = 0.0;
    for (int64_t v = 0; v < V; v++) sum += x[v] = softmax_weight(x[v], max);
    for (int64_t v = 0; v < V; v++) x[v] *= (float)(1.0 / sum);
}

/* Sets the logits (V) below the top_k-th largest to -inf; top_k < 1 keeps all. largest: scratch (top_k). */
static void keep_top_k(float *logits, int64_t V, int top_k, float *largest) {
    if (top_k < 1 || top_k >= V) return;
    for (int i = 0; i < top_k; i++) largest[i] = -INFINITY;
    for (int64_t v = 0; v < V; v++) {
        int at = top_k - 1; /* largest falls: a new one moves up from the end */
        if (!(logits[v] > largest[at])) continue;
        for (; at > 0 && logits[v] > largest[at - 1]; at--) largest[at] = largest[at - 1];
        largest[at] = logits[v];
    }
    for (int64_t v = 0; v < V; v++)
        if (logits[v] < largest[top_k - 1]) logits[v] = -INFINITY;
}

typedef struct {
    float logit; /* then its weight */
    int32_t id;
} RankedLogit;

static int compare_logits(const void *a, const void *b) { /* upwards, equal ones by id */
    const RankedLogit *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Sets the logits (V) outside the most probable ids that hold top_p of the probability to -inf. ranked: scratch (V) */
static void keep_top_p(float *logits, int64_t V, double top_p, RankedLogit *ranked) {
    int64_t kept = 0;
    if (top_p >= 1.0) return;
    for (int64_t v = 0; v < V; v++)
        if (logits[v] > -INFINITY) ranked[kept++] = (RankedLogit){logits[v], (int32_t)v};
    if (kept == 0) return; /* a temperature near zero has made all of them infinite */
    qsort(ranked, (size_t)kept, sizeof *ranked, compare_logits);

    const float max = ranked[kept - 1].logit;
    double sum = 0.0, cumulative = 0.0;
    for (int64_t i = 0; i < kept; i++) sum += ranked[i].logit = softmax_weight(ranked[i].logit, max);
    for (int64_t i = 0; i < kept - 1; i++) {
        cumulative += ranked[i].logit * (float)(1.0 / sum);
        if ((float)cumulative > (float)(1.0 - top_p)) break;
        logits[ranked[i].id] = -INFINITY;
    }
}

/* ---- From logits to ids ---- */

static void check_picked(Context *cx, int32_t id) {
    if (id < 0)
        context_fail(cx, JANUS_BAD_MODEL, "the scores are not finite once divided by the temperature: raise it");
}

/* Ids for T places of each of N pictures: rows (N, 2, T, K) are the logits with and without the prompt -> ids (N, T);
   starts (N, T) as for multinomial, and so is an id of -1 */
static void pick_image_ids(Context *cx, const JanusGenerateOptions *options, TorchRng *starts, const float *rows,
                           int64_t T, int64_t K, int32_t *ids) {
    const int64_t N = options->count;
    const ArenaBlock *mark = scratch_mark(cx);
    float *guided = scratch(cx, N * T, K);
    check_finite(cx, "generation.logits", rows, 2 * N * T * K);
    for (int64_t n = 0; n < N && !has_failed(cx); n++)
        guide(guided + n * T * K, rows + 2 * n * T * K, rows + (2 * n + 1) * T * K, T * K, options->cfg_weight);
    tap(cx, "generation.logits.cond", rows, K, 0, 0); /* the first picture's; T is 1 if there is a tap */
    tap(cx, "generation.logits.uncond", rows + K, K, 0, 0);
    tap(cx, "generation.logits", guided, K, 0, 0);
    if (options->temperature > 0) {
        softmax_rows(cx, guided, N * T, K, options->temperature);
        multinomial(cx, starts, ids, guided, N * T, K);
    } else {
        for (int64_t i = 0; i < N * T && !has_failed(cx); i++) ids[i] = argmax(guided + i * K, K);
    }
    scratch_release(cx, mark);
}

/* The next id of an answer. logits (V) are overwritten. */
static int32_t pick_text_id(Context *cx, const JanusAskOptions *options, TorchRng *rng, float *logits, int64_t V) {
    int32_t id = 0;
    if (has_failed(cx)) return id;
    if (options->temperature <= 0) return argmax(logits, V);
    const ArenaBlock *mark = scratch_mark(cx);
    float *largest = scratch(cx, V, 1);
    RankedLogit *ranked = scratch_bytes(cx, V, sizeof *ranked);
    if (has_failed(cx)) return id;
    scale_temperature(logits, V, options->temperature);
    keep_top_k(logits, V, options->top_k, largest);
    keep_top_p(logits, V, options->top_p, ranked);
    softmax(logits, V);
    multinomial(cx, rng, &id, logits, 1, V);
    check_picked(cx, id);
    scratch_release(cx, mark);
    return id;
}

/* ==================================================================================================================
   6  Generation encoder: VQ-16 of LlamaGen, picture -> ids, and ids -> embeddings for the transformer.
       Convolutions halve the picture's side level by level; each remaining position is one vector of z numbers,
       narrowed to 8, and the id of the codebook row that points most nearly in the same direction.
       ResBlock:  x + conv(swish(norm(conv(swish(norm(x))))))      AttnBlock:  x + proj(attention(norm(x))), one head
       official: vq_model.py
   ================================================================================================================== */

/* 3x3 convolution of x (side*side, in). KEEP pads with zeros all around, HALVE to the right and below only; DOUBLE
   first makes four pixels of each. */
typedef enum { KEEP, HALVE, DOUBLE } Resampling;
static void conv3x3(Context *cx, float *out, const float *x, const Linear *layer, int64_t side, Resampling to) {
    const int64_t out_side = to == HALVE ? side / 2 : to == DOUBLE ? 2 * side : side;
    const ConvShape shape = {.height = side, .width = side, .channels = layer->weight.cols / 9, .kernel = 3,
                             .stride = to == HALVE ? 2 : 1, .pad = to == HALVE ? 0 : 1, .upsample = to == DOUBLE,
                             .out_height = out_side, .out_width = out_side};
    conv2d(cx, out, x, &layer->weight, layer->bias, &shape);
}

/* x (side*side, in) -> x (side*side, out), in place: x has room for the wider of the two. */
static void res_block(Context *cx, const Config *c, const ResBlock *block, float *x, int64_t side) {
    const int64_t rows = side * side;
    const ArenaBlock *mark = scratch_mark(cx);
    float *h = scratch(cx, rows, max_i64(block->in, block->out)), *y = scratch(cx, rows, block->out);
    group_norm(cx, h, x, &block->norm1, rows, block->in, c->groups, c->group_epsilon, 1);
    conv3x3(cx, y, h, &block->conv1, side, KEEP);
    group_norm(cx, y, y, &block->norm2, rows, block->out, c->groups, c->group_epsilon, 1);
    conv3x3(cx, h, y, &block->conv2, side, KEEP);
    if (block->in != block->out) {
        apply(cx, y, x, &block->shortcut, rows);
        copy(cx, x, y, rows * block->out);
    }
    add(cx, x, h, rows * block->out);
    scratch_release(cx, mark);
}

/* x (T, C) -> x (T, C): every position attends to every other. */
static void attn_block(Context *cx, const Config *c, const AttnBlock *block, float *x, int64_t T) {
    const int64_t width = block->width;
    const ArenaBlock *mark = scratch_mark(cx);
    float *h = scratch(cx, T, width), *q = scratch(cx, T, width), *k = scratch(cx, T, width),
          *v = scratch(cx, T, width);
    group_norm(cx, h, x, &block->norm, T, width, c->groups, c->group_epsilon, 0);
    apply(cx, q, h, &block->q, T);
    apply(cx, k, h, &block->k, T);
    apply(cx, v, h, &block->v, T);
    full_attention(cx, h, q, k, v, T, 1, width, width);
    apply(cx, q, h, &block->proj, T);
    add(cx, x, q, T * width);
    scratch_release(cx, mark);
}

static void mid_block(Context *cx, const Config *c, const VqHalf *half, float *x, int64_t side) {
    res_block(cx, c, &half->mid_res[0], x, side);
    attn_block(cx, c, &half->mid_attn, x, side * side);
    res_block(cx, c, &half->mid_res[1], x, side);
}

/* Size in floats of the largest activation of encoder and decoder; -1 on overflow. A level starts with the width of the
   one before it, on either way. */
static int64_t vq_room(const Config *c) {
    int64_t room = image_tokens(c) * c->z_channels;
    for (int i = 0; i < c->vq_levels; i++) {
        const int64_t side = (int64_t)c->grid << (c->vq_levels - 1 - i);
        for (int j = i > 0 ? i - 1 : 0; j <= i + 1 && j < c->vq_levels; j++) {
            const int64_t floats = checked_product(side, side, (int64_t)c->base_channels * c->multipliers[j]);
            if (floats < 0) return -1;
            room = max_i64(room, floats);
        }
    }
    return room;
}

/* All levels of one half: *x (side*side, C) in and out. The encoder goes from shallow to deep, halving the side, the
   decoder back, doubling it. After each resampling x and y change places. */
static void vq_levels(Context *cx, const Config *c, const VqHalf *half, bool decodes, float **x, float **y) {
    int64_t side = decodes ? c->grid : drawn_side(c);
    for (int i = 0; i < c->vq_levels; i++) {
        const VqLevel *level = &half->level[i];
        const int depth = decodes ? c->vq_levels - 1 - i : i;
        for (int b = 0; b < c->res_blocks + decodes; b++) {
            res_block(cx, c, &level->res[b], *x, side);
            if (depth == c->vq_levels - 1) attn_block(cx, c, &level->attn[b], *x, side * side);
        }
        if (i < c->vq_levels - 1) {
            float *resampled = *y;
            conv3x3(cx, resampled, *x, &level->resample, side, decodes ? DOUBLE : HALVE);
            *y = *x;
            *x = resampled;
            side = decodes ? 2 * side : side / 2;
        }
        tap_sequences(cx, decodes ? "vq.decoder.level" : "vq.encoder.level", i, *x, 1, side * side,
                      (int64_t)c->base_channels * c->multipliers[depth], true);
        progress(cx, decodes ? "decode" : "encode", i + 1, c->vq_levels);
    }
}

/* x (rows, dim) -> rows of length 1, as F.normalize */
static void normalize_rows(float *x, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; r++, x += dim) {
        float sum = 0;
        for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
        const float norm = sqrtf(sum) > 1e-12f ? sqrtf(sum) : 1e-12f;
        for (int64_t i = 0; i < dim; i++) x[i] /= norm;
    }
}

static float dot_product(const float *a, const float *b, int64_t count) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* z (T, dim) -> ids (T): the nearest codebook row, both on the unit sphere; the first on ties. z is normalised in
   place. */
static void nearest_codes(Context *cx, const JanusModel *m, float *z, int32_t *ids) {
    const int64_t T = image_tokens(&m->config), K = m->config.codebook, dim = m->config.code_dim;
    const ArenaBlock *mark = scratch_mark(cx);
    float *codes = scratch(cx, K, dim), *squares = scratch(cx, K, 1);
    if (has_failed(cx)) return;
    for (int64_t i = 0; i < K; i++) weight_row(codes + i * dim, &m->codebook, i);
    normalize_rows(codes, K, dim);
    check_finite(cx, "vq.codebook", codes, K * dim);
    normalize_rows(z, T, dim);
    for (int64_t i = 0; i < K; i++) squares[i] = dot_product(codes + i * dim, codes + i * dim, dim);
    for (int64_t t = 0; t < T; t++) {
        const float *row = z + t * dim;
        const float square = dot_product(row, row, dim);
        float nearest = FLT_MAX;
        ids[t] = 0;
        for (int64_t i = 0; i < K; i++) {
            const float distance = square + squares[i] - 2 * dot_product(row, codes + i * dim, dim);
            if (distance < nearest) nearest = distance, ids[t] = (int32_t)i;
        }
    }
    scratch_release(cx, mark);
}

/* pixels (side, side, 3) in -1..1 -> ids (grid*grid) */
static void vq_encode(Context *cx, const JanusModel *m, const float *pixels, int32_t *ids) {
    const Config *c = &m->config;
    const VqHalf *encoder = &m->vq_encoder;
    const int64_t side = drawn_side(c), T = image_tokens(c);
    const ArenaBlock *mark = scratch_mark(cx);
    float *x = scratch(cx, vq_room(c), 1), *y = scratch(cx, vq_room(c), 1), *z = scratch(cx, T, c->code_dim);
    tap(cx, "vq.encoder.input", pixels, side, side, 3);
    conv3x3(cx, x, pixels, &encoder->conv_in, side, KEEP);
    tap(cx, "vq.encoder.conv_in", x, side * side, c->base_channels, 0);
    vq_levels(cx, c, encoder, false, &x, &y);
    mid_block(cx, c, encoder, x, c->grid);
    tap(cx, "vq.encoder.mid", x, T, encoder->mid_width, 0);
    group_norm(cx, x, x, &encoder->norm_out, T, encoder->out_width, c->groups, c->group_epsilon, 1);
    conv3x3(cx, y, x, &encoder->conv_out, c->grid, KEEP);
    tap(cx, "vq.encoder.output", y, T, c->z_channels, 0);
    apply(cx, z, y, &m->quant_conv, T);
    tap(cx, "vq.quant_conv", z, T, c->code_dim, 0);
    nearest_codes(cx, m, z, ids);
    tap_ids(cx, "vq.ids", ids, T, 0);
    scratch_release(cx, mark);
}

/* Image ids as inputs of the transformer: out (N, D). The table is its own, not the codebook.
   official: prepare_gen_img_embeds */
static void embed_image_ids(Context *cx, const JanusModel *m, const int32_t *ids, int64_t N, float *out) {
    const Config *c = &m->config;
    const ArenaBlock *mark = scratch_mark(cx);
    float *rows = scratch(cx, N, c->code_dim), *hidden = scratch(cx, N, c->hidden);
    for (int64_t i = 0; i < N && !has_failed(cx); i++) weight_row(rows + i * c->code_dim, &m->gen_embed, ids[i]);
    adaptor(cx, out, rows, m->gen_aligner, c->gen_aligner_depth, N, hidden);
    check_finite(cx, "generation.embedding", out, N * c->hidden);
    tap(cx, "generation.embedding", out, c->hidden, 0, 0); /* the first picture's */
    scratch_release(cx, mark);
}

/* ==================================================================================================================
   7  Image decoder: ids -> codebook rows on the unit sphere -> picture, the encoder's way back: mid block first, then
       levels from the deepest up, each but the last followed by a doubling of the side.
       official: vq_model.py (decode_code), generation_inference.py (pixels)
   ================================================================================================================== */

/* y (count) in about -1..1 -> bytes, cut off and not rounded, as the official code does */
static void to_pixels(uint8_t *rgb, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float value = (y[i] + 1.0f) / 2.0f * 255.0f;
        rgb[i] = (uint8_t)(value > 0 ? value < 255 ? value : 255 : 0);
    }
}

/* ids (grid*grid) -> rgb (side, side, 3) */
static void vq_decode(Context *cx, const JanusModel *m, const int32_t *ids, uint8_t *rgb) {
    const Config *c = &m->config;
    const VqHalf *decoder = &m->vq_decoder;
    const int64_t side = drawn_side(c), T = image_tokens(c);
    const ArenaBlock *mark = scratch_mark(cx);
    float *x = scratch(cx, vq_room(c), 1), *y = scratch(cx, vq_room(c), 1);
    float *codes = scratch(cx, T, c->code_dim), *drawn = scratch(cx, side, 3 * side);
    if (has_failed(cx)) return;
    for (int64_t t = 0; t < T; t++) weight_row(codes + t * c->code_dim, &m->codebook, ids[t]);
    normalize_rows(codes, T, c->code_dim);
    tap(cx, "vq.codes", codes, T, c->code_dim, 0);
    apply(cx, y, codes, &m->post_quant_conv, T);
    tap(cx, "vq.post_quant", y, T, c->z_channels, 0);
    conv3x3(cx, x, y, &decoder->conv_in, c->grid, KEEP);
    tap(cx, "vq.decoder.conv_in", x, T, decoder->mid_width, 0);
    mid_block(cx, c, decoder, x, c->grid);
    tap(cx, "vq.decoder.mid", x, T, decoder->mid_width, 0);
    vq_levels(cx, c, decoder, true, &x, &y);
    group_norm(cx, x, x, &decoder->norm_out, side * side, decoder->out_width, c->groups, c->group_epsilon, 1);
    conv3x3(cx, drawn, x, &decoder->conv_out, side, KEEP);
    tap(cx, "vq.decoder.output", drawn, side, side, 3);
    if (!has_failed(cx)) to_pixels(rgb, drawn, side * side * 3);
    tap_pixels(cx, rgb, side);
    scratch_release(cx, mark);
}

/* ==================================================================================================================
   8  The two tasks

      draw(prompt, seed):
          cond   = BOS <|User|>: PROMPT \n\n <|Assistant|>: <begin_of_image>
          uncond = cond with every id but the first and the last replaced by the pad id
          hidden = transformer(embed(cond), embed(uncond)), the last position of both rows
          repeat 576 times:
              logits = guide(image_head(hidden))                                  uncond + w (cond - uncond)
              id     = draw from softmax(logits / temperature)
              hidden = transformer(generation adaptor(gen_embed[id]))             the same input for both rows
          picture = decode(the 576 ids)

      answer(images, question):
          ids    = BOS SYSTEM \n\n <|User|>: <image_placeholder>\n QUESTION \n\n <|Assistant|>:
          x      = embed(ids); where each placeholder stands: <begin_of_image>, see(image), <end_of_image>
          hidden = transformer(x), the last position
          repeat until id is EOS:
              id     = the most probable of lm_head(hidden), or sampled with a temperature
              hidden = transformer(embed(id))
          the next turn continues after ANSWER EOS, without BOS and SYSTEM

      Prompts have the form in which the model was trained (official conversation.py, template "deepseek";
      processing_vlm.py). The roles are those that the model file names: Janus-1.3B has User and Assistant.
      `draw` and `converse`, at the end, are these two loops; both repeat `step`, which takes any number of tasks, so
      that the queue (section 20) runs the same steps. A drawing with drafts repeats step_with_drafts: the same ids.
   ================================================================================================================== */

/* Pictures and rows of all tasks in a step; drafts of one. */
enum { PICTURES_LIMIT = 64, ROWS_LIMIT = 2 * PICTURES_LIMIT, DRAFTS_LIMIT = 63 };

/* Invariant between calls: `sequence` holds the keys and values of all of the conversation but the last ids, which the
   transformer has not read yet. */
typedef struct {
    Sequence sequence;
    int32_t unread[2]; /* an answer's last id, and EOS */
    int unread_count;
} Conversation;

/* A drawing or an answer that is being worked on. */
typedef struct {
    bool answers, done;
    int64_t R;        /* sequences: 1, or two a picture: conditional, unconditional, conditional, ... */
    Sequence *rows;   /* (R) */
    TorchRng rng;
    JanusError error; /* its own, in a step with other tasks */
    /* a drawing */
    JanusGenerateOptions drawing;
    Sequence prompts[2], pictures[ROWS_LIMIT]; /* each of `pictures` continues one of the prompts */
    int32_t *ids;     /* (N, image_tokens) */
    int64_t drawn;    /* ids that each picture has */
    /* an answer */
    JanusAskOptions question;
    Conversation *conversation;
    int64_t turn_end; /* length of the sequence after the question */
    IdList said;
    Answer *answer;
} Task;

/* Ends a task with the context's error, which does not concern other tasks. */
static void task_fail(Context *cx, Task *task) {
    context_take_error(cx, &task->error);
    task->done = true;
}

/* Frees all but the results. */
static void task_free(Task *task) {
    for (int i = 0; i < 2; i++) kv_cache_free(&task->prompts[i].own);
    for (int r = 0; r < ROWS_LIMIT; r++) kv_cache_free(&task->pictures[r].own);
}

/* ---- Prompts ---- */

/* Adds the ids of `text`; every image placeholder becomes begin, as many placeholders as an image has tokens, end.
   Returns the number of images. */
static int add_text(Context *cx, const JanusModel *m, IdList *list, StringView text) {
    const Config *c = &m->config;
    IdList ids = {0};
    int images = 0;
    tokenize(cx, m, text, &ids);
    for (size_t i = 0; i < ids.count; i++) {
        const bool image = ids.ids[i] == c->image_placeholder;
        if (image) id_list_add(cx, list, c->begin_of_image, 1);
        id_list_add(cx, list, ids.ids[i], image ? vision_tokens(c) : 1);
        if (image) id_list_add(cx, list, c->end_of_image, 1);
        images += image;
    }
    id_list_free(&ids);
    return images;
}

/* The ids of a drawing's prompt. */
static void drawing_prompt(Context *cx, const JanusModel *m, const char *prompt, IdList *list) {
    const Config *c = &m->config;
    const StringView words = checked_text(cx, prompt, "prompt", false);
    const StringView text = format_text(cx, "%.*s: %.*s\n\n%.*s:", VIEW(c->user_role), VIEW(words),
                                        VIEW(c->assistant_role));
    id_list_add(cx, list, c->bos, 1);
    if (add_text(cx, m, list, text) > 0)
        context_fail(cx, JANUS_BAD_ARGUMENT, "a drawing prompt cannot hold <image_placeholder>");
    id_list_add(cx, list, c->begin_of_image, 1);
    if ((int64_t)list->count + image_tokens(c) > c->context)
        context_fail(cx, JANUS_BAD_ARGUMENT,
                     "the prompt is %lu tokens long; with the picture's %d it exceeds the context of %d",
                     (unsigned long)list->count, (int)image_tokens(c), c->context);
}

/* The ids of a user's turn, after those that the last answer left unread. */
static void turn_prompt(Context *cx, const JanusModel *m, const Conversation *conversation, const char *question,
                        int image_count, IdList *list) {
    const Config *c = &m->config;
    const int64_t before = conversation->sequence.own.length;
    const StringView system = before == 0 ? c->system_prompt : view_of("");
    StringView images = view_of("");
    /* images come before the question unless the question itself places them */
    for (int i = 0; i < image_count && question != NULL && strstr(question, "<image_placeholder>") == NULL; i++)
        images = format_text(cx, "%.*s<image_placeholder>\n", VIEW(images));
    const StringView words = checked_text(cx, question, "question", images.length > 0);
    const StringView text = format_text(cx, "%.*s%s%.*s: %.*s%.*s\n\n%.*s:", VIEW(system),
                                        system.length > 0 ? "\n\n" : "", VIEW(c->user_role), VIEW(images), VIEW(words),
                                        VIEW(c->assistant_role));
    if (before == 0) id_list_add(cx, list, c->bos, 1);
    for (int i = 0; i < conversation->unread_count; i++) id_list_add(cx, list, conversation->unread[i], 1);
    const int places = add_text(cx, m, list, text);
    if (places != image_count)
        context_fail(cx, JANUS_BAD_ARGUMENT, "the question has %d <image_placeholder>, but %d images were given",
                     places, image_count);
    if (before + (int64_t)list->count + 2 > c->context) /* an id of the answer, EOS */
        context_fail(cx, JANUS_BAD_ARGUMENT,
                     "the conversation would be %ld tokens long; the context holds %d: start a new one",
                     (long)(before + (int64_t)list->count), c->context);
}

/* Embeddings of a prompt: x (T, D). Rows of image placeholders from `first` on are those of `seen`, in order. */
static void embed_prompt(Context *cx, const JanusModel *m, const int32_t *ids, int64_t T, int64_t first,
                         const float *seen, float *x) {
    const int64_t D = m->config.hidden;
    for (int64_t t = 0; t < T && !has_failed(cx); t++, x += D) {
        const bool image = t >= first && ids[t] == m->config.image_placeholder;
        if (image) copy(cx, x, seen, D), seen += D;
        else weight_row(x, &m->token_embed, ids[t]);
    }
}

/* ---- A step: every sequence reads the id that was picked last, and the next ids are picked ---- */

/* x (N, 2, T, D): the embeddings of ids (N, T), the same for both rows of a picture */
static void embed_for_both_rows(Context *cx, const JanusModel *m, const int32_t *ids, int64_t N, int64_t T, float *x) {
    const int64_t size = T * m->config.hidden;
    const ArenaBlock *mark = scratch_mark(cx);
    float *embedded = scratch(cx, N, size);
    if (has_failed(cx)) return;
    embed_image_ids(cx, m, ids, N * T, embedded);
    for (int64_t r = 0; r < 2 * N; r++) copy(cx, x + r * size, embedded + r / 2 * size, size);
    scratch_release(cx, mark);
}

/* x (R, D): the embeddings of the task's last ids */
static void embed_last_ids(Context *cx, const JanusModel *m, const Task *task, float *x) {
    const int64_t N = task->drawing.count, P = image_tokens(&m->config);
    int32_t ids[PICTURES_LIMIT];
    if (has_failed(cx)) return;
    if (task->answers) {
        weight_row(x, &m->token_embed, task->said.ids[task->said.count - 1]);
        return;
    }
    for (int64_t n = 0; n < N; n++) ids[n] = task->ids[n * P + task->drawn - 1];
    embed_for_both_rows(cx, m, ids, N, 1, x);
}

/* The random numbers of a drawing are one stream: 2K words for each id, place after place, at a place picture after
   picture. starts (N, T): the generator at each of the last T places that each picture's rows have reached. */
static void find_starts(const Task *task, int64_t T, int64_t K, TorchRng *starts) {
    const int64_t N = task->drawing.count;
    TorchRng rng = task->rng;
    int64_t end = 0;
    for (int64_t n = 0; n < N; n++) end = max_i64(end, task->rows[2 * n].own.length + 1);
    for (int64_t place = task->drawn; place < end; place++)
        for (int64_t n = 0; n < N; n++, torch_rng_skip(&rng, 2 * K)) {
            const int64_t t = place - (task->rows[2 * n].own.length + 1 - T);
            if (t >= 0 && t < T) starts[n * T + t] = rng;
        }
}

/* The first `count` ids of each picture stand: the random numbers go on behind them. */
static void advance_drawing(Context *cx, const JanusModel *m, Task *task, int64_t count) {
    const int64_t N = task->drawing.count, P = image_tokens(&m->config);
    progress(cx, "draw", count, P);
    if (has_failed(cx)) return;
    torch_rng_skip(&task->rng, (count - task->drawn) * N * 2 * m->config.codebook);
    task->drawn = count;
    tell_drawn(cx, task->ids, N, count, P);
    task->done = count == P;
    if (task->done) tap_ids(cx, "generation.ids", task->ids, N, P);
}

/* A drawing's next ids, one a picture, from the logits of its rows (N, 2, K). */
static void take_image_ids(Context *cx, const JanusModel *m, Task *task, const float *logits) {
    const int64_t N = task->drawing.count, P = image_tokens(&m->config), K = m->config.codebook;
    const ArenaBlock *mark = scratch_mark(cx);
    TorchRng *starts = scratch_bytes(cx, N, sizeof *starts);
    int32_t ids[PICTURES_LIMIT];
    if (has_failed(cx)) return;
    find_starts(task, 1, K, starts);
    pick_image_ids(cx, &task->drawing, starts, logits, 1, K, ids);
    for (int64_t n = 0; n < N && !has_failed(cx); n++) {
        check_picked(cx, ids[n]);
        task->ids[n * P + task->drawn] = ids[n];
    }
    advance_drawing(cx, m, task, task->drawn + 1);
    scratch_release(cx, mark);
}

/* An answer's next id from logits (V), which are overwritten. */
static void take_text_id(Context *cx, const JanusModel *m, Task *task, float *logits) {
    const Config *c = &m->config;
    Conversation *conversation = task->conversation;
    tap(cx, "lm.logits", logits, c->vocab, 0, 0);
    const int32_t id = pick_text_id(cx, &task->question, &task->rng, logits, c->vocab);
    conversation->unread[0] = id;
    conversation->unread_count = 1;
    if (!has_failed(cx) && id != c->eos) {
        id_list_add(cx, &task->said, id, 1);
        answer_token(cx, m, task->answer, id);
        progress(cx, "answer", (int64_t)task->said.count, task->question.max_tokens);
    }
    const bool full = conversation->sequence.own.length + 3 > c->context; /* this id, one more and EOS */
    task->done = id == c->eos || full || task->said.count == (size_t)task->question.max_tokens;
    if (!task->done || has_failed(cx)) return;
    if (id != c->eos) conversation->unread[conversation->unread_count++] = c->eos;
    answer_token(cx, m, task->answer, -1);
    if (answer_is_empty(task->answer)) { /* the next turn follows the question, without EOS */
        conversation->sequence.own.length = task->turn_end;
        conversation->unread_count = 0;
    }
    tap_ids(cx, "lm.answer_ids", task->said.ids, (int64_t)task->said.count, 0);
}

typedef struct {
    const JanusModel *m;
    Task *const *tasks;
    int count;
    float *logits[PICTURES_LIMIT]; /* of each task's rows */
} TakeIds;

static void take_ids(Context *cx, void *data, int64_t i) {
    const TakeIds *take = data;
    Task *task = take->tasks[i];
    if (task->answers) take_text_id(cx, take->m, task, take->logits[i]);
    else take_image_ids(cx, take->m, task, take->logits[i]);
    if (has_failed(cx) && take->count > 1) task_fail(cx, task);
}

/* The next ids of all tasks, answers first, from their last hidden states (R, D). */
static void take_next_ids(Context *cx, const JanusModel *m, Task *const *tasks, int count, const float *hidden) {
    const int64_t D = m->config.hidden, V = m->config.vocab, K = m->config.codebook;
    const ArenaBlock *mark = scratch_mark(cx);
    TakeIds take = {.m = m, .tasks = tasks, .count = count};
    int64_t answers = 0, R = 0;
    for (int i = 0; i < count; R += tasks[i++]->R) answers += tasks[i]->answers;
    float *words = scratch(cx, answers, V), *colours = scratch(cx, R - answers, K);
    if (has_failed(cx)) return;
    linear(cx, words, hidden, &m->lm_head, NULL, answers);
    image_head(cx, m, colours, hidden + answers * D, R - answers);
    if (has_failed(cx)) return;
    for (int i = 0; i < count; i++) {
        take.logits[i] = i < answers ? words + i * V : colours;
        if (i >= answers) colours += tasks[i]->R * K;
    }
    each_alone(cx, take_ids, &take, count);
    scratch_release(cx, mark);
}

/* The next ids of all tasks, answers first, in one pass over the weights: reading these is what a step costs. Each
   task's ids are those that it gets alone, as the sums of a row do not depend on the rows beside it (section 14). */
static void step(Context *cx, const JanusModel *m, Task *const *tasks, int count) {
    const int64_t D = m->config.hidden;
    const ArenaBlock *mark = scratch_mark(cx);
    Sequence *rows[ROWS_LIMIT];
    int64_t R = 0;
    for (int i = 0; i < count; i++)
        for (int64_t r = 0; r < tasks[i]->R; r++) rows[R++] = &tasks[i]->rows[r];
    float *x = scratch(cx, R, D), *last = x;
    for (int i = 0; i < count; last += tasks[i++]->R * D) embed_last_ids(cx, m, tasks[i], last);
    transformer_forward(cx, m, x, 1, rows, R, false);
    take_next_ids(cx, m, tasks, count, x);
    scratch_release(cx, mark);
}

/* A step of one drawing that gives 1 to T ids a picture. Each sequence reads its last id and T - 1 drafts, guesses of
   the ids behind it; one pass gives the logits of T places.

   The ids are those of `step`:
     1. Id t of a picture is a function of the ids before it: attention is causal, so p follows from them, and the noise
        q of argmax p[v] / q[v] is fixed by the picture's number and t (at temperature 0 there is none).
     2. The pass computes this function at each of the T places, with the bits that `step` gets: no row depends on the
        rows beside it (products: section 14; attention: section 15).
     3. At the first place all ids before are right, so its id is. While an id equals the draft there, the next place
        has read right ids only, and its id is right, too. Behind the first that differs all were computed from a wrong
        id: they are not taken, but serve as the next pass's drafts (Jacobi iteration).
   The keys and values of wrong drafts go by taking back the length. */
static void step_with_drafts(Context *cx, const JanusModel *m, Task *task) {
    const int64_t N = task->drawing.count, P = image_tokens(&m->config), D = m->config.hidden, K = m->config.codebook;
    const int64_t T = min_i64(task->drawing.drafts + 1, P - task->drawn), above = m->config.grid;
    const ArenaBlock *mark = scratch_mark(cx);
    float *x = scratch(cx, 2 * N * T, D), *logits = scratch(cx, 2 * N * T, K);
    int32_t *read = scratch_bytes(cx, N * T, sizeof *read), *picked = scratch_bytes(cx, N * T, sizeof *picked);
    TorchRng *starts = scratch_bytes(cx, N * T, sizeof *starts);
    Sequence *rows[ROWS_LIMIT];
    int64_t drawn = P;
    if (has_failed(cx)) return;

    /* the last id and the drafts; of a place never seen, the draft is the id above. (A picture that is done waits for
       the others at its last place.) */
    for (int64_t i = 0; i < N * T; i++) {
        int32_t *ids = task->ids + i / T * P;
        const int64_t place = min_i64(task->rows[2 * (i / T)].own.length + i % T, P - 1);
        if (ids[place] < 0) ids[place] = ids[place - (place < above ? 1 : above)];
        read[i] = ids[place];
    }
    /* one pass: logits of T places */
    embed_for_both_rows(cx, m, read, N, T, x);
    for (int64_t r = 0; r < 2 * N; r++) rows[r] = &task->rows[r];
    transformer_forward(cx, m, x, T, rows, 2 * N, false);
    image_head(cx, m, logits, x, 2 * N * T);
    find_starts(task, T, K, starts);
    pick_image_ids(cx, &task->drawing, starts, logits, T, K, picked);
    /* ids are right up to the first that differs from its draft */
    for (int64_t n = 0; n < N && !has_failed(cx); n++) {
        const int64_t first = rows[2 * n]->own.length + 1 - T;
        int32_t *ids = task->ids + n * P;
        int64_t taken = 0;
        bool right = true;
        for (int64_t t = 0; t < T && first + t < P; t++) {
            if (right) check_picked(cx, picked[n * T + t]), taken++;
            right = right && ids[first + t] == picked[n * T + t];
            ids[first + t] = picked[n * T + t];
        }
        rows[2 * n]->own.length = rows[2 * n + 1]->own.length = first + taken - 1;
        drawn = min_i64(drawn, first + taken);
    }
    advance_drawing(cx, m, task, drawn);
    scratch_release(cx, mark);
}

/* ---- The two loops ---- */

/* Reads the prompt, with its words and without, side by side, and takes the first id of each picture. */
static void start_drawing(Context *cx, const JanusModel *m, Task *task, const char *prompt) {
    const Config *c = &m->config;
    const int64_t N = task->drawing.count, D = c->hidden;
    const ArenaBlock *mark = scratch_mark(cx);
    Sequence *prompts[] = {&task->prompts[0], &task->prompts[1]};
    IdList ids = {0};
    task->R = 2 * N;
    task->rows = task->pictures;
    task->drawing.drafts = drafts_that_pay(cx, m, &task->drawing);
    torch_rng_seed(&task->rng, task->drawing.seed);
    for (int64_t r = 0; r < task->R; r++) {
        task->rows[r].shared = &prompts[r % 2]->own;
        kv_cache_reserve(cx, &task->rows[r].own, c, image_tokens(c) + task->drawing.drafts);
    }
    for (int64_t i = 0; i < N * image_tokens(c); i++) task->ids[i] = -1; /* not drawn yet */
    drawing_prompt(cx, m, prompt, &ids);
    const int64_t T = (int64_t)ids.count;
    for (int64_t t = 0; t < T; t++) id_list_add(cx, &ids, t == 0 || t == T - 1 ? ids.ids[t] : c->pad, 1);
    float *x = scratch(cx, 2 * T, D), *hidden = scratch(cx, 2 * N, D);
    tap_ids(cx, "text.token_ids", ids.ids, T, 0);
    embed_prompt(cx, m, ids.ids, 2 * T, 2 * T, NULL, x);
    tap_sequences(cx, "text.embeddings", -1, x, 2, T, D, true);
    transformer_forward(cx, m, x, T, prompts, 2, true);
    for (int64_t r = 0; r < 2 * N && !has_failed(cx); r++)
        copy(cx, hidden + r * D, x + ((r % 2 + 1) * T - 1) * D, D); /* the last position */
    take_next_ids(cx, m, &task, 1, hidden);
    id_list_free(&ids);
    scratch_release(cx, mark);
}

/* Draws N pictures of one prompt: ids (N, image_tokens). */
static void draw(Context *cx, const JanusModel *m, const char *prompt, const JanusGenerateOptions *options,
                 int32_t *ids) {
    Task task = {.drawing = *options, .ids = ids}, *one = &task;
    start_drawing(cx, m, &task, prompt);
    while (!task.done && !has_failed(cx)) {
        if (task.drawing.drafts > 0) step_with_drafts(cx, m, &task);
        else step(cx, m, &one, 1);
    }
    task_free(&task);
}

/* Reads the user's turn, after its images are seen, and takes the answer's first id. */
static void start_answer(Context *cx, const JanusModel *m, Task *task, const char *question, const JanusImage *images,
                         int image_count) {
    enum { CHUNK = 1024 }; /* tokens read at once: bounds the scratch memory of a long turn */
    Conversation *conversation = task->conversation;
    Sequence *sequence = &conversation->sequence;
    const int64_t D = m->config.hidden, image_rows = vision_tokens(&m->config);
    /* BOS and ids left over from the last answer are literal, even if one equals the placeholder */
    const int64_t literal = conversation->unread_count + (sequence->own.length == 0);
    const ArenaBlock *mark = scratch_mark(cx);
    IdList ids = {0};
    task->R = 1;
    task->rows = sequence;
    torch_rng_seed(&task->rng, task->question.seed);
    turn_prompt(cx, m, conversation, question, image_count, &ids);
    const int64_t T = (int64_t)ids.count, chunk = is_tapped(cx) ? T : CHUNK;
    float *x = scratch(cx, T, D), *seen = scratch(cx, image_count * image_rows, D);
    for (int i = 0; i < image_count && !has_failed(cx); i++) see_image(cx, m, &images[i], seen + i * image_rows * D);
    tap_ids(cx, "text.token_ids", ids.ids, T, 0);
    embed_prompt(cx, m, ids.ids, T, literal, seen, x);
    tap(cx, "text.embeddings", x, T, D, 0);
    for (int64_t t = 0; t < T && !has_failed(cx); t += chunk)
        transformer_forward(cx, m, x + t * D, min_i64(chunk, T - t), &sequence, 1, true);
    task->turn_end = sequence->own.length;
    take_next_ids(cx, m, &task, 1, has_failed(cx) ? NULL : x + (T - 1) * D);
    id_list_free(&ids);
    scratch_release(cx, mark);
}

/* One turn of a conversation, which is unchanged after a failure. */
static void converse(Context *cx, const JanusModel *m, Conversation *conversation, const char *question,
                     const JanusImage *images, int image_count, const JanusAskOptions *options, Answer *answer) {
    const Conversation before = *conversation;
    Task task = {.answers = true, .question = *options, .conversation = conversation, .answer = answer}, *one = &task;
    start_answer(cx, m, &task, question, images, image_count);
    while (!task.done && !has_failed(cx)) step(cx, m, &one, 1);
    if (has_failed(cx)) { /* the cache may have grown: only its length goes back */
        conversation->sequence.own.length = before.sequence.own.length;
        conversation->unread_count = before.unread_count;
        memcpy(conversation->unread, before.unread, sizeof before.unread);
    }
    id_list_free(&task.said);
}

/* ******************************************************************************************************************
   PART II   THE ENGINE
   ****************************************************************************************************************** */

/* ==================================================================================================================
   9  Random numbers: PyTorch's, so that a seed gives the ids that PyTorch gives on the CPU after
      torch.manual_seed(seed). File names are PyTorch's, under aten/src/ATen.

      torch.multinomial(p, num_samples=1) is a race of exponentials (native/Distributions.cpp, multinomial_out):

          q ~ Exp(1), shape (N, V), rows in order;    id[n] = argmax over v of p[n][v] / q[n][v], the first of equals

      so id v wins with probability p[n][v], and a step consumes N * V exponentials whatever p is.

      The generator is mt19937 (core/MT19937RNGEngine.h), seeded from the low 32 bits of the seed alone. A step of it
      gives 32 bits; nothing else in a drawing or an answer takes any. Tensor.exponential_ takes two steps a value, high
      word first (CPUGeneratorImpl.cpp, random64); the low 53 bits are u in [0, 1);

          q = float(-log1p(-u)), in double (core/TransformationHelper.h, uniform_real and exponential),

      one value after another on one thread (native/cpu/DistributionTemplates.h, exponential_kernel): threads,
      instruction set and tensor size change nothing. So does every build since 2.7; before, those with MKL did not.
      Measured against the wheels 2.13.0 and 2.7.0 and Debian's 1.13.1 on x86-64: q has the same bits. log1p is libm's,
      in double and then rounded to float: two libms that differ in the last bit of the double give different floats
      about once in 10^9 values.
   ================================================================================================================== */

enum { MT_WORDS = 624, MT_SHIFT = 397 };

static void torch_rng_seed(TorchRng *rng, uint64_t seed) {
    rng->words[0] = (uint32_t)(seed & 0xffffffffu);
    for (int i = 1; i < MT_WORDS; i++) {
        const uint32_t previous = rng->words[i - 1];
        rng->words[i] = 1812433253u * (previous ^ (previous >> 30)) + (uint32_t)i;
    }
    rng->next = MT_WORDS;
}

static uint32_t twist(uint32_t word, uint32_t next, uint32_t far) {
    const uint32_t bits = (word & 0x80000000u) | (next & 0x7fffffffu);
    return far ^ (bits >> 1) ^ (0x9908b0dfu & (0u - (bits & 1u)));
}

static void refill_words(TorchRng *rng) {
    enum { REST = MT_WORDS - MT_SHIFT };
    uint32_t *mt = rng->words;
    for (int i = 0; i < REST; i++) mt[i] = twist(mt[i], mt[i + 1], mt[i + MT_SHIFT]);
    for (int i = REST; i < MT_WORDS - 1; i++) mt[i] = twist(mt[i], mt[i + 1], mt[i - REST]);
    mt[MT_WORDS - 1] = twist(mt[MT_WORDS - 1], mt[0], mt[MT_SHIFT - 1]);
    rng->next = 0;
}

static void torch_rng_skip(TorchRng *rng, int64_t words) {
    for (; words > MT_WORDS - rng->next; refill_words(rng)) words -= MT_WORDS - rng->next;
    rng->next += (int)words;
}

static uint32_t next_word(TorchRng *rng) {
    if (rng->next == MT_WORDS) refill_words(rng);
    uint32_t y = rng->words[rng->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* u in [0, 1), a multiple of 2^-53 */
static double next_uniform(TorchRng *rng) {
    const uint64_t high = next_word(rng);
    const uint64_t bits = ((high << 32) | next_word(rng)) & (((uint64_t)1 << 53) - 1);
    return (double)bits * 0x1p-53;
}

/* Every entry is a finite number >= 0 and one is > 0. Where this fails, torch.multinomial raises. */
static bool is_distribution(const float *p, int64_t V) {
    bool positive = false;
    for (int64_t v = 0; v < V; v++) {
        if (!(p[v] >= 0.0f && p[v] < INFINITY)) return false;
        positive |= p[v] > 0.0f;
    }
    return positive;
}

/* The winner of one row's race. q is 0 once in 2^53 values: then an id of probability 0 loses here, and wins in
   PyTorch, whose argmax takes 0 / 0 for the largest. */
static int32_t race(TorchRng *rng, const float *p, int64_t V) {
    int32_t winner = 0;
    float best = -1.0f;
    for (int64_t v = 0; v < V; v++) {
        const double u = next_uniform(rng);
        /* p / q cannot win where p / u loses, as q = -log1p(-u) >= u; so most ids need no logarithm */
        if (p[v] < 0.999999 * best * u) continue;
        const float ratio = p[v] / (float)-log1p(-u);
        if (ratio > best) {
            best = ratio;
            winner = (int32_t)v;
        }
    }
    return winner;
}

typedef struct {
    TorchRng *starts; /* (N) */
    const float *probs;
    int32_t *ids;
    int64_t V;
} Races;

static void race_row(Context *own, void *data, int64_t n) {
    const Races *r = data;
    const float *p = r->probs + n * r->V;
    r->ids[n] = is_distribution(p, r->V) ? race(&r->starts[n], p, r->V) : -1;
    (void)own;
}

static void multinomial(Context *cx, TorchRng *starts, int32_t *ids, const float *probs, int64_t N, int64_t V) {
    Races races = {starts, probs, ids, V};
    if (has_failed(cx)) return;
    each_alone(cx, race_row, &races, N); /* side by side */
}

/* ==================================================================================================================
   10  Platform

      The differences between systems, except terminal and signals (section 22): two blocks with the same functions.
      Paths are UTF-8. A function that fails returns -1, NULL or false and sets errno.
   ================================================================================================================== */

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#if defined(__wasi__) /* WASI has no setjmp: running out of memory while writing a picture ends the program */
typedef int jmp_buf;
#define setjmp(way_out)         0
#define longjmp(way_out, value) abort()
#else
#include <setjmp.h>
#endif
#include <fcntl.h>
#include <sys/stat.h>

typedef enum { PATH_NONE, PATH_FILE, PATH_PROTECTED, PATH_FOLDER, PATH_DEVICE } PathKind; /* of the link's target */

typedef struct { /* a growing text or file; a zero byte follows it. All zeros: empty, with text NULL */
    char *text;
    size_t length, capacity; /* capacity 0: a file that is mapped, not to be written to */
    bool failed;             /* memory ran out */
} TextBuffer;

#define SPREAD 1099511628211u /* spreads a small number over 64 bits (the prime of FNV-1a) */

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#include <direct.h>
#include <io.h>
#include <process.h>
#include <shellapi.h>
#define getpid _getpid
#define strcasecmp _stricmp
#define isatty     _isatty
#define fileno     _fileno
#define SEPARATORS "/\\:" /* that end a folder in a path */

/* `path` as UTF-16, for as long as the block around it; empty if it is not valid UTF-8 or too long. */
#define WIDE(path) wide_path((wchar_t[WIDE_LIMIT]){0}, path)
enum { WIDE_LIMIT = 4096 };
static const wchar_t *wide_path(wchar_t *out, const char *path) {
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, WIDE_LIMIT) == 0) out[0] = 0;
    return out;
}

#define file_open(path, mode)   _wfopen(WIDE(path), WIDE(mode))
#define file_remove(path)       ((void)_wremove(WIDE(path)))
#define file_unmap(view)        UnmapViewOfFile((view)->text)
#define keep_access(file, path) ((void)(file), (void)(path))
#define link_target             _strdup
#define free_aligned            _aligned_free

static FILE *file_create(const char *path) {
    const int file = _wopen(WIDE(path), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, _S_IREAD | _S_IWRITE);
    return file >= 0 ? _fdopen(file, "wb") : NULL;
}

static int file_replace(const char *from, const char *to) {
    const bool done = MoveFileExW(WIDE(from), WIDE(to), MOVEFILE_REPLACE_EXISTING) != 0;
    if (!done) errno = EACCES;
    return done ? 0 : -1;
}

static PathKind path_kind(const char *path) {
    const DWORD found = GetFileAttributesW(WIDE(path));
    if (found == INVALID_FILE_ATTRIBUTES) return PATH_NONE;
    if ((found & FILE_ATTRIBUTE_DIRECTORY) != 0) return PATH_FOLDER;
    return (found & FILE_ATTRIBUTE_READONLY) != 0 ? PATH_PROTECTED : PATH_FILE;
}

/* Opens an existing file or folder; while it is open to be read, others may only read it. */
static HANDLE open_handle(const char *path, DWORD access) {
    const DWORD shared = FILE_SHARE_READ | (access == 0 ? FILE_SHARE_WRITE | FILE_SHARE_DELETE : 0);
    HANDLE file = CreateFileW(WIDE(path), access, shared, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (file == INVALID_HANDLE_VALUE) errno = ENOENT;
    return file;
}

static bool file_map(const char *path, TextBuffer *view) {
    HANDLE file = open_handle(path, GENERIC_READ), mapping = NULL;
    LARGE_INTEGER size;
    if (file == INVALID_HANDLE_VALUE) return false;
#if !defined(JANUS_NO_MMAP)
    if (GetFileSizeEx(file, &size) && size.QuadPart > 0 && (uint64_t)size.QuadPart <= SIZE_MAX)
        mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
#endif
    CloseHandle(file);
    if (mapping == NULL) return false;
    view->text = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping);
    view->length = (size_t)size.QuadPart;
    return view->text != NULL;
}

static void *allocate_aligned(int64_t bytes) {
    return (uint64_t)bytes > PTRDIFF_MAX ? NULL : _aligned_malloc((size_t)bytes, 64);
}

static int64_t memory_size(void) {
    MEMORYSTATUSEX status;
    status.dwLength = sizeof status;
    return GlobalMemoryStatusEx(&status) ? (int64_t)status.ullTotalPhys : 0;
}

static int processor_count(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
}

#if !defined(JANUS_LIBRARY)
static uint64_t file_identity(const char *path) {
    BY_HANDLE_FILE_INFORMATION status;
    HANDLE file = open_handle(path, 0);
    const bool known = GetFileInformationByHandle(file, &status) != 0;
    if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
    const uint64_t index = known ? (uint64_t)status.nFileIndexHigh << 32 | status.nFileIndexLow : 0;
    return known ? status.dwVolumeSerialNumber * SPREAD ^ index : 0;
}

static int folder_make(const char *path) {
    _wrmdir(WIDE(path)); /* if it is empty */
    return _wmkdir(WIDE(path));
}

static bool input_ready(FILE *stream, int milliseconds) {
    DWORD bytes = 0;
    const HANDLE handle = (HANDLE)_get_osfhandle(fileno(stream));
    if (GetFileType(handle) == FILE_TYPE_CHAR) return WaitForSingleObject(handle, (DWORD)milliseconds) == WAIT_OBJECT_0;
    const bool waits = PeekNamedPipe(handle, NULL, 0, NULL, &bytes, NULL) && bytes == 0; /* fails for files */
    if (waits) Sleep((DWORD)milliseconds);
    return !waits;
}

static int64_t input_read(FILE *stream, void *bytes, size_t size) {
    return _read(fileno(stream), bytes, (unsigned)size);
}
#endif

#else
#define SEPARATORS "/"
#include <strings.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#if !defined(JANUS_NO_MMAP)
#include <sys/mman.h>
#endif

/* Asks Linux for pages of 2 MB, which are read up to twice as fast as those of 4 KB: fewer misses of the TLB. */
#if defined(__linux__) && defined(MADV_HUGEPAGE)
#define use_large_pages(memory, bytes) ((void)madvise(memory, bytes, MADV_HUGEPAGE)) /* or small ones serve, too */
#else
#define use_large_pages(memory, bytes) ((void)(memory), (void)(bytes))
#endif

/* Memory for free_aligned at a multiple of 64 bytes, a cache line; from 4 MB on in large pages. NULL if memory runs out
   or bytes < 0. */
static void *allocate_aligned(int64_t bytes) {
    const bool large = bytes >= 1 << 22;
    void *memory = NULL;
    if ((uint64_t)bytes > PTRDIFF_MAX || posix_memalign(&memory, large ? 1 << 21 : 64, (size_t)bytes) != 0) return NULL;
    if (large) use_large_pages(memory, (size_t)bytes);
    return memory;
}

#define file_open         fopen
#define file_create(path) fopen(path, "wbx") /* x, older than C11: EEXIST if the name is taken, by any link, too */
#define file_remove       (void)remove
#define file_replace      rename /* in one step */
#define free_aligned      free

/* Gives `file` the owner and the permissions of the file `path`, if there is one, as far as this user may. */
static void keep_access(FILE *file, const char *path) {
#if !defined(__wasi__)
    struct stat status;
    if (stat(path, &status) != 0) return;
    if (fchown(fileno(file), status.st_uid, status.st_gid) != 0) errno = 0; /* not root's: it becomes this user's */
    fchmod(fileno(file), status.st_mode & 0777);
#else
    (void)file, (void)path;
#endif
}

/* The target of a chain of links, malloc'ed; it need not exist. A copy of `path` if it is not a link. */
static char *link_target(const char *path) {
    struct stat status;
    char link[4096] = "";
    const bool is_link = readlink(path, link, sizeof link - 1) >= 0;
    if (is_link && stat(path, &status) != 0 && errno == ELOOP) return NULL;
    const char *slash = is_link && link[0] != '/' ? strrchr(path, '/') : NULL; /* a relative link starts there */
    const size_t folder = slash != NULL ? (size_t)(slash + 1 - path) : 0, size = strlen(path) + strlen(link) + 1;
    char *target = malloc(size);
    if (target == NULL) return NULL;
    snprintf(target, size, "%.*s%s", (int)folder, path, is_link ? link : path);
    if (!is_link) return target;
    char *next = link_target(target);
    free(target);
    return next;
}

static PathKind path_kind(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) return PATH_NONE;
    if (S_ISDIR(status.st_mode)) return PATH_FOLDER;
    if (!S_ISREG(status.st_mode)) return PATH_DEVICE;
    return (status.st_mode & 0222) == 0 || access(path, W_OK) != 0 ? PATH_PROTECTED : PATH_FILE; /* for root, too */
}

#if defined(JANUS_NO_MMAP)
#define file_map(path, view) false
#define file_unmap(view)     ((void)(view))
#else
#define file_unmap(view) munmap((view)->text, (view)->length)
/* Maps `path`. False if it cannot be mapped: perhaps it can be read. */
static bool file_map(const char *path, TextBuffer *view) {
    struct stat status;
    void *bytes = MAP_FAILED;
    const int file = open(path, O_RDONLY);
    if (file < 0) return false;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0 &&
        (uintmax_t)status.st_size <= SIZE_MAX)
        bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) return false;
    use_large_pages(bytes, (size_t)status.st_size); /* before the first read: then the file's cache gets them as well */
    *view = (TextBuffer){.text = bytes, .length = (size_t)status.st_size};
    return true;
}
#endif

/* Bytes of memory of the machine; 0: unknown. */
static int64_t memory_size(void) {
#if defined(_SC_PHYS_PAGES)
    const int64_t pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? pages * sysconf(_SC_PAGESIZE) : 0;
#else
    return 0;
#endif
}

#if defined(__linux__)
/* Whole processors of `most`, at least one, that the quotas of this process's cgroup and those above it allow: cpu.max
   holds "QUOTA PERIOD" or "max PERIOD", a line "0::GROUP" the group. A container may see its own group as the root, so
   missing groups are skipped. */
static int quota_processors(const char *root, int most) {
    char group[4096] = "", path[4500];
    double quota, period;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = file_open(path, "rb");
    while (file != NULL && strncmp(group, "0::/", 4) != 0 && fgets(group, sizeof group, file) != NULL) continue;
    if (file != NULL) fclose(file);
    if (strncmp(group, "0::/", 4) != 0) return most;
    for (char *cut = group + strcspn(group, "\n"); cut != NULL; cut = strrchr(group + 3, '/')) {
        *cut = 0;
        snprintf(path, sizeof path, "%s/sys/fs/cgroup%s/cpu.max", root, group + 3);
        if ((file = file_open(path, "rb")) == NULL) continue;
        if (fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 && quota / period < most)
            most = quota < period ? 1 : (int)(quota / period);
        fclose(file);
    }
    return most;
}
#endif

/* The processors that this process may use, 1 to 256: fewer than the machine has if it is bound or has a quota. */
static int processor_count(void) {
    long count = 1;
#if defined(_SC_NPROCESSORS_ONLN)
    count = sysconf(_SC_NPROCESSORS_ONLN);
#endif
#if defined(CPU_COUNT_S)
    cpu_set_t bound[8]; /* 8,192 processors */
    if (sched_getaffinity(0, sizeof bound, bound) == 0) count = CPU_COUNT_S(sizeof bound, bound);
#endif
#if defined(__linux__)
    count = quota_processors("", (int)count);
#endif
    return count < 1 ? 1 : count > 256 ? 256 : (int)count;
}

#if !defined(JANUS_LIBRARY)
#include <dirent.h>
#include <poll.h>
#if !defined(__wasi__)
#include <signal.h>
#include <sys/ioctl.h>
#endif

/* A number for the file or folder that a path leads to; 0 if there is none. */
static uint64_t file_identity(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? (uint64_t)status.st_dev * SPREAD ^ (uint64_t)status.st_ino : 0;
}

/* Makes a folder; one that exists must be empty. */
static int folder_make(const char *path) {
    if (mkdir(path, 0777) == 0) return 0;
    int entries = 0;
    DIR *folder = errno == EEXIST ? opendir(path) : NULL;
    if (folder == NULL) return -1;
    while (readdir(folder) != NULL) entries++;
    closedir(folder);
    errno = EEXIST;
    return entries <= 2 ? 0 : -1; /* . and .. */
}

/* Waits up to `milliseconds` until input_read would return at once. A signal ends the wait, but not a read. */
static bool input_ready(FILE *stream, int milliseconds) {
    struct pollfd input = {fileno(stream), POLLIN, 0};
    return input.fd < 0 || poll(&input, 1, milliseconds) > 0;
}

/* Reads up to `size` available bytes, waiting for the first. Nothing else may read the stream. 0: the end. */
static int64_t input_read(FILE *stream, void *bytes, size_t size) {
    return fileno(stream) < 0 ? (int64_t)fread(bytes, 1, size, stream) : (int64_t)read(fileno(stream), bytes, size);
}
#endif
#endif

static bool big_endian(void) { return *(const uint8_t *)&(const uint16_t){1} == 0; }

/* ==================================================================================================================
   11  Errors and memory

      A call of the API that fails returns a status and leaves one line in the caller's JanusError. Scratch memory comes
      from an arena: allocate what a stage needs, give all of it back at the end. Files are read whole, and written
      whole or not at all.
   ================================================================================================================== */

#if defined(__GNUC__)
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first))) /* numbers of parameters */
#else
#define PRINTF_LIKE(text, first)
#endif

/* Replaces the control characters of an untrusted text, which could steer a terminal, with blanks; `keep` may be
   '\n'. */
static char *clean_controls(char *text, size_t length, char keep) {
    for (size_t i = 0; i < length; i++) {
        const uint8_t c = (uint8_t)text[i], next = i + 1 < length ? (uint8_t)text[i + 1] : 0;
        if (c == 0xC2 && next >= 0x80 && next < 0xA0) text[i] = text[i + 1] = ' '; /* U+0080 to U+009F */
        if ((c < ' ' && c != (uint8_t)keep) || c == 0x7F) text[i] = ' ';
    }
    return text;
}

/* Fills in an error unless it is NULL; returns the status. */
PRINTF_LIKE(3, 4)
static int fail(JanusError *error, int status, const char *format, ...) {
    va_list arguments;
    if (error == NULL) return status;
    error->status = (JanusStatus)status;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    clean_controls(error->message, strlen(error->message), 0);
    return status;
}

/* Checks of arguments return false after JANUS_BAD_ARGUMENT. This one checks two required pointers. */
static bool given(const void *one, const void *other, JanusError *error) {
    if (one == NULL || other == NULL) fail(error, JANUS_BAD_ARGUMENT, "a required argument is NULL");
    return one != NULL && other != NULL;
}

static int fail_memory(JanusError *error) {
    return fail(error, JANUS_NO_MEMORY,
                "out of memory: close other programs, draw fewer pictures at once or use a smaller model");
}

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* a * b * c for sizes that are not negative; -1 when it does not fit an int64_t. */
static int64_t checked_product(int64_t a, int64_t b, int64_t c) {
    if (a < 0 || b < 0 || c < 0) return -1;
    if (b != 0 && a > INT64_MAX / b) return -1;
    if (c != 0 && a * b > INT64_MAX / c) return -1;
    return a * b * c;
}

enum { NAME_LIMIT = 128 }; /* bytes of a tensor's or a stage's name */

/* malloc for `count` items of `size` bytes; NULL if their product overflows, too. */
static void *allocate(int64_t count, size_t size) {
    if (count < 0 || (uint64_t)count > (SIZE_MAX - 1) / size) return NULL;
    return malloc((size_t)count * size + (count == 0));
}

/* Grows an array of `capacity` items to at least `count`, by doubling. Returns the array; NULL if memory runs out: the
   old one is then unchanged. */
static void *grow(void *array, size_t *capacity, size_t count, size_t size) {
    if (array != NULL && count <= *capacity) return array;
    const size_t wanted = 2 * count + 64;
    void *grown = count < SIZE_MAX / 4 / size ? realloc(array, wanted * size) : NULL;
    if (grown != NULL) *capacity = wanted;
    return grown;
}

static void text_add(TextBuffer *buffer, const void *text, size_t length) {
    if (buffer->failed) return;
    char *grown = grow(buffer->text, &buffer->capacity, buffer->length + length + 1, 1);
    buffer->failed = grown == NULL;
    if (buffer->failed) return;
    buffer->text = grown;
    if (length > 0) memcpy(buffer->text + buffer->length, text, length);
    buffer->length += length;
    buffer->text[buffer->length] = 0;
}

static void text_free(TextBuffer *buffer) {
    free(buffer->text);
    memset(buffer, 0, sizeof *buffer);
}

/* Scratch memory as a stack of blocks. Released ones are kept in their order for the next stage, as the system would
   clear fresh memory page by page. */
struct ArenaBlock { /* 64 bytes: what follows is aligned as the block is */
    int64_t bytes;
    ArenaBlock *below;
    char rest[64 - sizeof(int64_t) - sizeof(void *)];
};

typedef struct {
    ArenaBlock *top, *kept;
} Arena;

/* Kept blocks that are too small, or more than twice as large as needed, are freed. */
static void *arena_allocate(Arena *arena, int64_t count, size_t size) {
    const int64_t wanted = checked_product(count, (int64_t)size, 1);
    const int64_t bytes = wanted < 0 || wanted > INT64_MAX / 2 ? -1 : wanted + (int64_t)sizeof(ArenaBlock);
    ArenaBlock *block = arena->kept;
    for (; block != NULL && (block->bytes < bytes || block->bytes / 2 > bytes + 65536); block = arena->kept) {
        arena->kept = block->below;
        free_aligned(block);
    }
    if (block != NULL && bytes >= 0) arena->kept = block->below;
    else if ((block = allocate_aligned(bytes)) != NULL) block->bytes = bytes;
    if (block == NULL) return NULL;
    block->below = arena->top;
    arena->top = block;
    return block + 1;
}

/* Takes back all that was allocated since `mark`. */
static void arena_release(Arena *arena, const ArenaBlock *mark) {
    while (arena->top != mark) {
        ArenaBlock *block = arena->top;
        arena->top = block->below;
        block->below = arena->kept;
        arena->kept = block;
    }
}

static void arena_free(Arena *arena) {
    arena_release(arena, NULL);
    for (ArenaBlock *block; (block = arena->kept) != NULL; free_aligned(block)) arena->kept = block->below;
}

/* ---- files: functions that fail set errno ---- */

static int errno_or(int otherwise) { return errno != 0 ? errno : otherwise; }

/* Reads a whole file, or stdin if `path` is NULL, and puts a zero byte after it. Returns 0 or -1 (EFBIG: it is longer
   than `limit`). */
static int file_read(const char *path, size_t limit, TextBuffer *read) {
    FILE *file = path != NULL ? file_open(path, "rb") : stdin;
    char part[16384];
    int failure = file != NULL ? 0 : errno_or(EIO);
    for (bool ended = false; failure == 0 && !ended;) {
        errno = 0;
        const size_t got = fread(part, 1, sizeof part, file);
        text_add(read, part, got);
        if (read->failed) failure = ENOMEM;
        else if (read->length > limit) failure = EFBIG;
        else if (ferror(file) && errno == EINTR) clearerr(file); /* a signal: keep what was read, and go on */
        else if (ferror(file)) failure = errno_or(EIO);
        else ended = got == 0;
    }
    if (file != NULL && path != NULL) fclose(file);
    if (failure == 0) return 0;
    text_free(read);
    errno = failure;
    return -1;
}

/* Same for calls of the API. Messages say `what` before the path. */
static JanusStatus read_bytes(const char *path, const char *what, size_t limit, TextBuffer *bytes, JanusError *error) {
    const char *name = path != NULL ? path : "stdin";
    if (file_read(path, limit, bytes) == 0) return JANUS_OK;
    if (errno == ENOMEM) return fail_memory(error);
    return errno == EFBIG ? fail(error, JANUS_IO_ERROR, "%s is larger than %ld MiB", name, (long)(limit >> 20))
                          : fail(error, JANUS_IO_ERROR, "cannot read %s%s: %s", what, name, strerror(errno));
}

/* Files to delete if a signal ends the program: the temporary file, and a reserved name. The library keeps no such
   list: signals are the program's. */
#if !defined(JANUS_LIBRARY) && !defined(__wasi__)
static const char *volatile unfinished[2];
#define set_unfinished(which, path) ((void)(unfinished[which] = (path)))
#else
#define set_unfinished(which, path) ((void)0)
#endif

/* Creates PATH.PROCESS-NUMBER.part, the first such name that is free, which goes into `name`. */
static FILE *open_temporary(char *name, size_t size, const char *path) {
    FILE *file;
    unsigned number = 0;
    do {
        set_unfinished(0, NULL);
        snprintf(name, size, "%s.%d-%u.part", path, getpid(), number++);
        set_unfinished(0, name);
        errno = 0;
        file = file_create(name);
    } while (file == NULL && errno == EEXIST);
    if (file != NULL) keep_access(file, path);
    return file;
}

/* Writes a file under a temporary name in the same folder and renames it, so that `path` always leads to a complete
   file, the old one or the new one. Devices are written to directly. bytes NULL: only tries. Returns 0 or -1. */
static int file_write(const char *path, const void *bytes, size_t size) {
    const PathKind kind = path_kind(path);
    if (kind == PATH_FOLDER || kind == PATH_PROTECTED) return errno = kind == PATH_FOLDER ? EISDIR : EACCES, -1;
    char *target = kind == PATH_DEVICE ? NULL : link_target(path);
    const size_t room = target != NULL ? strlen(target) + 32 : 0;
    char *temporary = room > 0 ? malloc(room) : NULL;
    FILE *file = kind == PATH_DEVICE ? file_open(path, "wb")
                 : temporary != NULL ? open_temporary(temporary, room, target) : NULL;
    int failure = file == NULL ? errno_or(EIO) : 0;
    errno = 0;
    if (file != NULL && bytes != NULL && fwrite(bytes, 1, size, file) != size) failure = errno_or(EIO);
    if (file != NULL && fclose(file) != 0 && failure == 0) failure = errno_or(EIO);
    const bool renames = temporary != NULL && failure == 0 && bytes != NULL;
    if (renames && file_replace(temporary, target) != 0) failure = errno_or(EIO);
    if (file != NULL && temporary != NULL && (!renames || failure != 0)) file_remove(temporary);
    set_unfinished(0, NULL);
    free(temporary);
    free(target);
    errno = failure;
    return failure == 0 ? 0 : -1;
}

/* ==================================================================================================================
   12  Threads

      A pool of workers that run one job at a time: [0, count) is cut into chunks of `grain`. Each thread has a range of
      chunks of its own, so it keeps streaming through memory it has already prefetched; a thread that finishes early
      steals chunks from the others. Which thread runs a chunk changes; what a chunk computes does not, so results are
      bit-identical for every number of threads. Between jobs a worker spins for a moment, then yields to other programs
      for a while, then sleeps: it is awake for all the small jobs of a decoding step, and for the next step after one
      thread has picked an id.
   ================================================================================================================== */

typedef struct {
    int64_t begin, end;
    int thread; /* that runs it */
} Chunk;
typedef void Job(void *data, Chunk chunk);

enum { MOST_THREADS = 256 };

#if (!defined(__GNUC__) || defined(__TINYC__)) && !defined(JANUS_NO_THREADS)
#define JANUS_NO_THREADS /* no atomic counters */
#endif

#if defined(JANUS_NO_THREADS)
typedef struct {
    int threads; /* 1 */
} Pool;

static Pool one_thread = {1};
#define pool_create(threads) ((void)(threads), &one_thread)
#define pool_free(pool)      ((void)(pool))
#define share_out(pool, job, data, count, grain) ((void)0)

#else
#include <pthread.h> /* MinGW has it, too */
#if defined(__x86_64__) || defined(__i386__)
#define cpu_relax() __builtin_ia32_pause()
#else
#define cpu_relax() ((void)0)
#endif

typedef struct {
    long value;
    char rest[64 - sizeof(long)]; /* no two counters share a cache line */
} Counter;

/* Sequentially consistent; counter_add returns the old value. */
static long counter_add(Counter *c, long n) { return __atomic_fetch_add(&c->value, n, __ATOMIC_SEQ_CST); }
static long counter_get(Counter *c) { return __atomic_load_n(&c->value, __ATOMIC_SEQ_CST); }

enum { SPINS = 5000, YIELDS = 10000 }; /* about 100 microseconds; a few milliseconds */

typedef struct Pool Pool;

typedef struct {
    Counter next; /* chunk of this thread's range */
    Pool *pool;
    pthread_t thread;
} Worker;

struct Pool {
    int threads;         /* the caller of pool_run counts as thread 0 */
    int process;         /* which started the workers: a child of fork() has none of them */
    Counter round, busy; /* 1, 0, 1, ... for each job; workers not done with it */
    Job *job;            /* NULL: the workers end */
    void *data;
    int64_t count, grain;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Worker workers[]; /* (threads) */
};

static void wait_until(Pool *p, Counter *counter, long value, int yields) {
    for (int spin = 0; spin < SPINS + yields; spin++) {
        if (counter_get(counter) == value) return;
        if (spin < SPINS) cpu_relax();
        else sched_yield();
    }
    pthread_mutex_lock(&p->mutex);
    while (counter_get(counter) != value) pthread_cond_wait(&p->changed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
}

/* Wakes those that sleep, after a counter has changed: they check it with the mutex locked, so none sleeps on. */
static void wake_all(Pool *p) {
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

/* Gives the workers their next round. */
static void start_round(Pool *p, Job *job) {
    p->job = job;
    counter_add(&p->round, counter_get(&p->round) ? -1 : 1);
    wake_all(p);
}

/* The first chunk of a thread's range; range_start(p, p->threads) is the number of chunks. */
static int64_t range_start(const Pool *p, int thread) {
    return (p->count + p->grain - 1) / p->grain * thread / p->threads;
}

static void run_chunks(Pool *p, int thread) {
    for (int n = 0; n < p->threads; n++) {
        int owner = (thread + n) % p->threads; /* first oneself */
        int64_t end = range_start(p, owner + 1);
        Counter *next = &p->workers[owner].next;
        for (int64_t i; counter_get(next) < end && (i = counter_add(next, 1)) < end;)
            p->job(p->data, (Chunk){i * p->grain, min_i64(p->count, (i + 1) * p->grain), thread});
    }
}

static void *worker_loop(void *data) {
    const Worker *worker = data;
    Pool *p = worker->pool;
    int yields = 0; /* at first it sleeps: the system then wakes it on a processor of its own */
    for (long round = 1;; round ^= 1, yields = YIELDS) { /* counts 1, 0, 1, ... */
        wait_until(p, &p->round, round, yields);
        if (p->job == NULL) return NULL;
        run_chunks(p, (int)(worker - p->workers));
        if (counter_add(&p->busy, -1) == 1) wake_all(p);
    }
}

/* Starts the workers of a pool of at most `threads`: fewer where the system gives no more. In a child of fork() they
   are started anew: there is only the thread that called it, and the old mutex may be locked for ever. */
static void start_workers(Pool *p, int threads) {
    p->process = getpid();
    p->round.value = 0;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    for (p->threads = 1; p->threads < threads; p->threads++) {
        Worker *w = &p->workers[p->threads];
        w->pool = p;
        if (pthread_create(&w->thread, NULL, worker_loop, w) != 0) break;
    }
}

/* NULL: no memory. */
static Pool *pool_create(int threads) {
    Pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof *p->workers);
    if (p != NULL) start_workers(p, threads);
    return p;
}

static void pool_free(Pool *p) {
    if (p->process == getpid()) {
        start_round(p, NULL);
        for (int i = 1; i < p->threads; i++) pthread_join(p->workers[i].thread, NULL);
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->mutex);
    }
    free(p);
}

static void share_out(Pool *p, Job *job, void *data, int64_t count, int64_t grain) {
    if (p->process != getpid()) start_workers(p, p->threads);
    p->data = data;
    p->count = count;
    p->grain = grain;
    for (int i = 0; i < p->threads; i++) p->workers[i].next.value = (long)range_start(p, i);
    p->busy.value = p->threads - 1;
    start_round(p, job);
    run_chunks(p, 0);
    wait_until(p, &p->busy, 0, 0);
}
#endif

/* Runs the job over [0, count) in chunks of `grain`; returns when all are done. */
static void pool_run(Pool *p, Job *job, void *data, int64_t count, int64_t grain) {
    grain = max_i64(grain, count / (1 << 30) + 1); /* chunk numbers fit a long */
    if (p->threads > 1 && count > grain) {
        share_out(p, job, data, count, grain);
        return;
    }
    for (int64_t i = 0; i < count; i += grain) job(data, (Chunk){i, min_i64(count, i + grain), 0});
}

/* ==================================================================================================================
   13  Number formats

      Weights are used in place, in the layouts of GGUF, all little-endian:
        F32   4 bytes    F16, BF16   2 bytes
        Q8_0  blocks of 32 along a row: f16 scale d, 32 x int8 q             w = d q              34 bytes
        Q4_0  blocks of 32 along a row: f16 scale d, 16 bytes of two nibbles w = d (nibble - 8)   18 bytes
              (byte j holds element j in its low half and element j + 16 in its high half)
        Q4_K  blocks of 256, 8 groups of 32: f16 d, f16 dmin, 6 bits s and 6 bits m for each group
              (12 bytes), 128 bytes of two nibbles                           w = (d s) q - dmin m  144 bytes
        Q6_K  blocks of 256, 16 groups of 16: 128 bytes of the low 4 bits of q, 64 of the high 2,
              an int8 s for each group, f16 d                                w = (d s) (q - 32)    210 bytes
      A format is one row of the table NUMBER_FORMATS and one function, from blocks to floats. Loading, embeddings,
      products and info need no more. Section 14 has faster ways for these formats: block_elements, block_bytes, BY_TYPE
      and load32 (load_scales, load_quants) name them; choose_method, pack_int8 and AMX those of 32 elements. convert.py
      writes them.
   ================================================================================================================== */

enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q8_0 = 8, TYPE_Q4_K = 12, TYPE_Q6_K = 14, TYPE_BF16 = 30 };
enum { BLOCK = 32, Q8_0_BYTES = 34, Q4_0_BYTES = 18 };
enum { SUPER_BLOCK = 256, Q4_K_BYTES = 144, Q6_K_BYTES = 210 };

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Little-endian numbers at any address, on any machine. */
static uint16_t read_u16(const void *p) {
    const unsigned char *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}
static void write_u16(void *p, uint16_t u) {
    unsigned char *b = p;
    b[0] = (unsigned char)u;
    b[1] = (unsigned char)(u >> 8);
}

static float bf16_to_f32(uint16_t h) { return bits_float((uint32_t)h << 16); }

static float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) /* subnormal: fraction x 2^-24, exact in f32 */
        return bits_float(sign | float_bits((float)fraction * 5.9604644775390625e-8f));
    return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}

static uint16_t f32_to_f16(float f) {
    uint32_t u = float_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a >= 0x38800000) return (uint16_t)(sign | (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13);
    uint32_t shift = 126 - (a >> 23), fraction = (a & 0x7fffff) | 0x800000; /* subnormal: a multiple of 2^-24 */
    if (shift > 24) return (uint16_t)sign;
    uint32_t q = fraction >> shift, rest = fraction & ((1u << shift) - 1), half = 1u << (shift - 1);
    return (uint16_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
}

/* ---- `count` blocks to floats; a block of F32, F16 or BF16 is one number ---- */

static void expand_f32(float *out, const unsigned char *in, int64_t count) {
    memcpy(out, in, (size_t)count * sizeof *out);
}

static void expand_f16(float *out, const unsigned char *in, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = f16_to_f32(read_u16(in + 2 * i));
}

static void expand_bf16(float *out, const unsigned char *in, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = bf16_to_f32(read_u16(in + 2 * i));
}

/* A byte as int8. */
static int signed_byte(unsigned char byte) { return byte < 128 ? byte : byte - 256; }

static void expand_q8_0(float *out, const unsigned char *block, int64_t count) {
    for (; count > 0; count--, block += Q8_0_BYTES, out += BLOCK) {
        const float scale = f16_to_f32(read_u16(block));
        for (int i = 0; i < BLOCK; i++) out[i] = scale * (float)signed_byte(block[2 + i]);
    }
}

static void expand_q4_0(float *out, const unsigned char *block, int64_t count) {
    for (; count > 0; count--, block += Q4_0_BYTES, out += BLOCK) {
        const float scale = f16_to_f32(read_u16(block));
        for (int i = 0; i < BLOCK; i++) out[i] = scale * (float)((block[2 + i % 16] >> (i < 16 ? 0 : 4) & 15) - 8);
    }
}

/* The 6 bits s and m of group j, of the 12 bytes that hold those of all groups: in bytes 0 to 3 and 4 to 7 those of
   groups 0 to 3, in bytes 8 to 11 the low 4 bits of those of groups 4 to 7, whose high 2 bits fill up bytes 0 to 7. */
static void read_scales_q4_k(const unsigned char *bytes, int j, int *s, int *m) {
    *s = j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | bytes[j - 4] >> 6 << 4;
    *m = j < 4 ? bytes[j + 4] & 63 : bytes[j + 4] >> 4 | bytes[j] >> 6 << 4;
}

/* Group j: two groups share 32 bytes, of which the even one has the low halves. */
static void expand_q4_k(float *out, const unsigned char *block, int64_t count) {
    for (; count > 0; count--, block += Q4_K_BYTES) {
        const float d = f16_to_f32(read_u16(block)), dmin = f16_to_f32(read_u16(block + 2));
        for (int j = 0; j < 8; j++, out += 32) {
            int s, m;
            read_scales_q4_k(block + 4, j, &s, &m);
            const float step = d * (float)s, low = dmin * (float)m;
            for (int i = 0; i < 32; i++) {
                const float product = step * (float)(block[16 + j / 2 * 32 + i] >> j % 2 * 4 & 15); /* is rounded */
                out[i] = product - low;
            }
        }
    }
}

/* Rows j of 32 elements, two groups each. Each half of a block is four such rows: rows 0 and 2 share 32 bytes of low
   bits, 1 and 3 the next 32, and all four share 32 bytes of high bits. */
static void expand_q6_k(float *out, const unsigned char *block, int64_t count) {
    for (; count > 0; count--, block += Q6_K_BYTES) {
        const float d = f16_to_f32(read_u16(block + 208));
        for (int j = 0; j < 8; j++, out += 32)
            for (int i = 0; i < 32; i++) {
                const int low = block[j / 4 * 64 + j % 2 * 32 + i] >> j % 4 / 2 * 4 & 15;
                const int high = block[128 + j / 4 * 32 + i] >> j % 4 * 2 & 3;
                const float step = d * (float)signed_byte(block[192 + 2 * j + i / 16]);
                out[i] = step * (float)((low | high << 4) - 32);
            }
    }
}

/* ---- the table ---- */

typedef struct {
    const char *name;
    int type;            /* GGUF's number */
    int elements, bytes; /* of a block, at most SUPER_BLOCK elements; a row is a multiple of it */
    void (*expand)(float *out, const unsigned char *blocks, int64_t count);
} NumberFormat;

#ifndef JANUS_EXTRA_FORMATS
#define JANUS_EXTRA_FORMATS /* rows that a test adds, each with a comma after it */
#endif

static const NumberFormat NUMBER_FORMATS[] = {
    {"f32", TYPE_F32, 1, 4, expand_f32},
    {"f16", TYPE_F16, 1, 2, expand_f16},
    {"bf16", TYPE_BF16, 1, 2, expand_bf16},
    {"q8_0", TYPE_Q8_0, BLOCK, Q8_0_BYTES, expand_q8_0},
    {"q6_k", TYPE_Q6_K, SUPER_BLOCK, Q6_K_BYTES, expand_q6_k},
    {"q4_k", TYPE_Q4_K, SUPER_BLOCK, Q4_K_BYTES, expand_q4_k},
    {"q4_0", TYPE_Q4_0, BLOCK, Q4_0_BYTES, expand_q4_0},
    JANUS_EXTRA_FORMATS
};
enum { NUMBER_FORMAT_COUNT = sizeof NUMBER_FORMATS / sizeof *NUMBER_FORMATS };

/* NULL: unknown. */
static const NumberFormat *find_format(int type) {
    for (int i = 0; i < NUMBER_FORMAT_COUNT; i++)
        if (NUMBER_FORMATS[i].type == type) return &NUMBER_FORMATS[i];
    return NULL;
}

/* Bytes of one row; 0 if the type is unknown or the row is not a multiple of the block. */
static int64_t type_row_bytes(int type, int64_t cols) {
    const NumberFormat *format = find_format(type);
    return format == NULL || cols % format->elements != 0 ? 0 : cols / format->elements * format->bytes;
}

/* out (n) = elements [begin, begin + n) of one row. */
static void expand_plain(float *out, int type, const void *row, int64_t begin, int64_t n) {
    const NumberFormat *format = find_format(type);
    const int64_t elements = format->elements;
    while (n > 0) {
        const unsigned char *block = (const unsigned char *)row + begin / elements * format->bytes;
        int64_t count = n / elements * elements;
        if (begin % elements == 0 && count > 0) {
            format->expand(out, block, count / elements);
        } else { /* a part of a block */
            float whole[SUPER_BLOCK];
            count = min_i64(n, elements - begin % elements);
            format->expand(whole, block, 1);
            memcpy(out, whole + begin % elements, (size_t)count * sizeof *out);
        }
        out += count;
        begin += count;
        n -= count;
    }
}

/* One row of a weight as floats: embeddings, biases, norms. */
static void weight_row(float *out, const Weight *w, int64_t row) {
    expand_plain(out, w->type, (const char *)w->data + row * type_row_bytes(w->type, w->cols), 0, w->cols);
}

/* ==================================================================================================================
   14  Vector kernels

      Every heavy loop of the model is one of the functions of this table. There is one table per instruction set; the
      plain one, which follows, defines what each function computes, and the test holds all others to it.

      The product out = x W^T + bias is the heaviest. An output is the sum of a row of x times a row of W, and its bits
      depend on the type of W, the instruction set, --fast and the length of the rows alone, never on the number of rows
      or on those beside it: columns come in panels of PANEL; a panel's products are added up in one fixed order,
      and its sum is added to the sum of the panels before it, the first panel's to the bias. So a picture's ids are the
      same whatever is drawn beside it.

      Refuse a gain under 10 % of a stage that makes this code harder to read.

      To add an instruction set (the shortest example is WebAssembly's simd128; test/c/toy_kernels.h is one in plain C):
        1  Detection: above the pass, HAVE_..._KERNELS and the header with the intrinsics, where the compiler can make
           such code; after the pass, if a processor may lack the instructions, a check in processor_level. The size of
           a vector must be a constant: SVE and RVV need -msve-vector-bits or -mrvv-vector-bits for the whole file
        2  Primitives: PASS_... and a block of macros beside the others'; the list above them says what each means. A
           macro that another set for the same processors defines otherwise needs an #undef at the end of the pass
        3  Pass: after it, two #defines and an #include of this file
        4  Table: a line in kernels_at, best first; the name in janus.h
        5  Test: the name in KERNEL_NAMES of test/c/test_janus.c; test/c/test_kernels.c runs every table of kernels_at
        6  Platforms: a row in test/platforms/platforms.sh, which compares ids and pixels with the plain kernels
      No-go: the loops of the pass, AMX apart, and all sections after it name no instruction set; a new set or format
      changes neither, nor the order of a sum, another set's numbers, the plain functions, or a tolerance of a test.
   ================================================================================================================== */

typedef struct { /* rows of numbers of one type, `stride` bytes from one to the next */
    int type;
    const char *data;
    int64_t stride;
} Rows;

/* Elements and bytes of a block of a format that has fast ways: constants where the type is one. Others: 0 bytes. */
static inline int block_elements(int type) {
    return type == TYPE_Q4_K || type == TYPE_Q6_K ? SUPER_BLOCK : type == TYPE_Q8_0 || type == TYPE_Q4_0 ? BLOCK : 1;
}
static inline int block_bytes(int type) {
    switch (type) {
    case TYPE_F32: return 4;
    case TYPE_F16: case TYPE_BF16: return 2;
    case TYPE_Q8_0: return Q8_0_BYTES;
    case TYPE_Q4_0: return Q4_0_BYTES;
    case TYPE_Q4_K: return Q4_K_BYTES;
    case TYPE_Q6_K: return Q6_K_BYTES;
    default: return 0;
    }
}

/* w = step * q - low. Steps: one for each of sixteen blocks of 32 (Q8_0, Q4_0), or for each 16 elements of a block of
   256 (K-quants). Lows: one for each 32 elements (Q4_K). */
typedef struct {
    float steps[16], lows[8];
} Scales;
#define SCALED_COLUMNS(type) (block_elements(type) == BLOCK ? 16 * BLOCK : SUPER_BLOCK)

/* Prefetches the cache line at p, which is read soon and once; a no-op where the compiler has no builtin for it. */
#if defined(__GNUC__) && !defined(__TINYC__)
#define prefetch(p) __builtin_prefetch((p), 0, 2)
#else
#define prefetch(p) ((void)(p))
#endif

/* Columns that are added up before the sum goes to the output: the panels of a row are as few as PANEL allows, and
   equally long but for the last, of complete SUPER_BLOCKs. */
enum { PANEL = 1280 };
static int64_t panel_columns(int64_t n) {
    const int64_t panels = (n + PANEL - 1) / PANEL;
    return round_up((n + panels - 1) / panels, SUPER_BLOCK);
}

enum { GROUP_LIMIT = 32 };

/* A part of a product: out[t * out_stride + o] for t < T and first <= o < last, of the columns begin <= k < end, which
   are complete panels of the n. x: T prepared rows, of each panel all rows, then of the next panel. */
typedef struct {
    float *out;
    const float *x, *bias; /* bias NULL: none */
    Rows w;
    int64_t T, out_stride, n, first, last, begin, end;
} Block;

/* One way to multiply. Rows of x are prepared in groups of `group`, at most GROUP_LIMIT, and a panel at a time: the
   floats, padded with zeros to a multiple of BLOCK; or what `prepare` makes of them for `multiply`. */
typedef struct {
    int group, words; /* words of 32 bits that BLOCK columns of a row take when they are prepared */
    bool complete;    /* only for rows of a multiple of BLOCK columns */
    bool if_pays;     /* only where pairs_pay */
    void (*prepare)(float *out, const float *const *rows, int64_t n); /* NULL: rows stay floats, group is 1 */
    void (*multiply)(const Block *b);
} Method;

/* Weights for which an instruction set may have a method of its own: BF16; Q8_0 and Q4_0; all others. */
enum { OTHER_WEIGHTS, BF16_WEIGHTS, BLOCK_WEIGHTS, WEIGHT_CLASSES };

typedef struct {
    const char *name;
    int drafts; /* how many pay where rows of x are not prepared in groups: drafts_that_pay */
    Method exact[WEIGHT_CLASSES]; /* multiply NULL: that of OTHER_WEIGHTS */
    Method fast[WEIGHT_CLASSES];  /* x, and W if need be, rounded; multiply NULL: the exact one */
    /* out[i] = element begin + i of a row; begin is the start of a block */
    void (*expand)(float *out, int type, const void *row, int64_t begin, int64_t n);
    /* One block of an online softmax: *max is raised to the largest scale * x, x = exp(scale * x - *max);
       returns f = exp(old max - new max), *sum = f * *sum + the sum of x */
    float (*softmax_block)(float *x, int64_t n, float scale, float *max, float *sum);
    /* out (T, n) = p (T, count) rows (count, n), added row after row, to keep[t] times the row of out if keep is not
       NULL: the two products of attention. Rows are F32 or F16; those of out are padded to BLOCK floats. */
    void (*add_rows)(float *out, int64_t out_stride, const float *keep, const float *p, int64_t p_stride, int64_t T,
                     Rows rows, int64_t count, int64_t n);
    /* out (n, T) = x (T, n) with its rows as columns */
    void (*transpose)(float *out, int64_t out_stride, const float *x, int64_t stride, int64_t T, int64_t n);
    void (*add)(float *out, const float *x, int64_t n);
    void (*gelu)(float *out, const float *x, int64_t n);  /* out = gelu(x) */
    void (*silu)(float *out, const float *up, int64_t n); /* out = silu(out) * up */
    /* out = (x - mean) / sqrt(mean square of (x - mean) + eps) * weight + bias; bias NULL: both it and mean are 0 */
    void (*norm)(float *out, const float *x, const float *weight, const float *bias, int64_t n, float eps);
    /* per channel over rows of x (count, n): mean, and sum of squared differences from it */
    void (*moments)(float *mean, float *squares, const float *x, int64_t count, int64_t n);
    /* rows of x (count, n): out = x * factor + shift per channel, then silu if swish */
    void (*affine)(float *out, const float *x, const float *factor, const float *shift, int64_t count, int64_t n,
                   int swish);
    void (*store_f16)(uint16_t *out, const float *x, int64_t n);
} Kernels;

/* ---- plain ---- */

/* Sixteen partial sums: no chain of dependent additions, less rounding, and compilers turn them into vectors. */
static float dot_plain(const float *a, const float *b, int64_t n) {
    enum { LANES = 16 };
    float sums[LANES] = {0}, total = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += a[i + j] * b[i + j];
    for (int j = 0; j < LANES; j++) total += sums[j];
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

static void multiply_plain(const Block *b) {
    const int64_t panel = panel_columns(b->n);
    float w[PANEL];
    for (int64_t o = b->first; o < b->last; o++) {
        const float *x = b->x;
        for (int64_t k = b->begin; k < b->end; k += panel) {
            const int64_t n = min_i64(panel, b->n - k), stride = round_up(n, BLOCK);
            expand_plain(w, b->w.type, b->w.data + o * b->w.stride, k, n);
            for (int64_t t = 0; t < b->T; t++, x += stride) {
                float *to = b->out + t * b->out_stride + o;
                *to = dot_plain(w, x, n) + (k > 0 ? *to : b->bias != NULL ? b->bias[o] : 0);
            }
        }
    }
}

static float softmax_block_plain(float *x, int64_t n, float scale, float *max, float *sum) {
    float old = *max, total = 0;
    for (int64_t i = 0; i < n; i++) *max = fmaxf(*max, scale * x[i]);
    for (int64_t i = 0; i < n; i++) total += x[i] = expf(scale * x[i] - *max);
    float factor = *max > old ? expf(old - *max) : 1;
    *sum = factor * *sum + total;
    return factor;
}

static void add_rows_plain(float *out, int64_t out_stride, const float *keep, const float *p, int64_t p_stride,
                           int64_t T, Rows rows, int64_t count, int64_t n) {
    float row[BLOCK];
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < n; i++) out[t * out_stride + i] = keep != NULL ? keep[t] * out[t * out_stride + i] : 0;
    for (int64_t c = 0; c < n; c += BLOCK) {
        const int64_t width = min_i64(BLOCK, n - c);
        for (int64_t s = 0; s < count; s++) {
            expand_plain(row, rows.type, rows.data + s * rows.stride, c, width);
            for (int64_t t = 0; t < T; t++)
                for (int64_t i = 0; i < width; i++) out[t * out_stride + c + i] += p[t * p_stride + s] * row[i];
        }
    }
}

static void transpose_plain(float *out, int64_t out_stride, const float *x, int64_t stride, int64_t T, int64_t n) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < n; i++) out[i * out_stride + t] = x[t * stride + i];
}

static void add_plain(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] += x[i];
}

static void gelu_plain(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
}

static float silu_value(float x) { return x / (1 + expf(-x)); }

static void silu_plain(float *out, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = silu_value(out[i]) * up[i];
}

static void norm_plain(float *out, const float *x, const float *weight, const float *bias, int64_t n, float eps) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n && bias != NULL; i++) mean += x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    float factor = (float)(1 / sqrt(square / (double)n + eps));
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] - (float)mean) * factor * weight[i] + (bias ? bias[i] : 0);
}

static void moments_plain(float *mean, float *squares, const float *x, int64_t count, int64_t n) {
    memset(mean, 0, (size_t)n * sizeof *mean);
    memset(squares, 0, (size_t)n * sizeof *squares);
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < n; c++) mean[c] += x[r * n + c];
    for (int64_t c = 0; c < n; c++) mean[c] /= (float)count;
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < n; c++) squares[c] += (x[r * n + c] - mean[c]) * (x[r * n + c] - mean[c]);
}

static void affine_plain(float *out, const float *x, const float *factor, const float *shift, int64_t count, int64_t n,
                         int swish) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < n; c++) {
            float y = x[r * n + c] * factor[c] + shift[c];
            out[r * n + c] = swish ? silu_value(y) : y;
        }
}

static void store_f16_plain(uint16_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        write_u16(&out[i], f32_to_f16(x[i])); /* little-endian like a weight, so that Rows can name it */
}

static const Kernels kernels_plain = {
    .name = "plain",
    .exact = {[OTHER_WEIGHTS] = {.group = 1, .words = BLOCK, .multiply = multiply_plain}},
    .expand = expand_plain,
    .softmax_block = softmax_block_plain,
    .add_rows = add_rows_plain,
    .transpose = transpose_plain,
    .add = add_plain,
    .gelu = gelu_plain,
    .silu = silu_plain,
    .norm = norm_plain,
    .moments = moments_plain,
    .affine = affine_plain,
    .store_f16 = store_f16_plain,
};

/* ---- one source for all instruction sets ----

   This file includes itself once for each instruction set, which KERNEL_PASS names, and each time only the pass is
   read, from #ifdef KERNEL_PASS to the next line of dashes. KERNEL(f) is f with the set's name: expand_avx2,
   expand_avx512, ... */

#define PASS_NEON        1
#define PASS_SIMD128     2 /* WebAssembly */
#define PASS_AVX2        3
#define PASS_AVX512      4
#define PASS_AVX512BF16  5 /* and VNNI */
#define PASS_EXTRA       6 /* a test's: JANUS_EXTRA_KERNELS names a header with primitives */
#define JOIN_NAMES(a, b) a##_##b
#define JOIN(a, b)       JOIN_NAMES(a, b)
#define KERNEL(f)        JOIN(f, KERNEL_NAME)
#define TEXT_NAME(a)     #a
#define KERNEL_TEXT(a)   TEXT_NAME(a)

/* TARGET, which each pass defines, stands before every function in which the compiler may use the pass's instructions.
   INLINE is for the parts of such functions: they are compiled anew for each set of constants they are called with.
   UNROLLED_FOR (int i = 0; ...) is a loop over registers, of which none may be left as a loop. */
#define INLINE            TARGET static inline __attribute__((always_inline))
#define UNROLLED_FOR(...) UNROLL for (__VA_ARGS__)
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__OPTIMIZE__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* This file under the name that #include finds it by: __FILE__, unless that names its folder too (cc
   folder/janus.c). */
#if !defined(KERNEL_FILE) && defined(__has_include)
#if __has_include(__FILE__)
#define KERNEL_FILE __FILE__
#endif
#endif
#if !defined(KERNEL_FILE)
#define KERNEL_FILE "janus.c"
#endif

#if !defined(__GNUC__) || defined(__TINYC__) || defined(JANUS_NO_SIMD)
#undef JANUS_EXTRA_KERNELS
#elif defined(__x86_64__)
#define HAVE_X86_KERNELS
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__) && defined(__LP64__)
#define HAVE_AMX_KERNELS
#endif
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#define HAVE_NEON_KERNELS
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#define HAVE_SIMD128_KERNELS
#include <wasm_simd128.h>
#endif

#endif
#ifdef KERNEL_PASS

/* The primitives of an instruction set. The sums of X_ROWS rows of x and W_ROWS of W fit its registers, with the
   vectors of x beside them; so do VALUE_ROWS times VALUE_VECTORS sums, and four times INT8_ROWS.

vf, VL floats, a constant (of SVE and RVV: with vectors of a fixed length):
     v_zero() v_set1(s)              all 0; all s
     v_load(p) v_store(p, a)         from and to any address
     v_add v_sub v_mul v_div         (a, b), element by element
     v_maximum v_minimum             the same; where one of the two is NaN, the second (NEON: NaN)
     v_fma(a, b, c)                  a b + c, rounded once where there is such an instruction
     v_add4(p, q, a)                 p[i] = q[i] + the sum of elements i, i + 4, i + 8 ... of a, for i < 4
     v_round(a)                      to whole numbers, ties to even
     v_power(n)                      2^n for whole n from -126 to 127; 0 for -127, infinity for 128
     v_load_f16 v_load_bf16 (p)      VL numbers of 16 bits from any address
     v_store_f16(p, a)               rounded to f16, ties to even
     v_from_f16(q)                   the first VL f16 of the words uint64_t q[], four in each, the lowest first
     v_zip_low v_zip_high (a, b)     of each 16 bytes a0 a1 a2 a3 and b0 b1 b2 b3: a0 b0 a1 b1; a2 b2 a3 b3
     v_zip_low2 v_zip_high2 (a, b)   a0 a1 b0 b1; a2 a3 b2 b3
     v_gather(rows, k)               16 bytes each of rows[0] + k, rows[4] + k, ...
   Only where pairs of bf16 are multiplied:
     v_fma_pairs(a, b, c)            a b + c of pairs, both products added to one float
     v_store_bf16(p, a, b)           a and b rounded to bf16, one after the other
   vb, sixteen int8:
     b_load(p)                       from any address
     b_bits(b, n, mask)              each byte's bits from bit n on that are in `mask`
     b_join(low, high)               low | high << 4, of bytes below 16 and below 4
     b_less(b, n)                    b - n
     v_widen(w, b)                   vf w[16 / VL] = the sixteen as floats
     v_nibbles(w, b, scale)          may be left out: vf w[32 / VL] = scale times the nibbles of b less 8, as in Q4_0
   Only where there are products of int8; without them, --fast takes floats for Q8_0 and Q4_0:
     vi                              VL int32
     i_bits(a) i_float(n)            a's bits as vi; n's numbers as vf
     i_dot(sums, w, x)               sums + the products of w's and x's int8, added up within each 32 bits
     i_bytes(a)                      a's int8 as i_dot wants weights: as they are, or 128 larger without sign
     i_low(a) i_high(a)              the same of the lower, the upper halves of a's bytes less 8
     round_block(out, x, inverse)    BLOCK floats times inverse, rounded to int8; returns what i_dot's sums must start
                                     at: 0, or -128 times the sum of these int8 if weights are 128 too large */
#if KERNEL_PASS == PASS_NEON
#define TARGET
#define vf                float32x4_t
#define vb                int8x16_t
#define VL                4
#define X_ROWS            6
#define VALUE_VECTORS     4
#define INT8_ROWS         6
#define v_zero()          vdupq_n_f32(0)
#define v_set1            vdupq_n_f32
#define v_load            vld1q_f32
#define v_store           vst1q_f32
#define v_add4(p, q, a)   vst1q_f32(p, vaddq_f32(vld1q_f32(q), a))
#define v_add             vaddq_f32
#define v_sub             vsubq_f32
#define v_mul             vmulq_f32
#define v_div             vdivq_f32
#define v_maximum         vmaxq_f32
#define v_minimum         vminq_f32
#define v_fma(a, b, c)    vfmaq_f32(c, a, b)
#define v_round           vrndnq_f32
#define v_power(n)        vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23))
#define v_load_f16(p)     vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const void *)(p))))
#define v_from_f16(q)     vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64((q)[0])))
#define v_load_bf16(p)    vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const void *)(p)), 16))
#define v_store_f16(p, a) vst1_u16((void *)(p), vreinterpret_u16_f16(vcvt_f16_f32(a)))
#define v_zip_low         vzip1q_f32
#define v_zip_high        vzip2q_f32
#define v_zip_low2(a, b)  vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)))
#define v_zip_high2(a, b) vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)))
#define v_gather(rows, k) v_load((rows)[0] + (k))
#define v_widen(w, b)                                                                                                  \
    ((w)[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vget_low_s8(b))))),                                        \
     (w)[1] = vcvtq_f32_s32(vmovl_high_s16(vmovl_s8(vget_low_s8(b)))),                                                 \
     (w)[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_high_s8(b)))),                                                \
     (w)[3] = vcvtq_f32_s32(vmovl_high_s16(vmovl_high_s8(b))))
#define b_load(p)         vld1q_s8((const void *)(p))
#define b_bits(b, n, mask)                                                                                             \
    vandq_s8(vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(b), vdupq_n_s8((int8_t)-(n)))), vdupq_n_s8(mask))
#define b_join(low, high) vorrq_s8(low, vshlq_n_s8(high, 4))
#define b_less(b, n)      vsubq_s8(b, vdupq_n_s8(n))
#ifdef __ARM_FEATURE_DOTPROD
#define vi                int32x4_t
#define i_bits            vreinterpretq_s32_f32
#define i_float           vcvtq_f32_s32
#define i_dot(sums, w, x) vdotq_s32(sums, vreinterpretq_s8_f32(w), vreinterpretq_s8_f32(x))
#define i_bytes(a)        (a)
#define i_low(a)          vreinterpretq_f32_s8(b_less(vandq_s8(vreinterpretq_s8_f32(a), vdupq_n_s8(15)), 8))
#define i_high(a)         vreinterpretq_f32_s8(b_less(b_bits(vreinterpretq_s8_f32(a), 4, 15), 8))

INLINE int32_t KERNEL(round_block)(void *out, const float *x, float inverse) {
    for (int i = 0; i < BLOCK; i += 8) {
        int16x4_t low = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v_load(x + i), inverse)));
        int16x4_t high = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v_load(x + i + 4), inverse)));
        vst1_s8((int8_t *)out + i, vmovn_s16(vcombine_s16(low, high)));
    }
    return 0;
}
#endif

#elif KERNEL_PASS == PASS_SIMD128
#define TARGET
#define vf                v128_t
#define vb                v128_t
#define VL                4
#define X_ROWS            3
#define VALUE_VECTORS     2
#define v_zero()          wasm_f32x4_splat(0)
#define v_set1            wasm_f32x4_splat
#define v_load            wasm_v128_load
#define v_store           wasm_v128_store
#define v_add4(p, q, a)   wasm_v128_store(p, wasm_f32x4_add(wasm_v128_load(q), a))
#define v_add             wasm_f32x4_add
#define v_sub             wasm_f32x4_sub
#define v_mul             wasm_f32x4_mul
#define v_div             wasm_f32x4_div
#define v_maximum(a, b)   wasm_f32x4_pmax(b, a)
#define v_minimum(a, b)   wasm_f32x4_pmin(b, a)
#define v_fma(a, b, c)    v_add(v_mul(a, b), c)
#define v_round           wasm_f32x4_nearest
#define v_power(n)        wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23)
#define v_load_f16(p)     KERNEL(widen_f16)(wasm_u32x4_load16x4(p))
#define v_from_f16        v_load_f16
#define v_load_bf16(p)    wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16)
#define v_store_f16       KERNEL(store_halves)
#define v_zip_low(a, b)   wasm_i32x4_shuffle(a, b, 0, 4, 1, 5)
#define v_zip_high(a, b)  wasm_i32x4_shuffle(a, b, 2, 6, 3, 7)
#define v_zip_low2(a, b)  wasm_i64x2_shuffle(a, b, 0, 2)
#define v_zip_high2(a, b) wasm_i64x2_shuffle(a, b, 1, 3)
#define v_gather(rows, k) v_load((rows)[0] + (k))
#define v_widen(w, b)                                                                                                  \
    ((w)[0] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(b))),                   \
     (w)[1] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(wasm_i16x8_extend_low_i8x16(b))),                  \
     (w)[2] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_high_i8x16(b))),                  \
     (w)[3] = wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(wasm_i16x8_extend_high_i8x16(b))))
#define b_load            wasm_v128_load
#define b_bits(b, n, mask) wasm_v128_and(wasm_u8x16_shr(b, n), wasm_i8x16_splat(mask))
#define b_join(low, high) wasm_v128_or(low, wasm_i8x16_shl(high, 4))
#define b_less(b, n)      wasm_i8x16_sub(b, wasm_i8x16_splat(n))

/* Four f16, each in 32 bits: their exponents count from 15, those of f32 from 127; infinity and NaN have the largest.
   (clang 14 never ends where the sign is put there by wasm_v128_and and wasm_v128_or.) */
INLINE vf KERNEL(widen_f16)(v128_t halves) {
    const v128_t size = wasm_i32x4_shl(wasm_v128_and(halves, wasm_i32x4_splat(0x7fff)), 13);
    const v128_t special = wasm_i32x4_ge(size, wasm_i32x4_splat(31 << 23));
    const v128_t largest_exponent = wasm_v128_and(special, wasm_i32x4_splat(255 << 23));
    const v128_t value = wasm_v128_or(v_mul(size, v_set1(0x1p112f)), largest_exponent);
    return wasm_v128_bitselect(wasm_i32x4_shl(halves, 16), value, wasm_i32x4_splat(INT32_MIN));
}
INLINE void KERNEL(store_halves)(uint16_t *out, vf a) {
    float part[VL];
    v_store(part, a);
    store_f16_plain(out, part, VL);
}

#elif KERNEL_PASS == PASS_AVX2 || KERNEL_PASS == PASS_AVX512 || KERNEL_PASS == PASS_AVX512BF16
#if KERNEL_PASS == PASS_AVX2
#define TARGET    __attribute__((target("avx2,fma,f16c")))
#define MM(f)     JOIN(_mm256, f)
#define vf        __m256
#define VL        8
#define X_ROWS    3
#define VALUE_VECTORS 2
#define v_bits    _mm256_castsi256_ps
#define v_words   _mm256_castps_si256
#define v_widen(w, b)                                                                                                  \
    ((w)[0] = MM(cvtepi32_ps)(MM(cvtepi8_epi32)(b)), (w)[1] = MM(cvtepi32_ps)(MM(cvtepi8_epi32)(_mm_srli_si128(b, 8))))
#define v_from_f16(q) _mm256_cvtph_ps(_mm_set_epi64x((int64_t)(q)[1], (int64_t)(q)[0]))
#define h_load(p)     _mm_loadu_si128((const void *)(p))
#define h_store(p, h) _mm_storeu_si128((void *)(p), h)
#else
#if KERNEL_PASS == PASS_AVX512
#define TARGET        __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#else
#define TARGET        __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")))
#endif
#define MM(f)         JOIN(_mm512, f)
#define vf            __m512
#define VL            16
#define X_ROWS        6
#define VALUE_VECTORS 2
#define INT8_ROWS     6
#define v_bits        _mm512_castsi512_ps
#define v_words       _mm512_castps_si512
#define v_widen(w, b) ((w)[0] = MM(cvtepi32_ps)(MM(cvtepi8_epi32)(b)))
#define v_from_f16(q)                                                                                                  \
    _mm512_cvtph_ps(_mm256_set_epi64x((int64_t)(q)[3], (int64_t)(q)[2], (int64_t)(q)[1], (int64_t)(q)[0]))
#define v_nibbles     KERNEL(nibbles)
#define h_load(p)     _mm256_loadu_si256((const void *)(p))
#define h_store(p, h) _mm256_storeu_si256((void *)(p), h)
#endif
#define vb                __m128i
#define v_zero            MM(setzero_ps)
#define v_set1            MM(set1_ps)
#define v_load            MM(loadu_ps)
#define v_store           MM(storeu_ps)
#define v_add4            KERNEL(add4)
#define v_add             MM(add_ps)
#define v_sub             MM(sub_ps)
#define v_mul             MM(mul_ps)
#define v_div             MM(div_ps)
#define v_maximum         MM(max_ps)
#define v_minimum         MM(min_ps)
#define v_fma             MM(fmadd_ps)
#define v_round(a)        MM(cvtepi32_ps)(MM(cvtps_epi32)(a))
#define v_power(n)        v_bits(MM(slli_epi32)(MM(add_epi32)(MM(cvtps_epi32)(n), MM(set1_epi32)(127)), 23))
#define v_load_f16(p)     MM(cvtph_ps)(h_load(p))
#define v_load_bf16(p)    v_bits(MM(slli_epi32)(MM(cvtepu16_epi32)(h_load(p)), 16))
#define v_store_f16(p, a) h_store(p, MM(cvtps_ph)(a, 8))
#define v_gather          KERNEL(gather_lanes)
#define v_zip_low         MM(unpacklo_ps)
#define v_zip_high        MM(unpackhi_ps)
#define v_zip_low2(a, b)  MM(castpd_ps)(MM(unpacklo_pd)(MM(castps_pd)(a), MM(castps_pd)(b)))
#define v_zip_high2(a, b) MM(castpd_ps)(MM(unpackhi_pd)(MM(castps_pd)(a), MM(castps_pd)(b)))
#define b_load(p)         _mm_loadu_si128((const void *)(p))
#define b_bits(b, n, mask) _mm_and_si128(_mm_srli_epi16(b, n), _mm_set1_epi8(mask))
#define b_join(low, high) _mm_or_si128(low, _mm_slli_epi16(high, 4))
#define b_less(b, n)      _mm_sub_epi8(b, _mm_set1_epi8(n))
#if KERNEL_PASS == PASS_AVX512BF16
#define vi                __m512i
#define i_bits            v_words
#define i_float           _mm512_cvtepi32_ps
#define i_dot(sums, w, x) _mm512_dpbusd_epi32(sums, i_bits(w), i_bits(x))
#define i_bytes(a)        v_bits(_mm512_xor_si512(i_bits(a), _mm512_set1_epi8(-128)))
#define i_low(a)                                                                                                       \
    v_bits(_mm512_add_epi8(_mm512_and_si512(i_bits(a), _mm512_set1_epi8(15)), _mm512_set1_epi8(120)))
#define i_high(a)         i_low(v_bits(_mm512_srli_epi16(i_bits(a), 4)))
#define v_fma_pairs(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define v_store_bf16(p, a, b) _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a))
#endif

#if KERNEL_PASS == PASS_AVX2
INLINE vf KERNEL(gather_lanes)(const float *const *rows, int64_t k) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0] + k)), _mm_loadu_ps(rows[4] + k), 1);
}
INLINE void KERNEL(add4)(float *out, const float *start, vf a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(start), four));
}
#else
/* A look-up takes the lowest four bits of each number. */
INLINE void KERNEL(nibbles)(vf *w, vb quants, float scale) {
    const vf nibble = v_mul(_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7), v_set1(scale));
    const __m512i bytes = _mm512_cvtepu8_epi32(quants);
    w[0] = _mm512_permutexvar_ps(bytes, nibble);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), nibble);
}
INLINE void KERNEL(add4)(float *out, const float *start, vf a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(start), four));
}
INLINE vf KERNEL(gather_lanes)(const float *const *rows, int64_t k) {
    vf a = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + k));
    a = _mm512_mask_broadcast_f32x4(a, 0x00f0, _mm_loadu_ps(rows[4] + k));
    a = _mm512_mask_broadcast_f32x4(a, 0x0f00, _mm_loadu_ps(rows[8] + k));
    return _mm512_mask_broadcast_f32x4(a, 0xf000, _mm_loadu_ps(rows[12] + k));
}
#endif
#if KERNEL_PASS == PASS_AVX512BF16
INLINE int32_t KERNEL(round_block)(void *out, const float *x, float inverse) {
    __m512i low = _mm512_cvtps_epi32(v_mul(v_load(x), v_set1(inverse)));
    __m512i high = _mm512_cvtps_epi32(v_mul(v_load(x + VL), v_set1(inverse)));
    _mm_storeu_si128((void *)out, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128((void *)((int8_t *)out + VL), _mm512_cvtepi32_epi8(high));
    return -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}
#endif

#elif KERNEL_PASS == PASS_EXTRA
#include JANUS_EXTRA_KERNELS
#else
#error This KERNEL_PASS has no primitives.
#endif

#define BLOCK_VECTORS (BLOCK / VL)
#define VALUE_ROWS    6 /* rows of p in registers, for VALUE_VECTORS of rows */
#define W_ROWS        4 /* rows of W whose sums are in registers, for X_ROWS rows of x each */

/* The sum of all elements, and the largest. */
INLINE float KERNEL(sum)(vf a) {
    const float zeros[4] = {0};
    float four[4];
    v_add4(four, zeros, a);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float KERNEL(largest)(vf a) {
    float part[VL];
    v_store(part, a);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) part[i] = part[i] > part[half + i] ? part[i] : part[half + i];
    return part[0];
}

/* ---- weights as floats ---- */

/* The f16 at `half`. Not by f16_to_f32: its old SSE instructions can take 100 ns each while the upper halves of AVX
   registers are in use. */
INLINE float KERNEL(load_scale)(const char *half) {
    float scale[VL];
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    const uint64_t four[4] = {bits};
    v_store(scale, v_from_f16(four));
    return scale[0];
}

/* The f16 scales of sixteen blocks of so many bytes, 0 from `count` on. They are assembled in registers: reloading
   freshly written short stores as one vector would stall (failed store forwarding). */
INLINE void KERNEL(load_f16_scales)(float *scales, const char *block, const int64_t bytes, int64_t count) {
    uint64_t four[4] = {0};
    UNROLLED_FOR (int i = 0; i < 16; i++) {
        uint16_t half = 0;
        if (i < count) memcpy(&half, block + i * bytes, sizeof half);
        four[i / 4] |= (uint64_t)half << 16 * (i % 4);
    }
    UNROLLED_FOR (int i = 0; i < 16; i += VL) v_store(scales + i, v_from_f16(four + i / 4));
}

/* The scales of columns [k, k + n) of a row, at most SCALED_COLUMNS of them. */
INLINE void KERNEL(load_scales)(Scales *s, const int type, const char *row, int64_t k, int64_t n) {
    if (block_elements(type) == BLOCK) {
        const int64_t bytes = block_bytes(type);
        const char *block = row + k / BLOCK * bytes;
        if (n >= 16 * BLOCK) KERNEL(load_f16_scales)(s->steps, block, bytes, 16); /* skips the bounds checks */
        else KERNEL(load_f16_scales)(s->steps, block, bytes, n / BLOCK);
    } else if (type == TYPE_Q6_K) {
        const char *block = row + k / SUPER_BLOCK * Q6_K_BYTES;
        const vf d = v_set1(KERNEL(load_scale)(block + 208));
        vf q[16 / VL];
        v_widen(q, b_load(block + 192));
        UNROLLED_FOR (int i = 0; i < 16 / VL; i++) v_store(s->steps + i * VL, v_mul(d, q[i]));
    } else if (type == TYPE_Q4_K) {
        const char *block = row + k / SUPER_BLOCK * Q4_K_BYTES;
        const float d = KERNEL(load_scale)(block), dmin = KERNEL(load_scale)(block + 2);
        for (int j = 0; j < 8; j++) {
            int step, low;
            read_scales_q4_k((const unsigned char *)block + 4, j, &step, &low);
            s->steps[2 * j] = s->steps[2 * j + 1] = d * (float)step;
            s->lows[j] = dmin * (float)low;
        }
    }
}

/* The q of 32 elements from column k on: elements 0 to 15, 16 to 31. */
INLINE void KERNEL(load_quants)(vb *q, const int type, const char *row, int64_t k) {
    const int j = (int)(k % SUPER_BLOCK) / BLOCK;
    UNROLLED_FOR (int half = 0; half < 2; half++) {
        if (type == TYPE_Q8_0) {
            q[half] = b_load(row + k / BLOCK * Q8_0_BYTES + 2 + 16 * half);
        } else if (type == TYPE_Q4_0) {
            q[half] = b_less(b_bits(b_load(row + k / BLOCK * Q4_0_BYTES + 2), 4 * half, 15), 8);
        } else if (type == TYPE_Q4_K) {
            const char *block = row + k / SUPER_BLOCK * Q4_K_BYTES;
            q[half] = b_bits(b_load(block + 16 + j / 2 * 32 + 16 * half), j % 2 * 4, 15);
        } else { /* Q6_K */
            const char *block = row + k / SUPER_BLOCK * Q6_K_BYTES;
            const vb low = b_bits(b_load(block + j / 4 * 64 + j % 2 * 32 + 16 * half), j % 4 / 2 * 4, 15);
            const vb high = b_bits(b_load(block + 128 + j / 4 * 32 + 16 * half), j % 4 * 2, 3);
            q[half] = b_less(b_join(low, high), 32);
        }
    }
}

/* w (BLOCK floats) = elements [k, k + BLOCK) of a row of any format, the j-th of those that s is for; k is a multiple
   of BLOCK. Formats that are not named here take their plain function. */
INLINE void KERNEL(load32)(vf *w, const int type, const char *row, int64_t k, const Scales *s, int j) {
    const bool blocks = block_elements(type) == BLOCK;
#ifdef v_nibbles
    if (type == TYPE_Q4_0) {
        v_nibbles(w, b_load(row + k / BLOCK * Q4_0_BYTES + 2), s->steps[j]);
        return;
    }
#endif
    if (blocks || type == TYPE_Q4_K || type == TYPE_Q6_K) {
        vb q[2];
        KERNEL(load_quants)(q, type, row, k);
        v_widen(w, q[0]);
        v_widen(w + BLOCK_VECTORS / 2, q[1]);
        UNROLLED_FOR (int i = 0; i < BLOCK_VECTORS; i++) {
            w[i] = v_mul(w[i], v_set1(s->steps[blocks ? j : 2 * j + i * 2 / BLOCK_VECTORS]));
            if (type == TYPE_Q4_K) w[i] = v_sub(w[i], v_set1(s->lows[j]));
        }
    } else if (type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16) {
        UNROLLED_FOR (int i = 0; i < BLOCK_VECTORS; i++)
            w[i] = type == TYPE_F32   ? v_load((const float *)(const void *)row + k + i * VL)
                   : type == TYPE_F16 ? v_load_f16(row + 2 * (k + i * VL))
                                      : v_load_bf16(row + 2 * (k + i * VL));
    } else {
        float part[BLOCK];
        expand_plain(part, type, row, k, BLOCK);
        UNROLLED_FOR (int i = 0; i < BLOCK_VECTORS; i++) w[i] = v_load(part + i * VL);
    }
}

/* The byte of a row at which column k begins, to prefetch it; exact at the start of a block. */
INLINE int64_t KERNEL(byte_of)(const int type, int64_t k) {
    return (int64_t)((uint64_t)k * (uint64_t)block_bytes(type) / (uint64_t)block_elements(type));
}

/* f(type, ...) with the type a constant, so that each format of a fast load32 gets its own loop. */
#define BY_TYPE(type, f, ...)                                                                                          \
    do {                                                                                                               \
        switch (type) {                                                                                                \
        case TYPE_F32: f(TYPE_F32, __VA_ARGS__); break;                                                                \
        case TYPE_F16: f(TYPE_F16, __VA_ARGS__); break;                                                                \
        case TYPE_BF16: f(TYPE_BF16, __VA_ARGS__); break;                                                              \
        case TYPE_Q8_0: f(TYPE_Q8_0, __VA_ARGS__); break;                                                              \
        case TYPE_Q4_0: f(TYPE_Q4_0, __VA_ARGS__); break;                                                              \
        case TYPE_Q4_K: f(TYPE_Q4_K, __VA_ARGS__); break;                                                              \
        case TYPE_Q6_K: f(TYPE_Q6_K, __VA_ARGS__); break;                                                              \
        default: f(type, __VA_ARGS__);                                                                                 \
        }                                                                                                              \
    } while (0)

/* out (n) = elements from `begin` on, as Kernels.expand. Prefetches what lies `ahead` bytes further: expanded next. */
INLINE void KERNEL(expand_type)(const int type, float *out, const char *row, int64_t ahead, int64_t begin,
                                int64_t n) {
    Scales scales;
    vf w[BLOCK_VECTORS];
    int64_t k = 0;
    for (; k + BLOCK <= n; k += BLOCK) {
        const int j = (int)(k % SCALED_COLUMNS(type)) / BLOCK;
        if (j == 0) KERNEL(load_scales)(&scales, type, row, begin + k, n - k);
        KERNEL(load32)(w, type, row, begin + k, &scales, j);
        prefetch(row + ahead + KERNEL(byte_of)(type, begin + k));
        UNROLLED_FOR (int i = 0; i < BLOCK_VECTORS; i++) v_store(out + k + i * VL, w[i]);
    }
    if (k < n) expand_plain(out + k, type, row, begin + k, n - k);
}

TARGET static void KERNEL(expand)(float *out, int type, const void *row, int64_t begin, int64_t n) {
    if (begin % SUPER_BLOCK != 0) expand_plain(out, type, row, begin, n);
    else BY_TYPE(type, KERNEL(expand_type), out, row, 0, begin, n);
}

/* ---- products: dot products along rows of W ---- */

/* f(rows, ...) with the number of rows a constant: `most`, or what is left of them, 1, 2 or 4 at a time. */
#define ROWS_OF(most, left) ((left) >= (most) ? (most) : (left) >= 4 ? 4 : (left) >= 2 ? 2 : 1)
#define BY_ROWS(most, rows, f, ...)                                                                                    \
    do {                                                                                                               \
        if ((rows) == (most)) f(most, __VA_ARGS__);                                                                    \
        else if ((rows) == 4) f(4 % (most), __VA_ARGS__);                                                              \
        else if ((rows) == 2) f(2, __VA_ARGS__);                                                                       \
        else f(1, __VA_ARGS__);                                                                                        \
    } while (0)

#ifndef v_store_bf16
#define v_fma_pairs v_fma /* not called */
#endif

/* sums[t][r] = x[t] . w[r], element i of the n words in lane i % VL: floats, or pairs of bf16. ahead: bytes to the rows
   of W that are read next, whose same place is prefetched; 0: none. */
INLINE void KERNEL(dot_words)(const int T, const int pairs, vf (*sums)[W_ROWS], const float *x, int64_t x_stride,
                              const char *const *w, int64_t ahead, int64_t n) {
    vf s[X_ROWS][W_ROWS];
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) s[t][r] = v_zero();
    for (int64_t i = 0; i < n; i += VL) {
        vf a[X_ROWS];
        UNROLLED_FOR (int t = 0; t < T; t++) a[t] = v_load(x + t * x_stride + i);
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) {
            const vf b = v_load((const float *)(const void *)w[r] + i);
            if (ahead != 0) prefetch(w[r] + ahead + 4 * i);
            UNROLLED_FOR (int t = 0; t < T; t++)
                s[t][r] = pairs ? v_fma_pairs(a[t], b, s[t][r]) : v_fma(a[t], b, s[t][r]);
        }
    }
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) sums[t][r] = s[t][r];
}

/* The same of columns [k, k + n) of rows of any format, each element widened where it is used. */
INLINE void KERNEL(dot_type)(const int T, const int type, vf (*sums)[W_ROWS], const float *x, int64_t x_stride,
                             const char *const *w, int64_t ahead, int64_t k, int64_t n) {
    vf s[X_ROWS][W_ROWS], a[BLOCK_VECTORS];
    Scales scales[W_ROWS];
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) s[t][r] = v_zero();
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t byte = KERNEL(byte_of)(type, k + i);
        const int j = (int)(i % SCALED_COLUMNS(type)) / BLOCK;
        if (j == 0)
            for (int r = 0; r < W_ROWS; r++) KERNEL(load_scales)(&scales[r], type, w[r], k + i, n - i);
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) {
            KERNEL(load32)(a, type, w[r], k + i, &scales[r], j);
            prefetch(w[r] + ahead + byte);
            if (type == TYPE_F32) prefetch(w[r] + ahead + byte + 64);
            UNROLLED_FOR (int t = 0; t < T; t++)
                UNROLLED_FOR (int v = 0; v < BLOCK_VECTORS; v++)
                    s[t][r] = v_fma(a[v], v_load(x + t * x_stride + i + v * VL), s[t][r]);
        }
    }
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int r = 0; r < W_ROWS; r++) sums[t][r] = s[t][r];
}

/* out[r] = start[r] + the sum of all lanes of sums[r], for four rows of W: added up in a tree of halves. */
INLINE void KERNEL(add_lanes)(float *out, const float *start, const vf *sums) {
    const vf ab = v_add(v_zip_low(sums[0], sums[1]), v_zip_high(sums[0], sums[1]));
    const vf cd = v_add(v_zip_low(sums[2], sums[3]), v_zip_high(sums[2], sums[3]));
    v_add4(out, start, v_add(v_zip_low2(ab, cd), v_zip_high2(ab, cd)));
}

/* With up to `direct` rows of x, W is widened where it is used; with more, a panel of four rows of W is widened into
   the first cache and used for all. While a panel is read or widened, the next one to be read is prefetched. Pairs: x
   and W are bf16 as they lie in memory. */
INLINE void KERNEL(multiply_type)(const int type, const int pairs, int64_t direct, const Block *b) {
    const float zeros[W_ROWS] = {0};
    vf wide[W_ROWS][PANEL / VL];
    const int64_t panel = panel_columns(b->n), next_rows = W_ROWS * b->w.stride;
    for (int64_t o = b->first; o < b->last; o += W_ROWS) {
        const int64_t rows = min_i64(W_ROWS, b->last - o);
        const float *x = b->x;
        for (int64_t k = b->begin; k < b->end; k += panel) {
            const int64_t n = min_i64(panel, b->n - k), words = round_up(n, BLOCK) / (pairs ? 2 : 1);
            const bool as_is = pairs || (type == TYPE_F32 && n % BLOCK == 0);
            const bool widened = !as_is && (b->T > direct || n % BLOCK != 0);
            const char *w[W_ROWS], *from[W_ROWS];
            /* what is widened next: these rows' next panel, or the next rows' first one */
            const int64_t next = k + n < b->end ? k + n : b->begin, then = k + n < b->end ? 0 : next_rows;
            const int64_t ahead = then + KERNEL(byte_of)(type, next) - KERNEL(byte_of)(type, k);
            UNROLLED_FOR (int r = 0; r < W_ROWS; r++) {
                w[r] = b->w.data + (o + min_i64(r, rows - 1)) * b->w.stride;
                from[r] = widened ? (const char *)wide[r] : w[r] + KERNEL(byte_of)(type, k);
                if (!widened) continue;
                KERNEL(expand_type)(type, (float *)wide[r], w[r], ahead, k, n);
                memset((float *)wide[r] + n, 0, (size_t)(words - n) * sizeof(float));
            }
            for (int64_t t = 0, count; t < b->T; t += count, x += count * words) {
                vf sums[X_ROWS][W_ROWS];
                count = ROWS_OF(X_ROWS, b->T - t);
                if (as_is && t == 0)
                    BY_ROWS(X_ROWS, count, KERNEL(dot_words), pairs, sums, x, words, from, next_rows, words);
                else if (as_is || widened)
                    BY_ROWS(X_ROWS, count, KERNEL(dot_words), pairs, sums, x, words, from, 0, words);
                else BY_ROWS(X_ROWS, count, KERNEL(dot_type), type, sums, x, words, w, next_rows, k, n);
                for (int64_t i = 0; i < count; i++) {
                    float *to = b->out + (t + i) * b->out_stride + o, part[W_ROWS] = {0};
                    const float *start = k > 0 ? to : b->bias != NULL ? b->bias + o : zeros;
                    if (rows == W_ROWS) {
                        KERNEL(add_lanes)(to, start, sums[i]);
                    } else {
                        for (int64_t r = 0; r < rows; r++) part[r] = start[r];
                        KERNEL(add_lanes)(part, part, sums[i]);
                        memcpy(to, part, (size_t)rows * sizeof *to);
                    }
                }
            }
        }
    }
}

TARGET static void KERNEL(multiply)(const Block *b) {
    const int elements = block_elements(b->w.type); /* of small blocks: cheap to widen more than once */
    BY_TYPE(b->w.type, KERNEL(multiply_type), 0, X_ROWS * (elements == 1 ? 6 : elements == BLOCK ? 3 : 1), b);
}

#ifdef v_store_bf16
TARGET static void KERNEL(prepare_bf16)(float *out, const float *const *rows, int64_t n) {
    for (int64_t k = 0; k < n; k += 2 * VL) v_store_bf16(out + k / 2, v_load(rows[0] + k), v_load(rows[0] + k + VL));
}

TARGET static void KERNEL(multiply_bf16)(const Block *b) { KERNEL(multiply_type)(TYPE_BF16, 1, 0, b); }
#endif

/* Columns [0, VALUE_VECTORS * VL) of add_rows. */
INLINE void KERNEL(add_rows_part)(const int T, int type, float *out, int64_t out_stride, const float *keep,
                                  const float *p, int64_t p_stride, const char *row, int64_t stride, int64_t count) {
    vf sum[VALUE_ROWS][VALUE_VECTORS];
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int i = 0; i < VALUE_VECTORS; i++)
            sum[t][i] = keep != NULL ? v_mul(v_set1(keep[t]), v_load(out + t * out_stride + i * VL)) : v_zero();
    for (int64_t s = 0; s < count; s++, row += stride) {
        vf a[VALUE_VECTORS];
        UNROLLED_FOR (int i = 0; i < VALUE_VECTORS; i++)
            a[i] = type == TYPE_F32 ? v_load((const float *)(const void *)row + i * VL) : v_load_f16(row + 2 * i * VL);
        UNROLLED_FOR (int t = 0; t < T; t++) {
            const vf weight = v_set1(p[t * p_stride + s]);
            UNROLLED_FOR (int i = 0; i < VALUE_VECTORS; i++) sum[t][i] = v_fma(a[i], weight, sum[t][i]);
        }
    }
    UNROLLED_FOR (int t = 0; t < T; t++)
        UNROLLED_FOR (int i = 0; i < VALUE_VECTORS; i++) v_store(out + t * out_stride + i * VL, sum[t][i]);
}

TARGET static void KERNEL(add_rows)(float *out, int64_t out_stride, const float *keep, const float *p,
                                    int64_t p_stride, int64_t T, Rows rows, int64_t count, int64_t n) {
    enum { STEP = VALUE_VECTORS * VL };
    const int64_t whole = n / STEP * STEP;
    for (int64_t t = 0, some; t < T; t += some) {
        some = ROWS_OF(VALUE_ROWS, T - t);
        for (int64_t c = 0; c < whole; c += STEP)
            BY_ROWS(VALUE_ROWS, some, KERNEL(add_rows_part), rows.type, out + t * out_stride + c, out_stride,
                    keep != NULL ? keep + t : NULL, p + t * p_stride, p_stride,
                    rows.data + c * block_bytes(rows.type), rows.stride, count);
    }
    rows.data += whole * block_bytes(rows.type);
    if (whole < n) add_rows_plain(out + whole, out_stride, keep, p, p_stride, T, rows, count, n - whole);
}

/* Columns k .. k + 3 of VL rows, as four vectors. */
INLINE void KERNEL(transpose4)(vf *out, const float *const *rows, int64_t k) {
    const vf a = v_gather(rows, k), b = v_gather(rows + 1, k), c = v_gather(rows + 2, k), d = v_gather(rows + 3, k);
    const vf low = v_zip_low(a, b), low2 = v_zip_low(c, d), high = v_zip_high(a, b), high2 = v_zip_high(c, d);
    out[0] = v_zip_low2(low, low2);
    out[1] = v_zip_high2(low, low2);
    out[2] = v_zip_low2(high, high2);
    out[3] = v_zip_high2(high, high2);
}

TARGET static void KERNEL(transpose)(float *out, int64_t out_stride, const float *x, int64_t stride, int64_t T,
                                     int64_t n) {
    const int64_t whole = n / 4 * 4;
    for (; T >= VL; T -= VL, out += VL, x += VL * stride) {
        const float *rows[VL];
        for (int r = 0; r < VL; r++) rows[r] = x + r * stride;
        for (int64_t k = 0; k < whole; k += 4) {
            vf columns[4];
            KERNEL(transpose4)(columns, rows, k);
            UNROLLED_FOR (int i = 0; i < 4; i++) v_store(out + (k + i) * out_stride, columns[i]);
        }
        transpose_plain(out + whole * out_stride, out_stride, x + whole, stride, VL, n - whole);
    }
    transpose_plain(out, out_stride, x, stride, T, n);
}

/* The end of a loop over n floats: fewer than VL of them, padded with `fill`, and back. These loops are vectorised by
   hand: gcc 12 does not at -O2 (nor expf at -O3), and no compiler may reorder sums. */
INLINE vf KERNEL(load_part)(const float *x, int64_t n, float fill) {
    float part[VL];
    for (int64_t i = 0; i < VL; i++) part[i] = i < n ? x[i] : fill;
    return v_load(part);
}
INLINE void KERNEL(store_part)(float *out, vf a, int64_t n) {
    float part[VL];
    v_store(part, a);
    memcpy(out, part, (size_t)n * sizeof *out);
}
#define LOAD_OR(p, fill) (n - i >= VL ? v_load((p) + i) : KERNEL(load_part)((p) + i, n - i, fill))
#define LOAD(p)          LOAD_OR(p, 0)
#define STORE(p, a)      (n - i >= VL ? v_store((p) + i, a) : KERNEL(store_part)((p) + i, a, n - i))

#ifdef vi
/* ---- products of int8: a block's products are integers, their sum is scaled by both operands' scales. Each lane is an
   output: VL rows of W lie side by side, four columns to a word of 32 bits; two such vectors take part. ---- */

#define PACKED_VECTORS (PANEL / BLOCK * 9)

/* Of each block: eight words of INT8_ROWS rows side by side, their scales, and what the sums start at. */
TARGET static void KERNEL(prepare_int8)(float *out, const float *const *rows, int64_t n) {
    for (int64_t k = 0; k < n; k += BLOCK, out += 10 * INT8_ROWS)
        for (int r = 0; r < INT8_ROWS; r++) {
            const float *x = rows[r] + k;
            float words[8];
            vf top = v_zero();
            UNROLLED_FOR (int i = 0; i < BLOCK; i += VL)
                top = v_maximum(top, v_maximum(v_load(x + i), v_sub(v_zero(), v_load(x + i))));
            const float scale = KERNEL(largest)(top) / 127;
            const int32_t start = KERNEL(round_block)(words, x, scale > 0 ? 1 / scale : 0);
            for (int i = 0; i < 8; i++) out[i * INT8_ROWS + r] = words[i];
            out[8 * INT8_ROWS + r] = scale;
            memcpy(&out[9 * INT8_ROWS + r], &start, sizeof start);
        }
}

/* n columns of VL rows of W: of each block eight vectors of words and one of scales. */
INLINE void KERNEL(pack_int8)(vf *out, const int type, const char *const *w, int64_t ahead, int64_t k,
                              int64_t n) {
    const int64_t bytes = block_bytes(type);
    for (const int64_t end = k + n; k < end; k += BLOCK, out += 9) {
        const float *words[VL];
        uint64_t scales[4] = {0};
        UNROLLED_FOR (int r = 0; r < VL; r++) {
            const char *block = w[r] + k / BLOCK * bytes;
            uint16_t half;
            memcpy(&half, block, sizeof half);
            scales[r / 4] |= (uint64_t)half << 16 * (r % 4);
            words[r] = (const float *)(const void *)(block + 2);
            prefetch(block + ahead);
        }
        KERNEL(transpose4)(out, words, 0);
        if (type == TYPE_Q8_0) KERNEL(transpose4)(out + 4, words, 4);
        UNROLLED_FOR (int i = 0; i < 4; i++) {
            out[4 + i] = type == TYPE_Q8_0 ? i_bytes(out[4 + i]) : i_high(out[i]);
            out[i] = type == TYPE_Q8_0 ? i_bytes(out[i]) : i_low(out[i]);
        }
        out[8] = v_from_f16(scales);
    }
}

/* sums (2, R) of `blocks` blocks of two times VL rows of W. */
INLINE void KERNEL(dot_int8)(const int R, vf (*sums)[INT8_ROWS], const float *x, vf (*w)[PACKED_VECTORS],
                             int64_t blocks) {
    vf sum[2][INT8_ROWS];
    UNROLLED_FOR (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = v_zero();
    for (int64_t k = 0; k < blocks * 9; k += 9, x += 10 * INT8_ROWS) {
        vi dots[2][INT8_ROWS];
        UNROLLED_FOR (int r = 0; r < R; r++) dots[0][r] = dots[1][r] = i_bits(v_set1(x[9 * INT8_ROWS + r]));
        UNROLLED_FOR (int i = 0; i < 8; i++)
            UNROLLED_FOR (int r = 0; r < R; r++) {
                const vf four = v_set1(x[i * INT8_ROWS + r]);
                UNROLLED_FOR (int v = 0; v < 2; v++) dots[v][r] = i_dot(dots[v][r], w[v][k + i], four);
            }
        UNROLLED_FOR (int r = 0; r < R; r++) {
            const vf scale = v_set1(x[8 * INT8_ROWS + r]);
            UNROLLED_FOR (int v = 0; v < 2; v++)
                sum[v][r] = v_fma(i_float(dots[v][r]), v_mul(scale, w[v][k + 8]), sum[v][r]);
        }
    }
    UNROLLED_FOR (int v = 0; v < 2; v++)
        UNROLLED_FOR (int r = 0; r < R; r++) sums[v][r] = sum[v][r];
}

/* Columns o .. o + n - 1, at most VL, of `rows` rows of out from t on += sums, or = bias + sums. */
INLINE void KERNEL(add_outputs)(const Block *b, const vf *sums, int64_t t, int64_t rows, int64_t o, int64_t n,
                                bool add) {
    enum { i = 0 }; /* for LOAD and STORE */
    for (int64_t r = 0; r < rows; r++) {
        float *to = b->out + (t + r) * b->out_stride + o;
        const float *start = add ? to : b->bias != NULL ? b->bias + o : NULL;
        STORE(to, start == NULL ? sums[r] : v_add(LOAD(start), sums[r]));
    }
}

INLINE void KERNEL(multiply_int8_type)(const int type, const Block *b) {
    const int64_t panel = panel_columns(b->n);
    vf packed[2][PACKED_VECTORS];
    for (int64_t o = b->first; o < b->last; o += 2 * VL) {
        const float *x = b->x;
        const char *w[2 * VL];
        for (int r = 0; r < 2 * VL; r++) w[r] = b->w.data + min_i64(o + r, b->last - 1) * b->w.stride;
        for (int64_t k = b->begin; k < b->end; k += panel) {
            const int64_t n = min_i64(panel, b->n - k), blocks = n / BLOCK;
            for (int v = 0; v < 2; v++) KERNEL(pack_int8)(packed[v], type, w + v * VL, 2 * VL * b->w.stride, k, n);
            for (int64_t t = 0; t < b->T; t += INT8_ROWS, x += blocks * 10 * INT8_ROWS) {
                const int64_t rows = min_i64(INT8_ROWS, b->T - t);
                vf sums[2][INT8_ROWS];
                if (rows <= 2) KERNEL(dot_int8)(2, sums, x, packed, blocks);
                else if (rows <= 4) KERNEL(dot_int8)(4, sums, x, packed, blocks);
                else KERNEL(dot_int8)(INT8_ROWS, sums, x, packed, blocks);
                for (int64_t v = 0, at = o; v < 2 && at < b->last; v++, at += VL)
                    KERNEL(add_outputs)(b, sums[v], t, rows, at, min_i64(VL, b->last - at), k > 0);
            }
        }
    }
}

TARGET static void KERNEL(multiply_int8)(const Block *b) {
    if (b->w.type == TYPE_Q8_0) KERNEL(multiply_int8_type)(TYPE_Q8_0, b);
    else KERNEL(multiply_int8_type)(TYPE_Q4_0, b);
}
#endif

#if KERNEL_PASS == PASS_AVX512BF16 && defined(HAVE_AMX_KERNELS)
/* ---- AMX: eight registers ("tiles") of 16 rows of 64 bytes, and an instruction that multiplies two of them: it adds
   to sums (16, 16) the product of a, 16 rows of 16 pairs of bf16, and b, 16 pairs of rows of 16 columns. Products of
   bf16 are exact in float, and sums are floats, so that this is as good as products of floats if x is cut into three
   bf16 of eight bits each (Henry, Tang and Heinecke 2019): x is their sum, and a bf16 weight, or the q of Q8_0 and
   Q4_0, is one anyway.

   a are rows of W as they lie in memory, so that nothing is packed and few rows of x cost what 32 do: reading W. b are
   the pieces of 16 rows of x, transposed once for all of W. Sums come as (rows of W, rows of x). ---- */

enum { AMX_ROWS = 16, AMX_TILE = 16 * 16, AMX_GROUP = 2 * AMX_ROWS }; /* floats of a tile; rows of x together */

/* By hand, as compilers take the set-up for one of 8 bytes (gcc 12), and some know none of them. */
#define AMX_ZERO(t)                 __asm__ volatile("tilezero %%tmm" #t ::)
#define AMX_LOAD(t, from, bytes)                                                                                       \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"((int64_t)(bytes)) : "memory")
#define AMX_STORE(t, to)                                                                                               \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)64) : "memory")
#define AMX_MULTIPLY(sums, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::)

/* Eight tiles of full size; returns what was set up before. */
typedef struct { unsigned char bytes[64]; } TileSetup;
static TileSetup set_up_amx(void) {
    TileSetup before, own = {{1}}; /* palette 1; bytes of a row from byte 16 on, rows from byte 48 on */
    for (int i = 0; i < 8; i++) {
        own.bytes[16 + 2 * i] = 64;
        own.bytes[48 + i] = 16;
    }
    __asm__ volatile("sttilecfg %0" : "=m"(before));
    __asm__ volatile("ldtilecfg %0" ::"m"(own));
    return before;
}
static void restore_amx(const TileSetup *before) { __asm__ volatile("ldtilecfg %0" ::"m"(*before)); }

/* BLOCK floats as pieces, 8 bits each from the highest on, AMX_TILE words from one to the next: nothing is left after
   three. One piece: rounded. */
INLINE void cut_amx(const int pieces, float *out, const float *x) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), upper = _mm512_set1_epi32(INT32_C(-0x10000));
    vf low = v_load(x), high = v_load(x + VL);
    if (pieces == 1) v_store_bf16(out, low, high);
    for (int piece = 0; piece < pieces && pieces > 1; piece++, out += AMX_TILE) {
        const __m512i words =
            _mm512_packus_epi32(_mm512_srli_epi32((__m512i)low, 16), _mm512_srli_epi32((__m512i)high, 16));
        _mm512_storeu_si512(out, _mm512_permutexvar_epi64(order, words));
        low = v_sub(low, v_bits(_mm512_and_si512((__m512i)low, upper)));
        high = v_sub(high, v_bits(_mm512_and_si512((__m512i)high, upper)));
    }
}

/* out[c] = column c of a tile. */
INLINE void transpose_amx(vf *out, const float *tile) {
    const float *from[AMX_ROWS];
    for (int r = 0; r < AMX_ROWS; r++) from[r] = tile + r * 16;
    UNROLLED_FOR (int c = 0; c < 16; c += 4) KERNEL(transpose4)(out + c, from, c);
}

/* Of each BLOCK columns: a tile of pairs of columns for each piece of the first 16 rows, then those of the others. */
INLINE void prepare_amx(const int pieces, float *out, const float *const *rows, int64_t n) {
    float words[3][AMX_TILE];
    for (int64_t k = 0; k < n; k += BLOCK)
        for (int half = 0; half < 2; half++) {
            for (int r = 0; r < AMX_ROWS; r++) cut_amx(pieces, words[0] + r * 16, rows[half * AMX_ROWS + r] + k);
            for (int i = 0; i < pieces; i++, out += AMX_TILE) transpose_amx((vf *)(void *)out, words[i]);
        }
}
TARGET static void prepare_amx_pieces(float *out, const float *const *rows, int64_t n) { prepare_amx(3, out, rows, n); }
TARGET static void prepare_amx_rounded(float *out, const float *const *rows, int64_t n) {
    prepare_amx(1, out, rows, n);
}

/* Two times 16 rows of W, `stride` bytes apart, by the first 16 rows of a group of x, or by all 32: sums (2, 2). */
INLINE void dot_amx(const int pieces, const bool both, float (*sums)[AMX_TILE], const float *x, const char *w,
                    int64_t stride, int64_t n) {
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = 0; k < n; k += BLOCK, x += 2 * pieces * AMX_TILE, w += 2 * BLOCK) {
        AMX_LOAD(6, w, stride);
        AMX_LOAD(7, w + AMX_ROWS * stride, stride);
        for (int piece = 0; piece < pieces; piece++) {
            AMX_LOAD(4, x + piece * AMX_TILE, 64);
            AMX_MULTIPLY(0, 6, 4);
            AMX_MULTIPLY(1, 7, 4);
            if (!both) continue;
            AMX_LOAD(5, x + (pieces + piece) * AMX_TILE, 64);
            AMX_MULTIPLY(2, 6, 5);
            AMX_MULTIPLY(3, 7, 5);
        }
    }
    AMX_STORE(0, sums[0]);
    AMX_STORE(1, sums[1]);
    AMX_STORE(2, sums[2]);
    AMX_STORE(3, sums[3]);
}

/* add_outputs of the transposed sums (16 rows of W, 16 rows of x). */
INLINE void add_amx(const Block *b, const float *sums, int64_t t, int64_t o, bool add) {
    vf by_row[AMX_ROWS];
    if (t >= b->T || o >= b->last) return;
    transpose_amx(by_row, sums);
    KERNEL(add_outputs)(b, by_row, t, min_i64(AMX_ROWS, b->T - t), o, min_i64(VL, b->last - o), add);
}

/* A panel of AMX_GROUP rows of W as bf16: of another type rounded; rows of zeros after the last. */
INLINE void widen_amx(float *out, const Block *b, int64_t o, int64_t k, int64_t n) {
    float row[PANEL];
    for (int64_t r = 0; r < AMX_GROUP; r++, out += PANEL / 2) {
        memset(row, 0, sizeof row);
        if (o + r < b->last) KERNEL(expand)(row, b->w.type, b->w.data + (o + r) * b->w.stride, k, n);
        for (int64_t i = 0; i < n; i += BLOCK) v_store_bf16(out + i / 2, v_load(row + i), v_load(row + i + VL));
    }
}

INLINE void multiply_amx(const int pieces, const Block *b) {
    float wide[AMX_GROUP][PANEL / 2], sums[4][AMX_TILE];
    const int64_t panel = panel_columns(b->n);
    const TileSetup before = set_up_amx();
    for (int64_t o = b->first; o < b->last; o += AMX_GROUP) {
        const bool as_is = b->w.type == TYPE_BF16 && b->last - o >= AMX_GROUP;
        const float *x = b->x;
        for (int64_t k = b->begin; k < b->end; k += panel) {
            const int64_t n = min_i64(panel, b->n - k), stride = as_is ? b->w.stride : (int64_t)sizeof *wide;
            if (!as_is) widen_amx(wide[0], b, o, k, n);
            const char *w = as_is ? b->w.data + o * b->w.stride + 2 * k : (const char *)wide;
            for (int64_t t = 0; t < b->T; t += AMX_GROUP, x += n / BLOCK * 2 * pieces * AMX_TILE) {
                if (b->T - t > AMX_ROWS) dot_amx(pieces, true, sums, x, w, stride, n);
                else dot_amx(pieces, false, sums, x, w, stride, n);
                for (int i = 0; i < 4; i++) add_amx(b, sums[i], t + i / 2 * AMX_ROWS, o + i % 2 * AMX_ROWS, k > 0);
            }
        }
    }
    restore_amx(&before);
}
TARGET static void multiply_amx_pieces(const Block *b) { multiply_amx(3, b); }
TARGET static void multiply_amx_rounded(const Block *b) { multiply_amx(1, b); }

/* Q8_0 and Q4_0, exact: the products of a block's q, then times the scale of each row of W. */
TARGET static void multiply_amx_blocks(const Block *b) {
    float q[PANEL / BLOCK][AMX_TILE], scales[PANEL / BLOCK][AMX_ROWS], part[AMX_TILE];
    const int64_t bytes = block_bytes(b->w.type);
    const int64_t panel = panel_columns(b->n);
    const TileSetup before = set_up_amx();
    for (int64_t o = b->first; o < b->last; o += AMX_ROWS) {
        const float *x = b->x;
        for (int64_t k = b->begin; k < b->end; k += panel) {
            const int64_t n = min_i64(panel, b->n - k), blocks = n / BLOCK;
            for (int64_t i = 0; i < blocks * AMX_ROWS; i++) {
                const int64_t r = i % AMX_ROWS, j = i / AMX_ROWS;
                const char *row = b->w.data + min_i64(o + r, b->last - 1) * b->w.stride;
                vf w[BLOCK_VECTORS];
                vb quants[2];
                if (b->w.type == TYPE_Q8_0) KERNEL(load_quants)(quants, TYPE_Q8_0, row, k + j * BLOCK);
                else KERNEL(load_quants)(quants, TYPE_Q4_0, row, k + j * BLOCK);
                v_widen(w, quants[0]);
                v_widen(w + 1, quants[1]);
                v_store_bf16(q[j] + r * 16, w[0], w[1]);
                scales[j][r] = KERNEL(load_scale)(row + (k / BLOCK + j) * bytes);
            }
            for (int64_t t = 0; t < b->T; t += AMX_ROWS) {
                const float *from = x + t / AMX_GROUP * blocks * 6 * AMX_TILE + t / AMX_ROWS % 2 * 3 * AMX_TILE;
                vf sums[AMX_ROWS];
                for (int r = 0; r < AMX_ROWS; r++) sums[r] = v_zero();
                for (int64_t j = 0; j < blocks; j++, from += 6 * AMX_TILE) {
                    AMX_ZERO(0);
                    AMX_LOAD(6, q[j], 64);
                    for (int piece = 0; piece < 3; piece++) {
                        AMX_LOAD(4, from + piece * AMX_TILE, 64);
                        AMX_MULTIPLY(0, 6, 4);
                    }
                    AMX_STORE(0, part);
                    UNROLLED_FOR (int r = 0; r < AMX_ROWS; r++)
                        sums[r] = v_fma(v_load(part + r * 16), v_set1(scales[j][r]), sums[r]);
                }
                add_amx(b, (const float *)sums, t, o, k > 0);
            }
            x += round_up(b->T, AMX_GROUP) / AMX_GROUP * blocks * 6 * AMX_TILE;
        }
    }
    restore_amx(&before);
}
#endif

/* ---- element by element ---- */

/* e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2: 1 + r + r^2 q(r). Within 1.5 ulp of the exact value between
   -87.3 and 88.3; 0 below -87.7 (the subnormal results are left out), infinity above 88.4. */
INLINE vf KERNEL(exp)(vf x) {
    x = v_maximum(v_set1(-88.02f), v_minimum(v_set1(89.0f), x)); /* a NaN passes through */
    vf n = v_round(v_mul(x, v_set1(1.44269504f)));
    vf r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf q = v_fma(v_set1(0.00138144671f), r, v_set1(0.00836878045f));
    q = v_fma(q, r, v_set1(0.0416683942f));
    q = v_fma(q, r, v_set1(0.166665201f));
    q = v_fma(q, r, v_set1(0.499999934f));
    return v_mul(v_add(v_fma(v_mul(r, r), q, r), v_set1(1.0f)), v_power(n));
}

/* gelu(x) = max(x, 0) - |x| h(|x|) e^(-x^2 / 2), where h(y) = erfc(y / sqrt 2) / 2 e^(y^2 / 2) is a polynomial of
   degree 9 in 1 / (1 + 0.26 y), 2.2e-8 off relative. */
INLINE vf KERNEL(gelu_value)(vf x) {
    const float c[] = {0.103761262f,  0.102980219f, 0.103285387f,  0.0500470549f, 0.163220259f,
                       -0.154206233f, 0.254317701f, -0.154189235f, 0.0307835742f};
    vf y = v_minimum(v_maximum(x, v_sub(v_zero(), x)), v_set1(13.2f));
    vf t = v_div(v_set1(1.0f), v_fma(y, v_set1(0.26f), v_set1(1.0f)));
    vf h = v_set1(c[8]);
    UNROLLED_FOR (int i = 7; i >= 0; i--) h = v_fma(h, t, v_set1(c[i]));
    vf tail = v_mul(v_mul(h, t), KERNEL(exp)(v_mul(v_mul(y, v_set1(-0.5f)), y)));
    return v_sub(v_maximum(v_zero(), x), v_mul(y, tail));
}

INLINE vf KERNEL(silu_value)(vf x) { return v_div(x, v_add(v_set1(1.0f), KERNEL(exp)(v_sub(v_zero(), x)))); }

TARGET static float KERNEL(softmax_block)(float *x, int64_t n, float scale, float *max, float *sum) {
    vf top = v_set1(-INFINITY), total = v_zero(), factor = v_set1(scale);
    for (int64_t i = 0; i < n; i += VL)
        top = v_maximum(top, v_mul(factor, LOAD_OR(x, x[i])));
    float old = *max;
    *max = fmaxf(old, KERNEL(largest)(top));
    vf shift = v_set1(-*max);
    for (int64_t i = 0; i < n; i += VL) {
        const vf e = KERNEL(exp)(v_add(v_mul(factor, LOAD_OR(x, -INFINITY)), shift));
        total = v_add(total, e);
        STORE(x, e);
    }
    float correction = *max > old ? expf(old - *max) : 1;
    *sum = correction * *sum + KERNEL(sum)(total);
    return correction;
}

TARGET static void KERNEL(add)(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) STORE(out, v_add(LOAD(out), LOAD(x)));
}

TARGET static void KERNEL(gelu)(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) STORE(out, KERNEL(gelu_value)(LOAD(x)));
}

TARGET static void KERNEL(silu)(float *out, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) STORE(out, v_mul(KERNEL(silu_value)(LOAD(out)), LOAD(up)));
}

TARGET static void KERNEL(norm)(float *out, const float *x, const float *weight, const float *bias, int64_t n,
                                float eps) {
    vf sum = v_zero(), square = v_zero();
    for (int64_t i = 0; i < n && bias != NULL; i += VL) sum = v_add(sum, LOAD(x));
    const float centre = KERNEL(sum)(sum) / (float)n;
    const vf mean = v_set1(centre);
    for (int64_t i = 0; i < n; i += VL) {
        vf y = v_sub(LOAD_OR(x, centre), mean);
        square = v_fma(y, y, square);
    }
    vf factor = v_set1((float)(1 / sqrt((double)KERNEL(sum)(square) / (double)n + eps)));
    for (int64_t i = 0; i < n; i += VL) {
        vf y = v_mul(v_mul(v_sub(LOAD(x), mean), factor), LOAD(weight));
        STORE(out, bias ? v_add(y, LOAD(bias)) : y);
    }
}

TARGET static void KERNEL(moments)(float *mean, float *squares, const float *x, int64_t count, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) {
        vf sum = v_zero(), square = v_zero();
        for (int64_t r = 0; r < count; r++) sum = v_add(sum, LOAD(x + r * n));
        vf middle = v_mul(sum, v_set1(1.0f / (float)count));
        for (int64_t r = 0; r < count; r++) {
            vf y = v_sub(LOAD(x + r * n), middle);
            square = v_fma(y, y, square);
        }
        STORE(mean, middle);
        STORE(squares, square);
    }
}

TARGET static void KERNEL(affine)(float *out, const float *x, const float *factor, const float *shift, int64_t count,
                                  int64_t n, int swish) {
    for (int64_t r = 0; r < count; r++, x += n, out += n)
        for (int64_t i = 0; i < n; i += VL) {
            vf y = v_fma(LOAD(x), LOAD(factor), LOAD(shift));
            STORE(out, swish ? KERNEL(silu_value)(y) : y);
        }
}

TARGET static void KERNEL(store_f16)(uint16_t *out, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) v_store_f16(out + i, v_load(x + i));
    store_f16_plain(out + i, x + i, n - i);
}

#define KERNEL_EXACT {.group = 1, .words = BLOCK, .multiply = KERNEL(multiply)}
#define KERNEL_LOOPS                                                                                                   \
    .expand = KERNEL(expand), .softmax_block = KERNEL(softmax_block), .add_rows = KERNEL(add_rows),                    \
    .transpose = KERNEL(transpose), .add = KERNEL(add), .gelu = KERNEL(gelu), .silu = KERNEL(silu),                    \
    .norm = KERNEL(norm), .moments = KERNEL(moments), .affine = KERNEL(affine), .store_f16 = KERNEL(store_f16)

static const Kernels KERNEL(kernels) = {
    .name = KERNEL_TEXT(KERNEL_NAME),
    .drafts = VL == 16 ? X_ROWS / 2 - 1 : 0,
    .exact[OTHER_WEIGHTS] = KERNEL_EXACT,
#ifdef vi
    .fast[BLOCK_WEIGHTS] = {.group = INT8_ROWS, .words = 10, .complete = true, .prepare = KERNEL(prepare_int8),
                            .multiply = KERNEL(multiply_int8)},
#endif
#ifdef v_store_bf16
    .fast[BF16_WEIGHTS] = {.group = 1, .words = BLOCK / 2, .complete = true, .if_pays = true,
                           .prepare = KERNEL(prepare_bf16), .multiply = KERNEL(multiply_bf16)},
#endif
    KERNEL_LOOPS,
};

#if KERNEL_PASS == PASS_AVX512BF16 && defined(HAVE_AMX_KERNELS)
#define AMX_METHOD(pieces, prepared, multiplied)                                                                       \
    {.group = AMX_GROUP, .words = (pieces) * BLOCK / 2, .complete = true, .prepare = prepared, .multiply = multiplied}
static const Kernels kernels_amx = {
    .name = "amx",
    .drafts = X_ROWS / 2 - 1,
    .exact = {[OTHER_WEIGHTS] = KERNEL_EXACT,
              [BF16_WEIGHTS] = AMX_METHOD(3, prepare_amx_pieces, multiply_amx_pieces),
              [BLOCK_WEIGHTS] = AMX_METHOD(3, prepare_amx_pieces, multiply_amx_blocks)},
    .fast = {[OTHER_WEIGHTS] = AMX_METHOD(1, prepare_amx_rounded, multiply_amx_rounded),
             [BF16_WEIGHTS] = AMX_METHOD(1, prepare_amx_rounded, multiply_amx_rounded),
             [BLOCK_WEIGHTS] = AMX_METHOD(1, prepare_amx_rounded, multiply_amx_rounded)},
    KERNEL_LOOPS,
};
#endif

/* What another set on the same processor defines otherwise. */
#undef KERNEL_NAME
#undef TARGET
#undef MM
#undef vf
#undef vb
#undef vi
#undef VL
#undef X_ROWS
#undef VALUE_VECTORS
#undef INT8_ROWS
#undef v_fma_pairs
#undef v_bits
#undef v_words
#undef v_widen
#undef v_from_f16
#undef v_store_bf16
#undef h_load
#undef h_store
#undef KERNEL_PASS

/* ------------------------------------------------------------------------------------------------ */
#else

#ifdef JANUS_EXTRA_KERNELS
#define KERNEL_PASS PASS_EXTRA
#define KERNEL_NAME extra
#include KERNEL_FILE
#endif

#ifdef HAVE_X86_KERNELS
#define KERNEL_PASS PASS_AVX2
#define KERNEL_NAME avx2
#include KERNEL_FILE
#define KERNEL_PASS PASS_AVX512
#define KERNEL_NAME avx512
#include KERNEL_FILE
#define KERNEL_PASS PASS_AVX512BF16
#define KERNEL_NAME avx512bf16
#include KERNEL_FILE
#endif

#ifdef HAVE_NEON_KERNELS
#define KERNEL_PASS PASS_NEON
#define KERNEL_NAME neon
#include KERNEL_FILE
#endif

#ifdef HAVE_SIMD128_KERNELS
#define KERNEL_PASS PASS_SIMD128
#define KERNEL_NAME simd128
#include KERNEL_FILE
#endif

#ifdef HAVE_X86_KERNELS
static bool has_bits(unsigned word, unsigned bits) { return (word & bits) == bits; }

#ifdef HAVE_AMX_KERNELS
#ifndef EMULATED_AMX
#define EMULATED_AMX 0 /* a test that emulates AMX says so */
#endif
/* The system gives a process the tiles only if it asks; what cpuid(7) and XCR0 report is checked before. */
static bool has_amx(unsigned features, unsigned saved) {
    enum { HAS_BF16 = 1 << 22, HAS_TILES = 1 << 24, SAVES_TILES = 3 << 17, REQUEST = 0x1023, TILE_DATA = 18 };
    return EMULATED_AMX || (has_bits(features, HAS_BF16 | HAS_TILES) && has_bits(saved, SAVES_TILES) &&
                            syscall(SYS_arch_prctl, (long)REQUEST, (long)TILE_DATA) == 0);
}
#else
#define has_amx(features, saved) ((void)(features), false)
#endif

/* 4 where the AMX kernels run, 3 AVX-512 with bf16, 2 AVX-512, 1 AVX2, 0 none: the processor has the instructions and
   the system saves their registers. __builtin_cpu_supports wants a table that not every compiler's library has (zig
   cc). */
static int processor_level(void) {
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    unsigned a, b, c, d, saved, features, leaves, more;
    if (!__get_cpuid(1, &a, &b, &features, &d) || !has_bits(features, bit_OSXSAVE | bit_AVX | bit_FMA)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (!has_bits(saved, 0x06) || !__get_cpuid_count(7, 0, &leaves, &b, &c, &more) || !has_bits(b, bit_AVX2)) return 0;
#if defined(__APPLE__)
    saved |= 0xe0; /* macOS saves these registers from a thread's first use on */
#endif
    if (!has_bits(saved, 0xe0) || !has_bits(b, avx512)) return 1;
    if (!has_bits(c, bit_AVX512VNNI) || leaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return 2;
    return !has_bits(a, bit_AVX512BF16) ? 2 : has_amx(more, saved) ? 4 : 3;
}
#else
static int processor_level(void) { return 0; }
#endif

/* True if pairs of bf16 are faster than floats. A rule by maker, not by measurement, so that a machine gives the same
   ids in every run. Speed-up (576 x 1024 x 4096, one thread): AMD Zen 4 and 5 1.77 to 1.93; Intel Xeon, models 143
   to 207, 0.62: VDPBF16PS has half the rate of f32 there. make bench measures both and reports where the rule is
   wrong. */
static bool pairs_pay(void) {
#ifdef HAVE_X86_KERNELS
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
#else
    return false;
#endif
}

/* The i-th table that this machine can run, best first; NULL after the last. */
static const Kernels *kernels_at(int i) {
    static const struct { const Kernels *kernels; int level; } TABLES[] = {
#ifdef HAVE_AMX_KERNELS
        {&kernels_amx, 4},
#endif
#ifdef HAVE_X86_KERNELS
        {&kernels_avx512bf16, 3}, {&kernels_avx512, 2}, {&kernels_avx2, 1},
#endif
#ifdef HAVE_NEON_KERNELS
        {&kernels_neon, 0},
#endif
#ifdef HAVE_SIMD128_KERNELS
        {&kernels_simd128, 0},
#endif
#ifdef JANUS_EXTRA_KERNELS
        {&kernels_extra, 0},
#endif
        {&kernels_plain, 0},
    };
    const int level = processor_level();
    for (int t = 0; t < (int)(sizeof TABLES / sizeof *TABLES); t++)
        if (TABLES[t].level <= level && i-- == 0) return TABLES[t].kernels;
    return NULL;
}

/* ==================================================================================================================
   15  Layers

      The model's building blocks, over the kernels and the pool. Activations are float rows, (T, I) with T tokens or
      pixels (an image is (H*W, channels)); weights are (O, I) rows of any type.
   ================================================================================================================== */

/* The state of a call, shared by all layers and stages. The first error is recorded in `error`; from then on every
   layer and stage returns at once, and the caller checks once, at the end. */
struct Context {
    Pool *pool;
    const Kernels *kernels;
    bool pairs_pay;
    JanusSessionOptions options; /* the caller's: callbacks, cache, fast */
    JanusError error;            /* status JANUS_OK: all is well */
    Arena arena;                 /* scratch memory of stages and layers */
    float *shared, *own;         /* that of the running layer: for all threads, and (threads, own_floats) */
    int64_t own_floats;
};

static bool has_failed(const Context *cx) { return cx->error.status != JANUS_OK; }

static JanusError *first_error(Context *cx) { return has_failed(cx) ? NULL : &cx->error; }

static void context_fail_memory(Context *cx) { fail_memory(first_error(cx)); }

static void context_take_error(Context *cx, JanusError *error) {
    *error = cx->error;
    cx->error.status = JANUS_OK;
}

/* Scratch memory of a stage; NULL after a failure. */
static void *scratch_bytes(Context *cx, int64_t count, size_t size) {
    void *memory = has_failed(cx) ? NULL : arena_allocate(&cx->arena, count, size);
    if (memory == NULL) context_fail_memory(cx);
    return memory;
}

static float *scratch(Context *cx, int64_t rows, int64_t cols) {
    return scratch_bytes(cx, checked_product(rows, cols, 1), sizeof(float));
}

static ArenaBlock *scratch_mark(const Context *cx) { return cx->arena.top; }

/* Takes back all that was allocated since `mark`. */
static void scratch_release(Context *cx, const ArenaBlock *mark) { arena_release(&cx->arena, mark); }

/* Ends a call of the public API: reports its error and resets the context for the next call. */
static JanusStatus context_end(Context *cx, JanusError *error) {
    const JanusStatus status = cx->error.status;
    if (status != JANUS_OK && error != NULL) *error = cx->error;
    arena_free(&cx->arena);
    cx->error.status = JANUS_OK;
    return status;
}

static void context_free(Context *cx) {
    arena_free(&cx->arena);
    pool_free(cx->pool);
    memset(cx, 0, sizeof *cx);
}

/* isa: the name of one of kernels_at; NULL: the best. -1: no memory, or no such instruction set here. */
static int context_init(Context *cx, int threads, const char *isa) {
    memset(cx, 0, sizeof *cx);
    for (int i = 0; cx->kernels == NULL && kernels_at(i) != NULL; i++)
        if (isa == NULL || strcmp(isa, kernels_at(i)->name) == 0) cx->kernels = kernels_at(i);
    if (cx->kernels == NULL) return -1;
    cx->pairs_pay = pairs_pay();
    cx->pool = pool_create(threads);
    return cx->pool != NULL ? 0 : -1;
}

/* A layer's scratch memory in floats, shared by all threads and for each thread, until the layer releases it. False
   after a failure. */
static bool reserve_scratch(Context *cx, int64_t shared, int64_t per_thread) {
    cx->own_floats = round_up(per_thread, 16) + 16;
    cx->shared = scratch(cx, shared, 1);
    cx->own = scratch(cx, cx->pool->threads, cx->own_floats);
    return !has_failed(cx);
}

static float *thread_scratch(const Context *cx, int thread) { return cx->own + thread * cx->own_floats; }

static void in_parallel(Context *cx, Job *job, void *data, int64_t count, int64_t grain) {
    if (!has_failed(cx)) pool_run(cx->pool, job, data, count, grain);
}

typedef struct {
    const Context *cx;
    LoneJob *job;
    void *data;
} Alone;

static void alone_job(void *data, Chunk chunk) {
    const Alone *alone = data;
    Pool one = {.threads = 1};
    Context own = {.pool = &one, .kernels = alone->cx->kernels, .options = alone->cx->options};
    for (int64_t i = chunk.begin; i < chunk.end; i++) alone->job(&own, alone->data, i);
    context_end(&own, NULL);
}

static void each_alone(Context *cx, LoneJob *job, void *data, int64_t count) {
    Alone alone = {cx, job, data};
    if (count == 1 && !has_failed(cx)) job(cx, data, 0);
    else in_parallel(cx, alone_job, &alone, count, 1);
}

/* ---- element by element ---- */

enum { ELEMENT_STEP = 16384 };

typedef struct {
    void (*kernel)(float *out, const float *x, int64_t n);
    float *out;
    const float *x;
} Elements;

static void element_job(void *data, Chunk chunk) {
    const Elements *e = data;
    e->kernel(e->out + chunk.begin, e->x + chunk.begin, chunk.end - chunk.begin);
}

static void each_element(Context *cx, void (*kernel)(float *out, const float *x, int64_t n), float *out, const float *x,
                         int64_t n) {
    Elements e = {kernel, out, x};
    in_parallel(cx, element_job, &e, n, ELEMENT_STEP);
}

static void gelu(Context *cx, float *x, int64_t n) { each_element(cx, cx->kernels->gelu, x, x, n); }
static void silu_mul(Context *cx, float *gate, const float *up, int64_t n) {
    each_element(cx, cx->kernels->silu, gate, up, n);
}
static void add(Context *cx, float *out, const float *x, int64_t n) { each_element(cx, cx->kernels->add, out, x, n); }

typedef struct {
    float *x;
    int64_t V;
    double temperature;
} SoftmaxRows;

static void softmax_row(Context *own, void *data, int64_t row) {
    const SoftmaxRows *s = data;
    scale_temperature(s->x + row * s->V, s->V, s->temperature);
    softmax(s->x + row * s->V, s->V);
    (void)own;
}

static void softmax_rows(Context *cx, float *x, int64_t rows, int64_t V, double temperature) {
    SoftmaxRows s = {x, V, temperature};
    if (!has_failed(cx)) each_alone(cx, softmax_row, &s, rows);
}

static void copy(const Context *cx, float *out, const float *x, int64_t n) {
    if (!has_failed(cx)) memcpy(out, x, (size_t)n * sizeof *x);
}

/* ---- products: linear layers and convolutions ----

   A convolution is a linear layer over gathered rows: row (oy, ox) of its input is the kernel x kernel x I window of
   the image around that pixel, which is never stored as one: it is gathered a panel at a time.

   Rows of x are prepared once for all of W, in chunks that stay in the second cache. A job is a chunk of rows by some
   columns of the output; of a convolution, all columns, and it prepares its own rows. */

enum { CHUNK_ROWS = 96, CHUNK_FLOATS = 98304 }; /* floats of x that stay in the cache while W streams through */

typedef struct {
    Context *cx;
    const Output *outputs; /* `count` of them, of weights of one type */
    int count;
    const float *x; /* (T, I), or the image if conv */
    int64_t T, I;
    const ConvShape *conv; /* NULL: a linear layer */
    const Method *method;
    int64_t rows, columns; /* of a job: rows of x, a multiple of the method's group, and columns of the output */
    int64_t chunks;        /* of all rows */
    int64_t panel;         /* panel_columns(I) */
} Product;

/* Words that prepared rows of n columns take. */
static int64_t prepared_words(const Product *p, int64_t rows, int64_t n) {
    return round_up(rows, p->method->group) * (round_up(n, BLOCK) / BLOCK) * p->method->words;
}

/* out (n) = columns [k, k + n) of one row of the input, gathered from the pixels of its window; zeros outside. */
static void gather_window(const Product *p, float *out, int64_t row, int64_t k, int64_t n) {
    const ConvShape *s = p->conv;
    const int64_t top = row / s->out_width * s->stride - s->pad, left = row % s->out_width * s->stride - s->pad;
    for (int64_t count; n > 0; k += count, n -= count, out += count) {
        const int64_t place = k / s->channels, channel = k % s->channels;
        const int64_t y = top + place / s->kernel, x = left + place % s->kernel;
        const bool inside = y >= 0 && x >= 0 && y < s->height << s->upsample && x < s->width << s->upsample;
        const float *pixel = p->x + ((y >> s->upsample) * s->width + (x >> s->upsample)) * s->channels;
        count = min_i64(n, s->channels - channel);
        if (inside) memcpy(out, pixel + channel, (size_t)count * sizeof *out);
        else memset(out, 0, (size_t)count * sizeof *out);
    }
}

/* Prepares columns [k, k + n) of `count` rows from `row` on, complete groups but for the last rows of all; `room` for
   (group, PANEL) floats if the method does not take floats as they are. */
static void prepare_rows(const Product *p, float *out, int64_t row, int64_t count, int64_t k, int64_t n, float *room) {
    const Method *m = p->method;
    const int64_t padded = round_up(n, BLOCK);
    for (int64_t r = 0; r < count; r += m->group, out += padded / BLOCK * m->group * m->words) {
        const float *rows[GROUP_LIMIT];
        for (int64_t i = 0; i < m->group; i++) {
            float *to = (m->prepare == NULL ? out : room) + i * padded;
            const int64_t filled = r + i < count ? n : 0; /* rows of zeros complete a group */
            if (filled > 0 && p->conv != NULL) gather_window(p, to, row + r + i, k, n);
            else memcpy(to, p->x + (row + r + i) * p->I + k, (size_t)filled * sizeof *to);
            memset(to + filled, 0, (size_t)(padded - filled) * sizeof *to);
            rows[i] = to;
        }
        if (m->prepare != NULL) m->prepare(out, rows, padded);
    }
}

/* Prepares all rows of a linear layer, a group of each chunk's panels at a time. */
static void prepare_job(void *data, Chunk chunk) {
    const Product *p = data;
    const int64_t group = p->method->group;
    for (int64_t row = chunk.begin * group; row < chunk.end * group; row += group) {
        const int64_t first = row / p->rows * p->rows, rows = min_i64(p->rows, p->T - first);
        float *prepared = p->cx->shared + prepared_words(p, first, p->I);
        for (int64_t k = 0; k < p->I; k += p->panel) {
            const int64_t n = min_i64(p->panel, p->I - k);
            float *out = prepared + prepared_words(p, rows, k) + prepared_words(p, row - first, n);
            prepare_rows(p, out, row, min_i64(group, p->T - row), k, n, thread_scratch(p->cx, chunk.thread));
        }
    }
}

/* A chunk of rows by columns [first, last) of one output. Where x is small, W's rows are read from end to end; else a
   panel of all of them at a time, so that the chunk's panel stays in the cache. */
static void product_block(const Product *p, int thread, const Output *to, int64_t row, int64_t first, int64_t last) {
    const Weight *w = to->weight;
    const int64_t rows = min_i64(p->rows, p->T - row);
    const int64_t step = p->conv == NULL && rows * p->I <= CHUNK_FLOATS ? p->I : p->panel;
    Block b = {.out = to->out + row * w->rows, .bias = to->bias, .T = rows, .out_stride = w->rows, .n = p->I,
               .first = first, .last = last, .w = {w->type, w->data, type_row_bytes(w->type, p->I)}};
    for (b.begin = 0; b.begin < p->I; b.begin = b.end) {
        b.end = min_i64(p->I, b.begin + step);
        float *own = thread_scratch(p->cx, thread);
        if (p->conv != NULL)
            prepare_rows(p, own, row, rows, b.begin, b.end - b.begin, own + prepared_words(p, rows, PANEL));
        const int64_t at = prepared_words(p, row, p->I) + prepared_words(p, rows, b.begin);
        b.x = p->conv != NULL ? own : p->cx->shared + at;
        p->method->multiply(&b);
    }
}

static void product_job(void *data, Chunk chunk) {
    const Product *p = data;
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
        const Output *to = p->outputs;
        int64_t first = i / p->chunks * p->columns;
        for (; first >= round_up(to->weight->rows, p->columns); to++) first -= round_up(to->weight->rows, p->columns);
        const int64_t last = min_i64(to->weight->rows, first + p->columns), row = i % p->chunks * p->rows;
        product_block(p, chunk.thread, to, row, first, last);
    }
}

static void run_product(Product *p) {
    enum { JOB_BYTES = 65536 };
    const int64_t group = p->method->group, threads = p->cx->pool->threads, room = group * PANEL;
    int64_t O = 0, jobs = 0;
    p->panel = panel_columns(p->I);
    for (int i = 0; i < p->count; i++) O += p->outputs[i].weight->rows;
    p->rows = min_i64(round_up(CHUNK_ROWS, group), round_up(p->T, group));
    p->chunks = (p->T + p->rows - 1) / p->rows;
    /* some 64 KiB of weights a job, of many rows 128 columns; less where a thread would have only a few jobs */
    const int64_t row_bytes = type_row_bytes(p->outputs[0].weight->type, p->I);
    const int64_t bytes = min_i64(JOB_BYTES, max_i64(4096, O * row_bytes / (8 * threads)));
    const int64_t fair = max_i64(32, O * p->chunks / (8 * threads));
    const int64_t columns = p->T > GROUP_LIMIT ? min_i64(128, fair) : bytes / row_bytes;
    p->columns = p->conv != NULL ? O : round_up(max_i64(1, columns), GROUP_LIMIT);
    for (int i = 0; i < p->count; i++)
        jobs += round_up(p->outputs[i].weight->rows, p->columns) / p->columns * p->chunks;
    const int64_t shared = p->conv != NULL ? 0 : prepared_words(p, p->T, p->I);
    const ArenaBlock *mark = scratch_mark(p->cx);
    if (!reserve_scratch(p->cx, shared, room + (p->conv != NULL ? prepared_words(p, p->rows, PANEL) : 0))) return;
    if (p->conv == NULL)
        in_parallel(p->cx, prepare_job, p, (p->T + group - 1) / group, max_i64(1, ELEMENT_STEP / (group * p->I)));
    in_parallel(p->cx, product_job, p, jobs, 1);
    scratch_release(p->cx, mark);
}

static const Method *choose_method(const Context *cx, int type, int64_t I) {
    const Kernels *k = cx->kernels;
    const int class = type == TYPE_BF16 ? BF16_WEIGHTS : block_elements(type) == BLOCK ? BLOCK_WEIGHTS : OTHER_WEIGHTS;
    const Method *choices[] = {&k->fast[class], &k->exact[class]};
    for (int i = cx->options.fast ? 0 : 1; i < 2; i++) {
        const Method *m = choices[i];
        if (m->multiply != NULL && !(m->complete && I % BLOCK != 0) && (cx->pairs_pay || !m->if_pays)) return m;
    }
    return &k->exact[OTHER_WEIGHTS];
}

static void linears(Context *cx, const Output *outputs, int count, const float *x, int64_t T) {
    enum { MOST_ROWS = 1024 }; /* bounds the scratch */
    const Weight *first = outputs[0].weight;
    for (int i = 1; i < count; i++)
        if (outputs[i].weight->type != first->type) { /* x may have to be prepared otherwise */
            linears(cx, outputs, i, x, T);
            linears(cx, outputs + i, count - i, x, T);
            return;
        }
    for (int64_t t = 0; t < T && !has_failed(cx); t += MOST_ROWS) {
        Output part[4];
        for (int i = 0; i < count; i++) {
            part[i] = outputs[i];
            part[i].out += t * outputs[i].weight->rows;
        }
        Product p = {.cx = cx, .outputs = part, .count = count, .x = x + t * first->cols, .I = first->cols,
                     .T = min_i64(MOST_ROWS, T - t), .method = choose_method(cx, first->type, first->cols)};
        run_product(&p);
    }
}

static void linear(Context *cx, float *out, const float *x, const Weight *w, const float *bias, int64_t T) {
    const Output one = {.out = out, .weight = w, .bias = bias};
    linears(cx, &one, 1, x, T);
}

static void conv2d(Context *cx, float *out, const float *x, const Weight *w, const float *bias,
                   const ConvShape *shape) {
    const Output one = {.out = out, .weight = w, .bias = bias};
    Product p = {.cx = cx, .outputs = &one, .count = 1, .x = x, .T = shape->out_height * shape->out_width, .I = w->cols,
                 .conv = shape, .method = choose_method(cx, w->type, w->cols)};
    if (!has_failed(cx)) run_product(&p);
}

static void apply(Context *cx, float *out, const float *x, const Linear *layer, int64_t T) {
    linear(cx, out, x, &layer->weight, layer->bias, T);
}

/* ---- attention ----

   out_t = sum over s of softmax_s(scale q_t . k_s) v_s, over the keys that query t sees, without the (T, S) matrix:
   keys come in blocks, and the running maximum and sum of each query's softmax rescale what was added before
   (Milakov and Gimelshein 2018, Dao et al. 2022). H query heads share G key heads. The
   result of a query does not depend on the queries beside it: a key that it does not see adds 0. */

typedef struct { /* keys and values of consecutive positions, (count, d) for each of G heads */
    const void *k, *v;
    bool in_blocks;                     /* keys lie as in KvCache */
    int type;                           /* TYPE_F32 or TYPE_F16 */
    int64_t count, stride, head_stride; /* elements from one position to the next, from one head to the next */
} KeyValue;

typedef struct {
    int64_t T, H, G, d; /* queries, heads, key heads, width of a head */
    int64_t q_stride, out_stride;
    int causal; /* query t is position S - T + t and sees no later one; 0: all see all */
    float scale;
} AttentionShape;

typedef struct { /* the queries of one sequence, and what they look at: one span after the other */
    float *out;     /* (T, H*d), out_stride */
    const float *q; /* (T, H*d), q_stride */
    KeyValue spans[2];
    int span_count;
} AttentionSequence;

enum { KEY_STEP = 128, QUERY_STEP = 96 };

typedef struct {
    Context *cx;
    const AttentionSequence *sequences;
    AttentionShape shape;
    int64_t width; /* of a head, rounded up to complete BLOCKs */
} Attention;

typedef struct { /* T queries of one head, and a thread's scratch for them */
    int64_t T;
    const float *q;                /* (T, d), q_stride */
    float *keys, *scores;          /* KEY_STEP keys in blocks, (T, KEY_STEP) */
    float *out, *max, *sum, *keep; /* (T, width), (T), (T), (T) */
} QueryBlock;

/* Adds n keys, in blocks, to the running softmax of the queries; query t sees visible + t of them. */
static void attend_block(const Attention *a, const QueryBlock *b, Rows k, Rows v, int64_t n, int64_t visible) {
    const Kernels *kernels = a->cx->kernels;
    const int64_t d = a->shape.d;
    for (int64_t s = 0; s < n; s += KEY_BLOCK, k.data += d * k.stride)
        kernels->add_rows(b->scores + s, KEY_STEP, NULL, b->q, a->shape.q_stride, b->T, k, d, KEY_BLOCK);
    for (int64_t t = 0; t < b->T; t++) {
        float *row = b->scores + t * KEY_STEP;
        for (int64_t s = max_i64(0, visible + t); s < n; s++) row[s] = -INFINITY;
        b->keep[t] = kernels->softmax_block(row, n, a->shape.scale, &b->max[t], &b->sum[t]);
    }
    kernels->add_rows(b->out, a->width, b->keep, b->scores, KEY_STEP, b->T, v, n, d);
}

static void attend(const Attention *a, int thread, const AttentionSequence *sequence, int64_t head, int64_t first,
                   int64_t T) {
    const AttentionShape *s = &a->shape;
    const float *q = sequence->q + first * s->q_stride + head * s->d;
    float *keys = thread_scratch(a->cx, thread), *scores = keys + KEY_STEP * s->d, *sums = scores + T * KEY_STEP;
    const QueryBlock b = {T, q, keys, scores, sums + 3 * T, sums, sums + T, sums + 2 * T};
    int64_t position = 0, S = 0;
    memset(sums, 0, (size_t)(T * (3 + a->width)) * sizeof *sums);
    for (int64_t t = 0; t < T; t++) b.max[t] = -INFINITY;
    for (int i = 0; i < sequence->span_count; i++) S += sequence->spans[i].count;
    /* positions before the first query; positions seen by the last one */
    const int64_t before = S - s->T + first, last = s->causal ? before + T : S;
    for (int i = 0; i < sequence->span_count; i++) {
        const KeyValue *span = &sequence->spans[i];
        const int64_t bytes = block_bytes(span->type), offset = head / (s->H / s->G) * span->head_stride;
        const int64_t count = min_i64(span->count, last - position);
        for (int64_t key = 0; key < count; key += KEY_STEP) {
            const int64_t n = min_i64(KEY_STEP, count - key), skip = (key * span->stride + offset) * bytes;
            const Rows v = {span->type, (const char *)span->v + skip, span->stride * bytes};
            Rows k = {span->type, (const char *)span->k + skip, KEY_BLOCK * bytes};
            if (!span->in_blocks) {
                const float *rows = (const float *)(const void *)k.data;
                for (int64_t j = 0; j < n; j += KEY_BLOCK)
                    a->cx->kernels->transpose(keys + j * s->d, KEY_BLOCK, rows + j * span->stride, span->stride,
                                              min_i64(KEY_BLOCK, n - j), s->d);
                k.data = (const char *)keys;
            }
            attend_block(a, &b, k, v, n, s->causal ? before + 1 - position - key : n);
        }
        position += span->count;
    }
    for (int64_t t = 0; t < T; t++) {
        float *out = sequence->out + (first + t) * s->out_stride + head * s->d;
        const float factor = 1 / b.sum[t];
        for (int64_t i = 0; i < s->d; i++) out[i] = b.out[t * a->width + i] * factor;
    }
}

static void attention_job(void *data, Chunk chunk) {
    const Attention *a = data;
    const int64_t T = a->shape.T, blocks = (T + QUERY_STEP - 1) / QUERY_STEP, jobs = a->shape.H * blocks;
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
        const int64_t first = i % blocks * QUERY_STEP;
        attend(a, chunk.thread, &a->sequences[i / jobs], i % jobs / blocks, first, min_i64(QUERY_STEP, T - first));
    }
}

/* Attention of R sequences of one shape, each to its own keys and values. */
static void attention(Context *cx, const AttentionSequence *sequences, int64_t R, const AttentionShape *shape) {
    Attention a = {cx, sequences, *shape, round_up(shape->d, BLOCK)};
    const int64_t T = min_i64(QUERY_STEP, shape->T), blocks = (shape->T + QUERY_STEP - 1) / QUERY_STEP;
    const ArenaBlock *mark = scratch_mark(cx);
    if (!reserve_scratch(cx, 0, KEY_STEP * shape->d + T * (KEY_STEP + 3 + a.width))) return;
    in_parallel(cx, attention_job, &a, R * shape->H * blocks, 1);
    scratch_release(cx, mark);
}

static void full_attention(Context *cx, float *out, const float *q, const float *k, const float *v, int64_t T,
                           int64_t heads, int64_t d, int64_t stride) {
    const AttentionSequence all = {out, q, {{k, v, false, TYPE_F32, T, stride, d}}, 1};
    const AttentionShape shape = {.T = T, .H = heads, .G = heads, .d = d, .q_stride = stride, .out_stride = heads * d,
                                  .scale = 1.0f / sqrtf((float)d)};
    attention(cx, &all, 1, &shape);
}

/* ---- norms, and the size of results ---- */

enum { MOMENT_ROWS = 64 };

typedef struct {
    const float *x;
    uint32_t limit; /* bits of a positive float */
    bool exceeded[MOST_THREADS];
} Magnitude;

static void magnitude_job(void *data, Chunk chunk) {
    Magnitude *m = data;
    /* Without its sign, a float's bits grow with its magnitude; infinity and NaN are the largest. A number beyond the
       limit sets the top bit of the difference. Sixteen accumulators, so that the loop vectorises. */
    uint32_t over[16] = {0}, any = 0;
    int64_t i = chunk.begin;
    for (; i + 16 <= chunk.end; i += 16)
        for (int j = 0; j < 16; j++) over[j] |= m->limit - 1 - (float_bits(m->x[i + j]) & 0x7FFFFFFFu);
    for (; i < chunk.end; i++) any |= m->limit - 1 - (float_bits(m->x[i]) & 0x7FFFFFFFu);
    for (int j = 0; j < 16; j++) any |= over[j];
    if (any >> 31) m->exceeded[chunk.thread] = true;
}

/* True if all of x (n) are smaller in magnitude than `limit`; with INFINITY: if all are finite. */
static bool all_below(Context *cx, const float *x, int64_t n, float limit) {
    Magnitude m = {.x = x, .limit = float_bits(limit)};
    bool below = true;
    in_parallel(cx, magnitude_job, &m, n, ELEMENT_STEP);
    for (int i = 0; i < cx->pool->threads; i++) below = below && !m.exceeded[i];
    return below;
}

typedef struct { /* rows of x (T, D) */
    const Kernels *kernels;
    float *out;
    const float *x, *weight, *bias;
    int64_t D;
    float eps;
} RowNorm;

static void norm_job(void *data, Chunk chunk) {
    const RowNorm *n = data;
    for (int64_t t = chunk.begin; t < chunk.end; t++)
        n->kernels->norm(n->out + t * n->D, n->x + t * n->D, n->weight, n->bias, n->D, n->eps);
}

static void rms_norm(Context *cx, float *out, const float *x, const float *weight, int64_t T, int64_t D, float eps) {
    RowNorm n = {cx->kernels, out, x, weight, NULL, D, eps};
    in_parallel(cx, norm_job, &n, T, max_i64(1, ELEMENT_STEP / D));
}

static void layer_norm(Context *cx, float *out, const float *x, const Norm *norm, int64_t T, int64_t D, float eps) {
    RowNorm n = {cx->kernels, out, x, norm->weight, norm->bias, D, eps};
    in_parallel(cx, norm_job, &n, T, max_i64(1, ELEMENT_STEP / D));
}

typedef struct { /* x (rows, channels) */
    const Kernels *kernels;
    float *out;
    const float *x, *weight, *bias;
    int64_t rows, channels;
    float eps;
    int swish;
    float *means, *squares; /* (chunks, channels): of MOMENT_ROWS rows each; squares: summed squared differences */
    float *factor, *shift;  /* (channels): out = x * factor + shift */
} GroupNorm;

static void moments_job(void *data, Chunk chunk) {
    const GroupNorm *g = data;
    for (int64_t i = chunk.begin; i < chunk.end; i++)
        g->kernels->moments(g->means + i * g->channels, g->squares + i * g->channels,
                            g->x + i * MOMENT_ROWS * g->channels, min_i64(MOMENT_ROWS, g->rows - i * MOMENT_ROWS),
                            g->channels);
}

static void affine_job(void *data, Chunk chunk) {
    const GroupNorm *g = data;
    const int64_t first = chunk.begin * g->channels;
    g->kernels->affine(g->out + first, g->x + first, g->factor, g->shift, chunk.end - chunk.begin, g->channels,
                       g->swish);
}

/* Joins the moments of all chunks of channels [begin, end), one group (Chan's formula), into their factor and shift. */
static void group_affine(const GroupNorm *g, int64_t begin, int64_t end) {
    double count = 0, mean = 0, squares = 0;
    for (int64_t row = 0, i = 0; row < g->rows; row += MOMENT_ROWS, i += g->channels)
        for (int64_t c = begin; c < end; c++) {
            double more = (double)min_i64(MOMENT_ROWS, g->rows - row), gap = g->means[i + c] - mean;
            squares += g->squares[i + c] + gap * gap * count * more / (count + more);
            mean += gap * more / (count + more);
            count += more;
        }
    double inverse = 1 / sqrt(squares / count + g->eps);
    for (int64_t c = begin; c < end; c++) {
        g->factor[c] = (float)(inverse * g->weight[c]);
        g->shift[c] = (float)(g->bias[c] - mean * inverse * g->weight[c]);
    }
}

/* Mean and variance are over all rows of a group of channels. */
static void group_norm(Context *cx, float *out, const float *x, const Norm *norm, int64_t rows, int64_t channels,
                       int groups, float eps, int swish) {
    const int64_t chunks = (rows + MOMENT_ROWS - 1) / MOMENT_ROWS, width = channels / groups;
    const ArenaBlock *mark = scratch_mark(cx);
    if (!reserve_scratch(cx, (2 * chunks + 2) * channels, 0)) return;
    float *means = cx->shared, *squares = means + chunks * channels, *factor = squares + chunks * channels;
    GroupNorm g = {cx->kernels, out, x, norm->weight, norm->bias, rows, channels, eps, swish, means, squares, factor,
                   factor + channels};
    in_parallel(cx, moments_job, &g, chunks, 4);
    for (int64_t c = 0; c < channels; c += width) group_affine(&g, c, c + width);
    in_parallel(cx, affine_job, &g, rows, max_i64(1, ELEMENT_STEP / channels));
    scratch_release(cx, mark);
}

/* ---- callbacks, and the checks of results ---- */

static bool is_tapped(const Context *cx) { return cx->options.tap != NULL; }

/* Both callbacks may cancel. */
static void progress(Context *cx, const char *task, int64_t done, int64_t total) {
    const JanusSessionOptions *o = &cx->options;
    if (!has_failed(cx) && o->progress != NULL && o->progress(o->user, task, done, total) != 0)
        context_fail(cx, JANUS_CANCELLED, "stopped on request while working on: %s", task);
}
static void tell_drawn(Context *cx, const int32_t *ids, int64_t N, int64_t done, int64_t T) {
    const JanusSessionOptions *o = &cx->options;
    if (!has_failed(cx) && o->drawn != NULL && o->drawn(o->user, ids, (int)N, done, T) != 0)
        context_fail(cx, JANUS_CANCELLED, "stopped on request while working on: draw");
}

/* Hands a named tensor of shape (a), (a, b) or (a, b, c) to the caller; unused sizes are 0. */
static void hand_over(Context *cx, const char *name, JanusElement type, const void *data, int64_t a, int64_t b,
                      int64_t c) {
    const int64_t shape[] = {a, b, c};
    if (!has_failed(cx) && cx->options.tap != NULL)
        cx->options.tap(cx->options.user, name, type, data, shape, c > 0 ? 3 : b > 0 ? 2 : 1);
}

/* name.i, or name if i < 0 */
static const char *block_name(char out[NAME_LIMIT], const char *name, int i) {
    if (i < 0) snprintf(out, NAME_LIMIT, "%s", name);
    else snprintf(out, NAME_LIMIT, "%s.%d", name, i);
    return out;
}

static void tap_sequences(Context *cx, const char *name, int i, const float *x, int64_t R, int64_t T, int64_t width,
                          bool tapped) {
    char full[NAME_LIMIT + 8] = "uncond.", *own = full + strlen(full);
    check_finite(cx, block_name(own, name, i), x, R * T * width);
    for (int64_t r = 0; tapped && r < R && r < 2 && !has_failed(cx); r++)
        hand_over(cx, r == 0 ? own : full, JANUS_FLOAT32, x + r * T * width, T, width, 0);
}

static void tap_ids(Context *cx, const char *name, const int32_t *ids, int64_t a, int64_t b) {
    hand_over(cx, name, JANUS_INT32, ids, a, b, 0);
}

static void tap_pixels(Context *cx, const uint8_t *rgb, int64_t side) {
    const int64_t count = side * side * 3;
    const ArenaBlock *mark = scratch_mark(cx);
    if (!is_tapped(cx)) return;
    int32_t *bytes = scratch_bytes(cx, count, sizeof *bytes);
    for (int64_t i = 0; i < count && !has_failed(cx); i++) bytes[i] = rgb[i];
    hand_over(cx, "image.pixels", JANUS_INT32, bytes, side, side, 3);
    scratch_release(cx, mark);
}

/* Fails if the result x (count) of the stage `name` is not finite. */
static void check_finite(Context *cx, const char *name, const float *x, int64_t count) {
    if (!has_failed(cx) && !all_below(cx, x, count, INFINITY))
        context_fail(cx, JANUS_BAD_MODEL,
                     "the numbers of %s are not finite: the model's weights are damaged or too large", name);
}

/* The end of a stage: its result (a, b, c) is checked, and reported to the tap callback if there is one. */
static void tap(Context *cx, const char *name, const float *data, int64_t a, int64_t b, int64_t c) {
    check_finite(cx, name, data, a * (b > 0 ? b : 1) * (c > 0 ? c : 1));
    hand_over(cx, name, JANUS_FLOAT32, data, a, b, c);
}

/* The type of the elements of key/value caches. */
static int kv_type(const Context *cx) { return cx->options.cache == JANUS_CACHE_F16 ? TYPE_F16 : TYPE_F32; }

/* ---- keys and values of the transformer ---- */

static void kv_cache_free(KvCache *cache) {
    for (int i = 0; i < 2 * cache->layers && cache->keys != NULL; i++) free_aligned(cache->keys[i]);
    free(cache->keys);
    memset(cache, 0, sizeof *cache);
}

/* Makes room for `length` positions. The content is kept, even on failure. */
static void kv_cache_reserve(Context *cx, KvCache *cache, const Config *c, int64_t length) {
    if (has_failed(cx) || length <= cache->capacity) return;
    if (cache->keys == NULL) {
        cache->layers = c->layers;
        cache->type = kv_type(cx);
        cache->keys = calloc(2 * (size_t)c->layers, sizeof *cache->keys); /* and the values behind them */
        if (cache->keys == NULL) context_fail_memory(cx);
        if (has_failed(cx)) return;
        cache->values = cache->keys + c->layers;
    }
    const int64_t capacity = round_up(max_i64(length, cache->capacity + cache->capacity / 2), KEY_BLOCK);
    const int64_t row_bytes = type_row_bytes(cache->type, c->head_dim),
                  bytes = checked_product(capacity, c->kv_heads, row_bytes);
    for (int i = 0; i < 2 * c->layers; i++) {
        void *grown = allocate_aligned(bytes);
        if (grown == NULL) {
            context_fail_memory(cx);
            return;
        }
        if (cache->capacity > 0) memcpy(grown, cache->keys[i], (size_t)(cache->capacity * c->kv_heads * row_bytes));
        free_aligned(cache->keys[i]);
        cache->keys[i] = grown;
    }
    for (int i = 0; i < 2 * c->layers; i++) /* spread the heads over the new capacity, last first */
        for (int64_t head = c->kv_heads - 1; head > 0; head--)
            memmove((char *)cache->keys[i] + head * capacity * row_bytes,
                    (char *)cache->keys[i] + head * cache->capacity * row_bytes,
                    (size_t)(round_up(cache->length, KEY_BLOCK) * row_bytes));
    cache->capacity = capacity;
}

/* A key head of a sequence at a time: the queries that it serves and its keys are rotated, keys and values are
   cached. */
typedef struct {
    const Config *config;
    const Kernels *kernels;
    Sequence *const *sequences;
    int64_t T;
    int layer;
    float *q, *k;
    const float *v, *cosines, *sines;
} RotateAndCache;

/* Writes a head's T keys, `stride` apart, after those that the cache has: into blocks of KEY_BLOCK positions. */
static void cache_keys(const RotateAndCache *job, const KvCache *cache, int64_t head, const float *x, int64_t stride) {
    const int64_t d = job->config->head_dim, first = head * cache->capacity * d, end = cache->length + job->T;
    for (int64_t p = cache->length, count; p < end; p += count, x += count * stride) {
        const int64_t in_block = p % KEY_BLOCK, at = first + (p - in_block) * d + in_block;
        count = min_i64(KEY_BLOCK - in_block, end - p);
        if (cache->type == TYPE_F32) {
            job->kernels->transpose((float *)cache->keys[job->layer] + at, KEY_BLOCK, x, stride, count, d);
            continue;
        }
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = 0; i < d; i++)
                write_u16((uint16_t *)cache->keys[job->layer] + at + i * KEY_BLOCK + t, f32_to_f16(x[t * stride + i]));
    }
}

static void cache_values(const RotateAndCache *job, const KvCache *cache, int64_t head, const float *x,
                         int64_t stride) {
    const int64_t d = job->config->head_dim, first = (head * cache->capacity + cache->length) * d;
    for (int64_t t = 0; t < job->T; t++) {
        if (cache->type == TYPE_F16)
            job->kernels->store_f16((uint16_t *)cache->values[job->layer] + first + t * d, x + t * stride, d);
        else memcpy((float *)cache->values[job->layer] + first + t * d, x + t * stride, (size_t)d * sizeof *x);
    }
}

static void rotate_and_cache_job(void *data, Chunk chunk) {
    const RotateAndCache *job = data;
    const Config *c = job->config;
    const int d = c->head_dim, group = c->heads / c->kv_heads;
    const int64_t T = job->T, q_width = (int64_t)c->heads * d, kv_width = (int64_t)c->kv_heads * d;
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
        const int64_t r = i / c->kv_heads, head = i % c->kv_heads;
        const KvCache *cache = &job->sequences[r]->own;
        const float *cosines = job->cosines + r * T * (d / 2), *sines = job->sines + r * T * (d / 2);
        float *q = job->q + r * T * q_width + head * group * d, *k = job->k + r * T * kv_width + head * d;
        for (int g = 0; g < group; g++) rope(q + g * d, q_width, T, d, cosines, sines);
        rope(k, kv_width, T, d, cosines, sines);
        cache_keys(job, cache, head, k, kv_width);
        cache_values(job, cache, head, job->v + r * T * kv_width + head * d, kv_width);
    }
}

/* Fails if keys or values (n) of a block are not finite, or too large for a cache of float16: a weight of zero may hide
   an infinite key later, so it must be caught here. */
static void check_keys(Context *cx, int layer, const float *k, const float *v, int64_t n) {
    const float limit = kv_type(cx) == TYPE_F16 ? 65520.0f : INFINITY; /* from 65520 on, float16 rounds to infinity */
    if (all_below(cx, k, n, limit) && all_below(cx, v, n, limit)) return;
    char name[NAME_LIMIT];
    block_name(name, "transformer.block", layer);
    check_finite(cx, name, k, n);
    check_finite(cx, name, v, n);
    context_fail(cx, JANUS_BAD_MODEL, "keys or values of transformer.block.%d are too large for float16: keep them in "
                 "float32 (--kv f32, JANUS_CACHE_F32)", layer);
}

static void rotate_and_cache(Context *cx, const Config *c, Sequence *const *sequences, int64_t R, int64_t T, int layer,
                             float *q, float *k, const float *v, const float *cosines, const float *sines) {
    RotateAndCache job = {c, cx->kernels, sequences, T, layer, q, k, v, cosines, sines};
    if (has_failed(cx)) return;
    in_parallel(cx, rotate_and_cache_job, &job, R * c->kv_heads, 1);
    check_keys(cx, layer, k, v, R * T * c->kv_heads * c->head_dim);
}

static KeyValue cached(const KvCache *cache, const Config *c, int layer, int64_t count) {
    const KeyValue span = {cache->keys[layer], cache->values[layer], true, cache->type, count, c->head_dim,
                           cache->capacity * c->head_dim};
    return span;
}

static void cached_attention(Context *cx, const Config *c, Sequence *const *sequences, int64_t R, int64_t T, int layer,
                             const float *q, float *out) {
    const int64_t width = (int64_t)c->heads * c->head_dim;
    const ArenaBlock *mark = scratch_mark(cx);
    AttentionSequence *attended = scratch_bytes(cx, R, sizeof *attended);
    const AttentionShape shape = {.T = T, .H = c->heads, .G = c->kv_heads, .d = c->head_dim, .q_stride = width,
                                  .out_stride = width, .causal = 1, .scale = 1.0f / sqrtf((float)c->head_dim)};
    if (has_failed(cx)) return;
    for (int64_t r = 0; r < R; r++) {
        AttentionSequence *to = &attended[r];
        const Sequence *sequence = sequences[r];
        to->out = out + r * T * width;
        to->q = q + r * T * width;
        to->span_count = 0;
        if (sequence->shared != NULL)
            to->spans[to->span_count++] = cached(sequence->shared, c, layer, sequence->shared->length);
        to->spans[to->span_count++] = cached(&sequence->own, c, layer, sequence->own.length + T);
    }
    attention(cx, attended, R, &shape);
    scratch_release(cx, mark);
}

/* With n drafts a pass has 2n + 2 rows and costs more, but fewer are needed: 1.61 times fewer with 2, 3.09 with 15 (the
   small model's pictures). That pays where reading the weights is the cost: not in caches, not for blocks, which take
   time to expand, and not for several pictures, whose rows fill a pass already. A rule by
   kernels, not by measurement; a pass of 1B in bf16 beside that of 2 rows (AMD Zen 4, one thread; `make bench`):
     AVX-512           6 rows 1.35, 8 rows 1.72; --fast 1.05 and 1.26        2 drafts, a block of X_ROWS
     AVX2              4 rows 1.47, 6 rows 1.87                              none
     AMX, bf16 weights 32 rows 1.05 to 1.15 (product alone)                  15 drafts, two tiles of rows */
static int drafts_that_pay(const Context *cx, const JanusModel *m, const JanusGenerateOptions *options) {
    enum { BEYOND_CACHES = 1 << 26 /* weights of all gates */, TILE_DRAFTS = 15 };
    const Weight *w = &m->blocks[0].gate;
    const bool is_small = m->config.layers * w->rows * w->cols < BEYOND_CACHES;
    if (is_tapped(cx)) return 0;
    if (options->drafts != JANUS_DRAFTS_AUTO) return options->drafts;
    if (options->count > 1 || is_small || block_elements(w->type) > 1) return 0;
    return choose_method(cx, w->type, w->cols)->group > 1 ? TILE_DRAFTS : cx->kernels->drafts;
}

/* ******************************************************************************************************************
   PART III  THE FILES
   ****************************************************************************************************************** */

/* ==================================================================================================================
   16  Text: between text and token ids stands a byte-level byte-pair encoding (BPE), that of DeepSeek's tokenizer.json.

          Hi<|User|>: 42                    the text, UTF-8
          Hi | <|User|> | : 42              1. added tokens are cut out; they are ids already
          Hi |          | : | _ | 4 | 2     2. the pre-tokenizer cuts the rest into pieces; no token spans two of them
          H i                               3. inside a piece every byte is a token
          Hi                                4. of all neighbours that are a merge, those of the lowest rank (training
                                               found rank 0 first; the leftmost on ties) become one token; again and
                                               again until no neighbours are a merge

      A word that is not in the vocabulary falls apart into smaller tokens, at worst into bytes: nothing is unknown.
      Decoding puts the tokens' bytes one after the other. A character of several bytes may be cut between two tokens,
      so a stream holds an incomplete character back.

      In: UTF-8 of any length. Out: ids, at most one a byte. Results are those of the `tokenizers` package.
      Sources: tokenizer.json; Sennrich et al., arXiv 1508.07909 (merges); the GPT-2 report (bytes as the alphabet).
   ================================================================================================================== */

enum { TEXT_LIMIT = 1 << 27 /* bytes */, SPLIT_RULE_LIMIT = 16, ALPHABET_SIZE = 0x144 };

/* ---- UTF-8 ---- */

/* The size of a character that begins with `lead`, 0 if none does. (C0 and C1 only begin overlong forms.) */
static int utf8_size(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    return lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
}

/* True if `byte` is valid as byte number `index`, 1 to 3, of a character that begins with `lead`. */
static bool utf8_continues(uint8_t lead, int index, uint8_t byte) {
    uint8_t lowest = 0x80, highest = 0xBF;
    if (index == 1 && lead == 0xE0) lowest = 0xA0;  /* below: overlong */
    if (index == 1 && lead == 0xED) highest = 0x9F; /* above: surrogates */
    if (index == 1 && lead == 0xF0) lowest = 0x90;  /* below: overlong */
    if (index == 1 && lead == 0xF4) highest = 0x8F; /* above: beyond U+10FFFF */
    return byte >= lowest && byte <= highest;
}

/* The length of the longest prefix of `text` that is valid UTF-8. */
static size_t utf8_valid_prefix(const char *text, size_t length) {
    const uint8_t *bytes = (const uint8_t *)text;
    size_t at = 0;
    for (int size; at < length; at += (size_t)size) {
        size = utf8_size(bytes[at]);
        if (size == 0 || (size_t)size > length - at) break;
        for (int index = 1; index < size; index++)
            if (!utf8_continues(bytes[at], index, bytes[at + (size_t)index])) return at;
    }
    return at;
}

static bool utf8_valid(const char *text, size_t length) { return utf8_valid_prefix(text, length) == length; }

/* The character at text[*at]; *at moves past it. The text must be valid. */
static uint32_t utf8_next(const char *text, size_t *at) {
    const uint8_t *bytes = (const uint8_t *)text + *at;
    const int size = utf8_size(bytes[0]);
    uint32_t character = size == 1 ? bytes[0] : bytes[0] & (0x7Fu >> size);
    for (int i = 1; i < size; i++) character = character << 6 | (bytes[i] & 0x3Fu);
    *at += (size_t)size;
    return character;
}

/* Writes the character; returns the end. */
static char *utf8_put(char *out, uint32_t character) {
    const int rest = character < 0x80 ? 0 : character < 0x800 ? 1 : character < 0x10000 ? 2 : 3; /* after the first */
    static const uint8_t leads[] = {0, 0xC0, 0xE0, 0xF0};
    *out++ = (char)(leads[rest] | character >> 6 * rest);
    for (int i = rest - 1; i >= 0; i--) *out++ = (char)(0x80 | (character >> 6 * i & 0x3F));
    return out;
}

/* A character that is still incomplete. All zeros at first. */
typedef struct {
    uint8_t bytes[4];
    int length;
} Utf8Stream;

/* Ends the stream: an incomplete character becomes one U+FFFD. */
static void utf8_stream_finish(Utf8Stream *stream, TextBuffer *out) {
    if (stream->length > 0) text_add(out, "\xEF\xBF\xBD", 3);
    stream->length = 0;
}

/* Adds the bytes to `out` as valid UTF-8 and holds back an incomplete character at their end. Every maximal prefix of a
   character that is not completed becomes one U+FFFD: the practice of the Unicode standard, and of Rust's
   from_utf8_lossy, which `tokenizers` uses. */
static void utf8_stream_write(Utf8Stream *stream, StringView bytes, TextBuffer *out) {
    for (size_t i = 0; i < bytes.length; i++) {
        const uint8_t byte = (uint8_t)bytes.text[i];
        if (stream->length > 0 && !utf8_continues(stream->bytes[0], stream->length, byte))
            utf8_stream_finish(stream, out);
        stream->bytes[stream->length++] = byte;
        const int size = utf8_size(stream->bytes[0]);
        if (size == 0) utf8_stream_finish(stream, out);
        if (stream->length == 0 || stream->length < size) continue;
        text_add(out, stream->bytes, (size_t)size);
        stream->length = 0;
    }
}

/* ---- Pre-tokenizer ----
   A list of rules. The first one cuts the text before and after each of its matches, the second one does so in every
   piece that results, match or gap, and so on. A rule is the regular expression before? body, body+, body$ or body+$
   over sets of characters, so that one pass over a piece finds all matches. convert.py compiles the rules of
   tokenizer.json to numbers: janus.tokenizer.split_rules holds for each rule

       flags (1: "+", 2: "$"), ranges of `before`, ranges of `body`, then first and last character of every range */

typedef struct {
    const uint32_t *ends; /* (count, 2) first and last character of each range, ascending */
    uint32_t count;
} CharacterSet;

typedef struct {
    CharacterSet before; /* one character in front if there is one, the \s? of " word"; empty: none */
    CharacterSet body;
    bool repeated;       /* "+": as many characters of the body as there are */
    bool at_line_end;    /* "$": a match ends where the piece does or before a line feed */
} SplitRule;

static bool set_contains(const CharacterSet *set, uint32_t character) {
    uint32_t low = 0, high = set->count;
    while (low < high) { /* the first range that does not end before `character` is one of low..high */
        const uint32_t middle = (low + high) / 2;
        if (set->ends[2 * middle + 1] < character) low = middle + 1;
        else high = middle;
    }
    return low < set->count && set->ends[2 * low] <= character;
}

/* The end of the match of the rule's body at `start`; `start` if there is none. *reached: the end of what was read. */
static size_t match_body(const SplitRule *rule, const char *text, size_t start, size_t end, size_t *reached) {
    size_t match_end = start;
    *reached = start;
    while (*reached < end) {
        size_t next = *reached;
        if (!set_contains(&rule->body, utf8_next(text, &next))) break;
        *reached = next;
        if (!rule->at_line_end || next == end || text[next] == '\n') match_end = next;
        if (!rule->repeated) break;
    }
    return match_end;
}

/* The first match of the rule in text[start..end) is text[*match_start..*match_end). Returns false if there is none. */
static bool find_match(const SplitRule *rule, const char *text, size_t start, size_t end, size_t *match_start,
                       size_t *match_end) {
    while (start < end) {
        size_t next = start, reached;
        const uint32_t character = utf8_next(text, &next);
        *match_start = start;
        if (set_contains(&rule->before, character)) {
            *match_end = match_body(rule, text, next, end, &reached);
            if (*match_end > next) return true;
        }
        *match_end = match_body(rule, text, start, end, &reached);
        if (*match_end > start) return true;
        /* If a run of body characters is not followed by a line end, no later start inside it is. */
        start = reached > next ? reached : next;
    }
    return false;
}

/* ---- Vocabulary ---- */

typedef enum { KIND_NORMAL = 1, KIND_CONTROL = 3, KIND_USER_DEFINED = 4, KIND_UNUSED = 5 } TokenKind;

typedef struct {
    uint64_t pair;  /* left id << 32 | right id */
    int32_t rank;
    int32_t merged; /* the id of the two in one */
} Merge;

typedef struct {
    /* From the model file; the names lie in it. */
    int32_t vocab_size;
    StringView *tokens;     /* (vocab_size) normal ones in the byte-level alphabet, added ones as plain text */
    uint32_t *types;        /* (vocab_size) TokenKind */
    uint32_t *merge_ids;    /* (merge_count, 3) by rank: left, right, merged */
    uint32_t *splits;       /* (split_count) the split rules */
    int64_t merge_count, split_count;
    /* Derived. */
    SplitRule rules[SPLIT_RULE_LIMIT];
    int rule_count;
    char *bytes;            /* the bytes of all tokens, one token after the other */
    size_t *starts;         /* (vocab_size + 1) token id is bytes[starts[id]..starts[id + 1]) */
    int32_t byte_ids[256];  /* the token that is this byte alone; -1 for bytes that UTF-8 never has */
    Merge *merges;          /* (merge_count) sorted by pair, then by rank */
    int32_t *added;         /* (added_count) ids of the added tokens */
    int32_t added_count;
    bool begins_added[256]; /* the bytes that an added token begins with */
} Tokenizer;

/* Reads a set of `count` ranges from the rules' numbers; returns false if they end early or are not ascending. */
static bool read_set(const Tokenizer *t, CharacterSet *set, uint32_t count, int64_t *at) {
    if (count > (t->split_count - *at) / 2) return false;
    set->ends = t->splits + *at;
    set->count = count;
    *at += 2 * (int64_t)count;
    for (uint32_t i = 1; i < 2 * count; i++)
        if (i % 2 == 0 ? set->ends[i] <= set->ends[i - 1] : set->ends[i] < set->ends[i - 1]) return false;
    return true;
}

static void read_rules(Context *cx, Tokenizer *t) {
    for (int64_t at = 0; at < t->split_count && !has_failed(cx); t->rule_count++) {
        SplitRule *rule = &t->rules[t->rule_count];
        const uint32_t *head = t->splits + at;
        bool good = t->rule_count < SPLIT_RULE_LIMIT && t->split_count - at >= 3 && head[0] <= 3;
        at += 3;
        good = good && read_set(t, &rule->before, head[1], &at) && read_set(t, &rule->body, head[2], &at);
        if (good) {
            rule->repeated = (head[0] & 1) != 0;
            rule->at_line_end = (head[0] & 2) != 0;
        } else
            context_fail(cx, JANUS_BAD_MODEL, "rule %d of janus.tokenizer.split_rules is malformed", t->rule_count);
    }
}

/* The byte-level alphabet writes every byte as a visible character: most of Latin-1 stands for itself, the other 68
   bytes, in order, are the characters from U+0100 on (a space is U+0120). byte_of[character]: its byte, or -1. */
static void fill_alphabet(int16_t byte_of[ALPHABET_SIZE]) {
    int next = 0x100;
    for (int i = 0; i < ALPHABET_SIZE; i++) byte_of[i] = -1;
    for (int byte = 0; byte < 0x100; byte++) {
        const bool visible = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        byte_of[visible ? byte : next++] = (int16_t)byte;
    }
}

/* Writes the bytes of a token to `out`, at most as many as its name has; returns how many. *literal: the name has a
   character outside the alphabet, so its bytes are the name itself. */
static size_t name_to_bytes(const int16_t *byte_of, StringView name, char *out, bool *literal) {
    size_t at = 0, written = 0;
    *literal = false;
    while (at < name.length && !*literal) {
        const uint32_t character = utf8_next(name.text, &at);
        *literal = character >= ALPHABET_SIZE || byte_of[character] < 0;
        if (!*literal) out[written++] = (char)(uint8_t)byte_of[character];
    }
    if (!*literal) return written;
    memcpy(out, name.text, name.length);
    return name.length;
}

static bool is_added(uint32_t type) { return type == KIND_CONTROL || type == KIND_USER_DEFINED; }

static void check_token(Context *cx, int32_t id, StringView name, uint32_t type) {
    if (!is_added(type) && type != KIND_NORMAL && type != KIND_UNUSED)
        context_fail(cx, JANUS_BAD_MODEL, "tokenizer.ggml.token_type[%ld] is %ld, not 1, 3, 4 or 5", (long)id,
                     (long)(int32_t)type);
    if (!utf8_valid(name.text, name.length) || (is_added(type) && name.length == 0))
        context_fail(cx, JANUS_BAD_MODEL, "tokenizer.ggml.tokens[%ld] is not UTF-8 or is an empty added token",
                     (long)id);
}

/* Fills in bytes, starts, byte_ids and the added tokens. */
static void build_bytes(Context *cx, Tokenizer *t) {
    int16_t byte_of[ALPHABET_SIZE];
    int64_t total = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) total += (int64_t)t->tokens[id].length;
    t->bytes = scratch_bytes(cx, total, 1);
    t->starts = scratch_bytes(cx, (int64_t)t->vocab_size + 1, sizeof *t->starts);
    t->added = scratch_bytes(cx, t->vocab_size, sizeof *t->added);
    if (has_failed(cx)) return;
    fill_alphabet(byte_of);
    for (int byte = 0; byte < 256; byte++) t->byte_ids[byte] = -1;
    t->starts[0] = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        const StringView name = t->tokens[id];
        char *bytes = t->bytes + t->starts[id];
        bool literal = false;
        check_token(cx, id, name, t->types[id]);
        if (has_failed(cx)) return;
        const size_t size = t->types[id] == KIND_UNUSED ? 0 : name_to_bytes(byte_of, name, bytes, &literal);
        t->starts[id + 1] = t->starts[id] + size;
        if (size == 1 && !literal) t->byte_ids[(uint8_t)bytes[0]] = id;
        if (!is_added(t->types[id])) continue;
        t->added[t->added_count++] = id;
        t->begins_added[(uint8_t)name.text[0]] = true;
    }
    for (int byte = 0; byte < 0xF5; byte++)
        if (t->byte_ids[byte] < 0 && byte != 0xC0 && byte != 0xC1)
            context_fail(cx, JANUS_BAD_MODEL, "tokenizer.ggml.tokens has no token for the byte 0x%02X", (unsigned)byte);
}

/* The bytes of one token, which need not be complete characters and live as long as the tokenizer. A control token is
   its name, an unused id is empty. NULL if there is no such id. */
static StringView token_bytes(const Tokenizer *t, int64_t id) {
    if (id < 0 || id >= t->vocab_size) return (StringView){NULL, 0};
    return (StringView){t->bytes + t->starts[id], t->starts[id + 1] - t->starts[id]};
}

static int compare_merges(const void *left, const void *right) {
    const Merge *a = left, *b = right;
    if (a->pair != b->pair) return a->pair < b->pair ? -1 : 1;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

/* True if the bytes of token ids[2] are those of ids[0] and ids[1]. */
static bool merge_is_sound(const Tokenizer *t, const uint32_t ids[3]) {
    const StringView left = token_bytes(t, ids[0]), right = token_bytes(t, ids[1]), both = token_bytes(t, ids[2]);
    return left.text != NULL && right.text != NULL && both.text != NULL && left.length + right.length == both.length &&
           memcmp(both.text, left.text, left.length) == 0 &&
           memcmp(both.text + left.length, right.text, right.length) == 0;
}

static void build_merges(Context *cx, Tokenizer *t) {
    t->merges = scratch_bytes(cx, t->merge_count, sizeof *t->merges);
    for (int64_t rank = 0; rank < t->merge_count && !has_failed(cx); rank++) {
        const uint32_t *ids = t->merge_ids + 3 * rank;
        if (!merge_is_sound(t, ids))
            context_fail(cx, JANUS_BAD_MODEL, "number %ld of janus.tokenizer.merges is not two tokens that make up a "
                         "third one", (long)rank);
        t->merges[rank] = (Merge){(uint64_t)ids[0] << 32 | ids[1], (int32_t)rank, (int32_t)ids[2]};
    }
    if (!has_failed(cx)) qsort(t->merges, (size_t)t->merge_count, sizeof *t->merges, compare_merges);
}

/* The merge of the tokens `left` and `right`, or NULL. A pair that training found twice has its later rank, as in
   `tokenizers`. */
static const Merge *find_merge(const Tokenizer *t, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    int64_t low = 0, high = t->merge_count;
    while (low < high) { /* the first merge of a greater pair is one of low..high */
        const int64_t middle = (low + high) / 2;
        if (t->merges[middle].pair <= pair) low = middle + 1;
        else high = middle;
    }
    return low > 0 && t->merges[low - 1].pair == pair ? &t->merges[low - 1] : NULL;
}

/* The file that a model's weights point into, the tokenizer, and the memory of all that was made of the file. */
typedef struct Storage {
    TextBuffer file;
    Arena memory;
    char *name;
    int64_t parameters;
    Tokenizer tokenizer;
} Storage;

/* ---- Encoding and decoding ---- */

/* A token of the piece that is being merged. */
typedef struct {
    int32_t id;         /* -1 behind the last one */
    const Merge *merge; /* with the next token; NULL: they are none */
} Symbol;

typedef struct {
    Context *cx;
    const Tokenizer *tokenizer;
    const char *text;
    IdList *ids;
    Symbol *symbols; /* (bytes of the text + 1) */
} Encoder;

static bool precedes(const Merge *a, const Merge *b) { return a != NULL && (b == NULL || a->rank < b->rank); }

/* Merges all neighbours that are this merge, from left to right, until a merge of lower rank appears. Returns the new
   number of symbols. */
static size_t apply_merge(const Tokenizer *t, Symbol *symbols, size_t count, const Merge *merge) {
    size_t kept = 0;
    bool preceded = false;
    for (size_t i = 0; i < count; i++, kept++) {
        symbols[kept] = symbols[i];
        if (preceded || symbols[kept].merge != merge) continue;
        i++;
        symbols[kept] = (Symbol){merge->merged, find_merge(t, merge->merged, symbols[i + 1].id)};
        preceded = precedes(symbols[kept].merge, merge);
        if (kept == 0) continue;
        symbols[kept - 1].merge = find_merge(t, symbols[kept - 1].id, merge->merged);
        preceded = preceded || precedes(symbols[kept - 1].merge, merge);
    }
    symbols[kept].id = -1;
    return kept;
}

/* Byte-pair encoding of one piece, in as many passes as different merges apply. */
static void encode_piece(const Encoder *encoder, size_t start, size_t end) {
    const Tokenizer *t = encoder->tokenizer;
    Symbol *symbols = encoder->symbols;
    size_t count = end - start;
    for (size_t i = 0; i < count; i++) symbols[i].id = t->byte_ids[(uint8_t)encoder->text[start + i]];
    symbols[count].id = -1;
    for (size_t i = 0; i < count; i++) symbols[i].merge = find_merge(t, symbols[i].id, symbols[i + 1].id);
    for (;;) {
        const Merge *lowest = NULL;
        for (size_t i = 0; i < count; i++)
            if (precedes(symbols[i].merge, lowest)) lowest = symbols[i].merge;
        if (lowest == NULL) break;
        count = apply_merge(t, symbols, count, lowest);
    }
    for (size_t i = 0; i < count; i++) id_list_add(encoder->cx, encoder->ids, symbols[i].id, 1);
}

/* Cuts text[start..end) by the rules from number `rule` on and encodes the pieces. */
static void encode_by_rules(const Encoder *encoder, int rule, size_t start, size_t end) {
    size_t match_start, match_end;
    if (start == end) return;
    if (rule == encoder->tokenizer->rule_count) {
        encode_piece(encoder, start, end);
        return;
    }
    while (find_match(&encoder->tokenizer->rules[rule], encoder->text, start, end, &match_start, &match_end)) {
        encode_by_rules(encoder, rule + 1, start, match_start);
        encode_by_rules(encoder, rule + 1, match_start, match_end);
        start = match_end;
    }
    encode_by_rules(encoder, rule + 1, start, end);
}

/* The id of the longest added token that `text` begins with and its length; -1 and 0 if there is none. */
static int32_t match_added(const Tokenizer *t, const char *text, size_t length, size_t *longest) {
    int32_t id = -1;
    *longest = 0;
    for (int32_t i = 0; i < t->added_count && t->begins_added[(uint8_t)text[0]]; i++) {
        const StringView name = t->tokens[t->added[i]];
        if (name.length <= *longest || name.length > length || memcmp(name.text, text, name.length) != 0) continue;
        *longest = name.length;
        id = t->added[i];
    }
    return id;
}

/* Refuses a text that is too long or not UTF-8. */
static void check_user_text(Context *cx, StringView text, const char *what) {
    const size_t valid = text.length > TEXT_LIMIT ? 0 : utf8_valid_prefix(text.text, text.length);
    if (text.length > TEXT_LIMIT)
        context_fail(cx, JANUS_BAD_ARGUMENT, "the %s is longer than %d bytes: shorten it", what, TEXT_LIMIT);
    else if (valid < text.length)
        context_fail(cx, JANUS_BAD_ARGUMENT, "the %s is not valid UTF-8 at byte %lu: save it as UTF-8", what,
                     (unsigned long)valid);
}

/* Adds the ids of a text, without a beginning-of-sentence token: added tokens are cut out from left to right, the
   longest at each place, and what lies between them is encoded. A prompt is checked again here because it now contains
   words of the model file, which may have changed on disk since it was loaded. */
static void tokenize(Context *cx, const JanusModel *m, StringView text, IdList *ids) {
    const ArenaBlock *mark = scratch_mark(cx);
    Encoder encoder = {.cx = cx, .tokenizer = &m->storage->tokenizer, .text = text.text, .ids = ids};
    size_t start = 0, at = 0, size;
    check_user_text(cx, text, "text");
    encoder.symbols = scratch_bytes(cx, (int64_t)text.length + 1, sizeof *encoder.symbols);
    while (at < text.length && !has_failed(cx)) {
        const int32_t id = match_added(encoder.tokenizer, text.text + at, text.length - at, &size);
        at += id < 0 ? 1 : size;
        if (id < 0) continue;
        encode_by_rules(&encoder, 0, start, at - size);
        id_list_add(cx, ids, id, 1);
        start = at;
    }
    if (!has_failed(cx)) encode_by_rules(&encoder, 0, start, text.length);
    scratch_release(cx, mark);
}

/* Ids to text, control tokens included: `*length` bytes and a zero byte, which the caller frees. */
static char *tokenizer_decode(Context *cx, const Tokenizer *t, const int32_t *ids, size_t count, size_t *length) {
    Utf8Stream stream = {{0}, 0};
    TextBuffer text = {0};
    for (size_t i = 0; i < count && !has_failed(cx); i++) {
        const StringView bytes = token_bytes(t, ids[i]);
        if (bytes.text == NULL)
            context_fail(cx, JANUS_BAD_ARGUMENT, "there is no token %ld: ids go from 0 to %ld", (long)ids[i],
                         (long)t->vocab_size - 1);
        utf8_stream_write(&stream, bytes, &text);
    }
    utf8_stream_finish(&stream, &text);
    text_add(&text, "", 0); /* not NULL without ids */
    if (text.failed) context_fail_memory(cx);
    if (has_failed(cx)) text_free(&text);
    *length = text.length;
    return text.text;
}

/* ==================================================================================================================
   17  Model file: GGUF version 3 as convert.py writes it. A header, then key/value metadata (sizes, tokenizer,
      constants), then a table of tensors, then their data, each at a multiple of 64 bytes, used in place. The file is
      untrusted: every length is checked against the file before it is used. convert.py documents keys and tensors.
   ================================================================================================================== */

enum { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64,
       GGUF_I64, GGUF_F64, GGUF_TYPE_COUNT };

enum { FORMAT_VERSION = 2, METADATA_LIMIT = 4096, TENSOR_LIMIT = 8192, DIMENSION_LIMIT = 1 << 26, LAYER_LIMIT = 512,
       SIDE_LIMIT = 4096, HEAD_LIMIT = 4096 };

typedef struct {
    StringView key;
    uint32_t type;      /* of the value, or of the elements of an array */
    bool is_array;
    uint64_t count;     /* elements of an array; 1 otherwise */
    StringView value;   /* its bytes, little-endian */
} Metadata;

typedef struct {
    StringView name;
    int type;
    int64_t rows, bytes; /* rows: the outermost size */
    uint64_t offset;     /* from the start of the tensors' data */
} TensorInfo;

/* ---- Bytes of a file. Beyond the end they are zeros ---- */

static unsigned view_byte(StringView view, size_t at) { return at < view.length ? (uint8_t)view.text[at] : 0; }

/* The number in `count` bytes at `at`. */
static uint64_t view_number(StringView view, size_t at, int count, bool high_first) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value = value << 8 | view_byte(view, at + (size_t)(high_first ? i : count - 1 - i));
    return value;
}

/* `length` bytes from `at` on, or as many of them as exist. */
static StringView view_part(StringView view, size_t at, size_t length) {
    const size_t begin = at < view.length ? at : view.length, rest = view.length - begin;
    return (StringView){view.text + begin, length < rest ? length : rest};
}

static bool view_begins(StringView view, const char *with, size_t length) {
    return view.length >= length && memcmp(view.text, with, length) == 0;
}

static bool view_is(StringView view, const char *string) {
    return view.length == strlen(string) && view_begins(view, string, view.length);
}

/* ---- Header and tables ---- */

/* Reads a model file; after the first failure all calls do nothing. The context's scratch memory becomes the model's.
   janus_load puts the path in front of messages. */
typedef struct {
    Context cx;
    const char *path;
    JanusModel *model;
    TextBuffer *file;
    StringView rest; /* of the file while its header is read */
    Metadata *metadata;
    TensorInfo *tensors;
    uint64_t metadata_count, tensor_count, needed; /* needed: tensors found by name */
    uint64_t data;           /* where the tensors' data begin */
    StringView prefix;       /* of the tensors that are read now, as in "vit.blk.3." */
} Loader;

#define bad_model(loader, ...) context_fail(&(loader)->cx, JANUS_BAD_MODEL, __VA_ARGS__)
#define enter(loader, ...)     ((loader)->prefix = format_text(&(loader)->cx, __VA_ARGS__))

static void require(Loader *l, bool good, const char *words) {
    if (!good) bad_model(l, "%s", words);
}

static const StringView NO_BYTES = {NULL, 0};

/* Cuts `count` bytes off the front of the rest. If there are fewer, it gives none, and the rest becomes NO_BYTES. */
static StringView cut_bytes(StringView *rest, uint64_t count) {
    if (count > rest->length) *rest = NO_BYTES;
    const StringView front = {rest->text, rest->text != NULL ? (size_t)count : 0};
    if (front.length > 0) *rest = view_part(*rest, front.length, rest->length);
    return front;
}

static uint64_t cut_number(StringView *rest, int count) {
    return view_number(cut_bytes(rest, (uint64_t)count), 0, count, false);
}

static StringView cut_string(StringView *rest) { return cut_bytes(rest, cut_number(rest, 8)); }

/* Bytes of one value of a GGUF type; 0 for strings, arrays and unknown types. */
static int gguf_type_bytes(uint32_t type) {
    static const int bytes[GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < GGUF_TYPE_COUNT ? bytes[type] : 0;
}

static void read_metadata_entry(StringView *rest, Metadata *entry) {
    entry->key = cut_string(rest);
    entry->type = (uint32_t)cut_number(rest, 4);
    entry->is_array = entry->type == GGUF_ARRAY;
    if (entry->is_array) entry->type = (uint32_t)cut_number(rest, 4);
    entry->count = entry->is_array ? cut_number(rest, 8) : 1;
    entry->value = *rest;
    const int bytes = gguf_type_bytes(entry->type);
    if (entry->type == GGUF_STRING)
        for (uint64_t i = 0; i < entry->count && rest->text != NULL; i++) cut_string(rest);
    else if (bytes == 0 || entry->count > rest->length) *rest = NO_BYTES;
    else cut_bytes(rest, entry->count * (uint64_t)bytes);
    entry->value.length -= rest->length;
}

/* Name, shape, type and offset of one tensor; false if they are malformed. GGUF stores the innermost size first. */
static bool read_tensor_info(StringView *rest, TensorInfo *tensor) {
    int64_t cols = 1, count = 1;
    tensor->name = cut_string(rest);
    const uint64_t dims = cut_number(rest, 4);
    if (dims < 1 || dims > 4) return false;
    for (uint64_t i = 0; i < dims; i++) {
        const uint64_t size = cut_number(rest, 8);
        if (size < 1 || size > DIMENSION_LIMIT) return false;
        tensor->rows = (int64_t)size;
        if (i == 0) cols = tensor->rows;
        count = checked_product(count, tensor->rows, 1);
    }
    tensor->type = (int)cut_number(rest, 4);
    tensor->offset = cut_number(rest, 8);
    tensor->bytes = checked_product(count / cols, type_row_bytes(tensor->type, cols), 1);
    return rest->text != NULL && tensor->bytes > 0;
}

static const Metadata *find_metadata(const Loader *l, const char *key) {
    for (uint64_t i = 0; i < l->metadata_count; i++)
        if (view_is(l->metadata[i].key, key)) return &l->metadata[i];
    return NULL;
}

/* The entry `key`; if it is missing or has another type, that is the error and an empty entry is returned. */
static const Metadata *need_entry(Loader *l, const char *key, uint32_t type, bool is_array) {
    static const Metadata nothing = {.value = {"", 0}};
    const Metadata *entry = find_metadata(l, key);
    if (entry != NULL && entry->type == type && entry->is_array == is_array) return entry;
    bad_model(l, "the metadata %s is missing or has another type: convert the checkpoint again", key);
    return &nothing;
}

static uint64_t need_number(Loader *l, const char *key, uint32_t type) {
    return view_number(need_entry(l, key, type, false)->value, 0, gguf_type_bytes(type), false);
}

static StringView need_text(Loader *l, const char *key) {
    StringView value = need_entry(l, key, GGUF_STRING, false)->value;
    const StringView text = cut_string(&value);
    const bool good = text.text != NULL && text.length <= TEXT_LIMIT && utf8_valid(text.text, text.length);
    if (!good) bad_model(l, "the metadata %s is not UTF-8 or too long", key);
    return good ? text : (StringView){"", 0};
}

/* A kind of file by its first bytes. */
typedef struct {
    size_t at, length;
    const char *bytes, *what, *remedy;
} Signature;

/* The first row that fits. The last one has no bytes and fits all files. */
static const Signature *find_signature(const Signature *row, StringView file) {
    while (!view_begins(view_part(file, row->at, row->length), row->bytes, row->length)) row++;
    return row;
}

#define CONVERT_IT "make a model file of its checkpoint with python convert.py FOLDER -o janus.gguf"

/* Files that users pass in place of a model file, often a part of the checkpoint. */
static const Signature FOREIGN_FILES[] = {
    {0, 40, "version https://git-lfs.github.com/spec/", "a Git LFS pointer", "run git lfs pull, or hf download"},
    {6, 3, "\0\0{", "a safetensors file", CONVERT_IT},
    {0, 4, "PK\3\4", "a zip archive, as PyTorch's files are", CONVERT_IT},
    {0, 1, "\x80", "a pickle, as PyTorch's old files are", CONVERT_IT},
    {0, 1, "{", "a JSON file", CONVERT_IT},
    {0, 1, "<", "a web page", "the download went wrong"},
    {0, 2, "\x1F\x8B", "a packed file", "unpack it"},
    {0, 0, "", "a file of another kind (no GGUF header)", "make one with convert.py"},
};

static void read_header(Loader *l) {
    l->rest = (StringView){l->file->text, l->file->length};
    const Signature *foreign = find_signature(FOREIGN_FILES, l->rest);
    const StringView magic = cut_bytes(&l->rest, 4), version = cut_bytes(&l->rest, 4);
    const unsigned long number = (unsigned long)view_number(version, 0, 4, false);
    l->tensor_count = cut_number(&l->rest, 8);
    l->metadata_count = cut_number(&l->rest, 8);
    if (!view_is(magic, "GGUF")) bad_model(l, "not a model file but %s: %s", foreign->what, foreign->remedy);
    else if (l->rest.text == NULL) bad_model(l, "truncated: it ends inside its header");
    else if (view_number(version, 0, 4, true) <= UINT16_MAX)
        bad_model(l, "a big-endian GGUF file; models are little-endian on every machine: make one with convert.py");
    else if (number != 3) bad_model(l, "GGUF version %lu; this program reads version 3", number);
    else if (l->tensor_count > TENSOR_LIMIT || l->metadata_count > METADATA_LIMIT)
        bad_model(l, "damaged: its counts of tensors or metadata are absurd");
    l->metadata = scratch_bytes(&l->cx, (int64_t)l->metadata_count, sizeof *l->metadata);
    l->tensors = scratch_bytes(&l->cx, (int64_t)l->tensor_count, sizeof *l->tensors);
}

/* Reads metadata and the table of tensors, and refuses GGUF files of other programs. */
static void read_tables(Loader *l) {
    for (uint64_t i = 0; i < l->metadata_count; i++) read_metadata_entry(&l->rest, &l->metadata[i]);
    require(l, l->rest.text != NULL, "truncated or damaged: its metadata runs over the end");
    const StringView name = view_part(need_text(l, "general.architecture"), 0, 39);
    if (!view_is(name, "janus"))
        bad_model(l, "a GGUF file for \"%.*s\", not for \"janus\": files of llama.cpp hold a part of the model in "
                  "another form; make the file of the checkpoint with convert.py", VIEW(name));
    require(l, need_number(l, "general.alignment", GGUF_U32) == 64, "general.alignment is not 64");
    for (uint64_t i = 0; i < l->tensor_count && !has_failed(&l->cx); i++)
        if (!read_tensor_info(&l->rest, &l->tensors[i]))
            bad_model(l, "truncated or damaged: entry %d of its tensor table is malformed", (int)i);
    l->data = (uint64_t)round_up((int64_t)(l->file->length - l->rest.length), 64);
    require(l, l->data <= l->file->length, "truncated: it ends before its tensors");
}

/* Maps or reads the bytes of the file. */
static void load_file(Loader *l) {
    const PathKind kind = path_kind(l->path);
    if (kind == PATH_FOLDER || kind == PATH_DEVICE) {
        context_fail(&l->cx, JANUS_IO_ERROR, "a %s: name the .gguf file that convert.py wrote",
                     kind == PATH_FOLDER ? "folder" : "device or pipe");
        return;
    }
    if ((!big_endian() && file_map(l->path, l->file)) || file_read(l->path, SIZE_MAX - 1, l->file) == 0) return;
    if (errno == ENOMEM) context_fail_memory(&l->cx);
    context_fail(&l->cx, JANUS_IO_ERROR, "cannot read the model: %s", strerror(errno));
}

/* ---- Required contents: the sizes, then every weight with its shape ---- */

/* Copies `least` to `most` 32-bit numbers from low to high; returns how many. More than one come as an array. */
static int need_numbers(Loader *l, const char *key, uint32_t type, int least, int most, double low, double high,
                        void *out) {
    const Metadata *entry = need_entry(l, key, type, most > 1);
    const int count = entry->count > (uint64_t)most ? -1 : (int)entry->count;
    if (count < least) bad_model(l, "%s is not %d to %d numbers", key, least, most);
    for (int i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)view_number(entry->value, 4 * (size_t)i, 4, false);
        const double value = type == GGUF_F32 ? (double)bits_float(bits) : bits;
        if (!(value >= low && value <= high)) bad_model(l, "%s is %.9g, not %.9g to %.9g", key, value, low, high);
        memcpy((char *)out + 4 * i, &bits, 4);
    }
    return count;
}

/* A copy of an array of 32-bit numbers; a count of 0 if it is absent, as GGUF has no empty arrays. */
static uint32_t *copy_numbers(Loader *l, const char *key, uint32_t type, int64_t *count) {
    const Metadata *entry = find_metadata(l, key) == NULL ? NULL : need_entry(l, key, type, true);
    *count = entry == NULL ? 0 : (int64_t)entry->count;
    uint32_t *numbers = scratch_bytes(&l->cx, *count, sizeof *numbers);
    for (int64_t i = 0; i < *count && numbers != NULL; i++)
        numbers[i] = (uint32_t)view_number(entry->value, 4 * (size_t)i, 4, false);
    return numbers;
}

/* The numbers of the metadata with their limits. */
static const struct {
    const char *key;
    size_t field;
    uint32_t type;
    double low, high; /* high < 0: the last token id */
} CONFIG_KEYS[] = {
#define COUNT(field) offsetof(Config, field), GGUF_U32
#define POSITIVE(field) offsetof(Config, field), GGUF_F32, FLT_MIN, FLT_MAX
#define TOKEN_ID(field) offsetof(Config, field), GGUF_U32, 0, -1
    {"janus.embedding_length", COUNT(hidden), 1, 1 << 20},
    {"janus.block_count", COUNT(layers), 1, LAYER_LIMIT},
    {"janus.feed_forward_length", COUNT(mlp), 1, 1 << 22},
    {"janus.vocab_size", COUNT(vocab), 1, 1 << 24},
    {"janus.context_length", COUNT(context), 1, 1 << 24},
    {"janus.attention.head_count", COUNT(heads), 1, HEAD_LIMIT},
    {"janus.attention.head_count_kv", COUNT(kv_heads), 1, HEAD_LIMIT},
    {"janus.attention.key_length", COUNT(head_dim), 2, HEAD_LIMIT},
    {"janus.attention.layer_norm_rms_epsilon", POSITIVE(rms_epsilon)},
    {"janus.rope.freq_base", POSITIVE(rope_base)},
    {"janus.vision.image_size", COUNT(image_side), 1, SIDE_LIMIT},
    {"janus.vision.patch_size", COUNT(patch), 1, SIDE_LIMIT},
    {"janus.vision.embedding_length", COUNT(vit_width), 1, 1 << 16},
    {"janus.vision.block_count", COUNT(vit_layers), 1, LAYER_LIMIT},
    {"janus.vision.feed_forward_length", COUNT(vit_mlp), 1, 1 << 20},
    {"janus.vision.attention.head_count", COUNT(vit_heads), 1, HEAD_LIMIT},
    {"janus.vision.attention.layer_norm_epsilon", POSITIVE(vit_epsilon)},
    {"janus.aligner.depth", COUNT(aligner_depth), 1, ALIGNER_LIMIT},
    {"janus.gen_aligner.depth", COUNT(gen_aligner_depth), 1, ALIGNER_LIMIT},
    {"janus.gen_head.embedding_length", COUNT(gen_head_width), 1, 1 << 20},
    {"janus.vq.codebook_size", COUNT(codebook), 2, 1 << 22},
    {"janus.vq.codebook_dim", COUNT(code_dim), 1, 4096},
    {"janus.vq.base_channels", COUNT(base_channels), 1, 4096},
    {"janus.vq.res_blocks", COUNT(res_blocks), 1, RES_LIMIT},
    {"janus.vq.z_channels", COUNT(z_channels), 1, 1 << 16},
    {"janus.vq.group_count", COUNT(groups), 1, 4096},
    {"janus.vq.group_norm_epsilon", POSITIVE(group_epsilon)},
    {"janus.vq.grid_size", COUNT(grid), 1, SIDE_LIMIT},
    {"janus.image.min_size", COUNT(min_side), 1, SIDE_LIMIT},
    {"tokenizer.ggml.bos_token_id", TOKEN_ID(bos)},
    {"tokenizer.ggml.eos_token_id", TOKEN_ID(eos)},
    {"tokenizer.ggml.padding_token_id", TOKEN_ID(pad)},
    {"janus.tokenizer.image_placeholder_id", TOKEN_ID(image_placeholder)},
    {"janus.tokenizer.begin_of_image_id", TOKEN_ID(begin_of_image)},
    {"janus.tokenizer.end_of_image_id", TOKEN_ID(end_of_image)},
};

static void need_config(Loader *l) {
    Config *c = &l->model->config;
    const int version = (int)need_number(l, "janus.format_version", GGUF_U32);
    if (version != FORMAT_VERSION)
        bad_model(l, "written by another convert.py (format %d, this program reads %d): convert the checkpoint again",
                  version, FORMAT_VERSION);
    for (size_t i = 0; i < sizeof CONFIG_KEYS / sizeof *CONFIG_KEYS && !has_failed(&l->cx); i++) {
        const double high = CONFIG_KEYS[i].high < 0 ? c->vocab - 1 : CONFIG_KEYS[i].high;
        need_numbers(l, CONFIG_KEYS[i].key, CONFIG_KEYS[i].type, 1, 1, CONFIG_KEYS[i].low, high,
                     (char *)c + CONFIG_KEYS[i].field);
    }
    c->vq_levels = need_numbers(l, "janus.vq.channel_multipliers", GGUF_U32, 1, LEVEL_LIMIT, 1, 64, c->multipliers);
    need_numbers(l, "janus.image.background_color", GGUF_U32, 3, 3, 0, 255, c->background);
    need_numbers(l, "janus.image.mean", GGUF_F32, 3, 3, -FLT_MAX, FLT_MAX, c->mean);
    need_numbers(l, "janus.image.std", GGUF_F32, 3, 3, FLT_MIN, FLT_MAX, c->std);
    const uint64_t rescale = need_number(l, "janus.image.rescale_factor", GGUF_F64);
    memcpy(&c->rescale, &rescale, sizeof c->rescale);
    c->normalize = need_number(l, "janus.image.do_normalize", GGUF_BOOL) != 0;
    const StringView name = need_text(l, "general.name"), copied = format_text(&l->cx, "%.*s", VIEW(name));
    l->model->storage->name = clean_controls((char *)copied.text, copied.length, 0);
    c->system_prompt = need_text(l, "janus.prompt.system");
    c->user_role = need_text(l, "janus.prompt.user_role");
    c->assistant_role = need_text(l, "janus.prompt.assistant_role");
}

/* Checks the values that depend on each other. */
static void check_config(Loader *l) {
    const Config *c = &l->model->config;
    require(l, c->heads % c->kv_heads == 0, "janus.attention.head_count is not a multiple of head_count_kv");
    require(l, c->head_dim % 2 == 0, "janus.attention.key_length is odd");
    require(l, c->image_side % c->patch == 0, "janus.vision.image_size is not a multiple of patch_size");
    require(l, c->vit_width % c->vit_heads == 0, "janus.vision.embedding_length is not a multiple of head_count");
    require(l, c->min_side <= c->image_side, "janus.image.min_size is more than janus.vision.image_size");
    require(l, c->base_channels % c->groups == 0, "janus.vq.base_channels is not a multiple of group_count");
    require(l, (int64_t)c->grid << (c->vq_levels - 1) <= SIDE_LIMIT, "janus.vq.grid_size is too large");
    require(l, c->rescale >= FLT_MIN && c->rescale <= FLT_MAX, "janus.image.rescale_factor is not positive");
    require(l, c->image_placeholder != c->begin_of_image && c->image_placeholder != c->end_of_image,
            "janus.tokenizer.image_placeholder_id also begins or ends an image");
}

/* ---- tensors ---- */

/* Swaps the bytes of float32 numbers on a big-endian machine, which has its own copy of the file. All other types are
   read byte by byte. */
static void make_native(char *bytes, const TensorInfo *tensor) {
    const StringView stored = {bytes, (size_t)tensor->bytes};
    for (size_t at = 0; at < stored.length && tensor->type == TYPE_F32 && big_endian(); at += 4) {
        const uint32_t bits = (uint32_t)view_number(stored, at, 4, false);
        memcpy(bytes + at, &bits, sizeof bits);
    }
}

static TensorInfo *find_tensor(const Loader *l, const char *name) {
    for (uint64_t i = 0; i < l->tensor_count; i++)
        if (view_is(l->tensors[i].name, name)) return &l->tensors[i];
    return NULL;
}

/* The tensor `name` and `part`, after the prefix, as a matrix. Of a convolution (out, kernel, kernel, in) cols is
   kernel*kernel*in, of a vector 1. */
static Weight need_weight(Loader *l, const char *name, const char *part, int64_t rows, int64_t cols) {
    char full[2 * NAME_LIMIT];
    Weight weight = {.rows = rows, .cols = cols};
    if (has_failed(&l->cx)) return weight;
    snprintf(full, sizeof full, "%.*s%s%s", VIEW(l->prefix), name, part);
    const TensorInfo *tensor = find_tensor(l, full);
    const uint64_t room = l->file->length - l->data;
    if (tensor == NULL) bad_model(l, "missing tensor %s: convert the checkpoint again", full);
    else if (tensor->rows != rows || tensor->bytes != rows * type_row_bytes(tensor->type, cols))
        bad_model(l, "wrong shape or type of tensor %s: convert the checkpoint again", full);
    else if (tensor->offset % 64 != 0 || tensor->offset > room || (uint64_t)tensor->bytes > room - tensor->offset)
        bad_model(l, "truncated or damaged: tensor %s lies outside the file", full);
    if (has_failed(&l->cx)) return weight;
    char *data = l->file->text + l->data + tensor->offset;
    make_native(data, tensor);
    weight.type = tensor->type;
    weight.data = data;
    l->model->storage->parameters += rows * cols;
    l->needed++;
    return weight;
}

static const float *need_floats(Loader *l, const char *name, const char *part, int64_t rows, int64_t cols) {
    const Weight weight = need_weight(l, name, part, rows, cols);
    if (weight.type != TYPE_F32) bad_model(l, "tensor %.*s%s%s is not float32", VIEW(l->prefix), name, part);
    return weight.data;
}

static Linear need_linear(Loader *l, const char *name, int64_t out, int64_t in) {
    const Weight weight = need_weight(l, name, ".weight", out, in);
    return (Linear){weight, need_floats(l, name, ".bias", out, 1)};
}

static Norm need_norm(Loader *l, const char *name, int64_t width) {
    const float *weight = need_floats(l, name, ".weight", width, 1);
    return (Norm){weight, need_floats(l, name, ".bias", width, 1)};
}

/* Linear layers named 0, 1, ...: (D, in), then (D, D) */
static void need_adaptor(Loader *l, const char *name, Linear *layers, int depth, int64_t in) {
    const int64_t hidden = l->model->config.hidden;
    for (int i = 0; i < depth; i++) {
        enter(l, "%s.%d", name, i);
        layers[i] = need_linear(l, "", hidden, i == 0 ? in : hidden);
    }
}

static void need_vision(Loader *l) {
    JanusModel *m = l->model;
    const Config *c = &m->config;
    const int64_t width = c->vit_width;
    enter(l, "vit.");
    m->vit_blocks = scratch_bytes(&l->cx, c->vit_layers, sizeof *m->vit_blocks);
    m->patch_embed = need_linear(l, "patch_embed", width, (int64_t)c->patch * c->patch * 3);
    m->pos_embed = need_floats(l, "pos_embed", "", vision_tokens(c), width);
    m->vit_norm = need_norm(l, "norm", width);
    for (int i = 0; i < c->vit_layers && !has_failed(&l->cx); i++) {
        VitBlock *block = &m->vit_blocks[i];
        enter(l, "vit.blk.%d.", i);
        block->norm1 = need_norm(l, "norm1", width);
        block->qkv = need_linear(l, "qkv", 3 * width, width);
        block->proj = need_linear(l, "proj", width, width);
        block->norm2 = need_norm(l, "norm2", width);
        block->fc1 = need_linear(l, "fc1", c->vit_mlp, width);
        block->fc2 = need_linear(l, "fc2", width, c->vit_mlp);
    }
    need_adaptor(l, "aligner", m->aligner, c->aligner_depth, width);
}

static void need_transformer(Loader *l) {
    JanusModel *m = l->model;
    const Config *c = &m->config;
    const int64_t hidden = c->hidden, q_width = (int64_t)c->heads * c->head_dim,
                  kv_width = (int64_t)c->kv_heads * c->head_dim;
    enter(l, "");
    m->blocks = scratch_bytes(&l->cx, c->layers, sizeof *m->blocks);
    m->token_embed = need_weight(l, "token_embd", ".weight", c->vocab, hidden);
    m->output_norm = need_floats(l, "output_norm", ".weight", hidden, 1);
    /* a checkpoint with tied embeddings has no matrix of its own for the LM head */
    m->lm_head = m->token_embed;
    if (find_tensor(l, "output.weight") != NULL) m->lm_head = need_weight(l, "output", ".weight", c->vocab, hidden);
    for (int i = 0; i < c->layers && !has_failed(&l->cx); i++) {
        TransformerBlock *block = &m->blocks[i];
        enter(l, "blk.%d.", i);
        block->attn_norm = need_floats(l, "attn_norm", ".weight", hidden, 1);
        block->q = need_weight(l, "attn_q", ".weight", q_width, hidden);
        block->k = need_weight(l, "attn_k", ".weight", kv_width, hidden);
        block->v = need_weight(l, "attn_v", ".weight", kv_width, hidden);
        block->output = need_weight(l, "attn_output", ".weight", hidden, q_width);
        block->ffn_norm = need_floats(l, "ffn_norm", ".weight", hidden, 1);
        block->gate = need_weight(l, "ffn_gate", ".weight", c->mlp, hidden);
        block->up = need_weight(l, "ffn_up", ".weight", c->mlp, hidden);
        block->down = need_weight(l, "ffn_down", ".weight", hidden, c->mlp);
    }
}

static ResBlock need_res_block(Loader *l, int in, int out) {
    ResBlock block = {.in = in, .out = out};
    block.norm1 = need_norm(l, "norm1", in);
    block.conv1 = need_linear(l, "conv1", out, 9 * in);
    block.norm2 = need_norm(l, "norm2", out);
    block.conv2 = need_linear(l, "conv2", out, 9 * out);
    if (in != out) block.shortcut = need_linear(l, "shortcut", out, in);
    return block;
}

static AttnBlock need_attn_block(Loader *l, int width) {
    AttnBlock block = {.width = width};
    block.norm = need_norm(l, "norm", width);
    block.q = need_linear(l, "q", width, width);
    block.k = need_linear(l, "k", width, width);
    block.v = need_linear(l, "v", width, width);
    block.proj = need_linear(l, "proj", width, width);
    return block;
}

/* The levels of one half; the decoder's first one is the deepest. Returns the channels after the last of them. */
static int need_levels(Loader *l, VqHalf *half, const char *name, int width, bool decoder) {
    const Config *c = &l->model->config;
    for (int i = 0; i < c->vq_levels && !has_failed(&l->cx); i++) {
        VqLevel *level = &half->level[i];
        const int depth = decoder ? c->vq_levels - 1 - i : i, out = c->base_channels * c->multipliers[depth];
        for (int b = 0; b < c->res_blocks + (decoder ? 1 : 0); b++) {
            enter(l, "%s.%d.res.%d.", name, i, b);
            level->res[b] = need_res_block(l, width, out);
            width = out;
            enter(l, "%s.%d.attn.%d.", name, i, b);
            if (depth == c->vq_levels - 1) level->attn[b] = need_attn_block(l, width);
        }
        enter(l, "%s.%d.", name, i);
        if (i < c->vq_levels - 1) level->resample = need_linear(l, decoder ? "up" : "down", width, 9 * width);
    }
    return width;
}

static void need_vq_half(Loader *l, VqHalf *half, const char *name, bool decoder) {
    const Config *c = &l->model->config;
    const int deepest = c->base_channels * c->multipliers[c->vq_levels - 1];
    const int first = decoder ? deepest : c->base_channels;
    half->mid_width = deepest;
    half->out_width = need_levels(l, half, name, first, decoder);
    enter(l, "%s.mid.0.", name);
    half->mid_res[0] = need_res_block(l, deepest, deepest);
    enter(l, "%s.mid.1.", name);
    half->mid_attn = need_attn_block(l, deepest);
    enter(l, "%s.mid.2.", name);
    half->mid_res[1] = need_res_block(l, deepest, deepest);
    enter(l, "%s.", name);
    half->conv_in = need_linear(l, "conv_in", first, 9 * (decoder ? c->z_channels : 3));
    half->norm_out = need_norm(l, "norm_out", half->out_width);
    half->conv_out = need_linear(l, "conv_out", decoder ? 3 : c->z_channels, 9 * half->out_width);
}

static void need_generation(Loader *l) {
    JanusModel *m = l->model;
    const Config *c = &m->config;
    enter(l, "");
    m->gen_embed = need_weight(l, "gen_embed", ".weight", c->codebook, c->code_dim);
    m->gen_head_proj = need_linear(l, "gen_head.proj", c->gen_head_width, c->hidden);
    m->gen_head = need_linear(l, "gen_head.out", c->codebook, c->gen_head_width);
    need_adaptor(l, "gen_aligner", m->gen_aligner, c->gen_aligner_depth, c->code_dim);
    enter(l, "vq.");
    m->quant_conv = need_linear(l, "quant_conv", c->code_dim, c->z_channels);
    m->post_quant_conv = need_linear(l, "post_quant_conv", c->z_channels, c->code_dim);
    m->codebook = need_weight(l, "codebook", ".weight", c->codebook, c->code_dim);
    need_vq_half(l, &m->vq_encoder, "vq.enc", false);
    need_vq_half(l, &m->vq_decoder, "vq.dec", true);
}

static void need_tokenizer(Loader *l) {
    Tokenizer *t = &l->model->storage->tokenizer;
    int64_t types, merge_ids;
    const Metadata *tokens = need_entry(l, "tokenizer.ggml.tokens", GGUF_STRING, true);
    t->vocab_size = l->model->config.vocab;
    t->types = copy_numbers(l, "tokenizer.ggml.token_type", GGUF_I32, &types);
    t->merge_ids = copy_numbers(l, "janus.tokenizer.merges", GGUF_U32, &merge_ids);
    t->splits = copy_numbers(l, "janus.tokenizer.split_rules", GGUF_U32, &t->split_count);
    t->merge_count = merge_ids / 3;
    require(l, (int64_t)tokens->count == t->vocab_size, "tokenizer.ggml.tokens is not janus.vocab_size names");
    require(l, types == t->vocab_size, "tokenizer.ggml.token_type is not janus.vocab_size numbers");
    require(l, merge_ids % 3 == 0 && t->merge_count <= INT32_MAX, "janus.tokenizer.merges is not three ids a merge");
    t->tokens = scratch_bytes(&l->cx, t->vocab_size, sizeof *t->tokens);
    if (has_failed(&l->cx)) return;
    StringView rest = tokens->value;
    for (int32_t i = 0; i < t->vocab_size; i++) t->tokens[i] = cut_string(&rest);
    read_rules(&l->cx, t);
    build_bytes(&l->cx, t);
    build_merges(&l->cx, t);
}

/* Fills in l->model from the file l->path. If this fails, janus_free frees the partial model. */
static void read_model(Loader *l) {
    static void (*const STEPS[])(Loader *) = {
        load_file, read_header, read_tables, need_config, check_config, need_vision, need_transformer, need_generation,
        need_tokenizer};
    for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS && !has_failed(&l->cx); i++) STEPS[i](l);
    require(l, l->needed == l->tensor_count, "unknown or duplicate tensors: convert the checkpoint again");
}

/* ---- Prompts and answers ---- */

static void id_list_add(Context *cx, IdList *list, int32_t id, int64_t times) {
    if (has_failed(cx)) return;
    int32_t *grown = grow(list->ids, &list->capacity, list->count + (size_t)times, sizeof *grown);
    if (grown == NULL) {
        context_fail_memory(cx);
        return;
    }
    list->ids = grown;
    for (int64_t i = 0; i < times; i++) list->ids[list->count++] = id;
}

static void id_list_free(IdList *list) { free(list->ids); }

/* The white space that Python's str.strip() removes. */
static bool is_python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Removes the white space at both ends of valid UTF-8. */
static StringView strip(const char *text, size_t length) {
    size_t start = length, end = length, at = 0;
    while (at < length) {
        const size_t here = at;
        if (is_python_space(utf8_next(text, &at))) continue;
        if (start == length) start = here;
        end = at;
    }
    return (StringView){text + start, end - start};
}

static StringView view_of(const char *text) { return (StringView){text, strlen(text)}; }

static StringView checked_text(Context *cx, const char *text, const char *what, bool after_images) {
    if (text == NULL) context_fail(cx, JANUS_BAD_ARGUMENT, "the %s is missing", what);
    else check_user_text(cx, view_of(text), what);
    if (has_failed(cx)) return view_of("");
    StringView words = strip(text, strlen(text));
    if (words.length == 0) context_fail(cx, JANUS_BAD_ARGUMENT, "the %s is empty", what);
    if (after_images) words = (StringView){text, words.length + (size_t)(words.text - text)};
    return words;
}

static StringView format_text(Context *cx, const char *format, ...) {
    va_list arguments, again;
    StringView printed = {NULL, 0};
    if (has_failed(cx)) return printed;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    char *text = scratch_bytes(cx, (int64_t)length + 1, 1);
    if (text != NULL) printed = (StringView){text, (size_t)vsnprintf(text, (size_t)length + 1, format, again)};
    va_end(again);
    va_end(arguments);
    return printed;
}

struct Answer {
    TextBuffer text;
    Utf8Stream stream;
};

/* An empty answer is allocated before anything changes, so that it cannot fail at the end. */
static bool answer_begin(Answer *answer) {
    memset(answer, 0, sizeof *answer);
    text_add(&answer->text, "", 0);
    return !answer->text.failed;
}

static bool answer_is_empty(const Answer *answer) { return answer->text.length == 0; }

/* The text without white space at its end; the caller frees it. */
static char *answer_take(Answer *answer) {
    char *text = answer->text.text;
    text[strip(text, answer->text.length).length] = 0;
    answer->text.text = NULL;
    return text;
}

/* Appends a token to the answer and passes the new text to the callback; `id` < 0 ends the answer. Control tokens have
   no text, and white space before the first word is dropped. */
static void answer_token(Context *cx, const JanusModel *m, Answer *answer, int32_t id) {
    TextBuffer *text = &answer->text;
    const Tokenizer *t = &m->storage->tokenizer;
    const size_t before = text->length;
    if (id < 0) utf8_stream_finish(&answer->stream, text);
    else if (t->types[id] != KIND_CONTROL) utf8_stream_write(&answer->stream, token_bytes(t, id), text);
    if (text->failed) context_fail_memory(cx);
    if (has_failed(cx) || text->length == before) return;
    if (before == 0) {
        const StringView words = strip(text->text, text->length);
        text->length -= (size_t)(words.text - text->text);
        memmove(text->text, words.text, text->length + 1);
    }
    if (text->length > before && cx->options.text != NULL &&
        cx->options.text(cx->options.user, text->text + before, text->length - before) != 0)
        context_fail(cx, JANUS_CANCELLED, "stopped on request while answering");
}

/* ==================================================================================================================
   18  Images: the bytes of a PNG or JPEG -> RGB -> the square of numbers that an encoder reads. stb_image decodes a
      copy of the file that holds its pixels and nothing else, so that odd files cannot confuse it.
      Sources: the PNG specification; T.81 for JPEG; Pillow's resampling (Resample.c) and the official
      image_processing_vlm.py, reproduced bit for bit: the understanding encoder was trained on pictures resized so.
   ================================================================================================================== */

/* As many pixels as Pillow accepts by default. */
enum { IMAGE_SIDE_LIMIT = 16384, IMAGE_PIXEL_LIMIT = 178956970, IMAGE_FILE_LIMIT = 1 << 29 };

/* stb's allocators, below. */
static void *reader_memory(void *memory, size_t size);
static void *writer_memory(const void *memory, size_t old_size, size_t size);

#define STBI_MALLOC(size) reader_memory(NULL, size)
#define STBI_REALLOC(memory, size) reader_memory(memory, size)
#define STBI_FREE free
#define STBIW_MALLOC(size) writer_memory(NULL, 0, size)
#define STBIW_REALLOC_SIZED(memory, old_size, size) writer_memory(memory, old_size, size)
#define STBIW_FREE(memory) ((void)(memory))
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_GIF
#define STBI_MAX_DIMENSIONS 16384
#if defined(__TINYC__)
#define STBI_NO_SIMD
#endif
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
/* This function came with 2.28. For older headers, which have errors that are not guarded against here, the compiler
   says that this name is undeclared. */
#define stbi__skip_jpeg_junk_at_end STB_IMAGE_H_2_28_OR_NEWER_IS_NEEDED
/* stb's function of this name blends one column wrongly. Its definition gets another name here; references without a
   call (function pointers) resolve to the corrected version below. */
static uint8_t *stbi__resample_row_h_2(uint8_t *out, uint8_t *row, uint8_t *other_row, int width, int factor);
#define stbi__resample_row_h_2(out, row, other, width, factor) resample_row_of_stb(out, row, other, width, factor)
#if defined(JANUS_STB_FLAT)
#include <stb_image.h>
#include <stb_image_write.h>
#else
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#endif
#undef stbi__resample_row_h_2
enum { STB_IMAGE_IS_NEW_ENOUGH = sizeof(&STB_IMAGE_H_2_28_OR_NEWER_IS_NEEDED) };

/* Doubles the samples of a row, for a JPEG whose colours have half its width (4:2:2): each is a blend 3 : 1 of two
   neighbours. stb_image, 2.30 included, blends the last but one 1 : 3. */
static uint8_t *stbi__resample_row_h_2(uint8_t *out, uint8_t *row, uint8_t *other_row, int width, int factor) {
    resample_row_of_stb(out, row, other_row, width, factor);
    if (width > 1) out[2 * width - 2] = (uint8_t)((3 * row[width - 1] + row[width - 2] + 2) / 4);
    return out;
}

/* State of stb's allocators, one per thread (one in all if the compiler has no thread-local variables). */
#if !defined(STBI_THREAD_LOCAL)
#define STBI_THREAD_LOCAL
#endif
static STBI_THREAD_LOCAL struct {
    size_t limit;    /* the reader's largest request */
    bool failed;     /* the reader ran out of memory */
    Arena arena;     /* the writer's memory */
    TextBuffer file; /* what it wrote */
    jmp_buf way_out; /* taken when memory runs out, for which it has no check */
} image_memory;

/* malloc or realloc with a limit, as a few bytes of a PNG can unpack to gigabytes. New memory is zero: pixels that a
   damaged file leaves out are the same in every run. */
static void *reader_memory(void *memory, size_t size) {
    if (size > image_memory.limit) return NULL;
    void *grown = memory != NULL ? realloc(memory, size) : calloc(1, size);
    if (grown == NULL) image_memory.failed = true;
    return grown;
}

/* malloc or realloc; image_to_bytes frees all at once. */
static void *writer_memory(const void *memory, size_t old_size, size_t size) {
    void *grown = arena_allocate(&image_memory.arena, 1, size);
    if (grown == NULL) longjmp(image_memory.way_out, 1);
    if (memory != NULL) memcpy(grown, memory, old_size < size ? old_size : size);
    return grown;
}

static void writer_sink(void *file, void *bytes, int size) { text_add(file, bytes, (size_t)size); }

static void add_view(TextBuffer *out, StringView view) { text_add(out, view.text, view.length); }

/* Adds a number, the most significant byte first. */
static void add_number(TextBuffer *out, uint32_t number, int count) {
    for (int shift = 8 * (count - 1); shift >= 0; shift -= 8) {
        const uint8_t byte = (uint8_t)(number >> shift);
        text_add(out, &byte, 1);
    }
}

/* ---- Formats ---- */

/* How files begin, and the tool that converts those that cannot be read. */
static const Signature IMAGE_FORMATS[] = {
    {0, 8, "\x89PNG\r\n\x1A\n", "a PNG image", NULL},
    {0, 2, "\xFF\xD8", "a JPEG image", NULL},
    {8, 4, "WEBP", "a WebP image", "dwebp IN -o OUT.png"},
    {4, 7, "ftypavi", "an AVIF image", "avifdec IN OUT.png"},
    {4, 6, "ftyphe", "a HEIC image", "heif-convert IN OUT.png"},
    {4, 8, "ftypmif1", "a HEIF image", "heif-convert IN OUT.png"},
    {4, 4, "ftyp", "a video", "ffmpeg -i IN -frames:v 1 OUT.png"},
    {0, 4, "GIF8", "a GIF image", "magick IN[0] OUT.png"},
    {0, 2, "BM", "a BMP image", "magick IN OUT.png"},
    {0, 4, "II*\0", "a TIFF image", "magick IN OUT.png"},
    {0, 4, "MM\0*", "a TIFF image", "magick IN OUT.png"},
    {0, 2, "P6", "a PPM image", "magick IN OUT.png"},
    {0, 2, "\xFF\x0A", "a JPEG XL image", "djxl IN OUT.png"},
    {0, 4, "%PDF", "a PDF document", "pdftoppm -png IN OUT"},
    {0, 4, "<svg", "an SVG drawing", "rsvg-convert IN -o OUT.png"},
    {0, 0, "", "neither a PNG nor a JPEG image", NULL},
};
static const Signature *const PNG = &IMAGE_FORMATS[0], *const JPEG = &IMAGE_FORMATS[1];

/* What is known of an image before its pixels are decoded. */
typedef struct {
    Context cx;             /* records the first error */
    StringView file;
    const char *name;       /* for messages */
    int64_t width, height;  /* of the pixels as stored */
    int orientation;        /* of EXIF, 1 to 8; 0: none */
    TextBuffer copy, text;  /* the file with only its pixels; the text "parameters" or the comments */
    StringView frame;       /* JPEG: precision, height, width, number of channels, three bytes for each of them */
    int64_t scans;
    int64_t interval;       /* units between two restart markers; 0: there are none */
    unsigned quantisers;    /* bit i: quantisation table i is defined */
} ImageFile;

static void image_bad(ImageFile *image, const char *reason) {
    context_fail(&image->cx, JANUS_BAD_IMAGE,
                 "%s is damaged or of an unsupported kind (%s): save it again as PNG or JPEG", image->name, reason);
}

/* The orientation in EXIF, 1 to 8, or 0 for none. EXIF is a TIFF file without pictures: byte order, the place of a
   directory, and there entries of 12 bytes: tag, type, count, and the values or, beyond four bytes, their place.
   As in Pillow, the first entry whose values lie outside ends the directory. */
static int exif_orientation(StringView exif) {
    enum { ORIENTATION = 0x0112, SHORT = 3, LONG = 4, TYPES = 17, ENTRY = 12 };
    static const uint8_t SIZES[TYPES] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    int orientation = 0;
    while (view_begins(exif, "Exif\0\0", 6)) exif = view_part(exif, 6, exif.length);
    const bool big = view_begins(exif, "MM\0*", 4);
    const size_t directory = (size_t)view_number(exif, 4, 4, big);
    if ((!big && !view_begins(exif, "II*\0", 4)) || directory >= exif.length) return 0;
    const uint64_t entries = view_number(exif, directory, 2, big);
    for (size_t i = 0, at = directory + 2; i < entries && at + ENTRY <= exif.length; i++, at += ENTRY) {
        const uint64_t tag = view_number(exif, at, 2, big), type = view_number(exif, at + 2, 2, big);
        const uint64_t size = type < TYPES ? (uint64_t)SIZES[type] * view_number(exif, at + 4, 4, big) : 0;
        const uint64_t place = size <= 4 ? at + 8 : view_number(exif, at + 8, 4, big);
        if (place + size > exif.length) break;
        if (tag != ORIENTATION || (type != SHORT && type != LONG) || size == 0) continue;
        const uint64_t value = view_number(exif, (size_t)place, SIZES[type], big);
        orientation = value >= 1 && value <= 8 ? (int)value : 1;
    }
    return orientation;
}

/* ---- PNG: a signature, then chunks: size, name, data, checksum ---- */

static const char TEXT_KEY[] = "parameters"; /* of the text that records how a picture was drawn; a zero follows */

/* Takes the chunk at `at`, first 8, and advances; returns false at the end. */
static bool png_next(StringView file, size_t *at, StringView *name, StringView *data) {
    const size_t size = (size_t)view_number(file, *at, 4, true);
    *name = view_part(file, *at + 4, 4);
    *data = view_part(file, *at + 8, size);
    *at = data->length < size ? file.length : *at + 12 + size;
    return name->length == 4 && !view_is(*name, "IEND");
}

/* Adds a chunk with `zeros` zeros after its data and no checksum, which stb does not read. */
static void add_png_chunk(TextBuffer *out, StringView name, StringView data, size_t zeros) {
    static const uint8_t ZEROS[768 + 4];
    add_number(out, (uint32_t)(data.length + zeros), 4);
    add_view(out, name);
    add_view(out, data);
    text_add(out, ZEROS, zeros + 4);
}

/* tEXt: the key, then Latin-1; iTXt: the key, 1 if it is compressed, 0, language and translated key, which end with
   zeros, then UTF-8. Compressed texts, as in zTXt, are not read. */
static void png_text(ImageFile *image, StringView name, StringView data) {
    const bool utf8 = view_is(name, "iTXt");
    size_t begin = sizeof TEXT_KEY;
    if ((!utf8 && !view_is(name, "tEXt")) || !view_begins(data, TEXT_KEY, begin) || image->text.length > 0) return;
    if (utf8 && view_byte(data, begin) != 0) return;
    if (utf8) begin += 2;
    for (int ends = 0; utf8 && ends < 2 && begin < data.length; begin++) ends += view_byte(data, begin) == 0;
    add_view(&image->text, view_part(data, begin, data.length));
}

/* Copies header, palette and pixels. The palette gets 256 colours, as stb takes those beyond its end from uninitialised
   memory. Empty data are left out, as stb would copy them to NULL. */
static void png_parse(ImageFile *image) {
    bool palette = false;
    StringView name, data;
    add_view(&image->copy, view_part(image->file, 0, 8));
    for (size_t at = 8; png_next(image->file, &at, &name, &data);) {
        if (view_is(name, "IHDR")) {
            image->width = (int64_t)view_number(data, 0, 4, true);
            image->height = (int64_t)view_number(data, 4, 4, true);
            add_png_chunk(&image->copy, name, data, 0);
        } else if (view_is(name, "PLTE")) {
            data = view_part(data, 0, data.length / 3 * 3);
            if (!palette) add_png_chunk(&image->copy, name, data, data.length < 768 ? 768 - data.length : 0);
            palette = true;
        } else if (view_is(name, "IDAT")) {
            if (data.length > 0) add_png_chunk(&image->copy, name, data, 0);
        } else if (view_is(name, "eXIf")) image->orientation = exif_orientation(data);
        else if ((view_byte(name, 0) & 0x20) == 0) image_bad(image, "a critical chunk such as Apple's CgBI");
        else png_text(image, name, data);
    }
    add_png_chunk(&image->copy, (StringView){"IEND", 4}, (StringView){"", 0}, 0);
}

/* ---- JPEG: segments: 0xFF, a marker, a size, data. Compressed data follow the header of a scan ---- */

enum { JPEG_FRAME = 0xC0, JPEG_PROGRESSIVE = 0xC2, JPEG_HUFFMAN = 0xC4, JPEG_LAST_FRAME = 0xCF, JPEG_RESTART = 0xD0,
       JPEG_START = 0xD8, JPEG_END = 0xD9, JPEG_SCAN = 0xDA, JPEG_QUANTISERS = 0xDB, JPEG_LINES = 0xDC,
       JPEG_INTERVAL = 0xDD, JPEG_APP0 = 0xE0, JPEG_EXIF = 0xE1, JPEG_ADOBE = 0xEE, JPEG_APP15 = 0xEF,
       JPEG_COMMENT = 0xFE };

/* Moves *at to the next segment, over bytes that belong to none. Returns its marker, 0 at the end of the file. */
static unsigned jpeg_next(StringView file, size_t *at, StringView *segment) {
    unsigned marker = 0;
    for (; *at + 1 < file.length; ++*at) {
        marker = view_byte(file, *at) == 0xFF ? view_byte(file, *at + 1) : 0;
        if (marker > 1 && marker != 0xFF && (marker < JPEG_RESTART || marker > JPEG_START)) break;
        marker = 0;
    }
    const size_t size = marker == 0 || marker == JPEG_END ? 0 : (size_t)view_number(file, *at + 2, 2, true);
    *segment = view_part(file, *at, 2 + size);
    return marker;
}

/* Adds the Huffman tables that a file may leave out. A sequential JPEG gets the standard ones (T.81, K.3), which frames
   of MJPEG use and stb_image_write writes; others get tables without codes, so that their use is an error. */
static void add_huffman_tables(TextBuffer *out, bool standard) {
    static const uint8_t NO_CODES[16];
    TextBuffer pixel = {0};
    for (uint32_t i = 0; i < 8; i++) {
        add_number(out, 0xFFC40013, 4);
        add_number(out, i < 4 ? i : 0x10 | (i - 4), 1);
        text_add(out, NO_CODES, 16);
    }
    if (standard) stbi_write_jpg_to_func(writer_sink, &pixel, 1, 1, 1, NO_CODES, 90);
    StringView written = {pixel.text, pixel.length}, segment;
    for (size_t at = 2; at < written.length; at += segment.length)
        if (jpeg_next(written, &at, &segment) == JPEG_HUFFMAN) add_view(out, segment);
    out->failed = out->failed || pixel.failed;
    text_free(&pixel);
}

/* The number of restart markers in a scan: one after each interval but the last. A unit is one block if the scan has
   one channel, else as many blocks of each channel as its sampling factors say. */
static int64_t jpeg_restarts(const ImageFile *image, StringView scan) {
    int64_t across = 1, down = 1, h = 1, v = 1; /* the largest sampling factors; those of the scan's only channel */
    for (size_t c = 6; c < image->frame.length; c += 3) {
        const unsigned factors = view_byte(image->frame, c + 1);
        const bool alone = view_byte(scan, 0) == 1 && view_byte(scan, 1) == view_byte(image->frame, c);
        across = max_i64(across, factors >> 4), h = alone ? factors >> 4 : h;
        down = max_i64(down, factors & 15), v = alone ? factors & 15 : v;
    }
    const int64_t columns = round_up(image->width * h, 8 * across) / (8 * across);
    const int64_t rows = round_up(image->height * v, 8 * down) / (8 * down);
    return image->interval > 0 ? (columns * rows - 1) / image->interval : 0;
}

/* Copies the compressed data of a scan up to the first restart marker too many: what follows is not pixels. */
static void jpeg_scan(ImageFile *image, StringView scan, size_t begin) {
    int64_t restarts = jpeg_restarts(image, view_part(scan, 4, scan.length));
    size_t end = begin, length = 0;
    image->scans++;
    jpeg_next(image->file, &end, &scan);
    const StringView data = view_part(image->file, begin, end - begin);
    for (size_t c = 6; c < image->frame.length; c += 3)
        if ((image->quantisers >> (view_byte(image->frame, c + 2) & 15) & 1) == 0)
            image_bad(image, "a quantisation table is missing");
    for (; length < data.length; length++) {
        const bool restart = view_byte(data, length) == 0xFF && (view_byte(data, length + 1) & 0xF8) == JPEG_RESTART;
        if (restart && restarts-- == 0) break;
    }
    add_view(&image->copy, view_part(data, 0, length));
}

/* A segment of tables. Quantisation: number and precision, 64 values of one byte or two; Huffman: number, 16 counts, as
   many values. They must fill the segment, which stb does not always check. */
static void jpeg_tables(ImageFile *image, bool huffman, StringView data) {
    size_t at = 0;
    while (at < data.length) {
        const unsigned number = view_byte(data, at);
        size_t bytes = huffman ? 17 : number < 16 ? 65 : 129;
        for (size_t i = 1; huffman && i <= 16; i++) bytes += view_byte(data, at + i);
        if (!huffman) image->quantisers |= 1u << (number & 15);
        at += bytes;
    }
    if (at != data.length) image_bad(image, "a bad table");
}

/* Copies a segment on which pixels or colours depend, and takes from it what is needed here. Four channels are YCCK
   unless Adobe's marker says 0, but stb accepts 2 alone. */
static void jpeg_segment(ImageFile *image, unsigned marker, StringView segment) {
    const StringView data = view_part(segment, 4, segment.length);
    const bool early = image->scans == 0;
    if (segment.length < 4) image_bad(image, "a bad segment");
    if (marker == JPEG_QUANTISERS || marker == JPEG_HUFFMAN) jpeg_tables(image, marker == JPEG_HUFFMAN, data);
    if (marker == JPEG_INTERVAL) image->interval = (int64_t)view_number(data, 0, 2, true);
    if (marker == JPEG_COMMENT && early) add_view(&image->text, data);
    if (marker == JPEG_EXIF && early && image->orientation == 0 && view_begins(data, "Exif\0\0", 6))
        image->orientation = exif_orientation(data);
    const bool note = marker == JPEG_COMMENT || marker == JPEG_LINES || (marker > JPEG_APP0 && marker <= JPEG_APP15);
    if (note && marker != JPEG_ADOBE) return;
    add_view(&image->copy, segment);
    if (marker == JPEG_ADOBE && view_byte(image->frame, 5) == 4 && view_byte(data, 11) != 0 && !image->copy.failed)
        image->copy.text[image->copy.length - data.length + 11] = 2;
}

/* Finds the frame, on which the reading of all scans depends, and begins the copy. */
static void jpeg_frame(ImageFile *image) {
    static const uint8_t CMYK[16] = {0xFF, JPEG_ADOBE, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100}; /* the default */
    unsigned marker;
    size_t at = 2;
    StringView segment;
    do {
        marker = jpeg_next(image->file, &at, &segment);
        at += segment.length;
    } while (marker == JPEG_HUFFMAN || marker > JPEG_SCAN);
    image->frame = view_part(segment, 4, segment.length);
    if (marker < JPEG_FRAME || marker > JPEG_LAST_FRAME) image_bad(image, "it is cut off or has no usual frame");
    else if (marker > JPEG_PROGRESSIVE) image_bad(image, "arithmetic coding, lossless or hierarchical");
    image->width = (int64_t)view_number(image->frame, 3, 2, true);
    image->height = (int64_t)view_number(image->frame, 1, 2, true);
    add_number(&image->copy, 0xFF00 | JPEG_START, 2);
    add_huffman_tables(&image->copy, marker != JPEG_PROGRESSIVE);
    if (view_byte(image->frame, 5) == 4) text_add(&image->copy, CMYK, sizeof CMYK);
}

/* Copies the file without metadata and without bytes between segments. */
static void jpeg_parse(ImageFile *image) {
    unsigned marker;
    StringView segment;
    jpeg_frame(image);
    for (size_t at = 2;; at += segment.length) {
        marker = jpeg_next(image->file, &at, &segment);
        if (marker == 0 || marker == JPEG_END || has_failed(&image->cx)) break;
        jpeg_segment(image, marker, segment);
        if (marker == JPEG_SCAN) jpeg_scan(image, segment, at + segment.length);
    }
    add_number(&image->copy, 0xFF00 | JPEG_END, 2);
    if (marker != JPEG_END || image->scans == 0) image_bad(image, "it is cut off");
}

/* ---- Pixels and texts ---- */

/* Reads all but the pixels. Each scan of a JPEG takes time for all pixels, however short it is: that is limited, but a
   block of 64 pixels has at least one bit, and few files have more than 16 scans. */
static void image_parse(ImageFile *image) {
    Context *cx = &image->cx;
    const char *name = image->name;
    const size_t length = image->file.length;
    const Signature *format;
    if (length == 0) context_fail(cx, JANUS_BAD_IMAGE, "%s is empty", name);
    else if (length > IMAGE_FILE_LIMIT) context_fail(cx, JANUS_BAD_IMAGE, "%s is larger than 512 MiB", name);
    else if ((format = find_signature(IMAGE_FORMATS, image->file)) == PNG) png_parse(image);
    else if (format == JPEG) jpeg_parse(image);
    else if (format->remedy == NULL) context_fail(cx, JANUS_BAD_IMAGE, "%s is %s", name, format->what);
    else
        context_fail(cx, JANUS_BAD_IMAGE, "%s is %s, which cannot be read: convert it first, for instance with %s",
                     name, format->what, format->remedy);
    if (max_i64(image->width, image->height) > IMAGE_SIDE_LIMIT || image->width * image->height > IMAGE_PIXEL_LIMIT)
        context_fail(cx, JANUS_BAD_IMAGE, "%s is %.0f x %.0f pixels: the limit is 16384 a side and 178,956,970 in all",
                     name, (double)image->width, (double)image->height);
    else if (image->scans * image->width * image->height / 16384 > (int64_t)length)
        image_bad(image, "it is too short for so many pixels");
    if (image->copy.failed || image->text.failed) context_fail_memory(cx);
}

/* Decodes the pixels as they are stored. After some errors stb returns an unfinished picture: its reason is set. */
static void image_decode(ImageFile *image, JanusImage *out) {
    int channels;
    memset(out, 0, sizeof *out);
    if (has_failed(&image->cx)) return;
    /* four channels of 16 bits, JPEG's padding to complete blocks, and what grows by doubling */
    const int64_t limit = 16 * (image->width + 64) * (image->height + 64) + 2 * (int64_t)image->copy.length + 65536;
    image_memory.limit = (size_t)min_i64(limit, PTRDIFF_MAX);
    image_memory.failed = false;
    stbi__g_failure_reason = NULL;
    out->rgb = stbi_load_from_memory((const uint8_t *)image->copy.text, (int)image->copy.length, &out->width,
                                     &out->height, &channels, 3);
    const char *reason = stbi_failure_reason();
    if (image_memory.failed) context_fail_memory(&image->cx);
    else if (out->rgb == NULL || (reason != NULL && strcmp(reason, "bad png sig") != 0)) /* a JPEG is no PNG */
        image_bad(image, reason != NULL ? reason : "a bad header");
}

/* Turns and mirrors the picture for orientation 2 to 8: from 5 on rows become columns. */
static void image_turn(ImageFile *image, JanusImage *out) {
    const int orientation = image->orientation;
    const bool swapped = orientation >= 5;
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const int64_t width = out->width, height = out->height;
    const int64_t across = from_right ? -3 : 3, down = from_bottom ? -3 * width : 3 * width; /* to the next pixel */
    const int64_t corner = (from_right ? 3 * (width - 1) : 0) + (from_bottom ? 3 * width * (height - 1) : 0);
    uint8_t *turned = allocate(width * height, 3), *to = turned;
    if (turned == NULL) {
        context_fail_memory(&image->cx);
        return;
    }
    for (int64_t y = 0; y < (swapped ? width : height); y++)
        for (int64_t x = 0; x < (swapped ? height : width); x++, to += 3)
            memcpy(to, out->rgb + corner + x * (swapped ? down : across) + y * (swapped ? across : down), 3);
    free(out->rgb);
    out->rgb = turned;
    out->width = (int)(swapped ? height : width);
    out->height = (int)(swapped ? width : height);
}

/* The text as UTF-8, malloc'ed; NULL if there is none. Anything that is not UTF-8 is Latin-1. */
static char *image_text(ImageFile *image) {
    const TextBuffer found = image->text;
    const bool utf8 = utf8_valid(found.text, found.length);
    TextBuffer text = {0};
    char character[4];
    for (size_t i = 0; i < found.length && !has_failed(&image->cx); i++)
        if (utf8) text_add(&text, &found.text[i], 1);
        else text_add(&text, character, (size_t)(utf8_put(character, (uint8_t)found.text[i]) - character));
    if (text.failed) context_fail_memory(&image->cx);
    if (text.failed) text_free(&text);
    return text.text;
}

/* Reads the image in a file's bytes: its pixels, if `upright` turned by its orientation, and its text. One of `out` and
   `text` may be NULL. `name` is for messages. */
static JanusStatus image_from_bytes(const void *bytes, size_t length, bool upright, JanusImage *out, char **text,
                                    const char *name, JanusError *error) {
    if (!given(bytes, out != NULL ? (void *)out : text, error)) return JANUS_BAD_ARGUMENT;
    ImageFile image = {.file = {bytes, length}, .name = name};
    image_parse(&image);
    if (out != NULL) image_decode(&image, out);
    if (out != NULL && upright && image.orientation > 1 && !has_failed(&image.cx)) image_turn(&image, out);
    if (out != NULL && has_failed(&image.cx)) janus_image_free(out);
    if (text != NULL) *text = image_text(&image);
    text_free(&image.copy);
    text_free(&image.text);
    return context_end(&image.cx, error);
}

/* Adds what a file must hold to carry the text, which is UTF-8: comments of a JPEG, or a chunk of a PNG. */
static void add_image_text(TextBuffer *out, const char *text, bool jpeg) {
    enum { COMMENT_LIMIT = 65533 };
    const size_t size = strlen(text), start = out->length + 4; /* the checksum's: behind the size */
    bool ascii = true;
    for (size_t i = 0, part; jpeg && i < size; i += part) {
        part = size - i < COMMENT_LIMIT ? size - i : COMMENT_LIMIT;
        add_number(out, 0xFF00 | JPEG_COMMENT, 2);
        add_number(out, (uint32_t)part + 2, 2);
        text_add(out, text + i, part);
    }
    if (jpeg) return;
    for (size_t i = 0; i < size; i++) ascii = ascii && (uint8_t)text[i] < 0x80;
    add_number(out, (uint32_t)(sizeof TEXT_KEY + (ascii ? 0 : 4) + size), 4);
    text_add(out, ascii ? "tEXt" : "iTXt", 4);
    text_add(out, TEXT_KEY, sizeof TEXT_KEY);
    text_add(out, "\0\0\0", ascii ? 0 : 4); /* not compressed, no language, no translated key */
    text_add(out, text, size);
    if (!out->failed) add_number(out, stbiw__crc32((uint8_t *)out->text + start, (int)(out->length - start)), 4);
}

/* The picture as the bytes of a PNG or JPEG, with a text unless it is NULL. */
static TextBuffer image_to_bytes(const JanusImage *image, bool jpeg, const char *text) {
    const size_t place = jpeg ? 20 : 33; /* of the text: after the first segment or chunk */
    const int width = image->width, height = image->height;
    TextBuffer *plain = &image_memory.file, bytes = {0};
    volatile int written = 0;
    if (setjmp(image_memory.way_out) == 0)
        written = jpeg ? stbi_write_jpg_to_func(writer_sink, plain, width, height, 3, image->rgb, 95)
                       : stbi_write_png_to_func(writer_sink, plain, width, height, 3, image->rgb, 3 * width);
    arena_free(&image_memory.arena);
    bytes.failed = !written || plain->failed;
    if (!bytes.failed) text_add(&bytes, plain->text, place);
    if (text != NULL && text[0] != 0) add_image_text(&bytes, text, jpeg);
    if (!bytes.failed) text_add(&bytes, plain->text + place, plain->length - place);
    text_free(plain);
    return bytes;
}

/* ---- Resizing ---- */

/* Two cubic pieces with a = -1/2 (Catmull-Rom), zero from |x| = 2 on. */
static double bicubic(double x) {
    const double a = -0.5;
    if (x < 0) x = -x;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

enum { RESAMPLE_BITS = 22 }; /* fractional bits of Pillow's fixed-point weights */

/* Fills in the weights with which output position `o` of `out` reads the input positions from *first on; returns how
   many. When shrinking, the filter is widened by the ratio, so that every input pixel counts. */
static int resample_weights(int in, int out, int o, int *first, int32_t *weights) {
    const double scale = (double)in / out, widening = scale < 1 ? 1 : scale, support = 2 * widening;
    const double center = (o + 0.5) * scale;
    const int begin = (int)max_i64(0, (int)(center - support + 0.5));
    const int end = (int)min_i64(in, (int)(center + support + 0.5));
    double sum = 0;
    for (int i = begin; i < end; i++) sum += bicubic((i - center + 0.5) * (1.0 / widening));
    for (int i = begin; i < end; i++) {
        double weight = bicubic((i - center + 0.5) * (1.0 / widening));
        if (sum != 0) weight /= sum;
        weights[i - begin] = (int32_t)(weight * (1 << RESAMPLE_BITS) + (weight < 0 ? -0.5 : 0.5));
    }
    *first = begin;
    return end - begin;
}

/* Resizes along one direction: `in` holds `lines` lines of in_count pixels, `out` as many of out_count; neighbours
   along the direction are `step` pixels apart in both, lines are in_pitch and out_pitch pixels apart. */
static void resize_direction(Context *cx, uint8_t *out, const uint8_t *in, int in_count, int out_count, int lines,
                             int64_t step, int64_t in_pitch, int64_t out_pitch) {
    int32_t *weights = scratch_bytes(cx, 2 * (int64_t)ceil(2 * fmax((double)in_count / out_count, 1)) + 1, 4);
    for (int o = 0; o < out_count && !has_failed(cx); o++) {
        int first;
        const int count = resample_weights(in_count, out_count, o, &first, weights);
        for (int line = 0; line < lines; line++) {
            const uint8_t *from = in + 3 * (line * in_pitch + first * step);
            uint8_t *to = out + 3 * (line * out_pitch + o * step);
            for (int c = 0; c < 3; c++) { /* rounded and clipped */
                int32_t sum = 1 << (RESAMPLE_BITS - 1);
                for (int i = 0; i < count; i++) sum += from[3 * i * step + c] * weights[i];
                const int32_t value = sum < 0 ? 0 : sum >> RESAMPLE_BITS;
                to[c] = (uint8_t)(value > 255 ? 255 : value);
            }
        }
    }
}

/* Pillow's Image.resize(..., BICUBIC) on RGB: horizontally, then vertically, each rounded to 8 bits. Returns scratch
   memory, (height, width, 3), or NULL. */
static uint8_t *resize_bicubic(Context *cx, const JanusImage *image, int width, int height) {
    uint8_t *narrowed = scratch_bytes(cx, checked_product(image->height, width, 3), 1);
    uint8_t *out = scratch_bytes(cx, checked_product(height, width, 3), 1);
    resize_direction(cx, narrowed, image->rgb, image->width, width, image->height, 1, image->width, width);
    resize_direction(cx, out, narrowed, image->height, height, width, width, 1, 1);
    return has_failed(cx) ? NULL : out;
}

/* official: VLMImageProcessor. The resized picture is put in the middle of a square of the background's colour. */
static void vit_pixels(Context *cx, const Config *c, const JanusImage *image, float *pixels) {
    const ArenaBlock *mark = scratch_mark(cx);
    const int side = c->image_side, longest = image->width > image->height ? image->width : image->height;
    int width = (int)((double)image->width / longest * side), height = (int)((double)image->height / longest * side);
    if (width < c->min_side) width = c->min_side;
    if (height < c->min_side) height = c->min_side;
    const int64_t left = (side - width) / 2, top = (side - height) / 2, count = 3 * (int64_t)side * side;
    const uint8_t *resized = resize_bicubic(cx, image, width, height);
    uint8_t *square = scratch_bytes(cx, count, 1);
    const bool good = !has_failed(cx);
    for (int64_t i = 0; i < count && good; i++) square[i] = (uint8_t)c->background[i % 3];
    for (int64_t y = 0; y < height && good; y++)
        memcpy(square + 3 * ((top + y) * side + left), resized + 3 * y * width, 3 * (size_t)width);
    for (int64_t i = 0; i < count && good; i++) {
        const float value = (float)(square[i] * c->rescale);
        pixels[i] = c->normalize ? (value - c->mean[i % 3]) / c->std[i % 3] : value;
    }
    scratch_release(cx, mark);
}

/* report, section 3.1 */
static void vq_pixels(Context *cx, const Config *c, const JanusImage *image, float *pixels) {
    const ArenaBlock *mark = scratch_mark(cx);
    const int side = drawn_side(c), shortest = image->width < image->height ? image->width : image->height;
    const int64_t width = (int64_t)side * image->width / shortest, height = (int64_t)side * image->height / shortest;
    const int64_t left = (width - side) / 2, top = (height - side) / 2;
    if (width > IMAGE_SIDE_LIMIT * 4 || height > IMAGE_SIDE_LIMIT * 4)
        context_fail(cx, JANUS_BAD_ARGUMENT, "an image of %d x %d is too long and thin to encode: crop it first",
                     image->width, image->height);
    const uint8_t *resized = has_failed(cx) ? NULL : resize_bicubic(cx, image, (int)width, (int)height);
    for (int y = 0; y < side && resized != NULL; y++) {
        const uint8_t *row = resized + 3 * ((top + y) * width + left);
        for (int i = 0; i < 3 * side; i++) pixels[(int64_t)y * side * 3 + i] = (float)row[i] / 127.5f - 1.0f;
    }
    scratch_release(cx, mark);
}

/* ******************************************************************************************************************
   PART IV   THE PROGRAM
   ****************************************************************************************************************** */

/* ==================================================================================================================
   19  Public API: what janus.h promises, over the stages above. Arguments are checked here, once.
   ================================================================================================================== */

struct JanusSession {
    const JanusModel *model;
    Context context;
    Conversation conversation;
};

/* ---- The ranges of the numbers that a caller chooses: for the calls below, the command line and batch ---- */

enum { IMAGES_LIMIT = 64, TOKENS_LIMIT = 1 << 24 };

typedef enum {
    RANGE_COUNT, RANGE_DRAFTS, RANGE_CFG_WEIGHT, RANGE_TEMPERATURE, RANGE_MAX_TOKENS, RANGE_TOP_K, RANGE_TOP_P,
    RANGE_IMAGES, RANGE_THREADS, RANGE_PLACES, RANGES_END
} RangeName;

typedef struct {
    const char *what; /* for messages */
    enum { AN_INT, A_FLOAT, A_DOUBLE } type;
    double low, high;
    int in_drawing, in_question; /* offset of the field in JanusGenerateOptions, in JanusAskOptions; -1: not there */
} Range;

static const Range RANGES[RANGES_END] = {
    [RANGE_COUNT] = {"the number of pictures", AN_INT, 1, PICTURES_LIMIT, offsetof(JanusGenerateOptions, count), -1},
    [RANGE_DRAFTS] = {"the number of drafts", AN_INT, JANUS_DRAFTS_AUTO, DRAFTS_LIMIT,
                      offsetof(JanusGenerateOptions, drafts), -1},
    [RANGE_CFG_WEIGHT] = {"the guidance weight", A_FLOAT, 0, 100, offsetof(JanusGenerateOptions, cfg_weight), -1},
    [RANGE_TEMPERATURE] = {"the temperature", A_FLOAT, 0, 100, offsetof(JanusGenerateOptions, temperature),
                           offsetof(JanusAskOptions, temperature)},
    [RANGE_MAX_TOKENS] = {"the number of tokens", AN_INT, 1, TOKENS_LIMIT, -1, offsetof(JanusAskOptions, max_tokens)},
    [RANGE_TOP_K] = {"top-k", AN_INT, 0, TOKENS_LIMIT, -1, offsetof(JanusAskOptions, top_k)},
    [RANGE_TOP_P] = {"top-p", A_DOUBLE, 1e-6, 1, -1, offsetof(JanusAskOptions, top_p)},
    [RANGE_IMAGES] = {"the number of images", AN_INT, 0, IMAGES_LIMIT, -1, -1},
    [RANGE_THREADS] = {"the number of threads", AN_INT, 0, MOST_THREADS, -1, -1},
    [RANGE_PLACES] = {"the number of places", AN_INT, 0, PICTURES_LIMIT, -1, -1},
};

/* The value is in its range, and not NaN. */
static bool in_range(RangeName name, double value, JanusError *error) {
    const Range *r = &RANGES[name];
    const bool good = value >= r->low && value <= r->high;
    if (!good)
        fail(error, JANUS_BAD_ARGUMENT, "%s must be a %snumber from %.10g to %.10g", r->what,
             r->type == AN_INT ? "whole " : "", r->low, r->high);
    return good;
}

/* All numbers of a drawing or of a question; the other pointer is NULL. */
static bool in_ranges(const JanusGenerateOptions *drawing, const JanusAskOptions *question, JanusError *error) {
    bool good = true;
    for (int i = 0; i < RANGES_END && good; i++) {
        const Range *r = &RANGES[i];
        const int at = drawing != NULL ? r->in_drawing : r->in_question;
        const void *field = (drawing != NULL ? (const char *)drawing : (const char *)question) + (at < 0 ? 0 : at);
        const double value = r->type == AN_INT ? *(const int *)field : r->type == A_FLOAT ? *(const float *)field
                                                                                          : *(const double *)field;
        good = at < 0 || in_range(i, value, error);
    }
    return good;
}

static bool has_pixels(const JanusImage *image, JanusError *error) {
    if (image != NULL && image->rgb != NULL && image->width >= 1 && image->height >= 1 &&
        image->width <= IMAGE_SIDE_LIMIT && image->height <= IMAGE_SIDE_LIMIT)
        return true;
    fail(error, JANUS_BAD_ARGUMENT, "an image is empty or larger than 16384 pixels a side");
    return false;
}

static bool is_question(const JanusAskOptions *options, const JanusImage *images, int image_count, JanusError *error) {
    bool good = in_ranges(NULL, options, error) && in_range(RANGE_IMAGES, image_count, error) &&
                (image_count == 0 || given(images, images, error));
    for (int i = 0; i < image_count && good; i++) good = has_pixels(&images[i], error);
    return good;
}

JanusStatus janus_image_load_memory(const void *bytes, size_t length, JanusImage *image, JanusError *error) {
    return image_from_bytes(bytes, length, true, image, NULL, "the image", error);
}

JanusStatus janus_image_load_memory_stored(const void *bytes, size_t length, JanusImage *image, JanusError *error) {
    return image_from_bytes(bytes, length, false, image, NULL, "the image", error);
}

/* Reads an image file, or stdin if `path` is NULL: pixels and text, of which one may be NULL. */
static JanusStatus image_from_path(const char *path, bool upright, JanusImage *image, char **text, JanusError *error) {
    TextBuffer file = {0};
    if (image != NULL) memset(image, 0, sizeof *image);
    if (text != NULL) *text = NULL;
    JanusStatus status = read_bytes(path, "the image ", IMAGE_FILE_LIMIT, &file, error);
    if (status == JANUS_OK)
        status = image_from_bytes(file.text, file.length, upright, image, text, path != NULL ? path : "stdin", error);
    text_free(&file);
    return status;
}

JanusStatus janus_image_load(const char *path, JanusImage *image, JanusError *error) {
    return given(path, image, error) ? image_from_path(path, true, image, NULL, error) : JANUS_BAD_ARGUMENT;
}

JanusStatus janus_image_load_stored(const char *path, JanusImage *image, JanusError *error) {
    return given(path, image, error) ? image_from_path(path, false, image, NULL, error) : JANUS_BAD_ARGUMENT;
}

JanusStatus janus_image_text(const char *path, char **text, JanusError *error) {
    return given(path, text, error) ? image_from_path(path, false, NULL, text, error) : JANUS_BAD_ARGUMENT;
}

void janus_image_free(JanusImage *image) {
    if (image == NULL) return;
    stbi_image_free(image->rgb); /* free(), as for the images that this file allocates itself */
    memset(image, 0, sizeof *image);
}

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcasecmp(text + length - end_length, end) == 0;
}

/* Writes a file, or stdout if `path` is NULL. */
static JanusStatus write_bytes(const char *path, const TextBuffer *bytes, JanusError *error) {
    errno = bytes->failed ? ENOMEM : 0;
    if (!bytes->failed && (path != NULL ? file_write(path, bytes->text, bytes->length) == 0
                                        : fwrite(bytes->text, 1, bytes->length, stdout) == bytes->length))
        return JANUS_OK;
    if (errno == ENOMEM) return fail_memory(error);
    return fail(error, JANUS_IO_ERROR, "cannot write %s: %s", path != NULL ? path : "to stdout",
                strerror(errno_or(EIO)));
}

static bool is_jpeg_name(const char *path) { return ends_with(path, ".jpg") || ends_with(path, ".jpeg"); }

static bool is_picture_name(const char *path) { return is_jpeg_name(path) || ends_with(path, ".png"); }

JanusStatus janus_image_save(const char *path, const JanusImage *image, JanusError *error) {
    return janus_image_save_with_text(path, image, NULL, error);
}

JanusStatus janus_image_save_with_text(const char *path, const JanusImage *image, const char *text,
                                       JanusError *error) {
    if (!given(path, image, error) || !has_pixels(image, error)) return JANUS_BAD_ARGUMENT;
    if (text != NULL && (!utf8_valid(text, strlen(text)) || strlen(text) > IMAGE_FILE_LIMIT / 2))
        return fail(error, JANUS_BAD_ARGUMENT, "cannot write %s: the text is not UTF-8 or too long", path);
    if (!is_picture_name(path))
        return fail(error, JANUS_BAD_ARGUMENT, "cannot write %s: the name must end in .png, .jpg or .jpeg", path);
    TextBuffer bytes = image_to_bytes(image, is_jpeg_name(path), text);
    const JanusStatus status = write_bytes(path, &bytes, error);
    text_free(&bytes);
    return status;
}

void janus_free(JanusModel *model) {
    if (model == NULL) return;
    TextBuffer *file = &model->storage->file;
    arena_free(&model->storage->memory);
    if (file->capacity == 0 && file->text != NULL) file_unmap(file);
    else text_free(file);
    free(model);
}

JanusStatus janus_load(const char *path, JanusModel **model, JanusError *error) {
    if (!given(path, model, error)) return JANUS_BAD_ARGUMENT;
    *model = NULL;
    struct { /* freed by the address of its first member */
        JanusModel model;
        Storage storage;
    } *made = calloc(1, sizeof *made);
    if (made == NULL) return fail_memory(error);
    made->model.storage = &made->storage;
    Loader loader = {.path = path, .model = &made->model, .file = &made->storage.file};
    read_model(&loader);
    made->storage.memory = loader.cx.arena;
    const JanusError failure = loader.cx.error;
    if (failure.status == JANUS_OK) return *model = &made->model, JANUS_OK;
    janus_free(&made->model);
    return failure.status == JANUS_NO_MEMORY ? fail_memory(error)
                                             : fail(error, failure.status, "%s: %s", path, failure.message);
}

JanusInfo janus_info(const JanusModel *model) {
    const Config *c = &model->config;
    return (JanusInfo){
        .name = model->storage->name, .weight_type = find_format(model->blocks[0].q.type)->name,
        .file_bytes = (int64_t)model->storage->file.length, .parameters = model->storage->parameters,
        .hidden_size = c->hidden, .layers = c->layers, .heads = c->heads, .kv_heads = c->kv_heads,
        .head_dim = c->head_dim, .mlp_size = c->mlp, .vocab_size = c->vocab, .context_length = c->context,
        .vision_size = c->image_side, .vision_layers = c->vit_layers, .vision_width = c->vit_width,
        .vision_patch = c->patch, .vision_tokens = vision_tokens(c), .image_size = drawn_side(c),
        .image_tokens = (int)image_tokens(c), .codebook_size = c->codebook};
}

JanusStatus janus_tokenize(const JanusModel *model, const char *text, size_t length, int32_t **ids, size_t *count,
                           JanusError *error) {
    Context cx = {0};
    IdList list = {0};
    if (!given(model, length > 0 ? text : "", error) || !given(ids, count, error)) return JANUS_BAD_ARGUMENT;
    id_list_add(&cx, &list, 0, 0); /* not NULL for an empty text */
    tokenize(&cx, model, (StringView){text, length}, &list);
    const bool good = !has_failed(&cx);
    if (!good) id_list_free(&list);
    *ids = good ? list.ids : NULL;
    *count = good ? list.count : 0;
    return context_end(&cx, error);
}

JanusStatus janus_detokenize(const JanusModel *model, const int32_t *ids, size_t count, char **text, size_t *length,
                             JanusError *error) {
    Context cx = {0};
    size_t written = 0;
    if (!given(model, text, error) || (count > 0 && !given(ids, ids, error))) return JANUS_BAD_ARGUMENT;
    *text = tokenizer_decode(&cx, &model->storage->tokenizer, ids, count, &written);
    if (length != NULL) *length = written;
    return context_end(&cx, error);
}

JanusSessionOptions janus_session_defaults(void) {
    return (JanusSessionOptions){.threads = 0};
}

/* float16 keys and values change a drawing's ids after about 150 steps, so they are the default of `fast` alone. */
static JanusCacheType cache_type(const JanusSessionOptions *options) {
    if (options->cache != JANUS_CACHE_AUTO) return options->cache;
    return options->fast ? JANUS_CACHE_F16 : JANUS_CACHE_F32;
}

JanusStatus janus_session_new(const JanusModel *model, const JanusSessionOptions *options, JanusSession **session,
                              JanusError *error) {
    JanusSessionOptions hooks = options != NULL ? *options : janus_session_defaults();
    if (!given(model, session, error)) return JANUS_BAD_ARGUMENT;
    *session = NULL;
    hooks.cache = cache_type(&hooks);
    if (hooks.cache != JANUS_CACHE_F32 && hooks.cache != JANUS_CACHE_F16)
        return fail(error, JANUS_BAD_ARGUMENT, "keys and values must be cached as float32 or float16");
    if (!in_range(RANGE_THREADS, hooks.threads, error)) return JANUS_BAD_ARGUMENT;
    JanusSession *made = calloc(1, sizeof *made);
    if (made == NULL) return fail_memory(error);
    made->model = model;
    if (context_init(&made->context, hooks.threads > 0 ? hooks.threads : processor_count(), hooks.isa) != 0) {
        const bool known = made->context.kernels != NULL;
        free(made);
        return known ? fail_memory(error)
                     : fail(error, JANUS_BAD_ARGUMENT, "this machine does not run the instruction set %s", hooks.isa);
    }
    made->context.options = hooks;
    *session = made;
    return JANUS_OK;
}

void janus_session_free(JanusSession *session) {
    if (session == NULL) return;
    kv_cache_free(&session->conversation.sequence.own);
    context_free(&session->context);
    free(session);
}

void janus_reset(JanusSession *session) {
    session->conversation.sequence.own.length = 0;
    session->conversation.unread_count = 0;
}

int janus_conversation_length(const JanusSession *session) {
    return (int)session->conversation.sequence.own.length + session->conversation.unread_count;
}

JanusGenerateOptions janus_generate_defaults(void) {
    return (JanusGenerateOptions){.count = 1, .cfg_weight = 5, .temperature = 1, .drafts = JANUS_DRAFTS_AUTO};
}

JanusAskOptions janus_ask_defaults(void) {
    return (JanusAskOptions){.max_tokens = 512, .top_k = 50, .top_p = 1};
}

JanusStatus janus_generate_ids(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                               int32_t *ids, JanusError *error) {
    const JanusGenerateOptions chosen = options != NULL ? *options : janus_generate_defaults();
    if (!given(session, ids, error) || !in_ranges(&chosen, NULL, error)) return JANUS_BAD_ARGUMENT;
    draw(&session->context, session->model, prompt, &chosen, ids);
    return context_end(&session->context, error);
}

JanusStatus janus_decode_image(JanusSession *session, const int32_t *ids, JanusImage *image, JanusError *error) {
    if (!given(session, ids, error) || !given(image, image, error)) return JANUS_BAD_ARGUMENT;
    const Config *c = &session->model->config;
    memset(image, 0, sizeof *image);
    for (int64_t i = 0; i < image_tokens(c); i++)
        if (ids[i] < 0 || ids[i] >= c->codebook)
            return fail(error, JANUS_BAD_ARGUMENT, "image id %ld (number %d) is outside 0..%d", (long)ids[i],
                        (int)i + 1, c->codebook - 1);
    uint8_t *rgb = allocate(checked_product(drawn_side(c), drawn_side(c), 3), 1);
    if (rgb == NULL) return fail_memory(error);
    vq_decode(&session->context, session->model, ids, rgb);
    const JanusStatus status = context_end(&session->context, error);
    if (status == JANUS_OK) *image = (JanusImage){drawn_side(c), drawn_side(c), rgb};
    else free(rgb);
    return status;
}

/* ---- A colour for every id: the codes and a 1 times a matrix (code_dim + 1, 3) ---- */

/* Solves A x = b for three b (Gauss-Jordan): a (n, n + 3) is A, symmetric and positive definite, and beside it the b,
   which become x. */
static void solve_normal_equations(double *a, int64_t n) {
    const int64_t width = n + 3;
    for (int64_t k = 0; k < n; k++) {
        const double pivot = a[k * width + k];
        for (int64_t j = k; j < width; j++) a[k * width + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            const double factor = a[i * width + k];
            for (int64_t j = k; j < width && i != k; j++) a[i * width + j] -= factor * a[k * width + j];
        }
    }
}

/* code (code_dim + 1): the codebook's row `id` as the decoder takes it, then 1 */
static void code_of(const JanusModel *m, int32_t id, float *code) {
    weight_row(code, &m->codebook, id);
    normalize_rows(code, 1, m->config.code_dim);
    code[m->config.code_dim] = 1;
}

/* The matrix, fitted by least squares to 64 ids at equal distances: the last 3 columns of a (n, n + 3), n = code_dim
   + 1. An id has the mean colour of the middle token of a picture of 3 x 3 of it, which has neighbours on all sides. */
static void fit_colours(Context *cx, const JanusModel *m, float *code, double *a) {
    JanusModel small = *m;
    small.config.grid = 3;
    const int64_t n = m->config.code_dim + 1, side = drawn_side(&small.config), third = side / 3;
    uint8_t *rgb = scratch_bytes(cx, side * side, 3);
    for (int64_t i = 0; i < n * (n + 3); i++) a[i] = i % (n + 4) == 0 ? 1e-6 : 0; /* never singular */
    for (int k = 0; k < 64 && !has_failed(cx); k++) {
        const int32_t id = (int32_t)((int64_t)m->config.codebook * k / 64);
        const int32_t ids[] = {id, id, id, id, id, id, id, id, id};
        double colour[3] = {0, 0, 0};
        code_of(m, id, code);
        vq_decode(cx, &small, ids, rgb);
        for (int64_t i = 0; i < third * third && !has_failed(cx); i++)
            for (int j = 0; j < 3; j++)
                colour[j] += rgb[3 * ((third + i / third) * side + third + i % third) + j] / (double)(third * third);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n + 3; j++)
                a[i * (n + 3) + j] += (double)code[i] * (j < n ? (double)code[j] : colour[j - n]);
    }
    solve_normal_equations(a, n);
}

/* Takes the session's callbacks away until its options, which are returned, are put back. */
static JanusSessionOptions silence(Context *cx) {
    const JanusSessionOptions options = cx->options;
    cx->options = (JanusSessionOptions){.cache = options.cache, .fast = options.fast};
    return options;
}

JanusStatus janus_codebook_colours(JanusSession *session, uint8_t *rgb, JanusError *error) {
    if (!given(session, rgb, error)) return JANUS_BAD_ARGUMENT;
    Context *cx = &session->context;
    const JanusModel *m = session->model;
    const JanusSessionOptions options = silence(cx); /* these pictures are none of the caller's */
    const int64_t n = m->config.code_dim + 1;
    float *code = scratch(cx, n, 1);
    double *a = scratch_bytes(cx, n * (n + 3), sizeof *a);
    if (!has_failed(cx)) fit_colours(cx, m, code, a);
    cx->options = options;
    for (int32_t id = 0; id < m->config.codebook && !has_failed(cx); id++) {
        code_of(m, id, code);
        for (int j = 0; j < 3; j++) {
            double value = 0;
            for (int64_t i = 0; i < n; i++) value += (double)code[i] * a[i * (n + 3) + n + j];
            rgb[3 * (int64_t)id + j] = (uint8_t)(value > 0 ? value < 255 ? value : 255 : 0);
        }
    }
    return context_end(cx, error);
}

JanusStatus janus_generate(JanusSession *session, const char *prompt, const JanusGenerateOptions *options,
                           JanusImage *images, JanusError *error) {
    const JanusGenerateOptions chosen = options != NULL ? *options : janus_generate_defaults();
    const int count = chosen.count;
    if (!given(session, images, error) || !in_ranges(&chosen, NULL, error)) return JANUS_BAD_ARGUMENT;
    const int64_t tokens = image_tokens(&session->model->config);
    int32_t *ids = allocate(count * tokens, sizeof *ids);
    if (ids == NULL) return fail_memory(error);
    memset(images, 0, (size_t)count * sizeof *images);
    JanusStatus status = janus_generate_ids(session, prompt, &chosen, ids, error);
    for (int i = 0; i < count && status == JANUS_OK; i++)
        status = janus_decode_image(session, ids + i * tokens, &images[i], error);
    for (int i = 0; i < count && status != JANUS_OK; i++) janus_image_free(&images[i]);
    free(ids);
    return status;
}

JanusStatus janus_ask(JanusSession *session, const char *question, const JanusImage *images, int image_count,
                      const JanusAskOptions *options, char **answer, JanusError *error) {
    const JanusAskOptions chosen = options != NULL ? *options : janus_ask_defaults();
    Answer said;
    if (answer != NULL) *answer = NULL;
    if (!given(session, session, error) || !is_question(&chosen, images, image_count, error))
        return JANUS_BAD_ARGUMENT;
    if (!answer_begin(&said)) return fail_memory(error);
    converse(&session->context, session->model, &session->conversation, question, images, image_count, &chosen, &said);
    const JanusStatus status = context_end(&session->context, error);
    if (status == JANUS_OK && answer != NULL) *answer = answer_take(&said);
    else text_free(&said.text);
    return status;
}

JanusStatus janus_preprocess(const JanusModel *model, const JanusImage *image, float *pixels, JanusError *error) {
    Context cx = {0};
    if (!given(model, pixels, error) || !has_pixels(image, error)) return JANUS_BAD_ARGUMENT;
    vit_pixels(&cx, &model->config, image, pixels);
    return context_end(&cx, error);
}

JanusStatus janus_encode_image(JanusSession *session, const JanusImage *image, int32_t *ids, JanusError *error) {
    if (!given(session, ids, error) || !has_pixels(image, error)) return JANUS_BAD_ARGUMENT;
    const Config *c = &session->model->config;
    Context *cx = &session->context;
    float *pixels = scratch(cx, drawn_side(c), 3 * (int64_t)drawn_side(c));
    vq_pixels(cx, c, image, pixels);
    if (!has_failed(cx)) vq_encode(cx, session->model, pixels, ids);
    return context_end(cx, error);
}

/* ==================================================================================================================
   20  Many jobs: drawings and questions side by side. Reading the weights is what a step costs, so all running jobs
       share each step of Part I; a job's prompt is read on its own before it joins. This section only schedules: its
       ids are those of `draw` and `converse`, whose steps it runs.
   ================================================================================================================== */

typedef struct QueuedJob {
    struct QueuedJob *next;          /* in `jobs` or `finished` */
    int64_t number;
    JanusImage images[IMAGES_LIMIT]; /* of a question */
    int image_count;
    Conversation conversation;
    Task task;     /* R is 0 while it waits. With the results: a drawing's ids, an answer's tokens, or an error, */
    Answer answer; /* and the answer's text */
    char text[];   /* the prompt or question */
} QueuedJob;

struct JanusQueue {
    JanusSession *session;
    int places; /* a question takes one, like a picture */
    int64_t last_number;
    QueuedJob *jobs, *finished; /* first come, first served: the running jobs, then the waiting ones; in order of end */
};

/* Puts the job at the end of a list. */
static void append_job(QueuedJob **list, QueuedJob *job) {
    while (*list != NULL) list = &(*list)->next;
    *list = job;
    job->next = NULL;
}

/* The job of this number that waits or runs; NULL: there is none. */
static QueuedJob *find_job(const JanusQueue *queue, int64_t number) {
    QueuedJob *job = queue->jobs;
    while (job != NULL && job->number != number) job = job->next;
    return job;
}

/* Frees all but the results. */
static void job_stop(QueuedJob *job) {
    task_free(&job->task);
    kv_cache_free(&job->conversation.sequence.own);
    while (job->image_count > 0) janus_image_free(&job->images[--job->image_count]);
}

static void job_free(QueuedJob *job) {
    job_stop(job);
    id_list_free(&job->task.said);
    text_free(&job->answer.text);
    free(job->task.ids);
    free(job);
}

/* A step of all tasks. If it fails, each task is retried alone, so that only the faulty ones fail. */
static void run_step(Context *cx, const JanusModel *m, Task *const *tasks, int count) {
    const ArenaBlock *mark = scratch_mark(cx);
    int64_t lengths[PICTURES_LIMIT]; /* equal in all rows of a task */
    for (int i = 0; i < count; i++) lengths[i] = tasks[i]->rows[0].own.length;
    if (count == 1 && tasks[0]->drawing.count == 1 && tasks[0]->drawing.drafts > 0)
        step_with_drafts(cx, m, tasks[0]); /* of one picture: other tasks may join between two passes */
    else step(cx, m, tasks, count);
    if (has_failed(cx) && count == 1) task_fail(cx, tasks[0]);
    else if (has_failed(cx)) {
        cx->error.status = JANUS_OK;
        for (int i = 0; i < count; i++) {
            for (int64_t r = 0; r < tasks[i]->R; r++) tasks[i]->rows[r].own.length = lengths[i];
            run_step(cx, m, tasks + i, 1);
        }
    }
    scratch_release(cx, mark);
}

/* Moves completed jobs to `finished`. */
static void clear_places(JanusQueue *queue) {
    for (QueuedJob **at = &queue->jobs, *job; (job = *at) != NULL;) {
        if (!job->task.done) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        job_stop(job);
        append_job(&queue->finished, job);
    }
}

int janus_queue_step(JanusQueue *queue) {
    Context *cx = &queue->session->context;
    const JanusModel *m = queue->session->model;
    const JanusSessionOptions options = silence(cx);
    Task *tasks[PICTURES_LIMIT];
    QueuedJob *job = NULL;
    int count = 0, used = 0;
    for (int drawings = 0; drawings < 2; drawings++) /* answers first, as `step` takes them */
        for (job = queue->jobs; job != NULL && job->task.R > 0; job = job->next) {
            if (job->task.answers == (drawings == 1)) continue;
            tasks[count++] = &job->task;
            used += job->task.drawing.count;
        }
    if (job != NULL && (count == 0 || used + job->task.drawing.count <= queue->places)) { /* the first that waits */
        if (job->task.answers) start_answer(cx, m, &job->task, job->text, job->images, job->image_count);
        else start_drawing(cx, m, &job->task, job->text);
        if (has_failed(cx)) task_fail(cx, &job->task);
    } else if (count > 0) run_step(cx, m, tasks, count);
    context_end(cx, NULL);
    cx->options = options;
    clear_places(queue);
    return queue->jobs != NULL;
}

/* Half of the memory that the model leaves may hold keys and values; eight pictures keep a processor busy. */
int janus_queue_places(const JanusModel *model, const JanusSessionOptions *options) {
    enum { PROMPT = 64 }; /* tokens */
    const Config *c = &model->config;
    const JanusSessionOptions chosen = options != NULL ? *options : janus_session_defaults();
    const double element = cache_type(&chosen) == JANUS_CACHE_F16 ? 2 : 4;
    const double picture = 4 * element * c->layers * c->kv_heads * c->head_dim * (double)(image_tokens(c) + PROMPT);
    const double room = ((double)memory_size() - (double)model->storage->file.length) / 2 / picture;
    const int most = 8 * (chosen.threads > 0 ? chosen.threads : processor_count());
    return (int)fmax(1, fmin(room, most < PICTURES_LIMIT ? most : PICTURES_LIMIT));
}

JanusStatus janus_queue_new(JanusSession *session, int places, JanusQueue **queue, JanusError *error) {
    if (!given(session, queue, error)) return JANUS_BAD_ARGUMENT;
    *queue = NULL;
    if (!in_range(RANGE_PLACES, places, error)) return JANUS_BAD_ARGUMENT;
    JanusQueue *made = calloc(1, sizeof *made);
    if (made == NULL) return fail_memory(error);
    made->session = session;
    made->places = places > 0 ? places : janus_queue_places(session->model, &session->context.options);
    *queue = made;
    return JANUS_OK;
}

void janus_queue_free(JanusQueue *queue) {
    JanusResult result;
    if (queue == NULL) return;
    while (queue->jobs != NULL) janus_queue_cancel(queue, queue->jobs->number);
    while (janus_queue_collect(queue, &result)) janus_result_free(&result);
    free(queue);
}

/* A job with a copy of its text, not in the queue yet; NULL: no memory. */
static QueuedJob *job_new(const char *text) {
    const size_t length = text != NULL ? strlen(text) : 0;
    QueuedJob *job = calloc(1, sizeof *job + length + 1);
    if (job != NULL && length > 0) memcpy(job->text, text, length);
    return job;
}

/* Puts a job at the end of the queue, or drops it if memory was too short to complete it. */
static JanusStatus submit(JanusQueue *queue, QueuedJob *job, bool complete, int64_t *number, JanusError *error) {
    if (!complete) {
        if (job != NULL) job_free(job);
        return fail_memory(error);
    }
    job->number = ++queue->last_number;
    if (number != NULL) *number = job->number;
    append_job(&queue->jobs, job);
    return JANUS_OK;
}

JanusStatus janus_queue_generate(JanusQueue *queue, const char *prompt, const JanusGenerateOptions *options,
                                 int64_t *job, JanusError *error) {
    const JanusGenerateOptions chosen = options != NULL ? *options : janus_generate_defaults();
    if (!given(queue, queue, error) || !in_ranges(&chosen, NULL, error)) return JANUS_BAD_ARGUMENT;
    QueuedJob *made = job_new(prompt);
    int32_t *ids = made != NULL ? allocate(chosen.count * image_tokens(&queue->session->model->config), 4) : NULL;
    if (made != NULL) made->task = (Task){.drawing = chosen, .ids = ids};
    return submit(queue, made, ids != NULL, job, error);
}

static bool copy_image(JanusImage *to, const JanusImage *from) {
    const int64_t bytes = (int64_t)from->width * from->height * 3;
    *to = *from;
    to->rgb = allocate(bytes, 1);
    if (to->rgb != NULL) memcpy(to->rgb, from->rgb, (size_t)bytes);
    return to->rgb != NULL;
}

JanusStatus janus_queue_ask(JanusQueue *queue, const char *question, const JanusImage *images, int image_count,
                            const JanusAskOptions *options, int64_t *job, JanusError *error) {
    const JanusAskOptions chosen = options != NULL ? *options : janus_ask_defaults();
    if (!given(queue, queue, error) || !is_question(&chosen, images, image_count, error)) return JANUS_BAD_ARGUMENT;
    QueuedJob *made = job_new(question);
    if (made == NULL) return fail_memory(error);
    made->task = (Task){.answers = true, .drawing.count = 1, .question = chosen, .conversation = &made->conversation,
                        .answer = &made->answer};
    bool good = answer_begin(&made->answer);
    for (int i = 0; i < image_count && good; i++, made->image_count++) good = copy_image(&made->images[i], &images[i]);
    return submit(queue, made, good, job, error);
}

int janus_queue_cancel(JanusQueue *queue, int64_t job) {
    QueuedJob *found = find_job(queue, job);
    if (found == NULL) return 0;
    found->task.done = true;
    fail(&found->task.error, JANUS_CANCELLED, "the job was cancelled");
    clear_places(queue);
    return 1;
}

int janus_queue_collect(JanusQueue *queue, JanusResult *result) {
    QueuedJob *job = queue->finished;
    memset(result, 0, sizeof *result);
    if (job == NULL) return 0;
    result->job = job->number;
    result->error = job->task.error;
    if (result->error.status == JANUS_OK) { /* changes hands */
        Task *task = &job->task;
        result->answer = task->answers ? answer_take(&job->answer) : NULL;
        result->ids = task->answers ? task->said.ids : task->ids;
        result->id_count = task->answers ? (int64_t)task->said.count
                                         : task->drawing.count * image_tokens(&queue->session->model->config);
        task->said.ids = task->ids = NULL;
    }
    queue->finished = job->next;
    job_free(job);
    return 1;
}

void janus_result_free(JanusResult *result) {
    free(result->ids);
    free(result->answer);
    memset(result, 0, sizeof *result);
}

int janus_queue_waiting(const JanusQueue *queue) {
    int count = 0;
    for (const QueuedJob *job = queue->jobs; job != NULL; job = job->next) count += job->task.R == 0;
    return count;
}

double janus_queue_progress(const JanusQueue *queue, int64_t job) {
    const QueuedJob *found = find_job(queue, job);
    if (found == NULL) return 0;
    return found->task.answers ? (double)found->task.said.count / found->task.question.max_tokens
                               : (double)found->task.drawn / (double)image_tokens(&queue->session->model->config);
}

/* ==================================================================================================================
   21  JSON: the lines of `janus batch`, strictly by RFC 8259. json_read passes the values of a text to a function.
       Strings are decoded in place, since decoding never makes them longer.
   ================================================================================================================== */

#if !defined(JANUS_LIBRARY)

enum { JSON_DEPTH = 64 };
typedef enum { JSON_STRING, JSON_NUMBER, JSON_WORD, JSON_ARRAY, JSON_OBJECT } JsonKind;

/* Receives a value; a list or an object comes before its items. `depth`: of the lists and objects around it; `key`: its
   own or its list's; `text`: a string, a number, or true, false or null, followed by a zero byte. */
typedef void JsonTake(void *user, int depth, StringView key, JsonKind kind, StringView text);

typedef struct {
    char *begin, *at, *end; /* a zero byte follows the text */
    bool failed;
    Context *cx;            /* receives the error */
    JsonTake *take;
    void *user;
} Json;

/* Ends the reading. An error in the JSON replaces those of its values. */
static void json_fail(Json *j, const char *what) {
    if (!j->failed) j->cx->error.status = JANUS_OK;
    context_fail(j->cx, JANUS_BAD_ARGUMENT, "not JSON: %s, at byte %lu of the line", what,
                 (unsigned long)(j->at - j->begin) + 1);
    j->failed = true;
    j->at = j->end;
}

static bool json_accept(Json *j, char c) {
    const bool found = *j->at == c;
    j->at += found;
    return found;
}

static void json_space(Json *j) { j->at += strspn(j->at, " \t\r\n"); }

/* The number of a \u escape, after its backslash: four hexadecimal digits. */
static uint32_t json_unit(Json *j) {
    char digits[5];
    if (!json_accept(j, 'u')) json_fail(j, "a backslash is followed by \", \\, /, b, f, n, r, t or u");
    snprintf(digits, sizeof digits, "%.4s", j->at);
    if (strspn(digits, "0123456789abcdefABCDEF") < 4) json_fail(j, "\\u is followed by four hexadecimal digits");
    else j->at += 4;
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* Decodes what follows a backslash; a character beyond U+FFFF is a pair of surrogates. Returns the end. */
static char *json_escape(Json *j, char *out) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *letter = *j->at != 0 ? strchr(letters, *j->at) : NULL;
    if (letter != NULL) {
        j->at++;
        *out = meanings[letter - letters];
        return out + 1;
    }
    uint32_t code = json_unit(j);
    if (code >= 0xD800 && code <= 0xDFFF) {
        const uint32_t low = code < 0xDC00 && json_accept(j, '\\') ? json_unit(j) : 0;
        if (low < 0xDC00 || low > 0xDFFF) json_fail(j, "\\uD800 to \\uDFFF come in pairs, the high one first");
        code = 0x10000 + ((code - 0xD800) << 10 | (low & 0x3FF));
    }
    return j->failed ? out : utf8_put(out, code);
}

/* Returns no text after an error. */
static StringView json_string(Json *j) {
    char *first = j->at, *out = first;
    if (!json_accept(j, '"')) json_fail(j, "a string in double quotes is missing");
    while (!json_accept(j, '"')) {
        if (j->at == j->end) json_fail(j, "the string does not end");
        else if ((uint8_t)*j->at < 0x20) json_fail(j, "a string contains a control character: write it as \\n or \\u");
        if (j->failed) return (StringView){NULL, 0};
        if (json_accept(j, '\\')) out = json_escape(j, out);
        else *out++ = *j->at++;
    }
    *out = 0;
    return (StringView){first, (size_t)(out - first)};
}

static void json_digits(Json *j) {
    const size_t count = strspn(j->at, "0123456789");
    if (count == 0) json_fail(j, "a digit is missing");
    j->at += count;
}

static StringView json_number(Json *j) {
    const char *first = j->at;
    json_accept(j, '-');
    if (!json_accept(j, '0')) json_digits(j);
    if (json_accept(j, '.')) json_digits(j);
    if (json_accept(j, 'e') || json_accept(j, 'E')) {
        if (!json_accept(j, '+')) json_accept(j, '-');
        json_digits(j);
    }
    return (StringView){first, (size_t)(j->at - first)};
}

/* A value and the white space around it. */
static void json_value(Json *j, int depth, StringView key) {
    JsonKind kind = JSON_WORD;
    StringView text = {NULL, 0};
    json_space(j);
    const char c = *j->at;
    if (c == '"') kind = JSON_STRING, text = json_string(j);
    else if (c == '-' || (c >= '0' && c <= '9')) kind = JSON_NUMBER, text = json_number(j);
    else if (json_accept(j, '[')) kind = JSON_ARRAY;
    else if (json_accept(j, '{')) kind = JSON_OBJECT;
    else {
        text = (StringView){j->at, strspn(j->at, "aeflnrstu")};
        if (view_is(text, "true") || view_is(text, "false") || view_is(text, "null")) j->at += text.length;
        else json_fail(j, "a value is missing");
    }
    const char next = *j->at, close = kind == JSON_OBJECT ? '}' : ']';
    *j->at = 0;
    if (!j->failed) j->take(j->user, depth, key, kind, text);
    *j->at = next;
    json_space(j);
    if (kind < JSON_ARRAY) return;
    if (depth == JSON_DEPTH) json_fail(j, "lists are nested more than 64 deep");
    if (!json_accept(j, close)) {
        do {
            json_space(j);
            if (kind == JSON_OBJECT) key = json_string(j);
            json_space(j);
            if (kind == JSON_OBJECT && !json_accept(j, ':')) json_fail(j, "a colon is missing");
            json_value(j, depth + 1, key);
        } while (json_accept(j, ','));
        if (!json_accept(j, close)) json_fail(j, close == '}' ? "a comma or } is missing" : "a comma or ] is missing");
    }
    json_space(j);
}

/* Reads a text that is followed by a zero byte. Errors go to the context. */
static void json_read(Context *cx, char *text, size_t length, JsonTake *take, void *user) {
    Json j = {text, text + utf8_valid_prefix(text, length), text + length, false, cx, take, user};
    if (j.at < j.end) json_fail(&j, "this is not UTF-8");
    else j.at = text;
    json_value(&j, 0, (StringView){"", 0});
    if (j.at < j.end) json_fail(&j, "more follows the value");
}

/* As printf; at most 255 bytes. */
PRINTF_LIKE(2, 3)
static void text_print(TextBuffer *buffer, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    text_add(buffer, text, strlen(text));
}

/* Adds a string with its quotes. Control characters are escaped, so that a terminal ignores them; bytes that are
   not UTF-8 become U+FFFD. */
static void json_write(TextBuffer *buffer, const char *text, size_t length) {
    text_add(buffer, "\"", 1);
    for (size_t at = 0, next = 0; at < length; at = next) {
        const bool valid = utf8_valid_prefix(text + at, length - at < 4 ? length - at : 4) > 0;
        const uint32_t c = valid ? utf8_next(text, &next) : 0;
        next += !valid;
        if (!valid) text_add(buffer, "\xEF\xBF\xBD", 3);
        else if (c == '"' || c == '\\') text_print(buffer, "\\%c", (int)c);
        else if (c < 0x20 || (c >= 0x7F && c < 0xA0)) text_print(buffer, c == '\n' ? "\\n" : "\\u%04x", (unsigned)c);
        else text_add(buffer, text + at, next - at);
    }
    text_add(buffer, "\"", 1);
}

/* ==================================================================================================================
   22  Command line: results go to stdout, all else to stderr; exit 0 done, 1 failed, 2 usage error.
   ================================================================================================================== */

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_STOPPED = 130 };
enum { PATH_BYTES = 4096, TEXT_FILE_LIMIT = 1 << 26 };

/* One drawing or question. The command line fills it from its options, `batch` one for each job: a key of a line of
   JSON names an option, and set_option sets the same field within the same range. */
typedef struct {
    JanusGenerateOptions draw;
    JanusAskOptions ask;
    bool has_seed;                     /* otherwise take_seed makes one up */
    const char *text, *output;         /* prompt or question; the picture's name, or NULL for the next free one */
    const char *images[IMAGES_LIMIT];
    int image_count;
} Request;

typedef struct {
    Request request; /* first, so that offsets in it are offsets in the CommandLine */
    const char *model, *isa, *dump;
    JanusCacheType cache;
    int threads, batch;
    bool fast, quiet, decode, no_exif, no_metadata, show, trace, unordered, resume, record, help;
} CommandLine;

static Request request_defaults(void) {
    return (Request){.draw = janus_generate_defaults(), .ask = janus_ask_defaults()};
}

static bool terminal(FILE *file) { return isatty(fileno(file)) != 0; }

/* Length of the folder part of a path, with the separator that ends it. */
static size_t folder_length(const char *path) {
    size_t length = strlen(path);
    while (length > 0 && strchr(SEPARATORS, path[length - 1]) == NULL) length--;
    return length;
}

/* ---- Options: one table for parsing, messages and help ---- */

enum {
    FOR_GENERATE = 1, FOR_ASK = 2, FOR_CHAT = 4, FOR_ENCODE = 8, FOR_DECODE = 16, FOR_TOKENIZE = 32, FOR_INFO = 64,
    FOR_BATCH = 128, FOR_SELFTEST = 256, FOR_HELP = 512, FOR_ALL = 1023,
    FOR_ANSWERS = FOR_ASK | FOR_CHAT, FOR_IMAGES = FOR_ANSWERS | FOR_ENCODE, FOR_PICTURES = FOR_GENERATE | FOR_DECODE,
    FOR_SHOWS = FOR_PICTURES | FOR_CHAT, FOR_DRAWS = FOR_GENERATE | FOR_CHAT | FOR_BATCH,
    FOR_TALKS = FOR_GENERATE | FOR_ANSWERS, FOR_MEMORY = FOR_TALKS | FOR_BATCH,
    FOR_STAGES = FOR_TALKS | FOR_ENCODE | FOR_DECODE, FOR_JOBS = FOR_STAGES | FOR_BATCH,
    FOR_WORKS = FOR_JOBS | FOR_SELFTEST, FOR_MODEL = FOR_WORKS | FOR_TOKENIZE | FOR_INFO
};

/* The value of an option: none, a number, a seed, f32 or f16, the name of an image, another name. */
typedef enum { AS_SWITCH, AS_NUMBER, AS_SEED, AS_CACHE, AS_IMAGE, AS_NAME } OptionKind;

typedef struct {
    const char *names, *argument; /* names: "-n, " or four blanks, then the long name */
    OptionKind kind;
    RangeName range;   /* of a number */
    unsigned commands; /* the commands that accept it */
    size_t field;      /* offset in CommandLine; 0 if the range has the offsets */
    const char *help;
} Option;

#define FIELD(name) offsetof(CommandLine, name)
static const Option OPTIONS[] = {
    {"-n, --count", "N", AS_NUMBER, RANGE_COUNT, FOR_GENERATE, 0, "pictures of the prompt, drawn together; default 1"},
    {"    --cfg", "W", AS_NUMBER, RANGE_CFG_WEIGHT, FOR_GENERATE | FOR_CHAT, 0, "guidance of a drawing; default 5"},
    {"-s, --seed", "S", AS_SEED, 0, FOR_TALKS, 0, "same seed, same result; default: random, printed"},
    {"    --temperature", "T", AS_NUMBER, RANGE_TEMPERATURE, FOR_TALKS, 0, "default 1 to draw, 0 to answer"},
    {"    --max-tokens", "N", AS_NUMBER, RANGE_MAX_TOKENS, FOR_ANSWERS, 0, "length of an answer; default 512"},
    {"    --top-k", "K", AS_NUMBER, RANGE_TOP_K, FOR_ANSWERS, 0, "with a temperature; default 50, 0: off"},
    {"    --top-p", "P", AS_NUMBER, RANGE_TOP_P, FOR_ANSWERS, 0, "with a temperature; default 1: off"},
    {"-i, --image", "IMAGE", AS_IMAGE, 0, FOR_IMAGES, 0, "an image before those of the arguments"},
    {"    --no-exif", NULL, AS_SWITCH, 0, FOR_IMAGES | FOR_BATCH, FIELD(no_exif), "do not turn photographs upright"},
    {"-o, --output", "OUT", AS_NAME, 0, FOR_PICTURES, FIELD(request.output), "default: the next free janus-1.png ..."},
    {"    --speculate", "W", AS_NUMBER, RANGE_DRAFTS, FOR_GENERATE | FOR_CHAT, 0, "ids guessed ahead; default auto"},
    {"    --no-metadata", NULL, AS_SWITCH, 0, FOR_DRAWS, FIELD(no_metadata), "do not record the prompt in pictures"},
    {"    --batch", "N", AS_NUMBER, RANGE_PLACES, FOR_BATCH, FIELD(batch), "jobs that run together; default: see info"},
    {"    --unordered", NULL, AS_SWITCH, 0, FOR_BATCH, FIELD(unordered), "print results as they finish"},
    {"    --resume", NULL, AS_SWITCH, 0, FOR_BATCH, FIELD(resume), "skip jobs whose pictures exist"},
    {"    --show", NULL, AS_SWITCH, 0, FOR_SHOWS, FIELD(show), "show pictures in the terminal"},
    {"    --decode", NULL, AS_SWITCH, 0, FOR_TOKENIZE, FIELD(decode), "TEXT is ids, which become text"},
    {"    --kv", "f32|f16", AS_CACHE, 0, FOR_MEMORY, FIELD(cache), "keys and values; default f32, with --fast f16"},
    {"    --fast", NULL, AS_SWITCH, 0, FOR_JOBS, FIELD(fast), "faster, with rounded activations"},
    {"    --record", NULL, AS_SWITCH, 0, FOR_SELFTEST, FIELD(record), "write MODEL.selftest, the recorded values"},
    {"-t, --threads", "K", AS_NUMBER, RANGE_THREADS, FOR_WORKS, FIELD(threads), "default 0: all available processors"},
    {"    --isa", "NAME", AS_NAME, 0, FOR_WORKS, FIELD(isa), "one of the kernels of info; default: the fastest"},
    {"    --dump", "DIR", AS_NAME, 0, FOR_STAGES, FIELD(dump), "write all intermediate tensors as .npy to a new DIR"},
    {"    --trace", NULL, AS_SWITCH, 0, FOR_STAGES, FIELD(trace), "print a line for each intermediate tensor"},
    {"-m, --model", "MODEL", AS_NAME, 0, FOR_MODEL, FIELD(model), "a .gguf file; default: the small tiny.gguf"},
    {"-q, --quiet", NULL, AS_SWITCH, 0, FOR_ALL, FIELD(quiet), "no progress, no remarks"},
    {"-h, --help", NULL, AS_SWITCH, 0, FOR_ALL, FIELD(help), "print this text"},
};
enum { OPTION_COUNT = sizeof OPTIONS / sizeof OPTIONS[0] };

/* Finds an option by -n or --count; NULL if there is none. */
static const Option *find_option(const char *name) {
    for (const Option *o = OPTIONS; o < OPTIONS + OPTION_COUNT; o++)
        if (strcmp(name, o->names + 4) == 0 || (strlen(name) == 2 && strncmp(name, o->names, 2) == 0)) return o;
    return NULL;
}

/* Sets the field at this offset, whose type the range has. Does nothing if the offset is -1. */
static void set_number(void *options, int offset, const Range *range, double value) {
    void *field = (char *)options + (offset < 0 ? 0 : offset);
    if (offset < 0) return;
    if (range->type == AN_INT) *(int *)field = (int)value;
    else if (range->type == A_FLOAT) *(float *)field = (float)value;
    else *(double *)field = value;
}

/* Reads a number of the range, or "auto" where that is -1. False: the text is something else. */
static bool parse_number(const char *text, const Range *range, double *value) {
    char *end;
    errno = 0;
    if (range->low == -1 && strcmp(text, "auto") == 0) text = "-1";
    *value = strtod(text, &end) + 0.0; /* never -0 */
    if (end == text || *end != 0 || errno == ERANGE || (range->type == AN_INT && *value != floor(*value))) return false;
    return *value >= range->low && *value <= range->high;
}

/* A whole number, also in JSON's forms 7.0 and 70e-1; exact unless it has an exponent. -1 asks for a random seed. */
static bool set_seed(Request *request, const char *text) {
    char *end, *rest;
    const double value = strtod(text, &end);
    errno = 0;
    unsigned long long seed = strtoull(text, &rest, 10);
    if (*rest == '.' && rest > text) rest += 1 + strspn(rest + 1, "0");
    const bool exact = *rest == 0, whole = strpbrk(text, "eE") != NULL && value == floor(value) && value < 0x1p64;
    if (end == text || *end != 0 || text[0] == '+' || text[strspn(text, "-+.0123456789eE")] != 0) return false;
    if (exact ? errno == ERANGE : !whole) return false;
    if (!exact && value >= 0) seed = (unsigned long long)value;
    request->has_seed = value != -1;
    request->draw.seed = request->ask.seed = seed;
    return value >= 0 || value == -1;
}

/* Makes up a seed for a request that has none; `salt` differs between requests of one run. */
static void take_seed(Request *request, uint64_t salt) {
    const uint64_t now = (uint64_t)time(NULL) * 1000003u + (uint64_t)clock();
    if (!request->has_seed)
        request->draw.seed = request->ask.seed = (now + 7919u * ((uint64_t)getpid() + salt)) % 1000000000u;
}

/* Sets an option of a Request, or of a CommandLine. Fails if the value is not allowed: `name` is what the message calls
   the option, the value stands in `quotes` there. */
static int set_option(void *target, const Option *option, const char *name, const char *value, const char *quotes,
                      JanusError *error) {
    const Range *range = &RANGES[option->range];
    Request *request = target;
    void *field = (char *)target + option->field;
    double number = 0;
    bool good = true;
    char takes[100] = "a name";
    switch (option->kind) {
    case AS_SWITCH:
        *(bool *)field = true;
        break;
    case AS_SEED:
        good = set_seed(request, value);
        snprintf(takes, sizeof takes, "a whole number from 0 to %llu, or -1 for a random one", ULLONG_MAX);
        break;
    case AS_CACHE:
        *(JanusCacheType *)field = strcasecmp(value, "f16") == 0 ? JANUS_CACHE_F16 : JANUS_CACHE_F32;
        good = strcasecmp(value, "f16") == 0 || strcasecmp(value, "f32") == 0;
        snprintf(takes, sizeof takes, "%s", option->argument);
        break;
    case AS_NAME:
        *(const char **)field = value;
        good = value[0] != 0;
        break;
    case AS_IMAGE:
        good = value[0] != 0 && request->image_count < IMAGES_LIMIT;
        if (good) request->images[request->image_count++] = value;
        snprintf(takes, sizeof takes, "at most %d images, each by its name", IMAGES_LIMIT);
        break;
    case AS_NUMBER:
        good = parse_number(value, range, &number);
        if (good && option->field > 0) set_number(target, (int)option->field, range, number);
        if (good) set_number(&request->draw, range->in_drawing, range, number);
        if (good) set_number(&request->ask, range->in_question, range, number);
        snprintf(takes, sizeof takes, "a %snumber from %.10g to %.10g%s", range->type == AN_INT ? "whole " : "",
                 range->low, range->high, range->low == -1 ? ", -1 is auto" : "");
    }
    if (good) return JANUS_OK;
    return fail(error, JANUS_BAD_ARGUMENT, "%s takes %s, not %s%.60s%s", name, takes, quotes, value, quotes);
}

/* ---- Pictures in the terminal ----

   Each cell of the terminal shows two pixels, one above the other, as a half block. Pictures are scaled into a canvas,
   which is redrawn in place several times a second. Before and after, the cursor is on the line below. */

typedef enum { SHOW_NO, SHOW_256, SHOW_24_BIT } ShowKind; /* the colours */
enum { SHOW_COLUMNS = 24, SHOW_GREY = 40 };               /* minimum width; colour of tokens that are not drawn yet */

/* The nearest of the 256 colours: 16 to 231 are a cube of 6 x 6 x 6, 232 to 255 greys. */
static int colour_of_256(const uint8_t *rgb) {
    static const int LEVELS[] = {0, 95, 135, 175, 215, 255}, STEPS[] = {36, 6, 1};
    int nearest = 16, least = INT_MAX;
    for (int n = 16; n < 256; n++) {
        int distance = 0;
        for (int c = 0; c < 3; c++) {
            const int off = (n < 232 ? LEVELS[(n - 16) / STEPS[c] % 6] : 8 + 10 * (n - 232)) - rgb[c];
            distance += off * off;
        }
        if (distance < least) least = distance, nearest = n;
    }
    return nearest;
}

/* The number of columns or lines. */
static int terminal_size(bool lines) {
    int size = 0;
#if defined(_WIN32)
    CONSOLE_SCREEN_BUFFER_INFO info;
    if (GetConsoleScreenBufferInfo(GetStdHandle(STD_ERROR_HANDLE), &info))
        size = lines ? info.srWindow.Bottom - info.srWindow.Top + 1 : info.srWindow.Right - info.srWindow.Left + 1;
#elif defined(TIOCGWINSZ)
    struct winsize asked;
    if (ioctl(fileno(stderr), TIOCGWINSZ, &asked) == 0) size = lines ? asked.ws_row : asked.ws_col;
#endif
    return size > 0 ? size : lines ? 24 : 80;
}

/* The colours of the terminal, by environment variables alone: a query would break pipes, ssh and tmux. */
static ShowKind terminal_shows(void) {
    if (!terminal(stderr) || terminal_size(false) < SHOW_COLUMNS) return SHOW_NO;
#if defined(_WIN32)
    DWORD mode = 0;
    const HANDLE console = GetStdHandle(STD_ERROR_HANDLE);
    return GetConsoleMode(console, &mode) && SetConsoleMode(console, mode | 4) ? SHOW_24_BIT : SHOW_NO; /* 4: escapes */
#else
    const char *term = getenv("TERM") != NULL ? getenv("TERM") : "", *colours = getenv("COLORTERM");
    if (colours != NULL && (strcasecmp(colours, "truecolor") == 0 || strcasecmp(colours, "24bit") == 0))
        return SHOW_24_BIT;
    if (strstr(term, "direct") != NULL) return SHOW_24_BIT;
    return term[0] == 0 || strcmp(term, "dumb") == 0 ? SHOW_NO : SHOW_256;
#endif
}

/* The pictures of one drawing, side by side. */
typedef struct {
    ShowKind kind;
    JanusImage canvas; /* without pixels nothing is shown */
    int across, side;  /* pictures in a row; side of a picture in pixels */
    double when;       /* time of the last update; 0 before the first */
} Show;

/* Allocates the canvas for `count` pictures of side x side pixels, scaled down to fit the terminal. */
static void show_begin(Show *show, int count, int side) {
    if (show->kind == SHOW_NO) return;
    for (show->across = 1; show->across * show->across < count;) show->across++;
    const int down = (count + show->across - 1) / show->across;
    const int lines = terminal_size(true), below = 2 + (int)min_i64(count, lines / 3); /* names and times */
    const int width = (terminal_size(false) - 1) / show->across, height = 2 * (lines - below) / down;
    show->side = (int)min_i64(side, min_i64(width, height));
    show->side = show->side < 2 ? 2 : show->side - show->side % 2; /* complete lines */
    show->canvas.width = show->across * show->side;
    show->canvas.height = down * show->side;
    show->canvas.rgb = calloc(3 * (size_t)show->canvas.width, (size_t)show->canvas.height);
    show->when = 0;
}

/* Scales picture n into its square of the canvas. */
static void show_place(Show *show, int n, const JanusImage *picture) {
    Context cx = {0};
    const int side = show->side, left = n % show->across * side, top = n / show->across * side;
    const uint8_t *scaled = resize_bicubic(&cx, picture, side, side);
    for (int y = 0; y < side && scaled != NULL; y++)
        memcpy(show->canvas.rgb + 3 * ((top + y) * show->canvas.width + left), scaled + 3 * y * side, 3 * (size_t)side);
    context_end(&cx, NULL);
}

/* Sends the canvas to the terminal in one piece: each two rows of it are a line of half blocks, the upper row in the
   foreground colours, the lower one in the background colours. */
static void show_send(Show *show, double now) {
    const int width = show->canvas.width, lines = show->canvas.height / 2;
    const uint8_t *upper = show->canvas.rgb;
    TextBuffer out = {0};
    if (upper == NULL) return;
    if (show->when == 0) text_print(&out, "\r\033[K"); /* removes the progress bar */
    for (int i = 0; i < lines && show->when == 0; i++) text_print(&out, "\n");
    text_print(&out, "\r\033[?25l\033[%dA", lines);
    for (int i = 0; i < lines; i++, upper += 3 * width) {
        for (int x = 0; x < width; x++, upper += 3) {
            const uint8_t *lower = upper + 3 * width;
            const bool same = x > 0 && memcmp(upper, upper - 3, 3) == 0 && memcmp(lower, lower - 3, 3) == 0;
            if (!same && show->kind == SHOW_24_BIT)
                text_print(&out, "\033[38;2;%d;%d;%d;48;2;%d;%d;%dm", upper[0], upper[1], upper[2], lower[0], lower[1],
                           lower[2]);
            else if (!same) text_print(&out, "\033[38;5;%d;48;5;%dm", colour_of_256(upper), colour_of_256(lower));
            text_print(&out, "\xE2\x96\x80");
        }
        text_print(&out, "\033[0m\r\n");
    }
    text_print(&out, "\033[?25h");
    if (!out.failed) fwrite(out.text, 1, out.length, stderr);
    show->when = now;
    text_free(&out);
}

/* ---- Progress: a bar, and the times of one call of the library ---- */

/* While `can_cancel`, the first SIGINT is a cancel request, which the callbacks return; the next ends the program. */
static volatile int can_cancel, cancel_requested;
static volatile int at_prompt; /* chat waits for a line: the first SIGINT prints a hint */

/* Seconds of a monotonic clock. */
static double clock_seconds(void) {
#if defined(_WIN32)
    return 1e-3 * (double)GetTickCount64();
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

typedef struct {
    bool shown;                            /* the bar is on the screen */
    bool text_written;                     /* part of an answer is on the line: no bar there */
    const char *stage;                     /* of the bar */
    double stage_start;
    int picture, pictures;                 /* the picture that is decoded, counted from 1; their number */
    double start, seen, read, last;        /* timestamps, 0: did not happen; last: of the last token */
    long tokens, limit;                    /* steps of a drawing or tokens of an answer; their maximum */
} Progress;

static void clear_progress(Progress *progress) {
    if (progress->shown) fputs("\r\033[K", stderr);
    progress->shown = false;
}

/* "draw    [##........] 144/576  20.1/s  0:21 left", cut at the width of the terminal. A stage that takes more than
   0.3 seconds gets a bar, which the next bar replaces. */
static void show_bar(Progress *progress, const char *stage, int64_t done, int64_t total, double now) {
    char line[200], label[40];
    if (progress->stage == NULL || strcmp(progress->stage, stage) != 0) progress->stage_start = now;
    progress->stage = stage;
    const double seconds = now - progress->stage_start, rate = seconds > 0 ? (double)(done - 1) / seconds : 0;
    if (seconds < 0.3) return;
    const int left = rate > 0 ? (int)fmin((double)(total - done) / rate, 1e6) : 0, full = (int)(10 * done / total);
    snprintf(label, sizeof label, "%s", stage);
    if (progress->pictures > 1 && strcmp(stage, "decode") == 0)
        snprintf(label, sizeof label, "picture %d/%d", progress->picture, progress->pictures);
    snprintf(line, sizeof line, "%-7s [%.*s%.*s] %ld/%ld  %.1f/s  %d:%02d left", label, full, "##########", 10 - full,
             "..........", (long)done, (long)total, rate, left / 60, left % 60);
    fprintf(stderr, "\r%.*s\033[K", terminal_size(false) - 1, line);
    progress->shown = true;
}

/* ---- Tap: tensors are dumped, printed by --trace, or compared by selftest ---- */

/* All tensors of one name. */
typedef struct {
    char name[NAME_LIMIT], shape[48]; /* the name must be first; the shape of the first tensor */
    long times;
    double distance;                  /* of selftest: the largest from the recorded numbers */
} Stage;

typedef struct {
    const char *task, *only;     /* of selftest: the task that runs, NULL: off; a part of the names of its stages */
    TextBuffer record;           /* of selftest --record: MODEL.selftest */
    char *lines;                 /* of selftest: those of MODEL.selftest */
    long kept;                   /* numbers of each tensor in MODEL.selftest, at most */
    TextBuffer stages;           /* of --dump and selftest: array of Stage */
    double last;                 /* when the last stage of the trace ended; 0: there was none */
    JanusError failure;          /* the first one of --dump or selftest */
} Tap;

/* A tensor that a callback receives. */
typedef struct {
    const char *name;
    JanusElement type;
    const void *data;
    const int64_t *shape;
    int dims;
    int64_t count; /* of its numbers */
} Tensor;

static double tensor_number(const Tensor *t, int64_t i) {
    return t->type == JANUS_INT32 ? ((const int32_t *)t->data)[i] : ((const float *)t->data)[i];
}

static void shape_text(char text[48], const Tensor *t) {
    int used = 0;
    for (int i = 0; i < t->dims && used < 48; i++)
        used += snprintf(text + used, 48 - (size_t)used, "%s%ld", i > 0 ? "x" : "", (long)t->shape[i]);
}

/* Counts a tensor of the stage `name`. `number` receives nothing for the first, then .1, .2, ... NULL: no memory. */
static Stage *count_tensor(Tap *tap, const char *name, const Tensor *t, char number[24]) {
    Stage fresh = {.times = 0};
    size_t at = 0;
    while (at < tap->stages.length && strcmp(tap->stages.text + at, name) != 0) at += sizeof fresh;
    if (at == tap->stages.length) {
        snprintf(fresh.name, NAME_LIMIT, "%s", name);
        shape_text(fresh.shape, t);
        text_add(&tap->stages, &fresh, sizeof fresh);
        if (tap->stages.failed) return fail_memory(&tap->failure), NULL;
    }
    Stage *stage = (void *)(tap->stages.text + at);
    number[0] = 0;
    if (stage->times++ > 0) snprintf(number, 24, ".%ld", stage->times - 1);
    return stage;
}

/* The header of a .npy file, version 1.0: magic, length, and a Python dict, padded to a multiple of 64 bytes. The data
   are in the byte order of the machine. */
static void npy_header(char header[129], const Tensor *t) {
    int used = snprintf(header, 129, "\x93NUMPY\x01%c\x76%c{'descr': '%c%c4', 'fortran_order': False, 'shape': (", 0, 0,
                        big_endian() ? '>' : '<', t->type == JANUS_FLOAT32 ? 'f' : 'i');
    for (int i = 0; i < t->dims; i++)
        used += snprintf(header + used, 129 - (size_t)used, i > 0 ? " %ld," : "%ld,", (long)t->shape[i]);
    used += snprintf(header + used, 129 - (size_t)used, "), }");
    snprintf(header + used, 129 - (size_t)used, "%*s", 128 - used, "\n");
}

/* Writes FOLDER/NAME.npy, or NAME.1.npy, NAME.2.npy, ... for later tensors of the same name. Stops after a failure. */
static void dump_tensor(Tap *tap, const char *folder, const Tensor *t) {
    char path[PATH_BYTES], header[129], number[24];
    if (tap->failure.status != JANUS_OK || count_tensor(tap, t->name, t, number) == NULL) return;
    const int length = snprintf(path, sizeof path, "%s/%s%s.npy", folder, t->name, number);
    npy_header(header, t);
    errno = ENAMETOOLONG;
    FILE *file = length < PATH_BYTES ? file_open(path, "wb") : NULL;
    bool good = file != NULL && fwrite(header, 1, 128, file) == 128 &&
                fwrite(t->data, 4, (size_t)t->count, file) == (size_t)t->count;
    if (file != NULL && fclose(file) != 0) good = false;
    if (!good) fail(&tap->failure, JANUS_IO_ERROR, "cannot write %.300s: %.60s", path, strerror(errno));
}

/* Prints a row for a tensor, with the time since the previous one. */
static void trace_tensor(Tap *tap, Progress *progress, const Tensor *t) {
    const double now = clock_seconds(), before = tap->last > progress->start ? tap->last : progress->start;
    char shape[48] = "";
    double least = t->count > 0 ? tensor_number(t, 0) : 0, most = least, sum = 0;
    for (int64_t i = 0; i < t->count; i++) {
        const double number = tensor_number(t, i);
        least = fmin(least, number);
        most = fmax(most, number);
        sum += number;
    }
    shape_text(shape, t);
    clear_progress(progress);
    if (tap->last == 0)
        fprintf(stderr, "%-23s %-9s %9s %9s %9s %10s %5s\n", "stage", "shape", "min", "mean", "max", "sum", "ms");
    fprintf(stderr, "%-23s %-9s %9.3g %9.3g %9.3g %10.4g %5.1f\n", t->name, shape, least,
            sum / (double)(t->count > 0 ? t->count : 1), most, sum, 1e3 * (now - before));
    tap->last = clock_seconds();
}

/* The k-th of the numbers of a tensor that its record keeps: spread evenly over it, the last number among them. */
static double kept_number(const Tap *tap, const Tensor *t, int64_t k) {
    return tensor_number(t, (k + 1) * t->count / min_i64(t->count, tap->kept) - 1);
}

/* Adds the line of a tensor to the record; `head` is the line end before it and its beginning. */
static void record_tensor(Tap *tap, const char *head, const Tensor *t) {
    double largest = 0;
    for (int64_t i = 0; i < t->count; i++) largest = fmax(largest, fabs(tensor_number(t, i)));
    text_print(&tap->record, "%s%.9g", head + 1, largest);
    for (int64_t k = 0; k < t->count && k < tap->kept; k++) text_print(&tap->record, " %.9g", kept_number(tap, t, k));
    text_print(&tap->record, "\n");
}

/* The largest distance of a tensor from its line, which gets a mark: of floats relative to the largest of the tensor,
   of pixels without 1, which rounding may move. Infinite if there is no such line or if it has other numbers. */
static double recorded_distance(Tap *tap, const char *head, const Tensor *t) {
    const double allowed = strcmp(t->name, "image.pixels") == 0 ? 1 : 0;
    double distance = 0;
    char *line = strstr(tap->lines, head), *at, *begin;
    if (line == NULL) return INFINITY;
    line[1] = '+';
    const double largest = strtod(line + strlen(head), &at);
    for (int64_t k = 0; k < t->count && k < tap->kept; k++) {
        begin = at;
        const double off = fabs(kept_number(tap, t, k) - strtod(begin, &at));
        if (at == begin || !(off < INFINITY)) return INFINITY;
        distance = fmax(distance, off - allowed);
    }
    if (*at != '\n') return INFINITY;
    return t->type == JANUS_INT32 ? distance : distance / fmax(largest, 1e-30);
}

/* Records a tensor of selftest or compares it. */
static void selftest_tensor(Tap *tap, const Tensor *t) {
    char name[NAME_LIMIT], head[NAME_LIMIT + 48], number[24];
    snprintf(name, sizeof name, "%s/%.100s", tap->task, t->name);
    Stage *stage = strstr(t->name, tap->only) != NULL ? count_tensor(tap, name, t, number) : NULL;
    if (stage == NULL) return;
    snprintf(head, sizeof head, "\n%s%s %ld ", name, number, (long)t->count);
    if (tap->lines == NULL) record_tensor(tap, head, t);
    else stage->distance = fmax(stage->distance, recorded_distance(tap, head, t));
}

/* ---- Lines of stdin or a file, for chat and batch ---- */

enum { LINE_BYTES = 1 << 20 };

/* The size of the byte order mark that a text begins with: 3 or 0. */
static size_t mark_size(const char *text, size_t length) {
    return length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

typedef struct {
    FILE *stream;
    char part[4096], line[LINE_BYTES + 1];
    size_t at, size, length; /* part[at, size) is unread; the line has this length so far */
    long number;             /* of the last line */
    bool ended;
    int failure;             /* errno of a read */
} LineReader;

/* Reads a part, waiting for input if allowed, until a cancel request. Returns false if there was none. */
static bool read_part(LineReader *reader, bool may_wait) {
    while (!input_ready(reader->stream, may_wait ? 100 : 0))
        if (!may_wait || cancel_requested) return false;
    const int64_t got = input_read(reader->stream, reader->part, sizeof reader->part);
    if (got < 0) reader->failure = errno_or(EIO);
    reader->ended = got <= 0;
    reader->at = 0;
    reader->size = got > 0 ? (size_t)got : 0;
    return true;
}

/* The next line, ended by a zero byte, if it is complete; its text is NULL if it is longer than 1 MiB. A byte order
   mark before the first line is skipped. */
static bool next_line(LineReader *reader, bool may_wait, StringView *line) {
    for (char c = 0; c != '\n';) {
        if (reader->at < reader->size) c = reader->part[reader->at++];
        else if (reader->ended && reader->length == 0) return false;
        else if (reader->ended) c = '\n'; /* the last line has no end of its own */
        else if (read_part(reader, may_wait)) continue;
        else return false;
        if (c != '\n' && reader->length < LINE_BYTES) reader->line[reader->length] = c;
        reader->length += c != '\n';
    }
    const bool fits = reader->length <= LINE_BYTES;
    const size_t mark = ++reader->number == 1 ? mark_size(reader->line, reader->length) : 0;
    reader->line[fits ? reader->length : 0] = 0;
    line->text = fits ? reader->line + mark : NULL;
    line->length = reader->length - mark;
    reader->length = 0;
    return true;
}

/* ---- The program: its state, and the callbacks of its session ---- */

typedef struct {
    CommandLine line;
    bool shows_progress;
    Progress progress;
    Show show;
    Tap tap;
    const char *model_path;
    char beside[PATH_BYTES]; /* path of the model that came with the program */
    TextBuffer text;         /* a text that was read from stdin or a file */
    LineReader input;        /* of chat and batch */
    JanusImage drawn;        /* the last picture */
    JanusImage images[IMAGES_LIMIT]; /* for the next question */
    int image_count;
    JanusModel *model;
    JanusSession *session;
    JanusError error;
    uint8_t *colours;        /* (codebook, 3), for --show; NULL: not needed yet */
    int write_error;         /* errno of a failed write to stdout */
    JanusQueue *queue;       /* of batch, as the next two */
    struct BatchJob *jobs;   /* whose results are not printed yet, in the order of their lines */
    TextBuffer claims;       /* array of Claim */
} Program;

static int on_progress(void *user, const char *stage, int64_t done, int64_t total) {
    Program *program = user;
    Progress *progress = &program->progress;
    const double now = clock_seconds();
    if (strcmp(stage, "see") == 0) progress->seen = now;
    if (strcmp(stage, "read") == 0) progress->read = now;
    if (strcmp(stage, "draw") == 0 || strcmp(stage, "answer") == 0) {
        progress->last = now;
        progress->tokens = (long)done;
        progress->limit = (long)total;
    }
    if (program->shows_progress && !progress->text_written) show_bar(progress, stage, done, total, now);
    return cancel_requested;
}

/* Prints the model's text to stdout, on a terminal without control characters. */
static bool print_text(const char *text, size_t length) {
    char *copy = terminal(stdout) ? allocate((int64_t)length, 1) : NULL;
    if (copy != NULL) memcpy(copy, text, length);
    const bool good = fwrite(copy != NULL ? clean_controls(copy, length, '\n') : text, 1, length, stdout) == length;
    free(copy);
    return good && fflush(stdout) == 0;
}

static int on_text(void *user, const char *text, size_t length) {
    Program *program = user;
    clear_progress(&program->progress);
    program->progress.text_written = true;
    if (print_text(text, length)) return cancel_requested;
    program->write_error = errno;
    return 1;
}

/* Shows the colours of the first `done` of `total` ids of each of `count` pictures. */
static int on_drawn(void *user, const int32_t *ids, int count, int64_t done, int64_t total) {
    Program *program = user;
    const double now = clock_seconds();
    const int grid = program->model->config.grid;
    JanusImage tokens = {grid, grid, NULL};
    if (program->show.canvas.rgb == NULL || (done < total && now - program->show.when < 0.2)) return cancel_requested;
    if ((tokens.rgb = malloc(3 * (size_t)total)) == NULL) return cancel_requested;
    for (int n = 0; n < count; n++) {
        memset(tokens.rgb, SHOW_GREY, 3 * (size_t)total);
        for (int64_t t = 0; t < done; t++)
            memcpy(tokens.rgb + 3 * t, program->colours + 3 * (int64_t)ids[n * total + t], 3);
        show_place(&program->show, n, &tokens);
    }
    free(tokens.rgb);
    show_send(&program->show, now);
    return cancel_requested;
}

static void on_tap(void *user, const char *name, JanusElement type, const void *data, const int64_t *shape, int dims) {
    Program *program = user;
    Tap *tap = &program->tap;
    Tensor t = {name, type, data, shape, dims, 1};
    for (int i = 0; i < dims; i++) t.count *= shape[i];
    if (program->line.dump != NULL) dump_tensor(tap, program->line.dump, &t);
    if (program->line.trace) trace_tensor(tap, &program->progress, &t);
    if (tap->task != NULL) selftest_tensor(tap, &t);
}

/* Comes before a library call that SIGINT may cancel. */
static void begin_work(Program *program) {
    memset(&program->progress, 0, sizeof program->progress);
    program->progress.start = clock_seconds();
    cancel_requested = 0;
    can_cancel = 1;
}

static void end_work(Program *program) {
    can_cancel = 0;
    clear_progress(&program->progress);
}

/* Prints the program's error, if it has a message. Returns the exit status. */
static int program_failed(const Program *program) {
    const bool stopped = program->error.status == JANUS_CANCELLED;
    if (program->write_error != 0)
        fprintf(stderr, "janus: cannot write to stdout: %s\n", strerror(program->write_error));
    else if (program->error.message[0] != 0)
        fprintf(stderr, "janus: %s\n", stopped ? "stopped" : program->error.message);
    return stopped && program->write_error == 0 ? EXIT_STOPPED : EXIT_FAILED;
}

/* The model of -m or $JANUS_MODEL, else the small one: weights/tiny.gguf here or beside the program, or where make
   install puts it. `called` is argv[0]. NULL: there is none. */
static const char *choose_model(Program *program, const char *called) {
    static const char *const PLACES[] = {"weights/tiny.gguf", "../share/janus/tiny.gguf"};
    const char *const links[] = {"/proc/self/exe", called}; /* Linux has the first; the second may lack a folder */
    const char *named = program->line.model != NULL ? program->line.model : getenv("JANUS_MODEL");
    bool found = false;
    if (named != NULL && named[0] != 0) return named;
    if (path_kind(PLACES[0]) != PATH_NONE) return PLACES[0];
    for (int i = 0; i < 4 && !found; i++) {
        char *file = link_target(links[i / 2]);
        const int folder = file != NULL ? (int)folder_length(file) : 0;
        found = folder > 0 &&
                snprintf(program->beside, PATH_BYTES, "%.*s%s", folder, file, PLACES[i % 2]) < PATH_BYTES &&
                path_kind(program->beside) != PATH_NONE;
        free(file);
    }
    return found ? program->beside : NULL;
}

static JanusStatus open_model(Program *program, unsigned command, const char *program_path) {
    const CommandLine *line = &program->line;
    const bool tests = command == FOR_SELFTEST;
    const JanusSessionOptions options = {
        .threads = line->threads, .isa = line->isa, .cache = line->cache, .fast = line->fast, .user = program,
        .progress = on_progress, .text = tests ? NULL : on_text, .drawn = on_drawn,
        .tap = line->dump != NULL || line->trace || tests ? on_tap : NULL};
    program->model_path = choose_model(program, program_path);
    if (program->model_path == NULL)
        return fail(&program->error, JANUS_IO_ERROR,
                    "no model: name a .gguf file with -m or in JANUS_MODEL; convert.py makes it from the weights of "
                    "Janus-Pro (README, \"The real weights\"), weights/tiny.gguf comes with the source");
    const JanusStatus status = janus_load(program->model_path, &program->model, &program->error);
    if (status != JANUS_OK || (command & FOR_WORKS) == 0) return status;
    return janus_session_new(program->model, &options, &program->session, &program->error);
}

/* ---- Pictures in files, with metadata: the prompt, then a line of settings as in Stable Diffusion web UI ---- */

/* The metadata of picture i of a drawing, malloc'ed; NULL: no memory. */
static char *drawing_text(const Program *program, const Request *request, int i) {
    const JanusInfo info = janus_info(program->model);
    const JanusGenerateOptions *options = &request->draw;
    const JanusCacheType cache = program->line.cache;
    TextBuffer text = {0};
    text_add(&text, request->text, strlen(request->text));
    text_print(&text, "\nSteps: %d, Sampler: autoregressive, CFG scale: %g, Seed: %llu, Size: %dx%d, Model: ",
               info.image_tokens, options->cfg_weight, (unsigned long long)options->seed, info.image_size,
               info.image_size);
    for (const char *c = info.name; *c != 0; c++) text_add(&text, *c == ',' ? " " : c, 1); /* commas end settings */
    text_print(&text, " (%s), Temperature: %g, RNG: torch%s%s, Picture: %d of %d, Version: janus " JANUS_VERSION,
               info.weight_type, options->temperature,
               cache == JANUS_CACHE_AUTO ? "" : cache == JANUS_CACHE_F16 ? ", KV: f16" : ", KV: f32",
               program->line.fast ? ", Fast: on" : "", i + 1, options->count);
    if (text.failed) text_free(&text);
    return text.text;
}

/* The name of picture i of a request: fox.png, or of several fox-1.png, fox-2.png, ... False if it is too long. */
static bool picture_name(char name[PATH_BYTES], const Request *request, int i) {
    const char *output = request->output, *dot = strrchr(output, '.');
    const int stem = (int)(dot != NULL ? (size_t)(dot - output) : strlen(output));
    const int length = request->draw.count == 1
                           ? snprintf(name, PATH_BYTES, "%s", output)
                           : snprintf(name, PATH_BYTES, "%.*s-%d%s", stem, output, i + 1, output + stem);
    return length >= 0 && length < PATH_BYTES;
}

/* Reserves the first free name of janus-1.png, janus-2.png, ... by creating an empty file, so that no other run takes
   it. */
static JanusStatus reserve_name(char name[PATH_BYTES], JanusError *error) {
    for (int k = 1; k < 1000000; k++) {
        snprintf(name, PATH_BYTES, "janus-%d.png", k);
        FILE *file = file_create(name);
        if (file == NULL && errno == EEXIST) continue;
        if (file == NULL) break;
        fclose(file);
        set_unfinished(1, name);
        return JANUS_OK;
    }
    return fail(error, JANUS_IO_ERROR, "cannot write %s: %s", name, strerror(errno_or(EIO)));
}

/* Checks, before hours of work, that the pictures of a request can be written; to stdout only for the command line. */
static JanusStatus output_usable(const Program *program, const Request *request, JanusError *error) {
    const char *output = request->output != NULL ? request->output : "janus-1.png"; /* tries the folder */
    const int count = request->output != NULL ? request->draw.count : 0;
    char name[PATH_BYTES];
    const TextBuffer nothing = {0};
    const uint64_t model = file_identity(program->model_path);
    if (request == &program->line.request && strcmp(output, "-") == 0) {
        if (count == 1 && !terminal(stdout)) return JANUS_OK;
        return fail(error, JANUS_BAD_ARGUMENT, count > 1 ? "only one picture can be written to stdout" :
                    "a picture cannot be written to a terminal: use -o FILE, or redirect stdout");
    }
    if (!is_picture_name(output))
        return fail(error, JANUS_BAD_ARGUMENT, "cannot write %s: the name must end in .png, .jpg or .jpeg", output);
    for (int i = 0; i < count; i++) {
        if (!picture_name(name, request, i))
            return fail(error, JANUS_BAD_ARGUMENT, "cannot write %.100s...: the name has more than %d bytes", output,
                        PATH_BYTES);
        if (model != 0 && file_identity(name) == model)
            return fail(error, JANUS_BAD_ARGUMENT, "%s would be written over the model: give it another name", name);
    }
    return write_bytes(output, &nothing, error); /* only a try */
}

/* Decodes picture i of a request and writes it: to stdout as PNG, under its name, or under the next free name. The
   request's text, if it has one, adds metadata. `name` receives the name (empty: stdout), `image` the picture. */
static JanusStatus write_picture(const Program *program, const Request *request, const int32_t *ids, int i,
                                 char name[PATH_BYTES], JanusImage *image, JanusError *error) {
    const bool says = request->text != NULL && !program->line.no_metadata;
    const char *output = request->output;
    TextBuffer bytes = {0};
    name[0] = 0;
    if (janus_decode_image(program->session, ids, image, error) != JANUS_OK) return error->status;
    if (output == NULL && reserve_name(name, error) != JANUS_OK) return error->status;
    if (output != NULL && strcmp(output, "-") != 0) picture_name(name, request, i);
    char *text = says ? drawing_text(program, request, i) : NULL;
    if (says && text == NULL) bytes.failed = true;
    else bytes = image_to_bytes(image, is_jpeg_name(name), text);
    const JanusStatus status = write_bytes(name[0] != 0 ? name : NULL, &bytes, error);
    if (status != JANUS_OK && output == NULL) file_remove(name);
    set_unfinished(1, NULL);
    text_free(&bytes);
    free(text);
    return status;
}

/* Writes and shows the pictures of the command line's request, then prints their names: the terminal is no longer drawn
   on. After an error only ends the work. */
static void finish_pictures(Program *program, const int32_t *ids) {
    static char names[PICTURES_LIMIT][PATH_BYTES];
    const Request *request = &program->line.request;
    const int64_t tokens = image_tokens(&program->model->config);
    Show *show = &program->show;
    int done = 0;
    program->progress.pictures = request->draw.count;
    for (; done < request->draw.count && program->error.status == JANUS_OK; done++) {
        program->progress.picture = done + 1;
        janus_image_free(&program->drawn);
        if (write_picture(program, request, ids + done * tokens, done, names[done], &program->drawn,
                          &program->error) != JANUS_OK)
            break;
        if (show->canvas.rgb != NULL) show_place(show, done, &program->drawn);
        show_send(show, clock_seconds());
    }
    end_work(program);
    free(show->canvas.rgb);
    show->canvas.rgb = NULL;
    for (int i = 0; i < done; i++)
        if (names[i][0] != 0) puts(names[i]);
}

/* ---- Commands: each leaves its error in program->error ---- */

/* "seed 7 · seen 0.6 s · read 1.2 s · 576 tokens 28.1 s (20.5/s) · decode 1.3 s": the seed of a sampled result,
   then the times of the steps that ran. A cancelled drawing has "200 of 576 tokens"; a cut answer names its limit. A
   context that is half full is reported with its length. */
static void print_times(const Program *program, bool drawing) {
    const Progress *t = &program->progress;
    const Request *request = &program->line.request;
    const long count = drawing ? request->draw.count : 1, tokens = t->tokens * count;
    const double seen = t->seen > 0 ? t->seen : t->start, read = t->read > 0 ? t->read : seen, seconds = t->last - read;
    const int length = janus_conversation_length(program->session), room = janus_info(program->model).context_length;
    const bool complete = t->tokens == t->limit;
    if (program->line.quiet || t->tokens == 0) return;
    if (drawing || request->ask.temperature > 0)
        fprintf(stderr, "seed %llu \xC2\xB7 ", (unsigned long long)request->draw.seed);
    if (t->seen > 0) fprintf(stderr, "seen %.1f s \xC2\xB7 ", seen - t->start);
    if (t->read > 0) fprintf(stderr, "read %.1f s \xC2\xB7 ", read - seen);
    fprintf(stderr, "%ld", tokens);
    if (drawing && !complete) fprintf(stderr, " of %ld", t->limit * count);
    fprintf(stderr, " tokens %.1f s (%.1f/s)", seconds, seconds > 0 ? (double)tokens / seconds : 0.0);
    if (drawing && complete) fprintf(stderr, " \xC2\xB7 decode %.1f s", clock_seconds() - t->last);
    if (!drawing && length >= room) fputs(" \xC2\xB7 cut: the context is full", stderr);
    else if (!drawing && complete) fputs(" \xC2\xB7 cut by --max-tokens", stderr);
    if (!drawing && length >= room / 2 && length < room)
        fprintf(stderr, " \xC2\xB7 context %d of %d", length, room);
    fputc('\n', stderr);
}

/* Begins a drawing or a question of the command line's request. With --quiet only the seed of a sampled result is
   printed. */
static void begin_request(Program *program, bool sampled) {
    take_seed(&program->line.request, 0);
    if (sampled && program->line.quiet)
        fprintf(stderr, "seed %llu\n", (unsigned long long)program->line.request.draw.seed);
    begin_work(program);
}

/* Draws the pictures of the command line's request and writes them one after the other. */
static void command_generate(Program *program) {
    const JanusInfo info = janus_info(program->model);
    const Request *request = &program->line.request;
    JanusError *error = &program->error;
    int32_t *ids = allocate((int64_t)request->draw.count * info.image_tokens, sizeof *ids);
    if (ids == NULL) fail_memory(error);
    begin_request(program, true);
    show_begin(&program->show, request->draw.count, info.image_size);
    if (program->show.canvas.rgb != NULL && program->colours == NULL) {
        program->colours = allocate(info.codebook_size, 3);
        if (program->colours == NULL) fail_memory(error);
        else janus_codebook_colours(program->session, program->colours, error);
    }
    program->progress.start = clock_seconds();
    if (error->status == JANUS_OK) janus_generate_ids(program->session, request->text, &request->draw, ids, error);
    finish_pictures(program, ids);
    print_times(program, true);
    free(ids);
}

static void forget_images(Program *program) {
    while (program->image_count > 0) janus_image_free(&program->images[--program->image_count]);
}

/* Loads an image, from stdin for "-", for the next question or to encode it. */
static JanusStatus add_image(Program *program, const char *path) {
    const char *file = strcmp(path, "-") == 0 ? NULL : path;
    JanusImage *image = &program->images[program->image_count];
    if (program->image_count == IMAGES_LIMIT)
        return fail(&program->error, JANUS_BAD_ARGUMENT, "a question takes at most %d images", IMAGES_LIMIT);
    const JanusStatus status = image_from_path(file, !program->line.no_exif, image, NULL, &program->error);
    program->image_count += status == JANUS_OK;
    return status;
}

/* Asks the command line's question about the images, streams the answer to stdout, and forgets the images. */
static void command_ask(Program *program) {
    const Request *request = &program->line.request;
    begin_request(program, request->ask.temperature > 0);
    const JanusStatus status = janus_ask(program->session, request->text, program->images, program->image_count,
                                         &request->ask, NULL, &program->error);
    end_work(program);
    if (status == JANUS_OK) forget_images(program);
    if (status == JANUS_OK || program->progress.text_written) putchar('\n');
    fflush(stdout);
    print_times(program, false);
}

static void print_ids(const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++) printf("%s%ld", i > 0 ? " " : "", (long)ids[i]);
    putchar('\n');
}

static void command_encode(Program *program) {
    const int count = janus_info(program->model).image_tokens;
    int32_t *ids = allocate(count, sizeof *ids);
    if (ids == NULL) fail_memory(&program->error);
    begin_work(program);
    if (ids != NULL) janus_encode_image(program->session, &program->images[0], ids, &program->error);
    end_work(program);
    if (program->error.status == JANUS_OK) print_ids(ids, (size_t)count);
    free(ids);
}

/* Numbers separated by white space or commas; malloc'ed. NULL after an error. */
static int32_t *parse_ids(const char *text, size_t *count, JanusError *error) {
    static const char BETWEEN[] = " ,\t\n\v\f\r";
    int32_t *ids = allocate((int64_t)strlen(text) / 2 + 1, sizeof *ids);
    *count = 0;
    if (ids == NULL) fail_memory(error);
    for (char *end; ids != NULL && *(text += strspn(text, BETWEEN)) != 0; text = end) {
        errno = 0;
        const long id = strtol(text, &end, 10);
        if (end == text || errno != 0 || id < INT32_MIN || id > INT32_MAX || strchr(BETWEEN, *end) == NULL) {
            fail(error, JANUS_BAD_ARGUMENT, "\"%.20s\" (number %lu) is not an id: give whole numbers with spaces "
                 "between them", text, (unsigned long)*count + 1);
            return free(ids), NULL;
        }
        ids[(*count)++] = (int32_t)id;
    }
    return ids;
}

static void command_decode(Program *program) {
    const int tokens = janus_info(program->model).image_tokens;
    Request *request = &program->line.request;
    JanusError *error = &program->error;
    size_t count = 0;
    int32_t *ids = parse_ids(request->text, &count, error);
    request->text = NULL; /* it is not a prompt */
    if (ids != NULL && count != (size_t)tokens)
        fail(error, JANUS_BAD_ARGUMENT, "a picture of this model has %d ids, but %lu were given", tokens,
             (unsigned long)count);
    else if (ids != NULL) {
        begin_work(program);
        show_begin(&program->show, 1, janus_info(program->model).image_size);
        finish_pictures(program, ids);
    }
    free(ids);
}

static void command_tokenize(Program *program) {
    const char *given = program->line.request.text;
    JanusError *error = &program->error;
    int32_t *ids = NULL;
    size_t count = 0, length = 0;
    char *text = NULL;
    if (!program->line.decode) {
        if (janus_tokenize(program->model, given, strlen(given), &ids, &count, error) == JANUS_OK)
            print_ids(ids, count);
    } else if ((ids = parse_ids(given, &count, error)) != NULL &&
               janus_detokenize(program->model, ids, count, &text, &length, error) == JANUS_OK) {
        print_text(text, length);
        putchar('\n');
    }
    free(text);
    free(ids);
}

static void print_kernels(void) {
    printf("kernels         ");
    for (int k = 0; kernels_at(k) != NULL; k++) printf("%s%s", k > 0 ? ", " : "", kernels_at(k)->name);
    putchar('\n');
}

/* Prints the metadata of the picture that the argument names; "-" is stdin. */
static void info_of_picture(Program *program) {
    const char *name = program->line.request.text, *file = strcmp(name, "-") == 0 ? NULL : name;
    char *text = NULL;
    if (image_from_path(file, false, NULL, &text, &program->error) != JANUS_OK) return;
    if (text == NULL) fail(&program->error, JANUS_BAD_IMAGE, "%s has no prompt and settings",
                                file != NULL ? file : "stdin");
    else puts(clean_controls(text, strlen(text), '\n'));
    free(text);
}

static void command_info(Program *program) {
    if (program->model == NULL) {
        info_of_picture(program);
        return;
    }
    const JanusInfo i = janus_info(program->model);
    printf("name            %s\n", i.name);
    printf("parameters      %.1f million, %s, %.1f MB on disk\n", (double)i.parameters / 1e6, i.weight_type,
           (double)i.file_bytes / 1e6);
    printf("transformer     %d layers, width %d, %d heads (%d for keys and values) of %d, MLP %d\n", i.layers,
           i.hidden_size, i.heads, i.kv_heads, i.head_dim, i.mlp_size);
    printf("vocabulary      %d tokens, context %d\n", i.vocab_size, i.context_length);
    printf("sees            %d x %d pixels as %d tokens (patches of %d, %d layers, width %d)\n", i.vision_size,
           i.vision_size, i.vision_tokens, i.vision_patch, i.vision_layers, i.vision_width);
    printf("draws           %d x %d pixels as %d tokens (codebook %d)\n", i.image_size, i.image_size, i.image_tokens,
           i.codebook_size);
    const double token = 2.0 * 4 * i.layers * i.kv_heads * i.head_dim; /* keys and values of every layer */
    printf("key/value cache f32, %.1f kB a token: a picture's rows %.1f MB, a full context %.1f MB\n", 1e-3 * token,
           2e-6 * token * i.image_tokens, 1e-6 * token * i.context_length);
    printf("                f16 (--kv f16, --fast) takes half of that and is less exact\n");
    const int places = janus_queue_places(program->model, NULL);
    printf("batch           %d pictures together unless --batch says otherwise: %.1f MB of keys and values\n", places,
           2e-6 * token * i.image_tokens * places);
    print_kernels();
}

/* ---- chat: one conversation. A line that begins with / is a command, any other a question ---- */

static const char CHAT_HELP[] = "/image FILE   adds an image to the next question\n"
                                "/draw PROMPT  draws a picture and adds it to the next question\n"
                                "/clear        begins a new conversation\n"
                                "/help         prints this list\n"
                                "/exit         ends the chat, as the end of the input does\n";

/* Draws a picture, saves it under the next free name, and adds it to the next question. */
static void chat_draw(Program *program) {
    if (output_usable(program, &program->line.request, &program->error) == JANUS_OK) command_generate(program);
    if (program->error.status != JANUS_OK || program->image_count == IMAGES_LIMIT) return;
    program->images[program->image_count++] = program->drawn;
    program->drawn.rgb = NULL; /* changed hands */
}

/* Removes control characters, escape sequences of keys such as arrows (ESC [ ... LETTER and ESC O LETTER), and blanks
   at both ends. Returns the rest. */
static char *clean_line(char *line) {
    char *out = line;
    for (const char *c = line; *c != 0; c++) {
        if (c[0] == '\033' && (c[1] == '[' || c[1] == 'O')) {
            for (c += 2; *c != 0 && !(*c >= '@' && *c <= '~');) c++;
            if (*c == 0) break;
        } else if (((unsigned char)*c >= 0x20 && *c != 0x7F) || *c == '\t') *out++ = *c;
    }
    while (out > line && (out[-1] == ' ' || out[-1] == '\t')) out--;
    *out = 0;
    return line + strspn(line, " \t");
}

/* Answers one line of the input. False: the chat ends. */
static bool chat_line(Program *program, const char *line) {
    JanusError *error = &program->error;
    char word[16];
    const char *rest = line + strcspn(line, " \t");
    snprintf(word, sizeof word, "%.*s", (int)min_i64(rest - line, 15), line);
    rest += strspn(rest, " \t");
    program->line.request.text = line[0] == '/' ? rest : line;
    const bool image = strcasecmp(word, "/image") == 0, draw = strcasecmp(word, "/draw") == 0;
    if (strcasecmp(word, "/exit") == 0 || strcasecmp(word, "/quit") == 0) return false;
    if ((image || draw) && rest[0] == 0)
        fail(error, JANUS_BAD_ARGUMENT, "%s needs %s", word, draw ? "a prompt" : "a file");
    else if (strcasecmp(word, "/help") == 0) fputs(CHAT_HELP, stderr);
    else if (image) {
        if (add_image(program, rest) == JANUS_OK && terminal(stdin) && !program->line.quiet) {
            const JanusImage *added = &program->images[program->image_count - 1];
            fprintf(stderr, "%s: %d x %d\n", rest, added->width, added->height);
        }
    } else if (draw) chat_draw(program);
    else if (strcasecmp(word, "/clear") == 0) {
        janus_reset(program->session);
        forget_images(program);
    } else if (line[0] == '/') fail(error, JANUS_BAD_ARGUMENT, "unknown command %.60s: /help lists them", line);
    else if (line[0] != 0) {
        const bool orders = strcasecmp(word, "draw") == 0 || strcasecmp(word, "paint") == 0;
        if (orders && rest[0] != 0 && !program->line.quiet)
            fprintf(stderr, "janus: remark: to draw a picture, type /draw %.60s\n", rest);
        command_ask(program);
    }
    return true;
}

static void command_chat(Program *program) {
    const bool prompts = terminal(stdin) && !program->line.quiet;
    LineReader *reader = &program->input;
    JanusError *error = &program->error;
    StringView line;
    reader->stream = stdin;
    if (prompts) fputs("/help lists the commands; Ctrl-C stops an answer or a drawing\n", stderr);
    for (bool more = true; more && program->write_error == 0;) {
        at_prompt = terminal(stdin);
        cancel_requested = 0; /* of the last answer */
        if (prompts) fputs("> ", stderr);
        const bool got = next_line(reader, true, &line);
        at_prompt = 0;
        if (!got) break;
        if (line.text == NULL) fail(error, JANUS_BAD_ARGUMENT, "the line is longer than 1 MiB");
        else if (strlen(line.text) != line.length)
            fail(error, JANUS_BAD_ARGUMENT, "the line is not a text in UTF-8: byte %lu is zero",
                 (unsigned long)strlen(line.text) + 1);
        else more = chat_line(program, clean_line((char *)line.text));
        if (fflush(stdout) != 0) program->write_error = errno_or(EIO);
        else if (error->status != JANUS_OK) program_failed(program);
        error->status = JANUS_OK;
    }
}

/* ---- batch: a job a line in, a result a line out ----

   A line is a JSON object whose keys fill a Request, as the options of a command do. The queue runs as many jobs
   together as it has places. Results are printed in the order of the lines, with --unordered as the jobs end. ---- */

typedef struct BatchJob {
    struct BatchJob *next;
    Request request;
    Context cx;         /* holds the job's error */
    unsigned given;     /* a bit for each row of KEYS */
    long line;          /* its number */
    int64_t queued;     /* its number in the queue; 0: not there */
    double start;
    TextBuffer reply;   /* from its id on */
    bool done;          /* the reply is complete */
    char bytes[];       /* its line, which the texts of the request point to */
} BatchJob;

/* A picture that the job of a line reads or writes. */
typedef struct {
    uint64_t key;
    long line;
    bool writes;
} Claim;

/* ---- The keys of a line ---- */

/* Each with the option that it sets. */
enum { KEY_PROMPT, KEY_QUESTION, KEY_ID };
static const char *const KEYS[][2] = {
    {"prompt", NULL}, {"question", NULL}, {"id", NULL}, {"image", "--image"}, {"images", "--image"},
    {"output", "--output"}, {"n", "--count"}, {"cfg", "--cfg"}, {"seed", "--seed"}, {"temperature", "--temperature"},
    {"max_tokens", "--max-tokens"}, {"top_k", "--top-k"}, {"top_p", "--top-p"},
};
enum { KEY_COUNT = sizeof KEYS / sizeof *KEYS };

/* True if a key goes with a question, or with a drawing: as its option does. */
static bool key_fits(int key, bool asks) {
    if (KEYS[key][1] != NULL) return (find_option(KEYS[key][1])->commands & (asks ? FOR_ASK : FOR_GENERATE)) != 0;
    return key == KEY_ID || key == (asks ? KEY_QUESTION : KEY_PROMPT);
}

/* The part of the help that lists the keys of both kinds of jobs. */
static void print_keys(FILE *to) {
    for (int asks = 0; asks < 2; asks++) {
        fprintf(to, "\n  A %s:", asks ? "question" : "drawing");
        for (int key = 0; key < KEY_COUNT; key++)
            if (key_fits(key, asks)) fprintf(to, " %s", KEYS[key][0]);
    }
    fputs("\n  The keys take the options' values, images a list; the result repeats id.\n", to);
}

static bool is_given(const BatchJob *job, int key) { return (job->given >> key & 1) != 0; }

static bool draws(const BatchJob *job) { return is_given(job, KEY_PROMPT); }

static void set_key(BatchJob *job, int key, JsonKind kind, StringView text) {
    const Option *option = KEYS[key][1] != NULL ? find_option(KEYS[key][1]) : NULL;
    const bool number = option != NULL && (option->kind == AS_NUMBER || option->kind == AS_SEED);
    char name[20];
    snprintf(name, sizeof name, "\"%s\"", KEYS[key][0]);
    if (kind != (number ? JSON_NUMBER : JSON_STRING))
        context_fail(&job->cx, JANUS_BAD_ARGUMENT, "%s takes a %s", name, number ? "number" : "string");
    else if (strlen(text.text) < text.length)
        context_fail(&job->cx, JANUS_BAD_ARGUMENT, "%s contains a zero character", name);
    else if (option == NULL) job->request.text = text.text;
    else set_option(&job->request, option, name, text.text, number ? "" : "\"", &job->cx.error);
}

/* Receives a value of the line: the object itself (depth 0), the value of a key (1) or an item of a list (2). */
static void take_value(void *user, int depth, StringView name, JsonKind kind, StringView text) {
    BatchJob *job = user;
    Context *cx = &job->cx;
    int key = 0;
    if (depth == 0 && kind != JSON_OBJECT) context_fail(cx, JANUS_BAD_ARGUMENT, "a line is an object in { }");
    if (depth == 0 || has_failed(cx)) return;
    while (key < KEY_COUNT && !view_is(name, KEYS[key][0])) key++;
    if (key == KEY_COUNT) context_fail(cx, JANUS_BAD_ARGUMENT, "unknown key \"%.60s\"", name.text);
    else if (depth == 1 && is_given(job, key))
        context_fail(cx, JANUS_BAD_ARGUMENT, "\"%s\" is given twice", name.text);
    else if (depth == 1 && kind == JSON_WORD && text.text[0] == 'n') return; /* null: not given */
    else if (key == KEY_ID && kind > JSON_NUMBER)
        context_fail(cx, JANUS_BAD_ARGUMENT, "\"id\" takes a string or a number");
    else if (key == KEY_ID) {
        text_print(&job->reply, "{\"id\": ");
        if (kind == JSON_STRING) json_write(&job->reply, text.text, text.length);
        else text_add(&job->reply, text.text, text.length);
    } else if (depth != 1 || kind != JSON_ARRAY || strcmp(KEYS[key][0], "images") != 0) set_key(job, key, kind, text);
    job->given |= 1u << key;
}

/* Reads the line of a job, `length` bytes, and checks that its keys make one job. */
static void parse_job(BatchJob *job, size_t length) {
    Context *cx = &job->cx;
    json_read(cx, job->bytes, length, take_value, job);
    if (!has_failed(cx) && !draws(job) && !is_given(job, KEY_QUESTION))
        context_fail(cx, JANUS_BAD_ARGUMENT, "a job has \"prompt\" or \"question\"");
    for (int key = 0; key < KEY_COUNT; key++)
        if (is_given(job, key) && !key_fits(key, !draws(job)))
            context_fail(cx, JANUS_BAD_ARGUMENT, "\"%s\" does not go with \"%s\"", KEYS[key][0],
                         draws(job) ? "prompt" : "question");
    if (draws(job) && job->request.output == NULL)
        context_fail(cx, JANUS_BAD_ARGUMENT, "\"output\" is missing: the name of the picture");
}

/* ---- Claims: a job may not write a picture that an earlier line reads or writes, nor read one that it writes ---- */

/* A hash (FNV-1a) of the file that a path leads to, which need not exist: of its folder's identity and of its name in
   lower case, since some systems ignore case. 0 if it leads nowhere, so that reading or writing it will fail. */
static uint64_t picture_key(const char *path) {
    char *target = link_target(path);
    if (target == NULL) return 0;
    char *name = target + folder_length(target), first = name[0];
    name[0] = 0;
    uint64_t key = file_identity(name > target ? target : ".") * SPREAD;
    name[0] = first;
    for (const char *c = name; *c != 0; c++)
        key = (key ^ (uint8_t)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c)) * SPREAD;
    free(target);
    return key;
}

/* Claims all pictures of a job, or none if one of them is refused. Those of an earlier run are only read. */
static void claim_pictures(TextBuffer *claims, BatchJob *job, bool resumed) {
    const Request *request = &job->request;
    const size_t before = claims->length;
    const int reads = request->image_count, all = reads + (request->output != NULL ? request->draw.count : 0);
    char name[PATH_BYTES];
    for (int i = 0; i < all && !has_failed(&job->cx); i++) {
        const char *path = i < reads ? request->images[i] : name;
        if (i >= reads && !picture_name(name, request, i - reads)) break;
        const Claim claim = {picture_key(path), job->line, i >= reads && !resumed};
        for (size_t k = 0; k < before; k += sizeof claim) {
            const Claim *other = (const void *)(claims->text + k);
            if (other->key == claim.key && claim.key != 0 && (claim.writes || other->writes))
                context_fail(&job->cx, JANUS_BAD_ARGUMENT, "%s is %s by line %ld: %s", path,
                             other->writes ? "written" : "read", other->line,
                             claim.writes ? "give each job an output of its own" : "ask about it in another run");
        }
        text_add(claims, &claim, sizeof claim);
        if (claims->failed) context_fail_memory(&job->cx);
    }
    if (has_failed(&job->cx)) claims->length = before;
    claims->failed = false;
}

/* ---- Results ---- */

/* Prints the complete results: in the order of the lines up to the first incomplete one, or with --unordered all. */
static void print_replies(Program *program) {
    for (BatchJob **at = &program->jobs, *job; (job = *at) != NULL && (job->done || program->line.unordered);) {
        if (!job->done) {
            at = &job->next;
            continue;
        }
        if (job->reply.failed) fail(&program->error, JANUS_NO_MEMORY, "line %ld: out of memory", job->line);
        else if (program->write_error == 0 &&
                 (fwrite(job->reply.text, 1, job->reply.length, stdout) != job->reply.length || fflush(stdout) != 0))
            program->write_error = errno_or(EIO);
        *at = job->next;
        text_free(&job->reply);
        free(job);
    }
}

/* Ends a job: with its error, the names of its pictures or its answer. `result` is NULL if the queue never had it. */
static void end_job(Program *program, BatchJob *job, const JanusResult *result) {
    const Request *request = &job->request;
    TextBuffer *reply = &job->reply;
    char name[PATH_BYTES];
    if (reply->length == 0) text_print(reply, "{\"id\": %ld", job->line);
    if (has_failed(&job->cx)) {
        program->error.status = JANUS_BAD_ARGUMENT;
        text_print(reply, ", \"line\": %ld, \"error\": ", job->line);
        json_write(reply, job->cx.error.message, strlen(job->cx.error.message));
    } else if (draws(job)) {
        for (int i = 0; i < request->draw.count; i++) {
            picture_name(name, request, i);
            text_print(reply, i > 0 ? ", " : ", \"output\": [");
            json_write(reply, name, strlen(name));
        }
        text_print(reply, "]");
    } else {
        text_print(reply, ", \"answer\": ");
        json_write(reply, result->answer, strlen(result->answer));
        text_print(reply, ", \"tokens\": %ld", (long)result->id_count);
    }
    if (!has_failed(&job->cx)) {
        if (draws(job) || request->ask.temperature > 0)
            text_print(reply, ", \"seed\": %llu", (unsigned long long)request->draw.seed);
        text_print(reply, "%s, \"seconds\": %.3f", result == NULL ? ", \"resumed\": true" : "",
                   clock_seconds() - job->start);
    }
    text_print(reply, "}\n");
    job->done = true;
    print_replies(program);
}

/* Ends the jobs that the queue has finished. */
static void take_results(Program *program) {
    const int64_t tokens = image_tokens(&program->model->config);
    char name[PATH_BYTES];
    for (JanusResult result; janus_queue_collect(program->queue, &result); janus_result_free(&result)) {
        BatchJob *job = program->jobs;
        while (job->queued != result.job) job = job->next;
        job->cx.error = result.error;
        if (result.error.status == JANUS_CANCELLED) fail(&job->cx.error, JANUS_CANCELLED, "stopped before it was done");
        for (int i = 0; draws(job) && i < job->request.draw.count && !has_failed(&job->cx); i++) {
            JanusImage image = {0, 0, NULL};
            write_picture(program, &job->request, result.ids + i * tokens, i, name, &image, &job->cx.error);
            janus_image_free(&image);
        }
        end_job(program, job, &result);
    }
}

/* ---- The run ---- */

/* --resume: true if an earlier run drew all pictures of the job completely, with the same text and settings. A job
   without a seed takes the seed of the pictures that exist. */
static bool was_done(const Program *program, BatchJob *job) {
    Request *request = &job->request;
    const int side = drawn_side(&program->model->config);
    bool same = program->line.resume && draws(job) && !has_failed(&job->cx);
    for (int i = 0; i < request->draw.count && same; i++) {
        JanusImage image = {0, 0, NULL};
        char name[PATH_BYTES], *says = NULL;
        same = picture_name(name, request, i) && image_from_path(name, false, &image, &says, NULL) == JANUS_OK;
        const size_t prompt = strlen(request->text);
        const char *seed = says != NULL && strlen(says) > prompt ? strstr(says + prompt, ", Seed: ") : NULL;
        if (!request->has_seed && seed != NULL) {
            request->draw.seed = strtoull(seed + 8, NULL, 10);
            request->has_seed = true;
        }
        char *expected = drawing_text(program, request, i);
        same = same && says != NULL && expected != NULL && strcmp(says, expected) == 0 && image.width == side &&
               image.height == side;
        janus_image_free(&image);
        free(expected);
        free(says);
    }
    return same;
}

/* Hands a job to the queue, unless an error comes first. */
static void submit_job(const Program *program, BatchJob *job) {
    const Request *request = &job->request;
    Context *cx = &job->cx;
    JanusImage images[IMAGES_LIMIT] = {{0, 0, NULL}};
    const int count = request->image_count;
    for (int i = 0; i < count && !has_failed(cx); i++)
        image_from_path(request->images[i], !program->line.no_exif, &images[i], NULL, &cx->error);
    if (!has_failed(cx) && !draws(job))
        janus_queue_ask(program->queue, request->text, images, count, &request->ask, &job->queued, &cx->error);
    else if (!has_failed(cx) && output_usable(program, request, &cx->error) == JANUS_OK)
        janus_queue_generate(program->queue, request->text, &request->draw, &job->queued, &cx->error);
    for (int i = 0; i < count; i++) janus_image_free(&images[i]);
}

/* Begins the job of a line, unless the line is blank. A refused job, or one that an earlier run did, ends here. */
static void begin_job(Program *program, StringView line) {
    const long number = program->input.number;
    const size_t length = line.text != NULL ? line.length : 0;
    if (line.text != NULL && strspn(line.text, " \t\r") == length) return;
    BatchJob *job = calloc(1, sizeof *job + length + 1), **last = &program->jobs;
    if (job == NULL) fail(&program->error, JANUS_NO_MEMORY, "line %ld: out of memory", number);
    if (job == NULL) return;
    while (*last != NULL) last = &(*last)->next;
    *last = job;
    if (length > 0) memcpy(job->bytes, line.text, length);
    job->request = request_defaults();
    job->line = number;
    job->start = clock_seconds();
    if (line.text == NULL) context_fail(&job->cx, JANUS_BAD_ARGUMENT, "the line is longer than 1 MiB");
    else parse_job(job, length);
    const bool resumed = was_done(program, job);
    claim_pictures(&program->claims, job, resumed);
    take_seed(&job->request, (uint64_t)number);
    if (!resumed) submit_job(program, job);
    if (job->queued == 0) end_job(program, job, NULL);
}

static void run_batch(Program *program) {
    LineReader *reader = &program->input;
    StringView line;
    do {
        while (!cancel_requested && program->write_error == 0 && janus_queue_waiting(program->queue) == 0 &&
               next_line(reader, program->jobs == NULL, &line))
            begin_job(program, line);
        /* The first SIGINT lets answers that have begun and drawings that are half done finish. */
        for (BatchJob *job = program->jobs; job != NULL && cancel_requested; job = job->next)
            if (janus_queue_progress(program->queue, job->queued) < (draws(job) ? 0.5 : 1e-9))
                janus_queue_cancel(program->queue, job->queued);
        janus_queue_step(program->queue);
        take_results(program);
    } while (program->write_error == 0 &&
             (program->jobs != NULL ||
              !(cancel_requested || (reader->ended && reader->at == reader->size && reader->length == 0))));
}

static void command_batch(Program *program) {
    const char *path = program->line.request.text, *name = strcmp(path, "-") == 0 ? "stdin" : path;
    LineReader *reader = &program->input;
    reader->stream = name != path ? stdin : file_open(path, "rb");
    if (reader->stream == NULL) reader->failure = errno_or(EIO);
    program->shows_progress = false; /* the results are the progress */
    if (reader->failure == 0) janus_queue_new(program->session, program->line.batch, &program->queue, &program->error);
    begin_work(program);
    if (program->queue != NULL) run_batch(program);
    end_work(program);
    if (reader->failure != 0)
        fail(&program->error, JANUS_IO_ERROR, "cannot read %s: %s", name, strerror(reader->failure));
    if (cancel_requested) program->error.status = JANUS_CANCELLED;
    for (BatchJob *job = program->jobs; job != NULL; job = job->next) job->done = true; /* lost with stdout */
    print_replies(program);
}

/* ---- selftest: every stage beside its recorded numbers ----

   MODEL.selftest is a text. Its first line has the version of the format, the size of the model's file, and how many
   numbers of a tensor it keeps. Every other line is a tensor: TASK/STAGE, with .1, .2, ... for the second and third of
   that stage; how many numbers it has; its largest magnitude; the numbers that are kept. weights/tiny.selftest was
   written by --record; those of test/golden have all numbers, as PyTorch computed them (test/verify/record_golden.py).
   Ids must be equal, floats within 1e-4 of the largest of their tensor. ---- */

/* Answers two questions, encodes and draws a picture, and samples the ids of three. */
static void run_tasks(Program *program) {
    static uint8_t rgb[60 * 90 * 3];
    const JanusImage seen = {90, 60, rgb};
    const JanusAskOptions ask = {.max_tokens = 8, .top_p = 1};
    const JanusGenerateOptions greedy = {.count = 1, .cfg_weight = 5};
    const JanusGenerateOptions sampled = {.count = 3, .seed = 11, .cfg_weight = 5, .temperature = 1};
    JanusImage drawn = {0, 0, NULL};
    int32_t *ids = allocate(3 * (int64_t)janus_info(program->model).image_tokens, sizeof *ids);
    JanusSession *session = program->session;
    JanusError *error = &program->error;
    Tap *tap = &program->tap;
    for (int i = 0; i < 60 * 90 * 3; i++) rgb[i] = (uint8_t)(i * 5 / 16); /* gradients with edges */
    tap->only = "";
    if (ids == NULL) fail_memory(error);
    tap->task = "ask";
    if (error->status == JANUS_OK) janus_ask(session, "What is in the picture?", &seen, 1, &ask, NULL, error);
    if (error->status == JANUS_OK) janus_ask(session, "How many trees?", NULL, 0, &ask, NULL, error);
    tap->task = "encode";
    if (error->status == JANUS_OK) janus_encode_image(session, &seen, ids, error);
    tap->task = "draw";
    if (error->status == JANUS_OK) janus_generate_ids(session, "a red circle", &greedy, ids, error);
    if (error->status == JANUS_OK) janus_decode_image(session, ids, &drawn, error);
    tap->task = "sample";
    tap->only = "generation.ids";
    if (error->status == JANUS_OK) janus_generate_ids(session, "a red circle", &sampled, ids, error);
    if (error->status == JANUS_OK) *error = tap->failure;
    tap->task = NULL;
    janus_image_free(&drawn);
    free(ids);
}

/* Prints a row for every stage and for every recorded tensor that did not occur. Returns the number of bad rows. */
static int print_stages(const Tap *tap) {
    const Stage *stages = (const void *)tap->stages.text;
    const size_t count = tap->stages.length / sizeof *stages;
    int bad = 0;
    for (const Stage *stage = stages; stage < stages + count; stage++) {
        const bool equal = stage->distance <= 1e-4;
        printf("%-32s %-10s %5ld %12.1e   %s\n", stage->name, stage->shape, stage->times, stage->distance,
               equal ? "OK" : "NOT OK");
        bad += !equal;
    }
    for (const char *line = tap->lines; line[0] != 0 && line[1] != 0; line += 1 + strcspn(line + 1, "\n")) {
        if (line[1] != '+') printf("%-62.*s   NOT OK: missing\n", (int)strcspn(line + 1, " \n"), line + 1), bad++;
    }
    printf("%ld OK, %d NOT OK\n", (long)count - bad, bad);
    return bad;
}

static void command_selftest(Program *program) {
    const double size = (double)janus_info(program->model).file_bytes;
    JanusError *error = &program->error;
    Tap *tap = &program->tap;
    TextBuffer *file = &program->text;
    char path[PATH_BYTES];
    double recorded_size = 0;
    int used = 0;
    const int stem = (int)strlen(program->model_path) - (ends_with(program->model_path, ".gguf") ? 5 : 0);
    snprintf(path, sizeof path, "%.*s.selftest", stem, program->model_path);
    if (program->line.record) {
        tap->kept = 13; /* prime, so that they are in different columns of a matrix */
        text_print(&tap->record, "janus-selftest 3 %.0f %ld\n", size, tap->kept);
    } else if (file_read(path, TEXT_FILE_LIMIT, file) != 0)
        fail(error, JANUS_IO_ERROR, "cannot read %s, the recorded numbers of this model: %s; selftest --record writes "
             "them, on a machine that is known to be right", path, strerror(errno));
    else if (sscanf(file->text, "janus-selftest 3 %lf %ld%n", &recorded_size, &tap->kept, &used) != 2 ||
             recorded_size != size || tap->kept <= 0)
        fail(error, JANUS_BAD_ARGUMENT, "%s belongs to another model or version: janus selftest --record", path);
    else tap->lines = file->text + used;
    begin_work(program);
    if (error->status == JANUS_OK) run_tasks(program);
    end_work(program);
    if (error->status != JANUS_OK) return;
    if (tap->lines == NULL && write_bytes(path, &tap->record, error) == JANUS_OK) puts(path);
    if (tap->lines != NULL && print_stages(tap) > 0) error->status = JANUS_BAD_MODEL;
}

static void command_version(Program *program) {
    (void)program;
    printf("janus " JANUS_VERSION "\n");
    print_kernels();
    printf("model files     GGUF 3, janus.format_version %d\n", FORMAT_VERSION);
}

/* ---- Commands and their arguments ---- */

/* The last argument of a command. A PROMPT that comes from stdin loses the line ends behind it; IDS are in a file. */
typedef enum { NO_TEXT, A_NAME, IDS, PLAIN_TEXT, PROMPT } TextKind;

typedef struct {
    const char *name, *arguments; /* as the help shows them */
    unsigned bit;
    TextKind text;
    int least, most; /* number of arguments */
    void (*run)(Program *program);
    const char *does; /* for the help and for messages: "it ..." */
} Command;

static void command_help(Program *program);

static const Command COMMANDS[] = {
    {"generate", "\"PROMPT\"", FOR_GENERATE, PROMPT, 1, 1, command_generate, "draws pictures from a text"},
    {"ask", "[IMAGE ...] \"QUESTION\"", FOR_ASK, PROMPT, 1, IMAGES_LIMIT + 1, command_ask,
     "answers a question in words"},
    {"chat", "[IMAGE ...]", FOR_CHAT, NO_TEXT, 0, IMAGES_LIMIT, command_chat, "answers its input line by line"},
    {"encode", "IMAGE", FOR_ENCODE, NO_TEXT, 1, 1, command_encode, "turns one image into its ids"},
    {"decode", "[IDS-FILE]", FOR_DECODE, IDS, 0, 1, command_decode, "turns ids into one picture"},
    {"tokenize", "\"TEXT\"", FOR_TOKENIZE, PLAIN_TEXT, 1, 1, command_tokenize, "turns text into token ids, or back"},
    {"info", "[MODEL|IMAGE]", FOR_INFO, A_NAME, 0, 1, command_info, "shows a model or a picture's settings"},
    {"batch", "JOBS.jsonl", FOR_BATCH, A_NAME, 1, 1, command_batch, "runs the jobs of JSON lines, together"},
    {"selftest", "", FOR_SELFTEST, NO_TEXT, 0, 0, command_selftest, "compares stages with recorded ones"},
    {"help", "[COMMAND]", FOR_HELP, A_NAME, 0, 1, command_help, "lists the options of a command"},
    {"--version", "", FOR_HELP, NO_TEXT, 0, 0, command_version, "prints the versions"},
};
enum { COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0] };

/* True if the edit distance (letters added, dropped or replaced) is at most `errors`. */
static bool is_near(const char *word, const char *typed, int errors) {
    while (*word != 0 && *word == *typed) word++, typed++;
    if (*word == *typed) return true;
    if (errors == 0) return false;
    return (*word != 0 && is_near(word + 1, typed, errors - 1)) ||
           (*typed != 0 && is_near(word, typed + 1, errors - 1)) ||
           (*word != 0 && *typed != 0 && is_near(word + 1, typed + 1, errors - 1));
}

/* Fails for an unknown command or option and suggests one that begins with it, or the one with the smallest edit
   distance, at most 2. */
static int unknown_word(JanusError *error, const char *argument, bool command) {
    const char *kind = command ? "command" : "option";
    char typed[32];
    snprintf(typed, sizeof typed, "%.*s", (int)strcspn(argument, "="), argument);
    const char *begin = typed + strspn(typed, "-");
    const size_t length = strlen(begin);
    for (int errors = 0; errors <= (length < 3 ? -1 : length < 6 ? 1 : 2); errors++)
        for (int i = 0; i < (command ? COMMAND_COUNT : OPTION_COUNT); i++) {
            const char *word = command ? COMMANDS[i].name : OPTIONS[i].names + 4, *letters = word + strspn(word, "-");
            if (strncmp(letters, begin, length) != 0 && !is_near(letters, begin, errors)) continue;
            return fail(error, JANUS_BAD_ARGUMENT, "unknown %s %.60s: is %s meant?", kind, argument, word);
        }
    return fail(error, JANUS_BAD_ARGUMENT, "unknown %s %.60s (%s)", kind, argument,
                command ? "the command comes first: janus help lists them" : "janus help COMMAND lists the options");
}

/* NULL after an error. */
static const Command *find_command(JanusError *error, const char *name) {
    for (const Command *c = COMMANDS; c < COMMANDS + COMMAND_COUNT; c++)
        if (strcmp(c->name, name) == 0) return c;
    unknown_word(error, name, true);
    return NULL;
}

/* Sets the option that an argument names; the value follows a "=" or is the next argument. Returns the number of
   arguments, or 0 after an error. */
static int take_option(Program *program, const Command *command, const char *argument, const char *next) {
    JanusError *error = &program->error;
    const char *inside = strchr(argument, '='), *value = inside != NULL ? inside + 1 : next;
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument, "="), argument);
    const Option *option = find_option(name);
    const bool alone = option != NULL && option->kind == AS_SWITCH;
    if (option == NULL) unknown_word(error, argument, false);
    else if ((option->commands & command->bit) == 0)
        fail(error, JANUS_BAD_ARGUMENT, "%s takes no %s: it %s", command->name, name, command->does);
    else if (alone && inside != NULL)
        fail(error, JANUS_BAD_ARGUMENT, "%s takes no value, but \"%.60s\" was given", name, value);
    else if (!alone && value == NULL)
        fail(error, JANUS_BAD_ARGUMENT, "%s needs a value: %s %s", name, name, option->argument);
    else set_option(&program->line, option, name, value, "\"", error);
    return error->status != JANUS_OK ? 0 : alone || inside != NULL ? 1 : 2;
}

/* True if a question is more likely the name of a file: it exists, or it looks like one. */
static bool names_a_file(const char *question) {
    const char *dot = strpbrk(question, " \t\n") == NULL ? strrchr(question, '.') : NULL;
    return path_kind(question) != PATH_NONE || is_picture_name(question) ||
           (dot != NULL && dot > question && dot[1] != 0);
}

/* If the command takes a text, that is the last argument; the others are images. */
static int place_arguments(Program *program, const Command *command, int count, char **arguments) {
    Request *request = &program->line.request;
    JanusError *error = &program->error;
    const bool texts = command->text != NO_TEXT;
    const int given = count + (texts ? 0 : request->image_count), images = texts && count > 0 ? count - 1 : count;
    if (given < command->least || given > command->most)
        return fail(error, JANUS_BAD_ARGUMENT, "%s: janus %s %s",
                    given < command->least ? "missing argument" : "too many arguments", command->name,
                    command->arguments);
    for (int i = 0; i < images && error->status == JANUS_OK; i++)
        set_option(request, find_option("--image"), "-i", arguments[i], "\"", error);
    if (texts && count > 0) request->text = arguments[images];
    const char *text = request->text;
    int readers = (command->bit == FOR_CHAT) + (text != NULL && strcmp(text, "-") == 0);
    for (int i = 0; i < request->image_count; i++) readers += strcmp(request->images[i], "-") == 0;
    if (error->status != JANUS_OK) return error->status;
    if (command->bit == FOR_ASK && strcmp(text, "-") != 0 && names_a_file(text))
        return fail(error, JANUS_BAD_ARGUMENT,
                    "ask: no question: %.200s looks like a file (any text can come from stdin: -)", text);
    if (command->bit == FOR_INFO && text != NULL && program->line.model != NULL)
        return fail(error, JANUS_BAD_ARGUMENT, "info shows one file: %.60s or %.60s", program->line.model, text);
    if (command->bit == FOR_HELP && text != NULL) find_command(error, text);
    if (readers < 2) return error->status;
    return fail(error, JANUS_BAD_ARGUMENT, "%s: only one input can come from stdin", command->name);
}

/* Reads the command, its options and its arguments. Returns the command, or NULL after an error. */
static const Command *parse_command_line(Program *program, int argc, char **argv) {
    const bool asks_help = strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0;
    const Command *command = find_command(&program->error, asks_help ? "help" : argv[1]);
    int count = 0; /* arguments, which are moved to the front of argv */
    bool options = true;
    for (int i = 2, taken; command != NULL && i < argc; i += taken) {
        const bool is_option = options && argv[i][0] == '-' && argv[i][1] != 0;
        taken = 1;
        if (!is_option) argv[count++] = argv[i];
        else if (strcmp(argv[i], "--") == 0) options = false;
        else taken = take_option(program, command, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
        if (taken == 0) return NULL;
    }
    if (command != NULL && program->line.help) {
        program->line.request.text = command->name;
        return find_command(NULL, "help");
    }
    return command != NULL && place_arguments(program, command, count, argv) == JANUS_OK ? command : NULL;
}

/* Replaces "-" by the text of stdin, and the name of a file by the ids in it, without a byte order mark. */
static void take_text(Program *program, TextKind kind) {
    TextBuffer *text = &program->text;
    const char *path = program->line.request.text;
    const bool from_stdin = path == NULL || strcmp(path, "-") == 0;
    if (kind < IDS || (kind > IDS && !from_stdin)) return;
    if (read_bytes(from_stdin ? NULL : path, "", TEXT_FILE_LIMIT, text, &program->error) != JANUS_OK) return;
    char *begin = text->text, *end = begin + text->length, *zero = memchr(begin, 0, text->length);
    if (zero != NULL)
        fail(&program->error, JANUS_BAD_ARGUMENT, "%s is not a text in UTF-8: byte %lu is zero",
             from_stdin ? "stdin" : path, (unsigned long)(zero - begin) + 1);
    begin += mark_size(begin, text->length);
    while (kind == PROMPT && end > begin && (end[-1] == '\n' || end[-1] == '\r')) *--end = 0;
    program->line.request.text = begin;
}

/* Remarks that options of sampling have no effect. In a chat the seed also serves /draw. */
static void remark_idle_options(const CommandLine *line, unsigned command) {
    const JanusAskOptions *ask = &line->request.ask, defaults = janus_ask_defaults();
    const float temperature = command == FOR_GENERATE ? line->request.draw.temperature : ask->temperature;
    const bool seeded = line->request.has_seed && command != FOR_CHAT;
    if (temperature <= 0 && (seeded || ask->top_k != defaults.top_k || ask->top_p < 1) && !line->quiet)
        fputs("janus: remark: --seed, --top-k and --top-p have no effect without a --temperature above 0\n", stderr);
}

/* ---- Help, from the two tables ---- */

static const char OVERVIEW[] =
    "\njanus help COMMAND lists the options of a command.\n"
    "Options may stand before or after the text, as --seed 7, --seed=7 or -s 7.\n"
    "A - for a text, an image or a list of ids is stdin, for -o stdout.\n"
    "The environment variable JANUS_MODEL replaces -m.\n"
    "Exit status: 0 done, 1 failed, 2 usage error, 128 + N ended by signal N.\n";

/* Prints all commands, or the options of one. */
static void print_help(FILE *to, const Command *only) {
    if (only == NULL) fputs("janus " JANUS_VERSION " - Janus-Pro on the CPU: see images, draw images\n\n", to);
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (only == NULL || only == &COMMANDS[i])
            fprintf(to, "  janus %-9s %-23s %s\n", COMMANDS[i].name, COMMANDS[i].arguments, COMMANDS[i].does);
    fputs(only == NULL ? OVERVIEW : "\n", to);
    for (int i = 0; i < OPTION_COUNT && only != NULL; i++) {
        const Option *o = &OPTIONS[i];
        if ((o->commands & only->bit) == 0) continue;
        const int width = fprintf(to, "  %s %s", o->names, o->argument != NULL ? o->argument : "");
        fprintf(to, "%*s%s\n", 28 - width, "", o->help);
    }
    if (only != NULL && only->bit == FOR_CHAT) fprintf(to, "\n%s", CHAT_HELP);
    if (only != NULL && only->bit == FOR_BATCH) print_keys(to);
}

static void command_help(Program *program) {
    const char *name = program->line.request.text;
    print_help(stdout, name != NULL ? find_command(NULL, name) : NULL);
}

/* ---- main ---- */

/* Runs a command once its folder, the terminal, the model, its output, its text and its images are ready. */
static int run_command(Program *program, const Command *command, const char *program_path) {
    CommandLine *line = &program->line;
    JanusError *error = &program->error;
    const char *file = command->bit == FOR_INFO ? line->request.text : NULL;
    if (file != NULL && ends_with(file, ".gguf")) line->model = file;
    const bool needs_model = (command->bit & FOR_MODEL) != 0 && (file == NULL || file == line->model);
    program->shows_progress = !line->quiet && terminal(stderr);
    if (line->dump != NULL && folder_make(line->dump) != 0)
        fail(error, JANUS_IO_ERROR, "cannot make the folder %s: %s", line->dump,
             errno == EEXIST ? "it exists and is not an empty folder: name a new one" : strerror(errno));
    if (line->show || (command->bit == FOR_CHAT && terminal(stdin) && !line->quiet))
        program->show.kind = terminal_shows();
    if (line->show && program->show.kind == SHOW_NO)
        fail(error, JANUS_IO_ERROR, "--show needs stderr to be a terminal with colours ($TERM) and at least %d columns",
             SHOW_COLUMNS);
    if (error->status == JANUS_OK && needs_model) open_model(program, command->bit, program_path);
    if (error->status == JANUS_OK && (command->bit & FOR_PICTURES) != 0) output_usable(program, &line->request, error);
    if (error->status == JANUS_OK) take_text(program, command->text);
    for (int i = 0; i < line->request.image_count && error->status == JANUS_OK; i++)
        add_image(program, line->request.images[i]);
    if (error->status == JANUS_OK) {
        remark_idle_options(line, command->bit);
        command->run(program);
    }
    if (error->status == JANUS_OK) *error = program->tap.failure;
    if ((fflush(stdout) != 0 || ferror(stdout)) && program->write_error == 0) program->write_error = errno_or(EIO);
    return error->status == JANUS_OK && program->write_error == 0 ? EXIT_DONE : program_failed(program);
}

static int janus_main(int argc, char **argv) {
    static Program state; /* not on the stack: it is large */
    Program *program = &state;
    const char *program_path = argc > 0 ? argv[0] : "";
    int result = EXIT_USAGE;
    memset(program, 0, sizeof *program);
    program->line.request = request_defaults();
    const Command *command = argc > 1 ? parse_command_line(program, argc, argv) : NULL;
    if (argc < 2) print_help(stderr, NULL);
    else if (command == NULL) program_failed(program);
    else result = run_command(program, command, program_path);
    forget_images(program);
    janus_image_free(&program->drawn);
    text_free(&program->text);
    text_free(&program->tap.stages);
    text_free(&program->tap.record);
    text_free(&program->claims);
    free(program->colours);
    janus_queue_free(program->queue);
    janus_session_free(program->session);
    janus_free(program->model);
    return result;
}

/* ---- Signals: before one ends the program, partial files are deleted; the exit status is 128 + its number. The first
   SIGINT during a call of the library is a cancel request ---- */

#if defined(_WIN32)
static volatile LONG interrupted;

/* Runs in its own thread. A file that is being written cannot be removed here: it is completed first. */
static BOOL WINAPI on_console_event(DWORD event) {
    if (event == CTRL_C_EVENT && can_cancel && !cancel_requested) return cancel_requested = 1;
    interrupted = 1;
    for (int i = 0; i < 500 && unfinished[0] != NULL; i++) Sleep(10);
    if (unfinished[1] != NULL) file_remove(unfinished[1]);
    ExitProcess(128 + (event == CTRL_C_EVENT || event == CTRL_BREAK_EVENT ? 2 : 15));
    return TRUE;
}

/* Windows passes arguments as UTF-16; the program uses UTF-8. */
int main(void) {
    static wchar_t program_file[PATH_BYTES];
    int argc = 0, result = EXIT_FAILED;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &argc);
    if (wide != NULL && GetModuleFileNameW(NULL, program_file, PATH_BYTES) > 0) wide[0] = program_file;
    char **argv = wide == NULL ? NULL : calloc((size_t)argc + 1, sizeof *argv);
    bool good = argv != NULL;
    for (int i = 0; i < argc && good; i++) {
        const int bytes = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        argv[i] = malloc((size_t)bytes + 1);
        good = argv[i] != NULL && WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, argv[i], bytes, NULL, NULL) > 0;
    }
    SetConsoleOutputCP(CP_UTF8);
    _setmode(fileno(stdin), _O_BINARY);
    _setmode(fileno(stdout), _O_BINARY);
    SetConsoleCtrlHandler(on_console_event, TRUE);
    if (good) result = janus_main(argc, argv);
    if (interrupted) Sleep(INFINITE); /* until the handler's thread ends the process with its exit status */
    return result;
}
#else
#if !defined(__wasi__)
static void on_signal(int number) {
    if (number == SIGINT && can_cancel && !cancel_requested) {
        cancel_requested = 1;
        return;
    }
    if (number == SIGINT && at_prompt) {
        static const char HINT[] = "\n(Ctrl-C once more or /exit ends the chat)\n> ";
        at_prompt = 0;
        if (write(2, HINT, sizeof HINT - 1) >= 0) return;
    }
    for (int i = 0; i < 2; i++)
        if (unfinished[i] != NULL) unlink(unfinished[i]);
    _exit(128 + number);
}

/* A signal that was ignored, as under nohup, remains ignored. */
static void handle_signals(void) {
    static const int ENDING[] = {SIGINT, SIGTERM, SIGHUP, SIGXFSZ, SIGXCPU};
    struct sigaction ours, before;
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = on_signal;
    ours.sa_flags = SA_RESTART; /* reads and writes continue after a cancel request */
    sigfillset(&ours.sa_mask);
    for (size_t i = 0; i < sizeof ENDING / sizeof ENDING[0]; i++)
        if (sigaction(ENDING[i], NULL, &before) == 0 && before.sa_handler == SIG_DFL) sigaction(ENDING[i], &ours, NULL);
}
#else
static void handle_signals(void) {}
#endif

int main(int argc, char **argv) {
    handle_signals();
    return janus_main(argc, argv);
}
#endif

#endif

#endif
