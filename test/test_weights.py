# SPDX-License-Identifier: MIT
"""The small model in weights/: it draws what it is asked for and sees what it is shown (make eval's short form)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the weights have to keep, in percent and dB: a few cases less than they reached when they were put here. make eval
# holds them against the bars that they are to reach, and says which of them they miss.
FLOORS = {"single object": 70, "two objects": 85, "counting": 70, "colours": 85, "position": 85, "colour attribution": 85,
          "overall": 85, "PSNR": 30, "held out, overall": 78, "seen, overall": 95, "answer agrees with prompt": 45}


@pytest.mark.skipif(os.name != "posix", reason="eval.py loads libjanus.so")
def test_the_small_model_draws_and_sees() -> None:
    """A few dozen fixed prompts, pictures and questions."""
    done = subprocess.run([sys.executable, ROOT / "weights" / "eval.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    rows = re.findall(r"^  (.+?) {2,}([0-9.]+) (?:%|dB)", done.stdout, re.M)
    scores = {name.strip(): float(value) for name, value in rows}
    assert set(FLOORS) <= set(scores), done.stdout + done.stderr
    assert not {name: scores[name] for name, floor in FLOORS.items() if scores[name] < floor}, done.stdout
