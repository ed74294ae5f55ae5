# SPDX-License-Identifier: MIT
"""What janus.c promises its readers: the model first, in plain C, functions that fit a screen, lines that fit it too."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "janus.c").read_text(encoding="utf-8").split("\n")


def line_of(pattern: str) -> int:
    """The number of the first line that matches, from 1."""
    return next(i for i, line in enumerate(SOURCE, 1) if re.search(pattern, line))


def part_one() -> list[str]:
    """The lines of Part I."""
    return SOURCE[line_of(r"^   PART I ") - 2:line_of(r"^   PART II ") - 2]


def functions() -> list[tuple[str, int]]:
    """Name and number of lines of every function, from the line with its name to its closing brace."""
    found, begin = [], None
    for number, line in enumerate(SOURCE):
        opened = re.match(r"^[A-Za-z].*?(\w+(?:\(\w+\))?)\(.*[^;\\]$", line)
        if opened and not line.startswith(("typedef", "enum", "struct", "#", "DEFINE")) and "= {" not in line:
            begin = (opened[1], number)
        elif line == "}" and begin:
            found.append((begin[0], number - begin[1] + 1))
            begin = None
    return found


def test_the_model_comes_first() -> None:
    """The first transformer block by line 550, the complete model, front page included, in at most 1,350 lines."""
    assert line_of(r"^static void transformer_block\(") <= 550
    assert 800 <= line_of(r"^   PART II ") - 2 <= 1350


def test_the_model_is_free_of_the_engine() -> None:
    """No switches, no instructions of a processor, no memory management, no statuses."""
    for line in part_one():
        assert not re.search(r"^\s*#\s*(if|el|endif)|_mm\d*_|\bv[a-z]+q_|\b(malloc|calloc|realloc|free)\(|JanusStatus", line), line


def test_functions_fit_a_screen() -> None:
    """At most 60 lines each; the search finds them all, or nearly."""
    found = functions()
    assert len(found) > 400
    assert [entry for entry in found if entry[1] > 60] == []


def test_lines_have_at_most_120_columns() -> None:
    """In all C files."""
    files = [ROOT / "janus.c", ROOT / "janus.h", *(ROOT / "test").rglob("*.[ch]")]
    assert [f"{path.name}:{number}" for path in files
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if len(line) > 120] == []
