# SPDX-License-Identifier: MIT
"""The small model in weights/: it draws what it is asked for and sees what it is shown (make eval's short form)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.name != "posix", reason="eval.py loads libjanus.so")
def test_the_small_model_draws_and_sees() -> None:
    """Fixed prompts, pictures and questions reach eval.py's QUICK_BARS."""
    done = subprocess.run([sys.executable, ROOT / "weights" / "eval.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^  .*bar .*: reached$", done.stdout, re.M)) == 18, done.stdout
