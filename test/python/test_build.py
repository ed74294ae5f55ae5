# SPDX-License-Identifier: MIT
"""How a build gets the stb headers (test/setup.sh) and make test gets Python on machines without them.

A machine is a folder with a copy of the scripts and a PATH of chosen tools: a compiler that does not see the system's stb
headers, and fakes of what would need another system or the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["stb_image.h", "stb_image_write.h"]
OLD = {"stb_image.h": b"typedef unsigned char stbi_uc;\nstbi_uc *stbi_load_from_memory(void);\n",
       "stb_image_write.h": b"int stbi_write_png_to_func(void);\n"}
HEADERS = OLD | {"stb_image.h": OLD["stb_image.h"] + b"int stbi__skip_jpeg_junk_at_end(void);\n"}  # as from 2.28 on
MISSING = "The stb headers are missing. Install them with:\n    "
TOOLS = ["ar", "as", "awk", "cat", "cmp", "cp", "cut", "date", "dirname", "env", "find", "grep", "head", "ld", "mkdir", "mktemp", "mv", "rm", "sed", "sh", "sleep",
         "tail", "tar", "tee", "touch", "uname"]
CHECKERS = [tool for tool in ("sha256sum", "shasum", "openssl") if shutil.which(tool)]
MAKES = [tool for tool in ("make", "bmake") if shutil.which(tool)]
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(os.name != "posix" or not COMPILER, reason="needs a C compiler")


@dataclass
class Machine:
    """A project folder, a PATH and the address of a server that hands out `files`; `cut` breaks off its answers."""

    project: Path
    tools: Path
    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: bool = False

    def tool(self, name: str, script: str | None = None) -> None:
        """Puts a tool into the PATH: the machine's own, or a shell script."""
        if script is None:
            found = shutil.which(name)
            assert found, name
            (self.tools / name).symlink_to(found)
        else:
            (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.tools / name).chmod(0o755)

    def start(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.tools), "HOME": str(self.project), "STB_URL": self.url} | settings
        return subprocess.Popen(command, cwd=self.project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *command: str, **settings: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr of a command."""
        process = self.start(*command, **settings)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def flags(self, **settings: str) -> tuple[int, str, str]:
        """What a build asks for first."""
        return self.run("sh", "test/setup.sh", "flags", **settings)

    def brought(self) -> list[str]:
        """The files in build/, the cache aside: everything unfinished has to be gone."""
        build = self.project / "build"
        return sorted(str(path.relative_to(build)) for path in build.rglob("*") if path.is_file() and not path.name.startswith("stb."))


def pin(script: Path, headers: dict[str, bytes]) -> None:
    """Pins the copy of setup.sh to other headers."""
    text = script.read_text()
    for variable, name in (("SUM_IMAGE", NAMES[0]), ("SUM_IMAGE_WRITE", NAMES[1])):
        text, count = re.subn(rf"^{variable}=[0-9a-f]{{64}}$", f"{variable}={hashlib.sha256(headers[name]).hexdigest()}", text, flags=re.M)
        assert count == 1
    script.write_text(text)


# Fails as a compiler would if a system folder's stb were not there; folders of other systems lie in the project.
CC = """for word; do shift; case $word in /opt/homebrew/include|/opt/local/include) word={project}$word ;; esac; set -- "$@" "$word"; done
seen={project}/includes.$$
{cc} -H "$@" 2>$seen
status=$?
grep -v '^\\.* /\\|^Multiple include\\|^/' $seen >&2
grep '^\\.* /usr/.*stb_image' $seen >&2 && status=1
rm $seen
exit $status"""

# curl -o FILE URL and wget -O FILE URL.
DOWNLOADER = """#!{python}
import sys, urllib.request
if '--help' in sys.argv:
    sys.exit()
words = sys.argv[1:]
target = words[[i for i, word in enumerate(words) if word in ("-o", "-O")][0] + 1]
try:
    content = urllib.request.urlopen([word for word in words if word.startswith("http")][0], timeout=20).read()
except Exception as error:
    sys.exit(str(error))
