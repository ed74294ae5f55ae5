#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes model files with random weights and a made-up tokenizer, for tests and measurements.

    random_model.py GEOMETRY -o OUT.gguf [--dtype f32|f16|bf16|q8_0|q6_k|q4_k|q4_0] [--seed 0] [--roles pro|1.3b]

The sizes of each GEOMETRY stand below. The weights are spread as in a new official model; every file of one seed has
the same ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import convert  # noqa: E402
from convert import BEGIN_OF_IMAGE, BOS, END_OF_IMAGE, EOS, IMAGE_PLACEHOLDER, PAD  # noqa: E402
from convert import Sizes, Tensor  # noqa: E402

# The letters of DeepSeek's second split, as code points: three of the range ends are characters that normalisation
# would replace, so they are not written out.
DEEPSEEK_LETTERS = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943"""

TINY = Sizes(hidden=64, layers=2, feed_forward=128, context=512, vocabulary=512, heads=4, kv_heads=4, head_dim=16,
             image_size=32, patch_size=8, vit_width=64, vit_layers=2, vit_feed_forward=128, vit_heads=2,
             gen_head_width=64, codebook_size=128, vq_channels=32, vq_multipliers=(1, 1, 2, 2), vq_res_blocks=1,
             vq_z=16)
GEOMETRIES = {
    "janus-pro-1b": Sizes(),
    "janus-pro-7b": Sizes(hidden=4096, layers=30, feed_forward=11008, heads=32, kv_heads=32, gen_head_width=4096),
    "tiny": TINY,
    "tiny-gqa": replace(TINY, kv_heads=2, head_dim=24),
    "tiny-tied": replace(TINY, tied=True),
    "tiny-odd": replace(TINY, image_size=60, patch_size=12, vit_width=96, vit_heads=3, vit_feed_forward=200,
                        aligner_depth=1, gen_aligner_depth=3, gen_head_width=96, vq_multipliers=(1, 2, 3),
                        vq_res_blocks=2, vq_z=24),
}


def byte_alphabet() -> list[str]:
    """What stands for each byte in a byte-level vocabulary: its character if printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(256)]


def synthetic_tokenizer(size: int) -> dict[str, Any]:
    """A tokenizer.json of the DeepSeek form for `size` ids: all bytes, made-up merges, special tokens, unused ids."""
    letter_set = "".join("-".join(map(chr, dict.fromkeys(ends))) for ends in convert.code_ranges(DEEPSEEK_LETTERS))
    patterns = ["[\r\n]", f"\\s?[{letter_set}]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+"]
    split: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = [*(split | {"pattern": {"Regex": pattern}} for pattern in patterns),
             {"type": "Digits", "individual_digits": True}, byte_level]
    special = [BOS, EOS, PAD, IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE, "<|User|>", "<|Assistant|>"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {token: number for number, token in enumerate(byte_alphabet())}
    merges = synthetic_merges(size - len(vocabulary) - len(special) - size // 64)
    vocabulary |= {left + right: len(vocabulary) + i for i, (left, right) in enumerate(merges)}
    return {"version": "1.0", "normalizer": None, "post_processor": None, "decoder": byte_level,
            "added_tokens": [{"id": len(vocabulary) + i, "content": token} | plain for i, token in enumerate(special)],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(merge) for merge in merges]}}


def synthetic_merges(count: int) -> list[tuple[str, str]]:
    """Pairs of bytes, commonest letters first, then triples of those."""
    common = list("Ġetaoinshrdlcumwfgypbvk")
    alphabet = common + [c for c in byte_alphabet() if c not in common]
    pairs = sorted(((a, b) for a in range(256) for b in range(256)), key=lambda p: (max(p), p))[:count]
    merges = [(alphabet[a], alphabet[b]) for a, b in pairs]
    triples = ((left + right, c) for c in alphabet for left, right in merges[:len(pairs)])
    return merges + [triple for triple, _ in zip(triples, range(count - len(merges)))]


def random_rows(tensor: Tensor, seed: list[int]) -> Iterator[np.ndarray]:
    """A tensor as a new official model would have it, some rows at a time."""
    rng = np.random.default_rng(seed)
    rule, _, scale = tensor.init.partition(" ")
    row = math.prod(tensor.shape[1:])
    step = max(1, convert.CHUNK_ELEMENTS // row)
    for first in range(0, tensor.shape[0], step):
        shape = (min(step, tensor.shape[0] - first), *tensor.shape[1:])
        if rule == "uniform":
            yield (2 * rng.random(shape, np.float32) - 1) * np.float32(scale)
        elif rule == "normal":
            yield rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif rule == "unit":
            rows = rng.uniform(-1, 1, shape).astype(np.float32)
            yield rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        else:
            yield np.full(shape, rule == "ones", np.float32)


def write_random(geometry: str, path: Path, dtype: str, seed: int, roles: str) -> None:
    """Write a full-size file with seeded random weights and a made-up tokenizer."""
    sizes = GEOMETRIES[geometry]
    table = convert.tensor_table(sizes)
    number = {tensor: i for i, tensor in enumerate(table)}
    image = convert.Config({"image_size": sizes.image_size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "image")
    metadata = convert.general_metadata(f"{geometry} with random weights", dtype) | convert.size_metadata(sizes)
    metadata |= convert.image_metadata(image, sizes)
    metadata |= convert.tokenizer_metadata(synthetic_tokenizer(sizes.vocabulary), sizes.vocabulary)
    metadata |= convert.prompt_metadata(roles)
    plan = [(tensor, convert.storage_type(tensor, dtype)) for tensor in table]
    convert.remark_on_rows(plan, dtype)
    convert.write_file(path, metadata, plan, lambda tensor: random_rows(tensor, [seed, number[tensor]]))


# ---- Command line ----

def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a model file with random weights and a made-up tokenizer.")
    parser.add_argument("geometry", type=str.lower, choices=GEOMETRIES)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--dtype", type=str.lower, choices=convert.FILE_TYPES, default="bf16",
                        help="type of the large weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roles", type=str.lower, choices=convert.ROLES, default="pro", help="who speaks in prompts")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed takes no negative number")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return convert.write(Path(__file__).name, options.output, lambda: write_random(
        options.geometry, options.output, options.dtype, options.seed, options.roles))


if __name__ == "__main__":
    sys.exit(main())
