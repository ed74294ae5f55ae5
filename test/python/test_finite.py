# SPDX-License-Identifier: MIT
"""Models whose numbers overflow: every task ends with an error that names the stage where it began, never with a result."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from janus_library import JANUS, TINY

KERNELS = [["--isa", "plain"], []]  # the definitions, and the best of this machine

# What is wrong with the weights: (name, tensor, factor, the stage that is to be named, tasks that meet it)
DAMAGES = [
    ("transformer", "blk.2.ffn_norm.weight", 1e38, "transformer.block.2", ["ask", "sample", "draw", "draw sampled"]),
    ("key", "blk.1.attn_k.weight", np.inf, "transformer.block.1", ["ask", "draw"]),
    ("embedding", "token_embd.weight", np.inf, "text.embeddings", ["ask", "draw"]),
    ("lm head", "output.weight", np.inf, "lm.logits", ["ask", "sample"]),
    ("image head", "gen_head.out.bias", np.inf, "generation.logits", ["draw", "draw sampled"]),
    ("generation adaptor", "gen_aligner.0.bias", np.inf, "generation.embedding", ["draw", "draw sampled"]),
    ("understanding encoder", "vit.blk.1.norm1.weight", 1e38, "vision.block.1", ["see"]),
    ("understanding adaptor", "aligner.0.bias", np.inf, "aligner.output", ["see"]),
    ("image decoder", "vq.dec.mid.0.norm1.weight", 1e38, "vq.decoder.mid", ["draw", "decode"]),
    ("codebook", "vq.codebook.weight", np.nan, "vq.", ["decode", "encode"]),
    ("generation encoder", "vq.enc.mid.0.norm1.weight", 1e38, "vq.encoder.mid", ["encode"]),
    ("last convolution", "vq.dec.conv_out.bias", np.nan, "vq.decoder.output", ["draw", "decode"]),
]


def run(model: Path, task: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One task on a model."""
    picture, output = folder / "picture.png", folder / "out.png"
    Image.new("RGB", (70, 50), (200, 30, 90)).save(picture)
    arguments = {
        "ask": ["ask", "--max-tokens", 4, "What is it?"], "sample": ["ask", "--temperature", 1, "--max-tokens", 4, "What?"],
        "see": ["ask", "-i", picture, "--max-tokens", 2, "What is it?"], "encode": ["encode", "-i", picture],
        "draw": ["generate", "--temperature", 0, "-o", output, "a star"],
        "draw sampled": ["generate", "-o", output, "a star"], "decode": ["decode", "-o", output],
    }[task]
    ids = " ".join(["5"] * 64) if task == "decode" else None
    return subprocess.run([str(JANUS), *map(str, arguments), "-m", str(model), "-q", *options], input=ids,
                          capture_output=True, text=True)


def damaged(folder: Path, changes: dict[str, float]) -> Path:
    """A copy of the small model with some tensors multiplied; inf and nan go into their first element instead."""
    path = folder / "model.gguf"
    shutil.copy(TINY, path)
    path.chmod(0o644)
    for tensor in GGUFReader(path, "r+").tensors:
        factor = changes.get(tensor.name)
        if factor is not None and np.isfinite(factor):
            tensor.data[:] = np.clip(tensor.data.astype(np.float64) * factor, -3.4e38, 3.4e38).astype(tensor.data.dtype)
            if not tensor.data.any() or tensor.name.endswith("bias"):
                tensor.data[:] = factor
        elif factor is not None:
            tensor.data.reshape(tensor.data.shape[0], -1)[:, 0] = factor
    return path


@pytest.mark.parametrize("name, tensor, factor, stage, tasks", DAMAGES, ids=[damage[0] for damage in DAMAGES])
def test_a_number_that_is_not_finite_is_an_error(tmp_path: Path, name: str, tensor: str, factor: float, stage: str,
                                                 tasks: list[str]) -> None:
    """Greedy or sampled, with the plain kernels and the best: exit 1, the stage in the message, no result."""
    model = damaged(tmp_path, {tensor: factor})
    for task in tasks:
        for isa in KERNELS:
            done = run(model, task, tmp_path, *isa)
            assert done.returncode == 1 and "not finite" in done.stderr and stage in done.stderr, (task, isa, done)
            assert done.stdout == "" and not (tmp_path / "out.png").exists(), (task, isa, done)


@pytest.mark.parametrize("tensor", ["blk.1.attn_k.weight", "blk.1.attn_v.weight"])
def test_keys_and_values_too_large_for_float16_are_an_error(tmp_path: Path, tensor: str) -> None:
    """Finite in float32, and drawn so; a float16 cache says what to do instead."""
    model = damaged(tmp_path, {tensor: 3e5 if "_v" in tensor else 6e4})
    for task in ("ask", "sample", "draw", "draw sampled"):
        assert run(model, task, tmp_path).returncode == 0, task
        for options in (["--kv", "f16"], ["--fast"], ["--kv", "f16", "--isa", "plain"]):
            done = run(model, task, tmp_path, *options)
            assert done.returncode == 1 and "float16" in done.stderr and "--kv f32" in done.stderr, (task, done)
        assert run(model, task, tmp_path, "--fast", "--kv", "f32").returncode == 0, task


def test_a_temperature_that_overflows_is_an_error(tmp_path: Path) -> None:
    """The scores are finite, but no longer once they are divided."""
    done = run(TINY, "draw sampled", tmp_path, "--temperature", "1e-38")
    assert done.returncode in (1, 2) and "temperature" in done.stderr
