# SPDX-License-Identifier: MIT
"""Holds the drawing of ids in C against PyTorch: the same seed and probabilities must give the same ids.

    pytest -s verify_rng.py                the quick form; -s shows what was counted
    FULL=1 pytest -s verify_rng.py         1,000 seeds and 10^9 exponentials: about 10 minutes

JANUS_INTERNALS names the shared library to test (default: build/libinternals.so, which make verify builds). Needs torch 2.7
or later: the x86-64 wheels from 2.0 to 2.6 draw from another generator.
"""
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cffi import FFI
from transformers import LlamaConfig, LlamaForCausalLM, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "python"))
from janus_library import prototypes, structure  # noqa: E402

FULL = bool(os.environ.get("FULL"))
CODEBOOKS = (1024, 16384)
BATCHES = (1, 5, 16)
STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The kernels are small, and threads that wait for each other slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def declare(ffi: FFI) -> FFI:
    """Declares what internals.c shows, and the structs of janus.c that it takes."""
    for name in ("TorchRng", "RankedLogit"):
        ffi.cdef(structure(ROOT / "janus.c", name))
    ffi.cdef(prototypes(Path(__file__).with_name("internals.c"), "test_"))
    return ffi


ffi = declare(FFI())
LIBRARY = ffi.dlopen(os.environ.get("JANUS_INTERNALS", str(ROOT / "build" / "libinternals.so")))


def floats(array: np.ndarray) -> Any:
    """The address of a contiguous float32 array."""
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return ffi.cast("float *", array.ctypes.data)


def seeded(seed: int) -> Any:
    """The C generator after torch.manual_seed(seed)."""
    rng = ffi.new("TorchRng *")
    LIBRARY.test_torch_rng_seed(rng, seed % 2**64)
    return rng


def exponential(rng: Any, count: int) -> np.ndarray:
    """(count) values of the C exponential."""
    q = np.empty(count, np.float32)
    LIBRARY.test_torch_exponential(rng, floats(q), count)
    return q


def multinomial(rng: Any, probs: np.ndarray) -> "np.ndarray | None":
    """ids (N) drawn by C from probs (N, V), or None where C refuses them."""
    rows, width = probs.shape
    ids = np.full(rows, -1, np.int32)
    drawn = LIBRARY.test_multinomial(rng, ffi.cast("int32_t *", ids.ctypes.data), floats(probs), rows, width)
    return ids if drawn else None


def answer_probs(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """probs (V) of an answer's next id as C computes them from logits (V)."""
    width = logits.size
    x, probs, largest = logits.copy(), np.empty_like(logits), np.empty_like(logits)
    LIBRARY.test_scale_temperature(floats(x), width, temperature)
    LIBRARY.test_keep_top_k(floats(x), width, top_k, floats(largest))
    LIBRARY.test_keep_top_p(floats(x), width, top_p, ffi.new("RankedLogit[]", width))
    LIBRARY.test_softmax_probs(floats(probs), floats(x), width)
    return probs


def float_steps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of positive floats, counted in representable values."""
    return np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32))


def probability_pool(width: int, rows: int = 48) -> torch.Tensor:
    """(rows, width) probabilities from nearly uniform to nearly certain; every sixth row keeps 50 ids, as in text."""
    generator = torch.Generator().manual_seed(width)
    scale = torch.logspace(-1, 1.3, rows)[torch.randperm(rows, generator=generator)]
    logits = torch.randn(rows, width, generator=generator) * scale[:, None]
    kth_largest = torch.topk(logits, 50)[0][:, -1:]
    logits[::6] = logits[::6].masked_fill(logits[::6] < kth_largest[::6], -float("inf"))
    return torch.softmax(logits, dim=-1)


def differing_draws(seeds: range, width: int, batch: int) -> list[str]:
    """Runs STEPS draws a seed in both; one line for each id that differs, with the two best ratios' distance."""
    lines, pool = [], probability_pool(width)
    for seed in seeds:
        rng = seeded(seed)
        torch.manual_seed(seed)
        for step in range(STEPS):
            first = (7 * seed + step * batch) % (pool.shape[0] - batch + 1)
            probs = pool[first:first + batch]
            state = torch.get_rng_state()
            expected = torch.multinomial(probs, num_samples=1)[:, 0].numpy()
            ids = multinomial(rng, probs.numpy())
            if (ids == expected).all():
                continue
            torch.set_rng_state(state)
            ratio = (probs / torch.empty_like(probs).exponential_(1)).numpy()
            for row in np.flatnonzero(ids != expected):
                best = ratio[row][[ids[row], expected[row]]]
                lines.append(f"V {width} N {batch} seed {seed} step {step} row {row}: {ids[row]} for {expected[row]}, "
                             f"ratios {float_steps(best[:1], best[1:])[0]} float steps apart")
    return lines


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", CODEBOOKS)
def test_draws(width: int, batch: int) -> None:
    """Every id of every step, for pictures of both codebooks."""
    seeds = range(1000 if FULL else 10)
    lines = differing_draws(seeds, width, batch)
    print(f"{len(seeds) * STEPS * batch} ids drawn, {len(lines)} differ")
    assert not lines, "\n".join(lines)


def test_exponentials() -> None:
    """The same bits as torch's exponential_, in calls of uneven size."""
    differing = total = furthest = 0
    sizes = np.random.default_rng(1).integers(1, 400_000, 5000 if FULL else 50)
    for seed, size in enumerate(sizes):
        rng = seeded(seed)
        torch.manual_seed(seed)
        for count in (1, 623, int(size)):
            steps = float_steps(torch.empty(count).exponential_(1).numpy(), exponential(rng, count))
            differing, total = differing + int((steps > 0).sum()), total + count
            furthest = max(furthest, int(steps.max()))
    print(f"{total} exponentials, {differing} differ, by at most {furthest} float steps")
    assert differing == 0


def test_exponentials_by_numpy() -> None:
    """Derived a second time: numpy's mt19937, 53 bits of two words, log1p."""
    for seed in (0, 5, 2**32 - 1):
        words = np.random.RandomState(seed).randint(0, 2**32, size=400_000, dtype=np.uint64)
        bits = ((words[0::2] << np.uint64(32)) | words[1::2]) & np.uint64(2**53 - 1)
        expected = (-np.log1p(-bits.astype(np.float64) * 2.0**-53)).astype(np.float32)
        assert (exponential(seeded(seed), 200_000) == expected).all()


def test_seed_range() -> None:
    """Only the low 32 bits of a seed count, and a negative seed is taken modulo 2^64, as by torch.manual_seed."""
    for seed in (5, 2**32 + 5, 2**63, 2**64 - 1, -1):
        torch.manual_seed(seed)
        expected = torch.empty(9).exponential_(1).numpy()
        assert float_steps(exponential(seeded(seed), 9), expected).max() <= 1
    assert (exponential(seeded(5), 9) == exponential(seeded(2**32 + 5), 9)).all()


@pytest.mark.parametrize("rows", [[[np.nan, 1.0]], [[-1.0, 2.0]], [[np.inf, 2.0]], [[1.0, 1.0], [0.0, 0.0]]])
def test_refused_probabilities(rows: list[list[float]]) -> None:
    """Where torch.multinomial raises, C returns 0; neither advances its generator."""
    probs, rng = np.array(rows, np.float32), seeded(3)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError):
        torch.multinomial(torch.from_numpy(probs), 1)
    assert multinomial(rng, probs) is None
    assert float_steps(exponential(rng, 4), torch.empty(4).exponential_(1).numpy()).max() <= 1


