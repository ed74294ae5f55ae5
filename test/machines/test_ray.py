# SPDX-License-Identifier: MIT
"""The program of test/machines/README.md for Ray Data, with a worker killed amid the work: make test PARTS=ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from test_machines import check, readme_lines  # noqa: E402


def test_ray_data(tmp_path: Path) -> None:
    """Two processes of janus; results are Ray's files of JSON, here as lines of one."""
    os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    program = readme_lines("map_batches") + """
import glob, json
with open("results.jsonl", "w") as out:
    for name in glob.glob("done/*.json"):
        for line in open(name):
            out.write(json.loads(line)["result"])
"""
    (tmp_path / "pool.py").write_text('import os\nimport ray\nray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": dict(PWD=os.getcwd())})\n'
                                      + program)
    check(["sh", "-c", f"rm -rf done results.jsonl; {sys.executable} pool.py"], tmp_path)
