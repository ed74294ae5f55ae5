# SPDX-License-Identifier: MIT
"""janus batch: lines of JSON in and out, and jobs that give together what each of them gives alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_library import GOLDEN, JANUS, TINY, Library, ffi, give

SMALL = GOLDEN / "grouped.gguf"  # 4 ids a picture
JOBS = int(os.environ.get("JANUS_JOBS", 0))  # so many are killed and resumed, drawn by the small model; else few, by a smaller one

posix = pytest.mark.skipif(os.name != "posix", reason="needs /dev/full or signals")


def run(lines: Iterable[object] | bytes, *options: object, model: Path = SMALL, cwd: Path, code: int = 0,
        as_file: bool = False) -> list[dict]:
    """The results of jobs, which are given as objects or as the input's bytes, from stdin or a file."""
    given = lines if isinstance(lines, bytes) else "".join(json.dumps(line) + "\n" for line in lines).encode()
    if as_file:
        (cwd / "jobs.jsonl").write_bytes(given)
    command = [JANUS, "batch", "-m", model, *map(str, options), "jobs.jsonl" if as_file else "-"]
    done = subprocess.run(command, input=b"" if as_file else given, capture_output=True, cwd=cwd, timeout=3600 if JOBS else 300)
    assert done.returncode == code, (done.returncode, done.stdout.decode(), done.stderr.decode())
    return [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]


# ---- JSON: what is one and what is none ----

