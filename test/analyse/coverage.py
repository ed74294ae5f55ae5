# SPDX-License-Identifier: MIT
"""Line coverage of janus.c: coverage.py FOLDER, in which programs built with gcc --coverage left their counts.

A line counts as run when any of the programs ran it; code for other systems is not compiled and does not count. The lines
that nothing ran are printed. Exit code 1 below BAR percent."""

import collections
import json
import subprocess
import sys
from pathlib import Path

BAR = 90
SOURCE = Path(__file__).resolve().parents[2] / "janus.c"


def line_counts(folder: Path) -> collections.Counter:
    """How often each line ran, all programs together."""
    counts: collections.Counter = collections.Counter()
    for data in sorted(folder.rglob("*.gcda")):
        done = subprocess.run(["gcov", "--json-format", "--stdout", data.name], cwd=data.parent, capture_output=True, check=True)
        for report in map(json.loads, done.stdout.splitlines()):
            for file in report["files"]:
                if Path(file["file"]).name == SOURCE.name:
                    for line in file["lines"]:
                        counts[line["line_number"]] += line["count"]
    return counts


def main() -> int:
    counts = line_counts(Path(sys.argv[1]))
    source = SOURCE.read_text(encoding="utf-8").splitlines()
    missed = [number for number in sorted(counts) if counts[number] == 0]
    print(f"lines of {SOURCE.name} that nothing ran:")
    for number in missed:
        print(f"{number:6}  {source[number - 1]}")
    if not counts:
        print("no counts: nothing was run")
        return 1
    percent = 100 * (len(counts) - len(missed)) / len(counts)
    print(f"{SOURCE.name}: {len(counts) - len(missed)} of {len(counts)} lines ran, {percent:.1f} % (at least {BAR} %)")
    return percent < BAR


if __name__ == "__main__":
    sys.exit(main())
