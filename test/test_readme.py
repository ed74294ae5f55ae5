# SPDX-License-Identifier: MIT
"""Keeps README's map of janus.c true: every section, with the line at which it begins and what its table of contents says.

    python test/test_readme.py      writes the map into README.md
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "| section | what it holds |\n|---|---|\n", "\n\nThe kernels of the fifth section"


def code_map() -> str:
    """The rows of the table: one for each section that janus.c lists, linked to the line of its heading."""
    source = (ROOT / "janus.c").read_text(encoding="utf-8").split("\n")
    contents = [m for line in source[:60] if (m := re.match(r"^ +(\d+)  ([A-Z][\w ]+?) \.+ (.*)$", line))]
    rows = []
    for entry in contents:
        number, title, holds = entry.groups()
        heading = re.compile(rf"^   {number}  {title}([:, ]|$)")
        places = [i for i, line in enumerate(source) if heading.match(line) and set(source[i - 1][3:]) <= set("= ")]
        assert len(places) == 1, f"section {number}, {title}: {len(places)} headings"
        rows.append(f"| [{number} {title}](janus.c#L{places[0] + 1}) | {holds} |")
    assert len(rows) == 17
    return "\n".join(rows)


def test_the_map_of_the_code_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BEGIN + code_map() + END in readme, "run python test/test_readme.py"


def test_the_sections_stand_in_order() -> None:
    lines = [int(line) for line in re.findall(r"janus\.c#L(\d+)", code_map())]
    assert lines == sorted(lines)


def write_map() -> None:
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    path.write_text(readme[:start] + code_map() + readme[stop:], encoding="utf-8")


if __name__ == "__main__":
    write_map()