open(target, "wb").write(content)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with a compiler, a downloader and sha256sum; no package manager, no stb."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    (project / "test").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / "test/setup.sh", project / "test")
    pin(project / "test/setup.sh", HEADERS)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            this.requests.append(self.path[1:])
            content = this.files.get(self.path[1:])
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[:-10 if this.cut else None])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    this = Machine(project, tools, f"http://127.0.0.1:{server.server_address[1]}", dict(HEADERS))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [*TOOLS, "sha256sum"]:
        this.tool(name)
    this.tool("id", "echo 1000")
    this.tool("cc", CC.format(project=project, cc=COMPILER))
    downloader(this, "curl")
    yield this
    server.shutdown()
    server.server_close()


def downloader(machine: Machine, name: str) -> None:
    """The machine's own curl or wget, or one that does the same."""
    if shutil.which(name):
        machine.tool(name)
    else:
        machine.tool(name, "")
        (machine.tools / name).write_text(DOWNLOADER.format(python=sys.executable))


def put(folder: Path, headers: dict[str, bytes] = HEADERS) -> Path:
    """Writes headers into a folder."""
    folder.mkdir(parents=True)
    for name, content in headers.items():
        (folder / name).write_bytes(content)
    return folder


def is_missing(machine: Machine, result: tuple[int, str, str]) -> None:
    """The message, exit status 2, and nothing left."""
    code, out, err = result
    assert code == 2 and out == "" and MISSING in err and "or name the folder that holds stb_image.h: make STB=DIR" in err
    assert machine.brought() == []


# ---- The download ----

@pytest.mark.parametrize("name", ["curl", "wget"])
def test_the_download(machine: Machine, name: str) -> None:
    """Both files arrive under their names, once; the next build asks nobody."""
    (machine.tools / "curl").unlink()
    downloader(machine, name)
    code, out, err = machine.flags()
    assert (code, out) == (0, "-isystem build\n") and "brought into build/stb" in err
    assert machine.brought() == [f"stb/{header}" for header in NAMES] and sorted(machine.requests) == NAMES
    assert all((machine.project / "build/stb" / header).read_bytes() == HEADERS[header] for header in NAMES)
    assert machine.flags() == (0, "-isystem build\n", "") and machine.flags(FETCH="no")[0] == 0
    (machine.project / "build/stb.flags").unlink()
    assert machine.flags(FETCH="no") == (0, "-isystem build\n", "") and len(machine.requests) == 2


