# SPDX-License-Identifier: MIT
"""The number formats: janus.c against gguf's package, convert.py's search against ggml's, and a format added."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader, quants
from gguf import GGMLQuantizationType as Type

import convert
import random_model
from janus_library import JANUS, ROOT, compile_c

QUANTISED = [Type[name.upper()] for name in convert.QUANTISED_TYPES]
SEARCHED = [Type.Q4_K, Type.Q6_K]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="builds with test/setup.sh")


class Library:
    """janus.c's numbers of a row of any type."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))

    def expand(self, packed: np.ndarray, kind: Type) -> np.ndarray:
        block, size = GGML_QUANT_SIZES[kind]
        out = np.zeros((len(packed), packed.shape[1] // size * block), np.float32)
        for row, values in zip(packed, out):
            self.functions.test_expand_row(pointer(values), int(kind), pointer(row), ctypes.c_int64(0), ctypes.c_int64(len(values)))
        return out


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    path = tmp_path_factory.mktemp("library") / "internals.so"
    return Library(compile_c(path, "-O1", "-DJANUS_NO_SIMD", "-fPIC", "-shared", "test/verify/internals.c"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("toy") / "janus-toy", "-O1", "test/c/toy_format.c")


def unusual_rows() -> np.ndarray:
    """Random rows and what a search may stumble over: zeros, equal numbers, one sign only, outliers, far magnitudes."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((24, 512)).astype(np.float32)
    x[0], x[1], x[2], x[3] = 0, 1, -3, -0.0
    x[4], x[5] = np.abs(x[4]), -np.abs(x[5])
    x[6:9] *= np.array([[1e-8], [1e-38], [1e4]], np.float32)
    x[9] = np.float32(1e-45)
    x[10] = rng.integers(-8, 8, 512)
    x[11, ::2] = 0
    x[12] *= np.repeat(10.0 ** rng.integers(-6, 3, 16), 32).astype(np.float32)
    x[13], x[14], x[15] = x[13] ** 3, 5 + x[14] / 1000, -5 + x[15] / 1000
    x[16], x[17, 5:] = np.sign(x[16]), 0
    return x


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_numbers_of_a_block_are_those_of_gguf(library: Library, kind: Type) -> None:
    """To the bit, of whatever bytes; a scale may be infinite or no number."""
    packed = np.random.default_rng(3).integers(0, 256, (64, 4 * GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    packed[0], packed[1] = 0, 255
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(packed, kind)
    ours = library.expand(packed, kind)
    assert ((ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))).all()


@pytest.mark.parametrize("kind", SEARCHED)
def test_equal_numbers_and_whole_levels_are_kept(library: Library, kind: Type) -> None:
    """What one grid holds exactly, up to the rounding of its scale, stays."""
    rows = unusual_rows()[[0, 1, 2, 3, 16]]
    back = library.expand(convert.encode(rows, kind, "x"), kind)
    assert np.abs(back - rows).max() <= np.abs(rows).max() * 2**-10
    assert not back[[0, 3]].any()


@pytest.mark.parametrize("kind, value", [(Type.Q4_K, 1e8), (Type.Q4_K, -1e8), (Type.Q6_K, 1e9), (Type.Q6_K, -1e9)])
def test_numbers_too_large_for_a_block_are_refused(kind: Type, value: float) -> None:
    rows = unusual_rows()
    rows[20, 300] = value
    with pytest.raises(convert.Refused, match=f"tensor x holds a number too large for {kind.name}"):
        convert.encode(rows, kind, "x")


def weighted_sum(*factors: np.ndarray) -> np.ndarray:
    return np.prod(np.broadcast_arrays(*factors), axis=0).sum(-1, keepdims=True)


def published_q4_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What ggml's search (make_qkx2_quants) makes of groups x (blocks, 8, 32), by its formulas; and its weights."""
    weight = np.sqrt((x * x).mean(-1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(-1, keepdims=True), 0), x.max(-1, keepdims=True)
    scale, sum_w, sum_x = (high - low) / 15, weighted_sum(weight), weighted_sum(weight, x)
    q = np.rint((x - low) / scale).clip(0, 15)
    best = weighted_sum(weight, (scale * q + low - x) ** 2)
    for step in range(21):
        q = np.rint((14 + step / 10) / (high - low) * (x - low)).clip(0, 15)
        l, l2, xl = weighted_sum(weight, q), weighted_sum(weight, q, q), weighted_sum(weight, q, x)
        determinant = sum_w * l2 - l * l
        new_scale, new_low = (sum_w * xl - sum_x * l) / determinant, (l2 * sum_x - l * xl) / determinant
        new_scale, new_low = np.where(new_low > 0, xl / l2, new_scale), np.minimum(new_low, 0)
        error = weighted_sum(weight, (new_scale * q + new_low - x) ** 2)
        better = (determinant > 0) & (error < best)
        best, scale, low = (np.where(better, new, old) for new, old in ((error, best), (new_scale, scale), (new_low, low)))
    top, bottom = scale.max(1, keepdims=True), (-low).max(1, keepdims=True)
    scale = np.float16(top / 63).astype(np.float64) * np.rint(63 / top * scale)
    low = np.float16(bottom / 63).astype(np.float64) * np.rint(63 / bottom * -low)
    return scale * np.rint((x + low) / scale).clip(0, 15) - low, weight


def published_q6_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of make_qx_quants, groups (blocks, 16, 16)."""
    weight = x * x
    peak = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scale, best = np.zeros_like(peak), np.zeros_like(peak)
    for step in (0, *range(-9, 0), *range(1, 10)):
        q = np.rint(-(32 + step / 10) / peak * x).clip(-32, 31)
        xl, l2 = weighted_sum(weight, q, x), weighted_sum(weight, q, q)
        better = xl * xl > best * l2
        scale, best = np.where(better, xl / l2, scale), np.where(better, xl * xl / l2, best)
    top = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)
    scale = np.float16(top / -128).astype(np.float64) * np.minimum(np.rint(-128 / top * scale), 127)
    return scale * np.rint(x / scale).clip(-32, 31), weight


@pytest.mark.parametrize("width", [2048, 5632])
@pytest.mark.parametrize("kind", SEARCHED)
def test_the_search_errs_less_than_the_published_one(library: Library, kind: Type, width: int) -> None:
    """On the random rows of a 1B model; by the search's own weights and without weights."""
    rows = (0.02 * np.random.default_rng(width).standard_normal((128, width))).astype(np.float32)
    groups = rows.astype(np.float64).reshape(-1, *((8, 32) if kind == Type.Q4_K else (16, 16)))
    published, weight = (published_q4_k if kind == Type.Q4_K else published_q6_k)(groups)
    ours = library.expand(convert.encode(rows, kind, "x"), kind).reshape(groups.shape)
    for weights in (weight, 1):
        mine, theirs = ((weights * (values - groups) ** 2).sum() for values in (ours, published))
        assert 0.9 * theirs < mine < theirs


def janus(program: Path, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    process = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)
    assert process.returncode == code, process.stderr
    return process.stdout, process.stderr


def dumps(program: Path, model: Path, folder: Path, *options: str) -> dict[str, np.ndarray]:
    """All tensors of an answer and of a picture."""
    folder.mkdir()
    picture = ROOT / "weights" / "samples.png"
    janus(program, "ask", "-m", model, *options, "--max-tokens", "6", "--dump", folder / "ask", "-i", picture, "What is it?")
    janus(program, "generate", "-m", model, *options, "--seed", "5", "--dump", folder / "draw", "-o", folder / "x.png", "a cat")
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.glob("*/*.npy"))}


def as_toy(path: Path) -> None:
    """Gives the Q8_0 tensors of a file the toy format: its number, and the bytes of each block in reverse."""
    for tensor in GGUFReader(path, "r+").tensors:
        if tensor.tensor_type == Type.Q8_0:
            tensor.field.parts[4][0] = 250
            tensor.data[:] = tensor.data.reshape(-1, 34)[:, ::-1].reshape(tensor.data.shape)


def test_a_row_more_is_all_that_a_format_needs(toy: Path, tmp_path: Path) -> None:
    """The numbers of Q8_0 under another name: info, loading, few rows and tiles know it."""
    for name in ("q8_0", "toy"):
        random_model.write_random("tiny", tmp_path / f"{name}.gguf", "q8_0", 3, "pro")
    as_toy(tmp_path / "toy.gguf")
    for name in ("q8_0", "toy"):
        assert f", {name}, " in janus(toy, "info", "-m", tmp_path / f"{name}.gguf")[0]
    assert "malformed" in janus(JANUS, "info", "-m", tmp_path / "toy.gguf", code=1)[1]
    kernels = janus(toy, "info", "-m", tmp_path / "toy.gguf")[0].split("kernels")[1].strip().split(", ")
    for isa in (kernels[0], "plain"):
        for fast in ([], ["--fast"]):
            options = ["-q", "--isa", isa, *fast]
            mine, theirs = (
                dumps(toy, tmp_path / f"{name}.gguf", tmp_path / "-".join([isa, *fast, name]), *options)
                for name in ("toy", "q8_0")
            )
            assert mine.keys() == theirs.keys() and len(mine) > 50
            for name, values in theirs.items():
                if isa == "plain":
                    assert mine[name].tobytes() == values.tobytes(), name
                elif not fast and name.endswith("lm.logits.npy"):
                    assert np.abs(mine[name] - values).max() <= 1e-4 * np.abs(values).max(), name
