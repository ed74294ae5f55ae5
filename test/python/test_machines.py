# SPDX-License-Identifier: MIT
"""The lines of test/machines/README.md for xargs and GNU parallel, with a worker killed amid the work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from janus_library import GOLDEN, JANUS, ROOT

MODEL = GOLDEN / "grouped.gguf"
COUNT = 200

pytestmark = pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="a worker is found by /proc")


def readme_lines(word: str) -> str:
    """The block of commands in test/machines/README.md that has this word."""
    text = (ROOT / "test" / "machines" / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n\n(?=\S)", text) if word in block]
    assert len(blocks) == 1, word
    return "\n".join(line[4:] for line in blocks[0].split("\n") if line.startswith("    ") or not line)


def environment(folder: Path) -> dict[str, str]:
    """One in which `janus` is the program, and draws with the small model."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin" / "janus").exists():
        (folder / "bin" / "janus").symlink_to(JANUS.resolve())
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "JANUS_MODEL": str(MODEL)}


def workers(folder: Path) -> list[int]:
    """The processes of the program in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "exe") == str(JANUS.resolve()) and os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def write_jobs(folder: Path) -> dict[str, bytes]:
    """Writes jobs.jsonl; the pictures that it asks for, drawn by one process elsewhere."""
    jobs = [{"id": i, "prompt": f"a picture of {i}", "seed": i, "output": f"{i}.png"} for i in range(COUNT)]
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    (folder / "jobs.jsonl").write_text(lines)
    (folder / "alone").mkdir()
    subprocess.run([JANUS, "batch", "-m", MODEL, "-"], input=lines.encode(), stdout=subprocess.DEVNULL, cwd=folder / "alone", check=True, timeout=120)
    return {path.name: path.read_bytes() for path in (folder / "alone").iterdir()}


def run_and_kill(command: list[str], folder: Path) -> None:
    """Runs the command and kills one worker as soon as some pictures are there."""
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
    killed = False
    while process.poll() is None:
        found = workers(folder) if not killed and len(list(folder.glob("*.png"))) >= COUNT // 10 else []
        if found:
            os.kill(found[0], signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    assert killed, "the work was done before a worker could be killed"


def results(folder: Path) -> list[dict]:
    """What all complete lines of results say."""
    lines = [line for path in folder.glob("*results*") for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def check(command: list[str], folder: Path) -> None:
    """Killed amid the work and run again: every picture is there and right, none was drawn twice, no result is lost."""
    expected = write_jobs(folder)
    run_and_kill(command, folder)
    drawn = Counter(result["id"] for result in results(folder) if "resumed" not in result)
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert COUNT // 10 <= len(before) < COUNT and set(drawn.values()) <= {1}
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, timeout=120)
    after = results(folder)
    assert sorted(result["id"] for result in after) == list(range(COUNT)) and not any("error" in result for result in after)
    assert {result["id"] for result in after if "resumed" in result} == {int(name[:-4]) for name in before}
    drawn.update(result["id"] for result in after if "resumed" not in result)
    assert max(drawn.values()) == 1
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == expected


def test_xargs(tmp_path: Path) -> None:
    check(["sh", "-ec", readme_lines("xargs -P")], tmp_path)


def test_gnu_parallel(tmp_path: Path) -> None:
    if shutil.which("parallel") is None:
        warnings.warn("GNU parallel is missing, so that the line for it was not tested: make deps WHAT=machines installs it")
        pytest.skip("GNU parallel is missing: make deps WHAT=machines")
    check(["sh", "-ec", readme_lines("-j 4")], tmp_path)
