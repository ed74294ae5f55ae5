# SPDX-License-Identifier: MIT
"""verify.py --full: the real geometries with random weights, from checkpoints in the official layout, in bfloat16.

1B: one pytorch_model.bin; a question about a picture (a prefill of about 640 tokens), a picture of 576 steps, encode
and decode, every stage against PyTorch in float32. 7B: shards; converted, then info, a prefill and ten steps of each
task, with time and peak memory (what the process had in memory, mapped pages of the model file included).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from janus_library import Library, Refused, ffi  # noqa: E402
from random_model import GEOMETRIES  # noqa: E402
from verify import PROMPT, QUESTION, ROOT, Case, Table, photograph, verify_ask, verify_encode, verify_generate  # noqa: E402

LONG_QUESTION = (
    "Describe this image in detail. What is in the picture? How many trees are in this photo? Is there a blue car next "
    "to the yellow house, or are there two green triangles above the small heart?"
)
STEPS = 10


def write_random(folder: Path, size: str, shards: int) -> None:
    """An official-layout checkpoint of bfloat16 .bin files, one shard in memory at a time."""
    from geometries import draw_weight, tensor_shapes, write_folder
    sizes = GEOMETRIES[f"janus-pro-{size}"]
    shapes = tensor_shapes(sizes, "official")
    write_folder(folder, sizes, "official")
    names, index = list(shapes), {}
    for i in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        torch.save({name: draw_weight(name, shapes[name], torch.Generator().manual_seed(names.index(name))).bfloat16()
                    for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(dict(metadata={}, weight_map=index)))


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def measured(arguments: list[object]) -> tuple[str, float, float]:
    """Runs a program; returns its standard output, seconds, and peak memory in MiB. A small process stands between this
    one and the program, since a child's peak begins with that of the process it was forked from."""
    start = time.monotonic()
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, "-c", MEASURE, peak.name, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, arguments[:3]))} ... failed")
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
        return done.stdout, time.monotonic() - start, int(Path(peak.name).read_text()) / unit


def require_disk(folder: Path, gigabytes: int) -> None:
    """Refuses to start what would fill the disk."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise SystemExit(f"{folder} has {free:.0f} GB free; this needs {gigabytes} GB: choose another folder with --work")


def converted(table: Table, folder: Path, file: Path) -> None:
    """convert.py on the folder, with its peak memory: less than 3 GiB whatever the size."""
    _, seconds, peak = measured([sys.executable, ROOT / "convert.py", folder, "-o", file])
    table.row("convert.py", f"{file.stat().st_size / 1e9:.1f} GB", 1, f"{seconds:.0f} s", True)
    table.row("convert.py, peak memory", "< 3072 MiB", 1, f"{peak:.0f} MiB", peak < 3072)


def full_1b(work: Path, threads: int) -> Table:
    """Every stage of the real 1B geometry."""
    from reference import load
    require_disk(work, 10)
    table = Table(2e-3)
    folder, file = work / "checkpoint", work / "model.gguf"
    folder.mkdir()
    write_random(folder, "1b", 1)
    table.title("Janus-Pro-1B geometry, random weights, official layout, bf16 .bin")
    converted(table, folder, file)
    reference = load(folder)
    case = Case(file, reference, table, work, threads=threads)
    verify_ask(case, [(1024, 683)], LONG_QUESTION)
    verify_generate(case)
    verify_encode(case, 800, 533)
    return table


# ---- Ten steps of each task through the library, as the command line has no such short form ----

def ten_steps(path: Path, threads: int) -> int:
    """Draws STEPS tokens of a picture, then stops by the progress callback; prints the seconds they took."""
    library = Library()
    times: list[float] = []

    def progress(user: object, stage: Any, done: int, total: int) -> int:
        if ffi.string(stage) == b"draw":
            times.append(time.monotonic())
        return len(times) == STEPS

    model, options = library.load(path), library.c.janus_session_defaults()
    callback = ffi.callback(ffi.typeof(options.progress), progress)  # has a name, to live as long as the session
    options.threads, options.progress = threads, callback
    session = library.session(model, options)
    ids = ffi.new("int32_t[]", library.c.janus_info(model).image_tokens)
    cancelled = False
    try:
        library.call("janus_generate_ids", session, PROMPT.encode(), ffi.NULL, ids)
    except Refused as refused:
        cancelled = refused.status == library.c.JANUS_CANCELLED
    library.c.janus_session_free(session)
    print(f"{(times[-1] - times[0]) / (STEPS - 1):.3f}")
    return 0 if cancelled and len(times) == STEPS else 1


def full_7b(work: Path, threads: int) -> Table:
    """The real 7B geometry runs: converted from shards, and ten steps of each task."""
    require_disk(work, 34)
    table = Table(0.0)
    folder, file, photo = work / "checkpoint", work / "model.gguf", work / "photo.png"
    folder.mkdir()
    write_random(folder, "7b", 8)
    table.title("Janus-Pro-7B geometry, random weights, official layout, 8 bf16 .bin shards")
    converted(table, folder, file)
    shutil.rmtree(folder)
    photograph(1024, 683, 0).save(photo)
    out, seconds, peak = measured([ROOT / "janus", "info", "-m", file])
    table.row("info", "", 1, f"{seconds:.1f} s", "30 layers, width 4096" in out)
    ask = ["ask", "-m", file, "-i", photo, "-q", "--threads", threads, "--max-tokens", STEPS, QUESTION]
    out, seconds, peak = measured([ROOT / "janus", *ask])
    table.row("ask, prefill and 10 tokens", "", 1, f"{seconds:.0f} s", True)
    table.row("ask, peak memory", "", 1, f"{peak:.0f} MiB", peak > 0)
    out, seconds, peak = measured([sys.executable, Path(__file__), file, threads])
    table.row("generate, 10 of 576 tokens", "", 1, f"{float(out):.2f} s each", True)
    table.row("generate, peak memory", "", 1, f"{peak:.0f} MiB", peak > 0)
    return table


def verify_full(work: Path | None, only: str | None, threads: int) -> Table:
    """Both models, one after the other, each in a folder of its own that is removed afterwards."""
    total = Table(0.0)
    for name, run in (("1b", full_1b), ("7b", full_7b)):
        if only in (None, name):
            with tempfile.TemporaryDirectory(prefix=f"janus-full-{name}-", dir=work) as folder:
                table = run(Path(folder), threads)
            total.passed, total.failed = total.passed + table.passed, total.failed + table.failed
            total.rows += table.rows
    return total


if __name__ == "__main__":
    sys.exit(ten_steps(Path(sys.argv[1]), int(sys.argv[2])))
