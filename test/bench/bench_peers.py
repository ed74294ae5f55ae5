#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""janus.c beside PyTorch and llama.cpp: the same sizes, the same random weights, the same number of threads, in one run.

    bench_peers.py [--threads K] [--rounds N] [--only torch,llama] [--quick] [--tiny] [--kv f32] [--fast] [--work DIR]
                   [--dtypes float32,bfloat16] [--types bf16,q8_0,q4_0]

Every round runs ours, then theirs; a line gives the median times and how many times as fast ours is: the median of the
rounds' ratios and, in brackets, the smallest and the largest.

PyTorch: the Janus classes of transformers in float32 and bfloat16; ours has bf16 weights. Without torch.compile, which
took longer on a CPU than a benchmark may last.
    picture       prompt, 576 guided steps and VQ decode. Timed are the prompt and the first `--steps` ids; the other steps
                  are taken to be as long as the mean of those timed, so both sides are spared their longest ones.
    first token   of the answer to a question about a 640 x 480 picture; `64 tokens on` are those that follow
llama.cpp: a LLaMA of the same sizes, written from the same file: same numbers, same types.
    prefill       of 640 tokens; `1 row`, `2 rows`: one more token of one sequence, or of two side by side, LM head included
"""

from __future__ import annotations

import argparse
import gc
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
Measured = dict[str, float]   # task -> seconds


def clock(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(title: str, options: argparse.Namespace, ours: Callable[[], Measured], theirs: Callable[[], Measured]) -> None:
    """Alternates both sides; the first run of either only warms up. Prints a line a task."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(options.rounds)]
    for task in pairs[0][0]:
        mine, other = (np.array([pair[side][task] for pair in pairs]) for side in (0, 1))
        ratios = other / mine
        print(f"{title:32} {task:18} {1e3 * np.median(mine):11.2f} {1e3 * np.median(other):11.2f} "
              f"{np.median(ratios):8.2f} x  ({ratios.min():.2f} .. {ratios.max():.2f})", flush=True)


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

    def __init__(self, reference) -> None:
        import torch
        self.torch, self.reference = torch, reference
        inner = reference.model.model
        self.language, self.vision = inner.language_model, inner.vision_model
        self.encoder, self.decoder = inner.vqmodel.encoder, inner.vqmodel.decoder
        self.dtype = next(reference.model.parameters()).dtype

    def draw(self, steps: int) -> np.ndarray:
        """The official loop; times of the start and of each id."""
        from reference import drawing_ids
        from transformers import DynamicCache
        torch, model = self.torch, self.reference.model
        tokens = torch.tensor(drawing_ids(self.reference, PROMPT)).repeat(2, 1)
        tokens[1, 1:-1] = self.reference.ids["pad"]
        generator = torch.Generator().manual_seed(0)
        times, cache = [time.perf_counter()], DynamicCache(config=model.config.text_config)
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
        from transformers import DynamicCache
        torch, model = self.torch, self.reference.model
        image, times = Image.fromarray(made_up_picture(640, 480)), [time.perf_counter()]
        values = torch.from_numpy(pixel_values(image, self.reference.rules)).permute(2, 0, 1)[None].to(self.dtype)
        seen = model.model.aligner(self.vision(values).last_hidden_state)[0]
        ids = torch.tensor(question_ids(self.reference, QUESTION, 1))
        cache, embeddings = DynamicCache(config=model.config.text_config), model.model.language_model.embed_tokens(ids).clone()
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
    """f32, then bf16."""
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
        compare(f"PyTorch {str(dtype)[6:]}", options, lambda: our_tasks(stages, options.steps, tokens),
                lambda: TorchPeer(reference).tasks(options.steps, tokens))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--steps", type=int, help="steps of a picture that are timed (default 64, with --quick 12)")
    parser.add_argument("--only", default="torch,llama")
    parser.add_argument("--dtypes", help="of PyTorch; float32 cannot follow bfloat16 (default both, with --quick bfloat16)")
    parser.add_argument("--types", help="weights for llama.cpp (default bf16,q8_0,q4_0; with --quick bf16,q4_0)")
    parser.add_argument("--kv", choices=("auto", "f32", "f16"), default="auto", help="our keys and values (default auto: f32, with --fast f16)")
    parser.add_argument("--fast", action="store_true", help="ours rounds activations, as the others do (janus --fast)")
    parser.add_argument("--quick", action="store_true", help="one round of what matters most, in some fifteen minutes")
    parser.add_argument("--tiny", action="store_true", help="a small geometry: tries the program, measures nothing of interest")
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("WORK") or "build/bench"), help="folder for files of random weights")
    options = parser.parse_args()
    options.geometry = "tiny" if options.tiny else "janus-pro-1b"
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.steps = options.steps or (12 if options.quick else 64)
    options.steps = min(options.steps, 16) if options.tiny else options.steps
    options.dtypes = options.dtypes or ("bfloat16" if options.quick else "float32,bfloat16")
    options.types = options.types or ("bf16,q4_0" if options.quick else "bf16,q8_0,q4_0")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {options.geometry}, {options.threads} thread(s), {options.rounds} rounds"
          f"{', ours with --fast' if options.fast else ''}")
    if "torch" in options.only:
        bench_torch(options)
    if "llama" in options.only:
        bench_llama(options)


if __name__ == "__main__":
    main()
