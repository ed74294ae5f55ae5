# SPDX-License-Identifier: MIT
"""Keeps README true where it repeats others: the map of janus.c, with the line at which every section begins and what its table of
contents says, and the program's help.

    python test/test_readme.py      writes both into README.md; the help is that of ./janus
"""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JANUS = Path(os.environ.get("JANUS_PROGRAM", ROOT / "janus"))
BEGIN, END = "| section | what it holds |\n|---|---|\n", "\n\nThe kernels of section 13"

HELP_BEGIN, HELP_END = "the manual page and the completions are made of the same table:\n\n", "\n\nAn option that a command"


def program_help() -> str:
    """The help as README shows it, four columns to the right."""
    helped = subprocess.run([JANUS, "--help"], capture_output=True, text=True, check=True).stdout
    return "\n".join(f"    {line}".rstrip() for line in helped.rstrip().split("\n"))


def code_map() -> str:
    """The rows of the table: one for each section that janus.c lists, linked to the line of its heading."""
    source = (ROOT / "janus.c").read_text(encoding="utf-8").split("\n")
    contents = [m for line in source[:70] if (m := re.match(r"^ +(\d+)  ([A-Z][\w ]+?) \.+ (.*)$", line))]
    rows = []
    for entry in contents:
        number, title, holds = entry.groups()
        heading = re.compile(rf"^   {number}  {title}([:, ]|$)")
        places = [i for i, line in enumerate(source) if heading.match(line) and set(source[i - 1][3:]) <= set("= ")]
        assert len(places) == 1, f"section {number}, {title}: {len(places)} headings"
        rows.append(f"| [{number} {title}](janus.c#L{places[0] + 1}) | {holds} |")
    assert len(rows) == 21
    return "\n".join(rows)


def test_the_map_of_the_code_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BEGIN + code_map() + END in readme, "run python test/test_readme.py"


def test_the_help_is_the_programs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert HELP_BEGIN + program_help() + HELP_END in readme, "run python test/test_readme.py"


def test_the_sections_stand_in_order() -> None:
    lines = [int(line) for line in re.findall(r"janus\.c#L(\d+)", code_map())]
    assert lines == sorted(lines)


def write(begin: str, text: str, end: str) -> None:
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    start, stop = readme.index(begin) + len(begin), readme.index(end)
    path.write_text(readme[:start] + text + readme[stop:], encoding="utf-8")


if __name__ == "__main__":
    write(BEGIN, code_map(), END)
    write(HELP_BEGIN, program_help(), HELP_END)
