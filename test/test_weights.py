# SPDX-License-Identifier: MIT
"""The small model in weights/: it draws what it is asked for and sees what it is shown (a short form of make eval)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(os.name != "posix", reason="eval.py loads libjanus.so")
def test_the_small_model_draws_and_sees() -> None:
    """Scores of a few dozen fixed prompts and questions reach bars a little below those of make eval."""
    done = subprocess.run([sys.executable, ROOT / "weights" / "eval.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all bars reached" in done.stdout