ACCEPTED = [
    b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"10", b"0.5", b"1.25e3", b"1E+2", b"1e-2", b"0e0", b"-0.0",
    b"123456789012345678901234567890", b"1e999", b'""', b'"a"', b'"\\""', b'"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\u0041"',
    b'"\\u00e4\\uABCD"', b'"\\ud83d\\ude00"', b'"\\uDBFF\\uDFFF"', b'"\\u0000"', b'"\x7f"', '"äöü 漢字 😀"'.encode(),
    b'"\xf4\x8f\xbf\xbf"', b'"//no comment"', b"[]", b"[ ]", b"[1]", b"[1,2]", b"[[],{}]", b" [ 1 , [ 2 ] ] ", b"\t1\r",
    b"[null,true,false]", b'["a","b"]', b"{ }", b'{"a":{"b":[{"c":1}]}}', b'{"":0}', b'{"\\u0061":1}', b'{"a":1,"b":2}',
    b"[" * 64 + b"]" * 64, b'{"a":' * 63 + b"[]" + b"}" * 63, b'[1, "]", "}"]',
]
REFUSED = [
    b"nul", b"nulll", b"True", b"NaN", b"Infinity", b"-Infinity", b"undefined", b"-", b"+1", b"01", b"-01", b"00", b".5",
    b"1.", b"1.e3", b"1e", b"1e+", b"1e1.5", b"0x10", b"1_000", b"1,000", b"--1", b"- 1", b"1 2", b"1,", "１".encode(),
    b'"', b'"a', b"'a'", b'"\\"', b'"\\x41"', b'"\\u"', b'"\\u12"', b'"\\u12g4"', b'"\\U0041"', b'"\\a"', b'"\\0"',
    b'"a" "b"', b'"a"b', b'"\t"', b'"\x00"', b'"\x1f"', b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\ude00\\ud83d"',
    b'"\\ud83d\\ud83d"', b'"\\ud83d ude00"', b'"\\ud83d\\"', b'"\xff"', b'"\xc3"', b'"\xc0\xaf"', b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"', b"\xef\xbb\xbf[]", "\u00a01".encode(), b"\x0c1", b"[", b"]", b"[1", b"[1,", b"[,1]", b"[1,]",
    b"[1,,2]", b"[1 2]", b"[1;2]", b"[1]]", b"[1}", b"[1:2]", b"[[]", b"[a]", b'["a]', b"{", b"}", b"{]", b'{"a"}', b'{"a":}',
    b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{,"a":1}', b'{"a":1 "b":2}', b'{"a" 1}', b'{"a"::1}', b'{"a",1}', b"{a:1}", b"{1:1}",
    b"{'a':1}", b'{null:1}', b'{"a":1}}', b'{"a":1]', b'{"a":1}{"b":2}', b'{"a":1} x', b"/* */ 1", b"1 // one", b"# 1",
    b"[" * 65 + b"]" * 65, b"[" * 100000, b'{"a":' * 65, b"<null>", b"\x00", b"1\x00", b'\\u0031',
]


def test_json(tmp_path: Path) -> None:
    """What is JSON, though no job, and what is not."""
    results = run(b"\n".join(ACCEPTED + REFUSED), cwd=tmp_path, code=1)
    assert len(results) == len(ACCEPTED) + len(REFUSED)
    for i, (text, result) in enumerate(zip(ACCEPTED + REFUSED, results)):
        expected = ("a line is an object", "unknown key", "a job has") if i < len(ACCEPTED) else "not JSON: "
        assert result["error"].startswith(expected) and (i < len(ACCEPTED) or " at byte " in result["error"]), (text, result)


@pytest.mark.parametrize("value", ['"\\u00e4\\ud83d\\ude00 \\"\\\\\\/\\b\\f\\n\\r\\t\\u0001\\u007f"', '"漢字 😀"', '""', "-1.50e+3", "0", '"\\u0000"'])
def test_strings_come_back(tmp_path: Path, value: str) -> None:
    """An id is read and written without a change; numbers keep their form."""
    (result,) = run(f'{{"id": {value}, "x": 0}}\n'.encode(), cwd=tmp_path, code=1)
    assert result == {"id": json.loads(value), "line": 1, "error": 'unknown key "x"'}


def test_lines_have_a_limit(tmp_path: Path) -> None:
    """1 MiB is a line; a byte more is refused, and the next line is read."""
    line = b'{"question": "a", "image": "missing.png"}'
    full = line + b" " * ((1 << 20) - len(line))
    for as_file in (False, True):
        results = run(b"\n".join([full, full + b" ", full * 3, b"", b" \t\r", line + b"\r", line]), cwd=tmp_path, code=1, as_file=as_file)
        assert [result["line"] for result in results] == [1, 2, 3, 6, 7]
        assert ["missing.png" in result["error"] for result in results] == [True, False, False, True, True]
        assert all("longer than 1 MiB" in result["error"] for result in results[1:3])


# ---- What a job may say ----

BAD_JOBS = [
    ('{}', 'a job has "prompt" or "question"'),
    ('{"prompt": "a", "question": "b", "output": "a.png"}', '"question" does not go with "prompt"'),
    ('{"prompt": "a"}', '"output" is missing'),
    ('{"prompt": "a", "output": "a.gif"}', "must end in .png"),
    ('{"prompt": "a", "output": "-"}', "cannot write -: the name must end in .png"),
    ('{"prompt": "a", "output": "no/such/a.png"}', "cannot write no/such/a.png"),
    ('{"prompt": "a", "output": "a.png", "promt": "b"}', 'unknown key "promt"'),
    ('{"prompt": "a", "prompt": "b", "output": "a.png"}', '"prompt" is given twice'),
    ('{"prompt": "a", "output": "a.png", "n": 65}', '"n" takes a whole number from 1 to 64, not 65'),
    ('{"prompt": "a", "output": "a.png", "n": 1.5}', '"n" takes a whole number from 1 to 64, not 1.5'),
    ('{"prompt": "a", "output": "a.png", "n": 0.64e+2, "seed": 70e-1, "cfg": -1e-1}', '"cfg" takes a number from 0 to 100, not -1e-1'),
    ('{"prompt": "a", "output": "a.png", "n": 1e400}', '"n" takes a whole number from 1 to 64, not 1e400'),
    ('{"prompt": "a", "output": "a.png", "n": -0.0}', '"n" takes a whole number from 1 to 64, not -0.0'),
    ('{"prompt": "a", "output": "a.png", "n": "2"}', '"n" takes a number'),
    ('{"prompt": "a", "output": "a.png", "n": true}', '"n" takes a number'),
    ('{"prompt": "a", "output": "a.png", "cfg": 1e400}', '"cfg" takes a number from 0 to 100, not 1e400'),
    ('{"prompt": "a", "output": "a.png", "cfg": [5]}', '"cfg" takes a number'),
    ('{"prompt": null, "output": "a.png"}', 'a job has "prompt" or "question"'),
    ('{"prompt": "a", "output": null}', '"output" is missing'),
    ('{"prompt": "a", "output": "a.png", "promt": null}', 'unknown key "promt"'),
    ('{"question": "a", "images": ["a.png", null]}', '"images" takes a string'),
    *(('{"prompt": "a", "output": "a.png", "seed": %s}' % seed, f'"seed" takes a whole number from 0 to 18446744073709551615, or -1 for a random one, not {seed}')
      for seed in ("18446744073709551616", "1.8446744073709552e19", "7.5", "-2", "1e-1", "1e20", "9007199254740993.5", "1" * 30, "1e99999999999999999999")),
    ('{"prompt": "a", "output": "a.png", "max_tokens": 3}', '"max_tokens" does not go with "prompt"'),
    ('{"prompt": "a", "output": ""}', '"output" takes a name, not ""'),
    ('{"prompt": "a\\u0000b", "output": "a.png"}', "contains a zero character"),
    ('{"prompt": 3, "output": "a.png"}', '"prompt" takes a string'),
    ('{"prompt": "  ", "output": "a.png"}', "prompt is empty"),
    ('{"question": "a", "image": ["a.png"]}', '"image" takes a string'),
    ('{"question": "a", "images": ["a.png", 3]}', '"images" takes a string'),
    ('{"question": "a", "images": [["a.png"]]}', '"images" takes a string'),
    ('{"question": "a", "top_k": [5]}', '"top_k" takes a number'),
    ('{"question": "a", "image": "missing.png"}', "missing.png"),
    ('{"encode": "a.png"}', 'unknown key "encode"'),
    ('{"id": [1], "prompt": "a", "output": "a.png"}', '"id" takes a string or a number'),
]


def test_bad_jobs(tmp_path: Path) -> None:
    """Each is refused for its own reason, and nothing is written."""
    results = run("\n".join(job for job, _ in BAD_JOBS).encode(), cwd=tmp_path, code=1)
    assert [(job, result["error"]) for (job, message), result in zip(BAD_JOBS, results) if message not in result["error"]] == []
    assert len(results) == len(BAD_JOBS) and list(tmp_path.iterdir()) == []


def test_numbers_and_nulls_as_other_programs_write_them(tmp_path: Path) -> None:
    """JSON has one kind of number: 7.0 is 7, and a 64-bit seed stays exact however it is written. null is a key that is not given."""
    written = {"7": "7", "7.0": "7", "7.00e0": "7", "70E-1": "7", "0.7e+1": "7", "0": "0", "-0": "0", "-0.0e5": "0", "1e3": "1000", "1e19": "1" + "0" * 19,
               "18446744073709551615": "18446744073709551615", "18446744073709551615.0": "18446744073709551615", "9007199254740993.0": "9007199254740993",
               "1.152921504606846976e+18": "1152921504606846976", "7." + "0" * 300: "7", "0." + "0" * 300 + "7e301": "7"}
    lines = [f'{{"id": "{seed}", "prompt": "a", "n": 1.0, "output": "{i}.png", "seed": {text}, "cfg": 5.{"0" * 90}, "question": null}}'
             for i, (text, seed) in enumerate(written.items())]
    lines += [f'{{"id": {value}, "prompt": "a", "seed": {value}, "n": null, "cfg": null, "output": "random{i}.png"}}' for i, value in enumerate(("null", "-1", "-1.0"))]
    results = run("\n".join(lines).encode(), cwd=tmp_path)
    assert [str(result["seed"]) for result in results[:-3]] == [result["id"] for result in results[:-3]]
    assert results[-3]["id"] == len(lines) - 2 and all(0 <= result["seed"] < 10**9 for result in results[-3:])


@pytest.mark.parametrize("as_file", [False, True])
def test_byte_order_mark(tmp_path: Path, as_file: bool) -> None:
    """At the start of the input it is skipped, also on an empty line; anywhere else it is not JSON."""
    mark, line = b"\xef\xbb\xbf", b'{"question": "a", "max_tokens": 1}\r\n'
    assert [("error" in result) for result in run(mark + line + mark + line, cwd=tmp_path, code=1, as_file=as_file)] == [False, True]
    for start in (mark, mark + b"\n", mark + b" "):
        assert ["answer" in result for result in run(start + line, cwd=tmp_path, as_file=as_file)] == [True]
    assert run(mark, cwd=tmp_path, as_file=as_file) == []


def test_all_kinds_of_jobs_in_order(tmp_path: Path) -> None:
    """Bad lines are answered too; the others go on; the results are in the order of the jobs, or in any."""
    Image.new("RGB", (9, 7), (200, 30, 30)).save(tmp_path / "a.png")
    jobs = [{"id": "many", "prompt": "a", "n": 3, "seed": 5, "output": "many.png"}, {"question": "b", "image": "b.png"},
            {"id": 4.5, "image": "a.png", "question": "what?", "max_tokens": 3}, {"prompt": "d", "output": "d.jpg"},
            {"images": ["a.png", "a.png"], "question": "which?", "max_tokens": 2, "temperature": 1, "seed": 3, "top_k": 5, "top_p": 0.5}]
    results = run(jobs, cwd=tmp_path, code=1)
    assert [result["id"] for result in results] == ["many", 2, 4.5, 4, 5]
    assert results[0]["output"] == ["many-1.png", "many-2.png", "many-3.png"] and results[0]["seed"] == 5
    assert results[1]["line"] == 2 and "b.png" in results[1]["error"]
    assert results[2]["tokens"] <= 3 and isinstance(results[2]["answer"], str) and "seed" not in results[2]
    assert results[3]["output"] == ["d.jpg"] and results[4]["seed"] == 3
    assert all(result["seconds"] >= 0 for result in results if "error" not in result)
    assert all(Image.open(tmp_path / name).size == (4, 4) for name in results[0]["output"] + results[3]["output"])
    jobs[3]["seed"] = results[3]["seed"]
    unordered = run(jobs, "--unordered", "--batch", 2, cwd=tmp_path, code=1)
    without_time = [{key: value for key, value in result.items() if key != "seconds"} for result in (*results, *unordered)]
    assert sorted(map(str, without_time[:5])) == sorted(map(str, without_time[5:]))


def test_seeds_are_made_up(tmp_path: Path) -> None:
    """Without a seed each job has one of its own, which the result names and which draws the same picture."""
    results = run([{"prompt": "a", "output": f"{i}.png"} for i in range(5)], cwd=tmp_path)
    assert len({result["seed"] for result in results}) == 5
    run([{"prompt": "a", "output": f"again{i}.png", "seed": result["seed"]} for i, result in enumerate(results)], cwd=tmp_path)
    for i in range(5):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{i}.png")), np.asarray(Image.open(tmp_path / f"again{i}.png")))


def refused(jobs: list[dict], folder: Path, as_file: bool = False) -> dict[int, str]:
    """The lines that are refused since another line has their picture, and why."""
    results = run([{"prompt": "a", "n": 1} | job if "output" in job else job for job in jobs], "--unordered", cwd=folder, code=1, as_file=as_file)
    return {result["line"]: result["error"] for result in results if "error" in result}


@pytest.mark.parametrize("as_file", [False, True])
def test_outputs_differ(tmp_path: Path, as_file: bool) -> None:
    """Of two jobs that would write one file the second is refused, however the name is spelt; others of the same name are drawn."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "there.png").write_bytes(b"an older picture")
    outputs = ["x.png", "./x.png", "sub/../x.png", ".//x.png", str(tmp_path / "x.png"), "sub/deep/../../sub/./../x.png", "sub/x.png", "sub/deep/x.png", "X.png",
               "y.png", "y.jpg", "there.png", "sub/../there.png"]
    found = refused([{"output": output} for output in outputs], tmp_path, as_file)
    assert sorted(found) == [2, 3, 4, 5, 6, 9, 13]  # 9: some systems do not tell capitals apart
    assert found[3] == "sub/../x.png is written by line 1: give each job an output of its own"
    assert "by line 12" in found[13] and Image.open(tmp_path / "sub" / "deep" / "x.png").size == (4, 4)
    assert sorted(refused([{"output": "n.png", "n": 3}, {"output": "n-2.png"}, {"output": "n-4.png"}, {"output": "n.png"}, {"output": "n-.png", "n": 2},
                           {"output": "sub/../n.png", "n": 2}, {"output": "n-1.png", "n": 64}], tmp_path, as_file)) == [2, 6]


@posix
def test_outputs_differ_through_links(tmp_path: Path) -> None:
    """Links of folders and of files, also those whose target is not there yet."""
    (tmp_path / "sub").mkdir()
    for name, target in {"link": "sub", "new.png": "sub/a.png", "far.png": "new.png", "whole.png": str(tmp_path / "sub" / "a.png"), "other.png": "sub/b.png",
                         "sub/back.png": "../c.png", "loop.png": "loop.png"}.items():
        (tmp_path / name).symlink_to(target)
    outputs = ["sub/a.png", "link/a.png", "new.png", "far.png", "link/../whole.png", "other.png", "link/b.png", "c.png", "link/back.png"]
    assert sorted(refused([{"output": output} for output in outputs], tmp_path)) == [2, 3, 4, 5, 7, 9]


@pytest.mark.parametrize("as_file", [False, True])
def test_no_job_reads_what_another_writes(tmp_path: Path, as_file: bool) -> None:
    """Whichever comes first; two jobs may read one picture, and a job that was refused claims nothing."""
    for name in "abc":
        Image.new("RGB", (4, 4), (200, 30, 30)).save(tmp_path / f"{name}.png")
    ask, write = [lambda *names: {"question": "what?", "images": names, "max_tokens": 1}, lambda name, n=1: {"output": name, "n": n}]
    found = refused([write("d.png"), ask("./d.png"), ask("a.png", "a.png"), ask("a.png", "b.png"), write("a.png"), write("e.png", 2), ask("c.png", "e-2.png"),
                     write("c.png"), write("b.jpg")], tmp_path, as_file)
    assert sorted(found) == [2, 5, 7] and found[2] == "./d.png is written by line 1: ask about it in another run"
    assert found[5] == "a.png is read by line 3: give each job an output of its own"
    jobs = [write("f.png") | {"prompt": "f", "seed": 1}, ask("f.png"), write("f.png")]  # a picture of an earlier run may be asked about
    for options, errors in (((), [False, True, True]), (("--resume",), [False, False, True])):
        results = run([{"prompt": "a"} | job if "output" in job else job for job in jobs], *options, cwd=tmp_path, code=1, as_file=as_file)
        assert ["error" in result for result in results] == errors


def test_many_conflicts(tmp_path: Path) -> None:
    """A picture is refused each time, however many there are by then."""
    jobs = [{"output": f"no/{i // 2}.png"} for i in range(600)]
    assert [line for line, error in refused(jobs, tmp_path).items() if "is written by line" in error] == list(range(2, 601, 2))


def test_50000_lines(tmp_path: Path) -> None:
    """Each with an output of its own, which is compared with all others."""
    lines = b"".join(b'{"prompt": "a", "output": "%d.gif"}\n' % i for i in range(50000))
    results = run(lines, cwd=tmp_path, code=1, as_file=True)
    assert len(results) == 50000 and all("must end in .png" in result["error"] for result in results)


@posix
def test_a_full_disk_is_the_jobs_error(tmp_path: Path) -> None:
    (tmp_path / "full.png").symlink_to("/dev/full")
    results = run([{"prompt": "a", "output": "full.png"}, {"prompt": "a", "output": "good.png"}], cwd=tmp_path, code=1)
    assert "No space left" in results[0]["error"] and results[1]["output"] == ["good.png"] and (tmp_path / "good.png").exists()


@posix
def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    """The work ends at once: nobody would hear of it."""
    lines = b'{"prompt": "a", "output": "a.png"}\n{"prompt": "a", "output": "b.png"}\n'
    with open("/dev/full", "wb") as full:
        done = subprocess.run([JANUS, "batch", "-m", SMALL, "--batch", "1", "-"], input=lines, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and b"cannot write to stdout: No space left" in done.stderr and not (tmp_path / "b.png").exists()


def test_usage(tmp_path: Path) -> None:
    """Ranges of options, a missing file, and what info says of the places."""
    for arguments, code, message in ((["--batch", "65", "-"], 2, b"--batch takes a whole number from 0 to 64"), (["missing.jsonl"], 1, b"missing.jsonl"),
                                     (["--dump", "d", "-"], 2, b"batch takes no --dump"), ([], 2, b"missing argument: janus batch")):
        done = subprocess.run([JANUS, "batch", "-m", SMALL, *arguments], input=b"", capture_output=True, cwd=tmp_path, timeout=60)
        assert done.returncode == code and message in done.stderr and done.stdout == b""
    assert run([], cwd=tmp_path) == [] and run(b"\n \n", cwd=tmp_path, as_file=True) == []
    told = subprocess.run([JANUS, "info", "-m", SMALL], capture_output=True, check=True).stdout.decode()
    (places,) = [int(line.split()[1]) for line in told.splitlines() if line.startswith("batch ")]
    library = Library()
    assert places == library.c.janus_queue_places(library.load(SMALL), ffi.NULL) and 1 <= places <= 64


# ---- Streams and signals ----

def start(*options: object, cwd: Path, model: Path = SMALL) -> subprocess.Popen:
    return subprocess.Popen([JANUS, "batch", "-m", model, *map(str, options), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, cwd=cwd, bufsize=0)


def send(process: subprocess.Popen, job: object) -> None:
    process.stdin.write(json.dumps(job).encode() + b"\n")


def test_a_result_comes_before_the_next_job(tmp_path: Path) -> None:
    """Whoever asks one thing after the other is answered, also when the next line is here in part."""
    process = start(cwd=tmp_path)
    for i in range(3):
        process.stdin.write(b'{"question": "what?", ')
        time.sleep(0.05)
        process.stdin.write(f'"id": {i}, "max_tokens": 2}}\n{{"question": "what?",'.encode())
        assert json.loads(process.stdout.readline())["id"] == i
        process.stdin.write(b' "image": "missing.png"}\n')
        assert "missing.png" in json.loads(process.stdout.readline())["error"]
    process.stdin.close()
    assert process.wait(60) == 1 and process.stdout.read() == b""


@posix
@pytest.mark.parametrize("times", [1, 2])
def test_interrupted(tmp_path: Path, times: int) -> None:
    """One SIGINT: what is nearly done is finished, the rest is not begun. Two: the end, with nothing half written."""
    process = start("--batch", 2, "--unordered", cwd=tmp_path, model=TINY)
    for i in range(40):
        send(process, {"id": i, "prompt": "a red circle", "seed": i, "output": f"{i}.png"})
    first = json.loads(process.stdout.readline())
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    results = [first] + [json.loads(line) for line in process.stdout.read().splitlines()]
    process.stdin.close()
    assert process.wait(60) == 130
    done = [result["id"] for result in results if "error" not in result]
    assert 1 <= len(done) < 10 and len(results) < 20
    assert all("stopped" in result["error"] for result in results if "error" in result)
    assert {f"{i}.png" for i in done} <= {path.name for path in tmp_path.iterdir()}
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".png")] == []
    assert all(Image.open(path).size == (64, 64) for path in tmp_path.iterdir())


@posix
@pytest.mark.parametrize("jobs", [0, 1, 3])
@pytest.mark.parametrize("rest", [b"", b'{"question": "half'])
def test_interrupted_while_it_waits(tmp_path: Path, jobs: int, rest: bytes) -> None:
    """One SIGINT ends a run that waits for its next line; the results up to then are printed."""
    process = start(cwd=tmp_path)
    for i in range(jobs):
        send(process, {"id": i, "prompt": "a", "output": f"{i}.png"})
    results = [json.loads(process.stdout.readline()) for i in range(jobs)]
    process.stdin.write(rest)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130 and process.stdout.read() == b"" and process.stderr.read() == b""
    assert [result["output"] for result in results] == [[f"{i}.png"] for i in range(jobs)] and len(list(tmp_path.iterdir())) == jobs
    process.stdin.close()


# ---- Together as alone ----

WORDS = "a red green blue large small circle square triangle on white black background two three of and".split()


def random_jobs(count: int, chance: random.Random, folder: Path) -> list[dict]:
    """Drawings for the most part, of any length and options, and questions about pictures in the folder."""
    jobs = []
    for i in range(count):
        text = " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 20)))
        if chance.random() < 0.5:
            jobs.append({"id": i, "prompt": text, "seed": chance.randrange(1 << 64), "n": chance.choice([1, 1, 1, 1, 3]), "cfg": chance.choice([1, 3, 5.5]),
                         "temperature": chance.choice([0, 0.7, 1]), "output": f"{i}.png"})
        else:
            jobs.append({"id": i, "question": text, "images": [f"seen{chance.randrange(4)}.png" for _ in range(chance.randrange(3))],
                         "temperature": chance.choice([0, 0.8]), "seed": chance.randrange(1 << 32), "max_tokens": chance.randint(1, 30)})
    for i in range(4):
        Image.new("RGB", (50 + 30 * i, 70), (60 * i, 90, 200)).save(folder / f"seen{i}.png")
    return jobs


def drawn_alone(library: Library, session: object, job: dict) -> list[np.ndarray]:
    """The pictures of a drawing by janus_generate."""
    images = ffi.new(f"JanusImage[{job['n']}]")
    options = ffi.new("JanusGenerateOptions *", dict(count=job["n"], seed=job["seed"], cfg_weight=job["cfg"], temperature=job["temperature"]))
    library.call("janus_generate", session, job["prompt"].encode(), options, images)
    return [library.take_pixels(ffi.addressof(images, i)) for i in range(job["n"])]


def answered_alone(library: Library, session: object, job: dict, folder: Path) -> str:
    """The answer to a question by janus_ask."""
    pixels = [np.asarray(Image.open(folder / name)) for name in job["images"]]
    images = ffi.new(f"JanusImage[{len(pixels) + 1}]")
    for i, array in enumerate(pixels):
        images[i] = give(array)[0]
    options = library.c.janus_ask_defaults()
    options.max_tokens, options.temperature, options.seed = job["max_tokens"], job["temperature"], job["seed"]
    answer = ffi.new("char **")
    library.c.janus_reset(session)
    library.call("janus_ask", session, job["question"].encode(), images, len(pixels), ffi.new("JanusAskOptions *", options), answer)
    return library.take_text(answer[0])


@pytest.mark.parametrize("path, count", [(SMALL, 200), (TINY, 40)])
def test_random_jobs_give_what_they_give_alone(tmp_path: Path, path: Path, count: int) -> None:
    """To the bit, whatever runs beside them."""
    jobs = random_jobs(count, random.Random(1), tmp_path)
    results = run(jobs, "--batch", 12, "--unordered", model=path, cwd=tmp_path, as_file=True)
    assert sorted(result["id"] for result in results) == list(range(count))
    library = Library()
    model = library.load(path)
    session = library.session(model, library.c.janus_session_defaults())
    for result in results:
        job = jobs[result["id"]]
        if "prompt" in job:
            pictures = drawn_alone(library, session, job)
            assert len(result["output"]) == job["n"] and result["seed"] == job["seed"]
            for name, picture in zip(result["output"], pictures):
                assert np.array_equal(np.asarray(Image.open(tmp_path / name)), picture), job
        else:
            assert result["answer"] == answered_alone(library, session, job, tmp_path), job
    library.c.janus_session_free(session)


# ---- A run that ends too early goes on ----

def kill_amid(command: list[object], folder: Path, done: int) -> list[bytes]:
    """Starts the command and kills it once `done` pictures are there; the complete lines that it printed until then."""
    with open(folder / "killed.jsonl", "wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, cwd=folder)
        while len(list(folder.glob("*.png"))) < done and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait(60)
    return [line for line in (folder / "killed.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@posix
def test_killed_and_resumed(tmp_path: Path) -> None:
    """kill -9 amid the jobs, twice; --resume then does what is missing: nothing is lost, and nothing drawn twice."""
    count, model = (JOBS, TINY) if JOBS else (300, SMALL)
    jobs = [{"id": i, "prompt": f"a {i}", "n": 1 + i % 2, "output": f"{i}.png"} | ({"seed": i} if i % 3 else {}) for i in range(count)]
    pictures = [f"{i}{part}.png" for i in range(count) for part in (["-1", "-2"] if i % 2 else [""])]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    command = [JANUS, "batch", "-m", model, "--resume", "--unordered", "jobs.jsonl"]
    drawn: dict[int, int] = {}
    for part in (1, 2):
        for line in kill_amid(command, tmp_path, part * len(pictures) // 4):
            result = json.loads(line)
            drawn[result["id"]] = drawn.get(result["id"], 0) + ("resumed" not in result)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert len(pictures) // 2 <= len(written) < len(pictures)
    results = run((tmp_path / "jobs.jsonl").read_bytes(), "--resume", "--unordered", model=model, cwd=tmp_path)
    assert sorted(result["id"] for result in results) == list(range(count))
    for result in results:
        names = result["output"]
        assert ("resumed" in result) == all(name in written for name in names), result
        drawn[result["id"]] = drawn.get(result["id"], 0) + ("resumed" not in result)
    assert max(drawn.values()) == 1 and all(drawn[result["id"]] == 1 for result in results if "resumed" not in result)
    assert {path.name for path in tmp_path.glob("*.png")} == set(pictures)
    assert all((tmp_path / name).read_bytes() == data for name, data in written.items())
    again = run((tmp_path / "jobs.jsonl").read_bytes(), "--resume", model=model, cwd=tmp_path)
    assert all(result["resumed"] for result in again) and [result["id"] for result in again] == list(range(count))


def test_resume_looks_at_what_is_there(tmp_path: Path) -> None:
    """Another prompt or seed, a damaged picture, one of a pair that is missing: drawn again, and only these."""
    jobs = [{"prompt": "a fox", "seed": i, "output": f"{i}.png", "n": 2 if i == 3 else 1} for i in range(7)] + [{"prompt": "a", "output": "7.jpg"}]
    first = run(jobs, cwd=tmp_path)
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "0.png").write_bytes(expected["0.png"][:-30])
    (tmp_path / "1.png").write_bytes(expected["2.png"])
    (tmp_path / "3-2.png").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "4.png")
    results = run(jobs, "--resume", cwd=tmp_path)
    assert [result.get("resumed") for result in results] == [None, None, True, None, None, True, True, True]
    pair = [{"prompt": "two", "n": 2, "output": "pair.png"}]  # without a seed: it goes on with the one that it had
    seed, second = run(pair, cwd=tmp_path)[0]["seed"], (tmp_path / "pair-2.png").read_bytes()
    (tmp_path / "pair-2.png").unlink()
    assert run(pair, "--resume", cwd=tmp_path)[0]["seed"] == seed and (tmp_path / "pair-2.png").read_bytes() == second
    (tmp_path / "pair-1.png").unlink()
    (tmp_path / "pair-2.png").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected and results[7]["seed"] == first[7]["seed"]
    for changed in ({"seed": 99}, {"prompt": "a dog"}, {"cfg": 4}, {"temperature": 0.5}):
        assert "resumed" not in run([jobs[5] | changed], "--resume", cwd=tmp_path)[0]
        run([jobs[5]], "--resume", cwd=tmp_path)
    assert run([jobs[5]], "--resume", cwd=tmp_path)[0]["resumed"] and "resumed" not in run([jobs[5]], "--resume", "--kv", "f16", cwd=tmp_path)[0]
