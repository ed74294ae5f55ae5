#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""janus.c beside PyTorch and llama.cpp: the same sizes, the same random weights, the same number of threads, in one run.

    bench_peers.py [--threads K] [--rounds N] [--only torch,llama,questions] [--quick] [--tiny] [--kv f32] [--fast] [--work DIR]
                   [--dtypes float32,bfloat16] [--compile off,on] [--types bf16,q8_0,q4_0] [--json FILE]

Every round runs ours, then theirs; a line gives the median times and how many times as fast ours is: the median of the
rounds' ratios and, in brackets, the smallest and the largest.

PyTorch: the Janus classes of transformers in float32 and bfloat16; ours has bf16 weights. torch.compile is left out unless
--compile on asks for it: on a CPU it took longer to compile the steps than a benchmark may last.
    picture       prompt, 576 guided steps and VQ decode. Timed are the prompt and the first `--steps` ids; the other steps
                  are taken to be as long as the mean of those timed, so both sides are spared their longest ones.
    first token   of the answer to a question about a 640 x 480 picture; `64 tokens on` are those that follow
llama.cpp: a LLaMA of the same sizes, written from the same file: same numbers, same types.
    prefill       of 640 tokens; `1 row`, `2 rows`: one more token of one sequence, or of two side by side, LM head included
llama.cpp's libmtmd, which llama-mtmd-cli and llama-server see pictures with: the encoder and the aligner of the same file too.
    4 questions   each about a 640 x 480 picture of its own, one after the other: from the pixels to 16 tokens of the answer
    4 together    the same as four slots of llama-server do it: one picture after the other is encoded and read, texts and
                  answers are read side by side. Ours go through the queue of `janus batch`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np

from stages import ROOT, Stages, made_up_picture, random_file

sys.path.insert(0, str(ROOT / "test" / "verify"))  # for reference.py

PROMPT, QUESTION = "a red fox in the snow, oil painting", "What is in the picture?"
PICTURES, ANSWER = 4, 16      # questions, each about its own picture, and the tokens of each answer
Measured = dict[str, float]   # task -> seconds


