# SPDX-License-Identifier: MIT
"""Keeps README true where it repeats janus.c: the map of its sections."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_map_of_the_code_is_true() -> None:
    """A row for each section that janus.c lists, and a heading for each, in the same order."""
    source = (ROOT / "janus.c").read_text(encoding="utf-8").split("\n")
    contents = [m.groups() for line in source[:80] if (m := re.match(r"^ +(\d+)  ([A-Z][\w ]+?) \.+ (.*)$", line))]
    rows = [f"| {number} {title} | {holds} |" for number, title, holds in contents]
    assert len(rows) >= 20 and "\n".join(rows) in (ROOT / "README.md").read_text(encoding="utf-8")
    headings = [m.groups() for before, line in zip(source, source[1:])
                if before.startswith("/* ====") and (m := re.match(r"^   (\d+)  ([A-Z][\w ]+?)(?:[:,] |$)", line))]
    assert [(number, title) for number, title, _ in contents] == headings