def test_ties() -> None:
    """Of equal ratios the first wins. Most ratios of the first kind overflow; those of the second, drawn from the very
    q that will divide them, differ by the roundings alone."""
    overflowing = torch.full((4, 1024), 3e38)
    overflowing[1:, ::2] = 0.0
    for seed in range(20):
        torch.manual_seed(seed)
        close = torch.empty(4, 1024).exponential_(1) * 0.3
        for probs in (overflowing, close):
            torch.manual_seed(seed)
            expected = torch.multinomial(probs, 1)[:, 0].numpy()
            assert (multinomial(seeded(seed), probs.numpy()) == expected).all()


def test_softmax() -> None:
    """softmax(logits / T) of both, less a row's common factor from torch's float sum, which moves no argmax."""
    furthest = largest_factor = 0.0
    generator = torch.Generator().manual_seed(1)
    for width, scale, temperature in ((1024, 1, 1.0), (16384, 5, 1.0), (16384, 5, 0.7), (102400, 3, 1.3)):
        logits = torch.randn(width, generator=generator) * scale
        expected = torch.softmax(logits / temperature, dim=-1).double().numpy()
        quotient = (answer_probs(logits.numpy(), temperature, 0, 1.0) / expected)[expected > 1e-30]
        factor = float(np.median(quotient))
        largest_factor = max(largest_factor, abs(factor - 1))
        furthest = max(furthest, float(np.abs(quotient / factor - 1).max()))
    assert furthest < 3e-7 and largest_factor < 2e-5
    print(f"relative distance at most {furthest:.1e}, after common factors within {largest_factor:.1e} of 1")


def warped(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Scores (V) that transformers' warpers leave of logits (V), in the order in which generate applies them."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    return TopPLogitsWarper(top_p)(None, scores)[0] if top_p < 1 else scores[0]


def distance_to_edge(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> float:
    """How near the running sum of top-p comes to 1 - top_p, in float64."""
    scores = warped(logits, temperature, top_k, 1.0).double()
    running = torch.softmax(scores.sort()[0], dim=-1).cumsum(-1)
    return float((running - (1 - top_p)).abs().min())


def test_kept_ids() -> None:
    """The ids left by top-k and top-p are transformers'; where not, the running sum is within 1e-6 of the edge."""
    cases = near_edge = 0
    generator = torch.Generator().manual_seed(2)
    for width in (300, 102400):
        for scale in (0.5, 2, 4, 8):
            logits = torch.randn(width, generator=generator) * scale
            logits[7] = logits[11]
            for setting in ((1.0, 50, 0.95), (0.1, 50, 0.95), (0.7, 0, 0.9), (1.0, 1, 0.5), (1.5, 50, 0.0),
                            (0.8, 200, 1.0), (1.0, 10**6, 0.999)):
                expected = warped(logits, *setting).isfinite().numpy()
                kept = answer_probs(logits.numpy(), *setting) > 0
                cases += 1
                assert kept.any()
                if (kept != expected).any():
                    near_edge += 1
                    assert distance_to_edge(logits, *setting) < 1e-6, (width, scale, setting)
    print(f"{cases} rows, {near_edge} differ at the edge of top-p")


def test_generate() -> None:
    """Answers of a small random Llama by generate(do_sample=True, temperature, top_p), and from its logits by C."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4000, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 30
    prompt = torch.tensor([[0, 17, 23]])
    for seed in range(20):
        temperature, top_p = (1.0, 0.95) if seed % 2 else (0.6, 0.9)
        torch.manual_seed(seed)
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=temperature,
                             top_p=top_p, max_new_tokens=24, return_dict_in_generate=True, output_logits=True)
        rng = seeded(seed)
        for step, logits in enumerate(out.logits):
            probs = answer_probs(logits[0].numpy(), temperature, 50, top_p)
            assert multinomial(rng, probs[None])[0] == out.sequences[0, 3 + step], (seed, step)