def clock(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(title: str, options: argparse.Namespace, ours: Callable[[], Measured], theirs: Callable[[], Measured],
            warm: bool = False) -> dict[str, tuple[float, float]]:
    """Alternates both sides; unless they are warm, the first run of either only warms up. Prints a line a task; returns
    their medians."""
    rounds, medians = options.rounds, {}
    if not warm:
        ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    for task in pairs[0][0]:
        mine, other = (np.array([pair[side][task] for pair in pairs]) for side in (0, 1))
        ratios, medians[task] = other / mine, (float(np.median(mine)), float(np.median(other)))
        print(f"{title:32} {task:18} {1e3 * np.median(mine):11.2f} {1e3 * np.median(other):11.2f} "
              f"{np.median(ratios):8.2f} x  ({ratios.min():.2f} .. {ratios.max():.2f})", flush=True)
        if options.json:
            record = {"peer": title, "task": task, "ours": list(mine), "theirs": list(other), "ratio": float(np.median(ratios)),
                      "threads": options.threads, "geometry": options.geometry, "fast": options.fast}
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    return medians


def gap(mine: np.ndarray, other: np.ndarray) -> str:
    """The largest difference, as a part of the largest number."""
    return f"{np.abs(mine - other).max() / np.abs(mine).max():.0e} of the largest"


def heading() -> None:
    print(f"\n{'':32} {'':18} {'ours, ms':>11} {'theirs, ms':>11} {'as fast':>10}  (lowest .. highest of the rounds)")


# ---- PyTorch ----

def whole_picture(times: np.ndarray, image_tokens: int, decoding: float) -> float:
    """Seconds of a picture from the start and the times of its first ids: the others take as long as their mean."""
    return times[1] - times[0] + (image_tokens - 1) * np.diff(times[1:]).mean() + decoding


def our_tasks(stages: Stages, steps: int, tokens: int) -> Measured:
    """The five tasks through janus.c."""
    ids, picture = np.arange(stages.image_tokens) * 7919 % stages.codebook, made_up_picture(stages.side, stages.side)
    result: Measured = {}
    decoding = clock(lambda: stages.decode(ids))
    result["picture"] = whole_picture(stages.draw(PROMPT, steps)[1], stages.image_tokens, decoding)
    times = stages.ask(QUESTION, made_up_picture(640, 480), tokens + 1)
    result["first token"] = times[1] - times[0]
    result[f"{tokens} tokens on"] = np.diff(times[1:]).mean() * tokens
    result["VQ decode"] = decoding
    result["VQ encode"] = clock(lambda: stages.encode(picture))
    return result


class TorchPeer:
    """The same tasks through transformers."""

    def __init__(self, reference, compiled: bool) -> None:
        import torch
        self.torch, self.reference, self.compiled = torch, reference, compiled
        inner = reference.model.model
        wrap = torch.compile if compiled else lambda part: part
        self.language, self.encoder, self.decoder = wrap(inner.language_model), wrap(inner.vqmodel.encoder), wrap(inner.vqmodel.decoder)
        self.vision = wrap(inner.vision_model)
        self.dtype = next(reference.model.parameters()).dtype

    def cache(self, length: int):
        """Keys and values: of a fixed size where the code is compiled, else growing."""
        from transformers import DynamicCache, StaticCache
        config = self.reference.model.config.text_config
        return StaticCache(config=config, max_cache_len=length) if self.compiled else DynamicCache(config=config)

    def draw(self, steps: int) -> np.ndarray:
        """The official loop; times of the start and of each id."""
        from reference import drawing_ids
        torch, model = self.torch, self.reference.model
        tokens = torch.tensor(drawing_ids(self.reference, PROMPT)).repeat(2, 1)
        tokens[1, 1:-1] = self.reference.ids["pad"]
        generator = torch.Generator().manual_seed(0)
        times, cache = [time.perf_counter()], self.cache(tokens.shape[1] + self.reference.grid ** 2)
        embeddings = model.model.language_model.embed_tokens(tokens)
        for _ in range(steps):
            hidden = self.language(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
            cond, uncond = model.model.generation_head(hidden[:, -1]).float()
            probs = torch.softmax(uncond + 5 * (cond - uncond), dim=-1)
            token = torch.multinomial(probs, num_samples=1, generator=generator)
            times.append(time.perf_counter())
            embeddings = model.prepare_embeddings_for_image_generation(token)[None].expand(2, 1, -1)
        return np.array(times)

    def ask(self, tokens: int) -> np.ndarray:
        """Preprocessing, ViT, prompt, greedy answer; times of the start and of each token."""
        from PIL import Image
        from reference import pixel_values, question_ids
        torch, model = self.torch, self.reference.model
        image, times = Image.fromarray(made_up_picture(640, 480)), [time.perf_counter()]
        values = torch.from_numpy(pixel_values(image, self.reference.rules)).permute(2, 0, 1)[None].to(self.dtype)
        seen = model.model.aligner(self.vision(values).last_hidden_state)[0]
        ids = torch.tensor(question_ids(self.reference, QUESTION, 1))
        cache, embeddings = self.cache(len(ids) + tokens), model.model.language_model.embed_tokens(ids).clone()
        embeddings[ids == self.reference.ids["image"]] = seen
        for _ in range(tokens):
            hidden = self.language(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True).last_hidden_state
            token = model.lm_head(hidden[0, -1]).argmax()
            times.append(time.perf_counter())
            embeddings = model.model.language_model.embed_tokens(token[None])
        return np.array(times)

    def decode(self, ids: np.ndarray) -> None:
        """ids -> 8-bit pixels."""
        vq, torch = self.reference.model.model.vqmodel, self.torch
        latent = vq.post_quant_conv(vq.quantize.get_codebook_entry(torch.tensor(ids)[None]).to(self.dtype))
        ((self.decoder(latent) + 1) / 2 * 255).clip(0, 255).to(torch.uint8)

    def encode(self, picture: np.ndarray) -> None:
        """Pixels -> ids of the nearest rows of the codebook."""
        vq, functional = self.reference.model.model.vqmodel, self.torch.nn.functional
        pixels = self.torch.from_numpy(picture / np.float32(127.5) - 1).permute(2, 0, 1)[None].to(self.dtype)
        z = functional.normalize(vq.quant_conv(self.encoder(pixels))[0].flatten(1).T, dim=-1)
        codebook = functional.normalize(vq.quantize.embedding.weight, dim=-1)
        (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)

    def tasks(self, steps: int, tokens: int) -> Measured:
        """As our_tasks."""
        count = self.reference.grid ** 2
        ids = np.arange(count) * 7919 % self.reference.model.model.vqmodel.quantize.embedding.weight.shape[0]
        side = self.reference.grid << (len(self.reference.model.model.vqmodel.encoder.down) - 1)
        result: Measured = {}
        with self.torch.no_grad():
            decoding = clock(lambda: self.decode(ids))
            result["picture"] = whole_picture(self.draw(steps), count, decoding)
            times = self.ask(tokens + 1)
            result["first token"] = times[1] - times[0]
            result[f"{tokens} tokens on"] = np.diff(times[1:]).mean() * tokens
            result["VQ decode"] = decoding
            result["VQ encode"] = clock(lambda: self.encode(made_up_picture(side, side)))
        return result


def bench_torch(options: argparse.Namespace) -> None:
    """f32, then bf16; each without and with torch.compile."""
    import torch
    import transformers
    from reference import load
    torch.set_num_threads(options.threads)
    path = random_file(options.geometry, "bf16", options.work)
    print(f"\nPyTorch {torch.__version__}, transformers {transformers.__version__}: pictures extrapolated from {options.steps} "
          f"steps; ours has bf16 weights")
    heading()
    reference = load(path)
    reference.model.set_attn_implementation("sdpa")
    stages = Stages(path, options.threads, options.kv, options.fast)
    tokens = 16 if options.quick or options.tiny else 64
    for dtype in [getattr(torch, name) for name in options.dtypes.split(",")]:
        reference.model.to(dtype)
        gc.collect()
        for compiled in [setting == "on" for setting in options.compile.split(",")]:
            torch._dynamo.reset()
            peer = TorchPeer(reference, compiled)
            name = f"PyTorch {str(dtype)[6:]}{', compiled' if compiled else ''}"
            compare(name, options, lambda: our_tasks(stages, options.steps, tokens),
                    lambda: peer.tasks(options.steps, tokens))
    stages.close()


# ---- llama.cpp ----

def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a q or k matrix in the order of a LLaMA file, whose rotary pairs stand side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_out(writer) -> None:
    """The file of a GGUFWriter that has everything."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(source: Path, target: Path) -> None:
    """The transformer and LM head of a Janus file as a LLaMA file without a vocabulary; numbers and types stay."""
    from gguf import GGUFReader, GGUFWriter
    reader = GGUFReader(source)
    get = lambda key: reader.fields["janus." + key].contents()  # noqa: E731
    heads = {"attn_q": get("attention.head_count"), "attn_k": get("attention.head_count_kv")}
    writer = GGUFWriter(target, "llama", use_temp_file=False)
    writer.add_context_length(get("context_length"))
    writer.add_embedding_length(get("embedding_length"))
    writer.add_block_count(get("block_count"))
    writer.add_feed_forward_length(get("feed_forward_length"))
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_key_length(get("attention.key_length"))
    writer.add_value_length(get("attention.key_length"))
    writer.add_layer_norm_rms_eps(get("attention.layer_norm_rms_epsilon"))
    writer.add_rope_freq_base(get("rope.freq_base"))
    writer.add_rope_dimension_count(get("attention.key_length"))
    writer.add_vocab_size(get("vocab_size"))
    writer.add_tokenizer_model("none")
    for tensor in reader.tensors:
        if not tensor.name.startswith(("blk.", "token_embd.", "output.", "output_norm.")):
            continue
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        data = neighbours(tensor.data, heads[part]) if part in heads else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    write_out(writer)


class LlamaPeer:
    """llama.cpp through its low-level calls."""

    def __init__(self, path: Path, threads: int, batch: int, sequences: int, length: int) -> None:
        """For so many sequences of at most `length` tokens, `batch` of which are read at a time."""
        import llama_cpp
        self.api = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * length, sequences
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.lengths = [0] * sequences

    def forget(self) -> None:
        """Empties all sequences."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        self.lengths = [0] * len(self.lengths)

    def read(self, ids: np.ndarray, sequences: list[int], wanted: bool = True) -> np.ndarray | None:
        """Ids (R, T), or the same (T) for all, to the end of R sequences; logits (R, V) of the last position of each, if wanted."""
        batch, count = self.batch, 0
        rows = np.broadcast_to(ids, (len(sequences), np.shape(ids)[-1]))
        for sequence, row in zip(sequences, rows):
            for i, token in enumerate(row):
                batch.token[count], batch.pos[count] = int(token), self.lengths[sequence] + i
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = wanted and i == len(row) - 1
                count += 1
            self.lengths[sequence] += len(row)
        batch.n_tokens = count
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.api.llama_synchronize(self.context)
        if not wanted:
            return None
        last = [self.api.llama_get_logits_ith(self.context, rows.shape[1] * (i + 1) - 1) for i in range(len(sequences))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocab,)).copy() for row in last])

    def close(self) -> None:
        """Frees everything."""
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def text_tasks(forget: Callable[[], None], read: Callable[[np.ndarray, int], object], vocab: int, tokens: int, past: int,
               steps: int) -> Measured:
    """Prefill, then decoding of one and of two sequences that have `past` tokens behind them, a token at a time."""
    ids = np.random.default_rng(0).integers(0, vocab, tokens)
    forget()
    result = {f"prefill of {tokens}": clock(lambda: read(ids, 1))}
    for rows in (1, 2):
        forget()
        read(ids[:past], rows)
        result[f"{rows} row{'s' if rows > 1 else ''}"] = float(np.median([clock(lambda: read(ids[i:i + 1], rows)) for i in range(steps)]))
    return result