@pytest.mark.parametrize("tool", CHECKERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_altered_download_is_refused(machine: Machine, name: str, tool: str) -> None:
    """Either file, with one letter changed or its end cut off; every tool that computes the sum."""
    if tool != "sha256sum":
        (machine.tools / "sha256sum").unlink()
        machine.tool(tool)
        if tool == "shasum":
            machine.tool("perl")
    for bad in (HEADERS[name].replace(b"stbi_", b"stbj_", 1), HEADERS[name] + b" ", HEADERS[name][:-1], b""):
        machine.files = HEADERS | {name: bad}
        result = machine.flags()
        is_missing(machine, result)
        assert f"refused: {machine.url}/{name} has the SHA-256 {hashlib.sha256(bad).hexdigest()} instead of" in result[2]
    machine.files = dict(HEADERS)
    assert machine.flags()[:2] == (0, "-isystem build\n")


def test_a_download_that_breaks_off(machine: Machine) -> None:
    machine.cut = True
    is_missing(machine, machine.flags())


def test_no_file_and_no_network(machine: Machine) -> None:
    machine.files = {}
    is_missing(machine, machine.flags())
    result = machine.flags(STB_URL="http://127.0.0.1:1")
    is_missing(machine, result)
    assert "http://127.0.0.1:1/stb_image.h cannot be downloaded" in result[2]
    (machine.tools / "curl").unlink()
    is_missing(machine, machine.flags())


def test_nothing_is_fetched_where_that_is_forbidden(machine: Machine) -> None:
    is_missing(machine, machine.flags(FETCH="no"))
    assert machine.requests == []


def test_nothing_is_believed_unchecked(machine: Machine) -> None:
    """Without a tool for SHA-256 the download is refused."""
    (machine.tools / "sha256sum").unlink()
    result = machine.flags()
    is_missing(machine, result)
    assert "refused: nothing here computes a SHA-256" in result[2]


# ---- What is there already ----

@pytest.mark.parametrize("folder", ["/opt/homebrew/include", "/opt/local/include"])
@pytest.mark.parametrize("layout", ["/stb", ""])
def test_headers_of_other_systems(machine: Machine, folder: str, layout: str) -> None:
    """In a folder stb, or flat; those that do not compile do not count."""
    place = put(machine.project / f"{folder[1:]}{layout}")
    expected = f"-isystem {folder} {'' if layout else '-DJANUS_STB_FLAT'}\n"
    assert machine.flags(FETCH="no") == (0, expected, "")
    (place / "stb_image_write.h").write_text("int stbi_write_png_to_func(")
    is_missing(machine, machine.flags(FETCH="no"))


def test_pkg_config(machine: Machine, tmp_path: Path) -> None:
    """Its answer is tried before it is believed."""
    machine.tool("pkg-config", f"echo -I{tmp_path}/stale")
    is_missing(machine, machine.flags(FETCH="no"))
    put(tmp_path / "stale")
    assert machine.flags(FETCH="no") == (0, f"-isystem {tmp_path}/stale -DJANUS_STB_FLAT\n", "")


def test_the_folder_that_is_named(machine: Machine, tmp_path: Path) -> None:
    """STB is the only place looked at, and has to hold both files."""
    put(machine.project / "opt/homebrew/include")
    flat = put(tmp_path / "named/stb")
    assert machine.flags(STB=str(flat)) == (0, f"-isystem {flat} -DJANUS_STB_FLAT\n", "")
    assert machine.flags(STB=str(flat.parent)) == (0, f"-isystem {flat.parent}\n", "")
    (flat / "stb_image_write.h").unlink()
    for folder in (str(flat), "/nonexistent"):
        code, out, err = machine.flags(STB=folder)
        assert (code, out) == (2, "") and err.startswith(f"STB={folder}: that folder has no stb_image.h and stb_image_write.h")
    assert machine.requests == []


def test_what_was_found_is_tried_again(machine: Machine) -> None:
    """The cached answer counts for the same compiler and as long as it compiles."""
    place = put(machine.project / "opt/homebrew/include")
    assert machine.flags()[1] == "-isystem /opt/homebrew/include -DJANUS_STB_FLAT\n"
    put(machine.project / "opt/local/include")
    assert machine.flags()[1] == "-isystem /opt/homebrew/include -DJANUS_STB_FLAT\n"
    shutil.rmtree(place)
    assert machine.flags()[1] == "-isystem /opt/local/include -DJANUS_STB_FLAT\n"
    put(machine.project / "opt/homebrew/include")
    assert machine.flags(CFLAGS="-O0")[1] == "-isystem /opt/homebrew/include -DJANUS_STB_FLAT\n"


def test_no_compiler(machine: Machine) -> None:
    """Then that is what the message says."""
    code, out, err = machine.flags(CC="nonexistent-cc")
    assert (code, out) == (2, "") and "The C compiler (nonexistent-cc) or the headers of libc are missing. Install them with:" in err


@pytest.mark.parametrize("layout", ["/stb", ""])
def test_old_headers_are_replaced(machine: Machine, layout: str) -> None:
    """stb_image before 2.28: newer headers are fetched, or asked for where nothing may be fetched or STB names the old ones."""
    old = put(machine.project / f"opt/local/include{layout}", OLD)
    code, out, err = machine.flags(FETCH="no")
    assert (code, out) == (2, "") and "older than 2.28: get newer ones" in err and "make STB=DIR" in err
    assert machine.flags(STB=str(old)) == (2, "", f"STB={old}: stb_image.h there is older than 2.28\n")
    code, out, err = machine.flags()
    assert (code, out) == (0, "-isystem build\n") and "since those found are older than 2.28" in err


# ---- Debian's package ----

def debian(machine: Machine, folder: Path, headers: dict[str, bytes]) -> None:
    """apt-get, which notes its calls and downloads a tar file of these headers; dpkg-deb, which unpacks it."""
    put(folder / "usr/include/stb", headers)
    with tarfile.open(folder / "libstb-dev.deb", "w") as archive:
        archive.add(folder / "usr", "usr")
    machine.tool("dpkg-deb", 'tar -xf "$2" -C "$3"')
    machine.tool("apt-get", f"""echo "$*" >>{machine.project}/apt.log
case "$*" in
*" download libstb-dev") cp {folder}/libstb-dev.deb . ;;
indextargets* | *" update") ;;
*) exit 1 ;;
esac""")


def test_the_package_of_debian(machine: Machine, tmp_path: Path) -> None:
    """Unpacked without root, by an apt that has lists of its own; the system's stay as they are."""
    debian(machine, tmp_path / "deb", HEADERS)
    assert machine.flags()[:2] == (0, "-isystem build\n")
    assert machine.brought() == [f"stb/{header}" for header in NAMES] and machine.requests == []
    calls = (machine.project / "apt.log").read_text().splitlines()
    assert len(calls) == 3 and all(f"Dir::State={machine.project}/build/setup." in call for call in calls[1:])
    assert not any(" install" in call for call in calls)


@pytest.mark.parametrize("headers", [HEADERS | {"stb_image.h": b"#error damaged\n"}, OLD], ids=["damaged", "old"])
def test_a_package_that_does_not_fit(machine: Machine, tmp_path: Path, headers: dict[str, bytes]) -> None:
    """Then the download comes next."""
    debian(machine, tmp_path / "deb", headers)
    assert machine.flags()[:2] == (0, "-isystem build\n") and sorted(machine.requests) == NAMES


# ---- make ----

def real_headers(folder: Path) -> dict[str, bytes]:
    """The headers that the project itself is built with."""
    flags = subprocess.run(["sh", "test/setup.sh", "flags"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    prefix = "" if "-DJANUS_STB_FLAT" in flags else "stb/"
    (folder / "find.c").write_text("".join(f"#include <{prefix}{name}>\n" for name in NAMES))
    listed = subprocess.run([COMPILER, *flags, "-M", folder / "find.c"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name: (ROOT / next(word for word in listed.split() if word.endswith(f"/{name}"))).read_bytes() for name in NAMES}


@pytest.mark.parametrize("make", MAKES)
def test_make_on_a_bare_machine(machine: Machine, tmp_path: Path, make: str) -> None:
    """The program and the library come out of a fresh copy, side by side; and not without the headers."""
    headers = real_headers(tmp_path)
    shutil.copy(ROOT / "test/setup.sh", machine.project / "test")
    pin(machine.project / "test/setup.sh", headers)
    for name in ("Makefile", "janus.c", "janus.h"):
        shutil.copy(ROOT / name, machine.project)
    machine.tool(make)
    build = (make, "-j", "2", "janus", "libjanus.so", "CFLAGS=-O0 -DJANUS_NO_SIMD", f"STB_URL={machine.url}")
    cut = headers | {"stb_image.h": headers["stb_image.h"][:-100]}
    for setting, files, message in (("FETCH=no", headers, MISSING), ("FETCH=yes", cut, "refused: "),
                                    ("STB=/nonexistent", headers, "STB=/nonexistent: that folder has no stb_image.h")):
        machine.files = files
        code, out, err = machine.run(*build, setting)
        assert (code == 2 or code and make != "make") and message in out + err and not (machine.project / "janus").exists()
    machine.files = headers
    machine.requests.clear()
    code, out, err = machine.run(*build)
    assert code == 0 and "warning" not in out + err, out + err
    assert sorted(machine.requests) == NAMES and (machine.project / "libjanus.so").exists()  # fetched once
    assert "janus generate" in machine.run("./janus", "--help")[1]


@pytest.mark.parametrize("make", MAKES)
def test_help_lists_every_target(make: str) -> None:
    """make help has a line for each target that is no file; what is listed can be made."""
    def run(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        return subprocess.run([make, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    lines = [line for line in run("help").splitlines() if line.startswith("    make ")]
    listed = [line.split()[1] for line in lines]
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)[1].replace("\\", " ").split()
    assert set(phony) == {name for name in listed if "." not in name} and len(listed) == len(set(listed))
    assert all(len(line) <= 120 and len(line.split()) > 2 for line in lines)
    run("-n", *listed)


# ---- make test without Python ----

@pytest.fixture
def tested(machine: Machine) -> Machine:
    """A machine with test/run.sh, C tests that pass, and no Python."""
    shutil.copy(ROOT / "test/run.sh", machine.project / "test")
    (machine.project / "test/requirements.txt").write_text("")
    (machine.project / "built/fuzz").mkdir(parents=True)
    for name in ("test_janus", "test_kernels", "test_faults", "fuzz/replay"):
        c_test(machine, name, "echo 2 passed, 0 failed")
    return machine


def c_test(machine: Machine, name: str, script: str) -> None:
    """A program that stands for one of the C tests."""
    (machine.project / "built" / name).write_text(f"#!/bin/sh\n{script}\n")
    (machine.project / "built" / name).chmod(0o755)


def test_the_c_tests_run_without_python(tested: Machine) -> None:
    """What is left out is named; where $CI is set that is a failure."""
    left_out = "left out: the Python tests (no Python 3 with venv and pip; make deps installs it)\n"
    command = ("sh", "test/run.sh", "c", "python")
    code, out, _ = tested.run(*command, BUILT="built")
    assert code == 0 and out.endswith(f"{left_out}10 passed, 0 failed\n")
    code, out, _ = tested.run(*command, BUILT="built", CI="true")
    assert code == 1 and f"{left_out}failed: the Python tests" in out and out.endswith("\n10 passed, 1 failed\n")


@pytest.mark.parametrize("limiter", [name for name in ("timeout", "perl") if shutil.which(name)])
def test_parts_that_fail_are_named(tested: Machine, limiter: str) -> None:
    """One that counts a failure, one that dies of a signal, one that ends without a count and one that hangs."""
    tested.tool(limiter)
    c_test(tested, "test_janus", "echo 3 passed, 2 failed; exit 1")
    c_test(tested, "test_kernels", "kill -ABRT $$")
    c_test(tested, "test_faults", "echo no count")
    c_test(tested, "fuzz/replay", "sleep 100")
    code, out, _ = tested.run("sh", "test/run.sh", "c", BUILT="built", LIMIT="2")
    failed, total = out.splitlines()[-2:]
    assert code == 1 and total == "3 passed, 6 failed"
    assert re.fullmatch("failed: built/test_janus, exit 1; built/test_kernels, exit 134; built/test_kernels amx, exit 134; built/test_faults; "
                        "built/fuzz/replay test/fuzz/corpus test/fuzz/regressions, killed after [234] s", failed), failed


@pytest.mark.parametrize("fetch", ["yes", "no"])
def test_root_installs_python_first(tested: Machine, fetch: str) -> None:
    """make deps runs by itself for root alone, and not where nothing may be fetched."""
    (tested.tools / "id").unlink()
    tested.tool("id", "echo 0")
    tested.tool("apt-get", f"echo \"$*\" >>{tested.project}/apt.log")
    code, out, _ = tested.run("sh", "test/run.sh", "c", "python", BUILT="built", FETCH=fetch)
    assert code == 0 and "left out: the Python tests" in out and out.endswith("\n10 passed, 0 failed\n")
    log = tested.project / "apt.log"
    assert log.exists() == (fetch == "yes")
    if fetch == "yes":
        update, install = log.read_text().splitlines()
        assert update == "update -q" and install.startswith("install -y ") and " python3-venv" in install


def test_deps_without_root(machine: Machine) -> None:
    """Without root and sudo the command is told, not tried."""
    machine.tool("apt-get", f"echo called >>{machine.project}/apt.log")
    code, _, err = machine.run("sh", "test/setup.sh", "install")
    assert code == 1 and "As root:\n    apt-get install -y " in err and not (machine.project / "apt.log").exists()
    machine.tool("sudo", '"$@"')
    assert machine.run("sh", "test/setup.sh", "install")[0] == 0 and len((machine.project / "apt.log").read_text().splitlines()) == 2