def bench_llama(options: argparse.Namespace) -> None:
    """bf16, Q8_0 and Q4_0."""
    import llama_cpp
    tokens, past = (64, 24) if options.tiny else (640, 304)
    print(f"\nllama.cpp of llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode()}\n"
          f"keys and values in f16 there, {options.kv} here; rows are decoded after {past} tokens")
    heading()
    for dtype in options.types.split(","):
        source = random_file(options.geometry, dtype, options.work)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            target = Path(folder) / "llama.gguf"
            write_llama(source, target)
            ours = Stages(source, options.threads, options.kv, options.fast)
            theirs = LlamaPeer(target, options.threads, tokens, 2, tokens + 64)
            ids = np.random.default_rng(1).integers(0, ours.vocab, 16)
            print(f"llama.cpp {dtype}: logits differ by {gap(ours.read(ids)[0], theirs.read(ids, [0])[0])}")
            compare(f"llama.cpp {dtype}", options,
                    lambda: text_tasks(ours.forget, ours.read, ours.vocab, tokens, past, options.steps // 4),
                    lambda: text_tasks(theirs.forget, lambda ids, rows: theirs.read(ids, [0, 1][:rows]), ours.vocab, tokens, past,
                                       options.steps // 4))
            ours.close(), theirs.close()


# ---- llama.cpp and pictures ----

VISION = {"norm1": "ln1", "qkv": "attn_qkv", "proj": "attn_out", "norm2": "ln2", "fc1": "ffn_up", "fc2": "ffn_down"}


def vision_name(name: str) -> str:
    """What libmtmd calls a tensor of the understanding encoder or the aligner."""
    parts = name.split(".")
    if parts[:2] == ["vit", "blk"]:
        return ".".join(["v.blk", parts[2], VISION[parts[3]], parts[4]])
    if parts[0] == "aligner":
        return ".".join(["mm", *parts[1:]])
    return {"pos_embed": "v.position_embd.weight", "patch_embed": f"v.patch_embd.{parts[-1]}", "norm": f"v.post_ln.{parts[-1]}"}[parts[1]]


def write_vision(source: Path, target: Path) -> None:
    """The understanding encoder and the aligner of a Janus file as an mmproj file; numbers and types stay, but for the
    patches' matrix: libmtmd wants it as a convolution in f32."""
    from gguf import GGUFReader, GGUFWriter, dequantize
    reader = GGUFReader(source)
    get = lambda key: reader.fields["janus." + key].contents()  # noqa: E731
    patch = get("vision.patch_size")
    writer = GGUFWriter(target, "clip", use_temp_file=False)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("janus_pro")
    writer.add_vision_projection_dim(get("embedding_length"))
    writer.add_vision_image_size(get("vision.image_size"))
    writer.add_vision_patch_size(patch)
    writer.add_vision_embedding_length(get("vision.embedding_length"))
    writer.add_vision_feed_forward_length(get("vision.feed_forward_length"))
    writer.add_vision_block_count(get("vision.block_count"))
    writer.add_vision_head_count(get("vision.attention.head_count"))
    writer.add_vision_attention_layernorm_eps(get("vision.attention.layer_norm_epsilon"))
    writer.add_vision_image_mean(get("image.mean"))
    writer.add_vision_image_std(get("image.std"))
    writer.add_vision_use_gelu(True)
    for tensor in reader.tensors:
        if tensor.name == "vit.patch_embed.weight":
            kernel = dequantize(tensor.data, tensor.tensor_type).reshape(-1, patch, patch, 3)
            writer.add_tensor(vision_name(tensor.name), np.ascontiguousarray(kernel.transpose(0, 3, 1, 2)))
        elif tensor.name.startswith(("vit.", "aligner.")):
            writer.add_tensor(vision_name(tensor.name), tensor.data, raw_dtype=tensor.tensor_type)
    write_out(writer)


class SeeingLlama(LlamaPeer):
    """llama.cpp that is shown pictures through libmtmd. Its file has no vocabulary: texts come as ids."""

    def __init__(self, path: Path, vision: Path, threads: int, batch: int, sequences: int, length: int) -> None:
        super().__init__(path, threads, batch, sequences, length)
        from llama_cpp import mtmd_cpp
        self.mtmd, self.room = mtmd_cpp, batch
        mtmd_cpp.mtmd_helper_log_set(self.quiet, None)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads = threads
        self.vision = mtmd_cpp.mtmd_init_from_file(str(vision).encode(), self.model, params)
        if not self.vision:
            super().close()
            raise RuntimeError("libmtmd made no context")

    def with_chunk(self, picture: np.ndarray, use: Callable[[object], int]) -> None:
        """Resizes a picture (H, W, 3) and hands it over as libmtmd holds it."""
        mtmd = self.mtmd
        bitmap = mtmd.mtmd_bitmap_init(picture.shape[1], picture.shape[0], picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks, part = mtmd.mtmd_input_chunks_init(), mtmd.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
        failed = mtmd.mtmd_tokenize_from_parts(self.vision, chunks, parts, 1, False)
        failed = failed or use(mtmd.mtmd_input_chunks_get(chunks, 0))
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        if failed:
            raise RuntimeError("libmtmd could not use a picture")

    def see(self, picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A picture as embeddings (tokens, D), as large as `shape` says."""
        self.with_chunk(picture, lambda chunk: self.mtmd.mtmd_encode_chunk(self.vision, chunk))
        return np.ctypeslib.as_array(self.mtmd.mtmd_get_output_embd(self.vision), shape).copy()

    def show(self, picture: np.ndarray, sequence: int) -> None:
        """A picture to the end of a sequence."""
        past = self.api.llama_pos(self.lengths[sequence])
        self.with_chunk(picture, lambda chunk: self.mtmd.mtmd_helper_eval_chunk_single(
            self.vision, self.context, chunk, past.value, sequence, self.room, False, ctypes.byref(past)))
        self.lengths[sequence] = past.value

    def ask(self, before: np.ndarray, pictures: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Logits (R, V) after R prompts side by side: ids before a picture, the picture, ids after it."""
        sequences = list(range(len(pictures)))
        self.forget()
        self.read(before, sequences, wanted=False)
        for sequence in sequences:
            self.show(pictures[sequence], sequence)
        return self.read(after, sequences)

    def answers(self, before: np.ndarray, pictures: np.ndarray, after: np.ndarray, tokens: int) -> np.ndarray:
        """Ids (R, tokens) of the most probable answers, which are given side by side."""
        logits = self.ask(before, pictures, after)
        said = [logits.argmax(-1)]
        for _ in range(tokens - 1):
            said.append(self.read(said[-1][:, None], list(range(len(pictures)))).argmax(-1))
        return np.stack(said, 1)

    def close(self) -> None:
        self.mtmd.mtmd_free(self.vision)
        super().close()


def bench_questions(options: argparse.Namespace) -> None:
    """bf16 and Q8_0."""
    import llama_cpp
    print(f"\nlibmtmd of llama-cpp-python {llama_cpp.__version__}: {PICTURES} questions, each about its own 640 x 480 picture, "
          f"{ANSWER} tokens each")
    heading()
    pictures = np.stack([made_up_picture(640, 480, seed) for seed in range(PICTURES)])
    for dtype in options.question_types.split(","):
        source = random_file(options.geometry, dtype, options.work)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            text, vision = Path(folder) / "llama.gguf", Path(folder) / "mmproj.gguf"
            write_llama(source, text)
            write_vision(source, vision)
            ours = Stages(source, options.threads, options.kv, options.fast)
            prompt = ours.prompt("question", QUESTION)
            seen = np.flatnonzero(prompt == ours.placeholder)
            before, after = prompt[:seen[0]], prompt[seen[-1] + 1:]
            theirs = SeeingLlama(text, vision, options.threads, max(len(prompt), PICTURES * len(before)), PICTURES, len(prompt) + ANSWER)
            ask_both(f"libmtmd {dtype}", options, ours, theirs, pictures, prompt, before, after)
            ours.close(), theirs.close()


def ask_both(title: str, options: argparse.Namespace, ours: Stages, theirs: SeeingLlama, pictures: np.ndarray, prompt: np.ndarray,
             before: np.ndarray, after: np.ndarray) -> None:
    """Checks that both sides see and say the same, which warms them up, then measures them."""
    embeddings = ours.see(pictures[0])
    scores = ours.read(prompt, seen=embeddings)
    ours.forget()
    said = ours.answers(QUESTION, pictures, PICTURES, ANSWER)
    if (said < 0).any():
        raise RuntimeError("an answer ended early: both sides must say the same number of tokens")
    print(f"{title}: embeddings differ by {gap(embeddings, theirs.see(pictures[0], embeddings.shape))}, logits after the prompt by "
          f"{gap(scores, theirs.ask(before, pictures[:1], after))}, {(said == theirs.answers(before, pictures, after, ANSWER)).sum()} "
          f"of {said.size} tokens are the same")
    names = f"{PICTURES} questions", f"{PICTURES} together"
    medians = compare(
        title, options,
        lambda: dict(zip(names, [clock(lambda: ours.answers(QUESTION, pictures, places, ANSWER)) for places in (1, PICTURES)])),
        lambda: dict(zip(names, [clock(lambda: [theirs.answers(before, pictures[i:i + 1], after, ANSWER) for i in range(PICTURES)]),
                                 clock(lambda: theirs.answers(before, pictures, after, ANSWER))])), warm=True)
    rates = [[60 * PICTURES / seconds for seconds in medians[name]] for name in names]
    print(f"{title}: questions a minute, ours and theirs: one after the other {rates[0][0]:.1f} and {rates[0][1]:.1f}, "
          f"together {rates[1][0]:.1f} and {rates[1][1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--steps", type=int, help="steps of a picture that are timed (default 64, with --quick 12)")
    parser.add_argument("--only", default="torch,llama,questions")
    parser.add_argument("--dtypes", help="of PyTorch; float32 cannot follow bfloat16 (default both, with --quick bfloat16)")
    parser.add_argument("--compile", default="off", help="torch.compile: off, on, or off,on")
    parser.add_argument("--types", help="weights for llama.cpp (default bf16,q8_0,q4_0; with --quick bf16,q4_0; for questions "
                        "bf16,q8_0; with --quick bf16)")
    parser.add_argument("--kv", choices=("auto", "f32", "f16"), default="auto", help="our keys and values (default auto: f32, with --fast f16)")
    parser.add_argument("--fast", action="store_true", help="ours rounds activations, as the others do (janus --fast)")
    parser.add_argument("--quick", action="store_true", help="one round of what matters most, in some fifteen minutes")
    parser.add_argument("--tiny", action="store_true", help="a small geometry: tries the program, measures nothing of interest")
    parser.add_argument("--json", type=Path, help="add a line for each row to this file")
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("WORK") or "build/bench"), help="folder for files of random weights")
    options = parser.parse_args()
    options.geometry = "tiny" if options.tiny else "janus-pro-1b"
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.steps = options.steps or (12 if options.quick else 64)
    options.steps = min(options.steps, 16) if options.tiny else options.steps
    options.dtypes = options.dtypes or ("bfloat16" if options.quick else "float32,bfloat16")
    options.question_types = options.types or ("bf16" if options.quick else "bf16,q8_0")
    options.types = options.types or ("bf16,q4_0" if options.quick else "bf16,q8_0,q4_0")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {options.geometry}, {options.threads} thread(s), {options.rounds} rounds"
          f"{', ours with --fast' if options.fast else ''}")
    if "torch" in options.only:
        bench_torch(options)
    if "llama" in options.only:
        bench_llama(options)
    if "questions" in options.only:
        bench_questions(options)


if __name__ == "__main__":
    main()
