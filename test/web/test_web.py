# SPDX-License-Identifier: MIT
"""make web-test: the page in the system's Chromium and Firefox, beside ./janus. Screenshots go to build/web-test."""
import io
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from serve import Handler

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = {"chromium": {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]},
            "firefox": {"executable_path": "/usr/bin/firefox-esr", "channel": "moz-firefox"}}
PROMPTS = [("a red circle", 0), ("two blue squares", 7), ("a green tree and a yellow car", 123456789012345678),
           ("un cœur rouge", 2), ("three pink flowers", 18446744073709551615)]
expect.set_options(timeout=60_000)  # milliseconds, for a machine that does other work
instead: dict[str, str] = {}  # what the server sends for a file; nothing: it is lost


class Flaky(Handler):
    """A server that loses files and changes them."""

    def send_head(self) -> object:
        text = instead.get(self.path.strip("/"))
        if text is None:
            return super().send_head()
        self.send_response(200 if text else 404)
        self.send_header("Content-Type", "text/javascript")
        self.end_headers()
        return io.BytesIO(text.encode())


web = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
threading.Thread(target=web.serve_forever, daemon=True).start()
ADDRESS = f"http://127.0.0.1:{web.server_port}/"


@pytest.fixture(params=BROWSERS)
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab in which nothing may go wrong but what the server loses."""
    faults: list[str] = []
    instead.clear()
    with sync_playwright() as playwright:
        tab = getattr(playwright, request.param).launch(**BROWSERS[request.param]).new_page(viewport={"width": 1280, "height": 900})
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        tab.add_init_script("shifts = []; new PerformanceObserver((seen) => shifts.push(...seen.getEntries())).observe({type: 'layout-shift'})")
        yield tab
    assert [fault for fault in faults if "404" not in fault and "style-src-elem" not in fault] == []  # the latter: Playwright's for screenshots


def janus(*arguments: object) -> str:
    return subprocess.run([ROOT / "janus", *map(str, arguments)], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def native_ids(folder: Path, prompt: str, seed: int) -> list[int]:
    """The program's ids; its picture is FOLDER/picture.png."""
    janus("generate", "-q", "--seed", seed, "--dump", folder / str(seed), "-o", folder / "picture.png", prompt)
    numbers = (folder / str(seed) / "generation.ids.npy").read_bytes()[128:]
    return [int.from_bytes(numbers[i:i + 4], "little") for i in range(0, len(numbers), 4)]


def ids(page: Page, grid: str) -> list[int]:
    return [int(title) for title in page.locator(f"{grid} i").evaluate_all("cells => cells.map(cell => cell.title)")]


def draw(page: Page, prompt: str, seed: int, more: str = "") -> list[int]:
    """Opens a link and waits for its picture."""
    link = f"{urlencode({'prompt': prompt, 'seed': seed})}{more}"
    if page.url.startswith(ADDRESS):
        expect(page.locator("body")).to_have_attribute("data-busy", "false")
        page.evaluate("link => { location.hash = link; }", link)
    else:
        page.goto(f"{ADDRESS}#{link}")
    expect(page.locator("#picture")).to_have_attribute("alt", f"Drawn for the prompt: {prompt}")
    expect(page.locator("body")).to_have_attribute("data-busy", "false")
    return ids(page, "#grid")


def test_as_native(page: Page, tmp_path: Path) -> None:
    """Links draw what the program draws, with SIMD and without, into a file that says the same; photos are seen as it sees them."""
    ours, native = tmp_path / "page.png", tmp_path / "picture.png"
    for prompt, seed in PROMPTS:
        numbers = native_ids(tmp_path, prompt, seed)
        assert draw(page, prompt, seed) == numbers
        ours.write_bytes(bytes(page.evaluate("async () => [...new Uint8Array(await (await fetch(document.querySelector('#download').href)).arrayBuffer())]")))
        assert janus("info", ours) == janus("info", native)
    expect(page.locator("#model-name")).to_contain_text(", SIMD")
    page.goto("about:blank")
    assert draw(page, prompt, seed, "&simd=off") == numbers
    expect(page.locator("#model-name")).to_contain_text("no SIMD")
    page.set_input_files("#photo-file", native)
    page.click("#ask")
    expect(page.locator("#answer")).to_have_text(janus("ask", "-i", native, "What is in the picture?"))
    page.click("#encode")
    expect(page.locator("#again")).to_be_visible()
    assert ids(page, "#codes") == [int(id) for id in janus("encode", native).split()]


def test_growth(page: Page) -> None:
    """The picture grows token by token, and each step names what was likely; a drawing can be stopped."""
    draw(page, "two red hearts", 7, "&simd=off")
    page.evaluate("""() => { grown = []; new MutationObserver(() => grown.push(document.querySelectorAll('#grid i[title]').length))
        .observe(document.querySelector('#grid'), {attributes: true, subtree: true}); }""")
    page.click("#draw")
    expect(page.locator("#grid i[title]").nth(9)).to_be_visible()
    page.screenshot(path=ROOT / f"build/web-test/{page.context.browser.browser_type.name}-growing.png")
    expect(page.locator("#download[href]")).to_be_visible()
    assert len(set(page.evaluate("grown"))) > 20
    page.click("#steps summary")
    for _ in range(4):
        page.press("#step", "ArrowRight")
    expect(page.locator("#plain li, #guided li")).to_have_count(16)
    assert page.inner_text("#guided .taken").startswith(str(ids(page, "#grid")[4]))
    for status in ("Drawing", "Stopped", "64 tokens"):
        page.click("#draw")
        expect(page.locator("#status")).to_contain_text(status)


def test_errors(page: Page, tmp_path: Path) -> None:
    """What fails is said, and a click goes on: no WebAssembly, lost files, files that are no model, a worker that dies."""
    def alert(text: str) -> None:
        expect(page.locator("#alert:not([hidden])")).to_contain_text(text)

    instead["tiny.gguf"] = ""
    page.goto(ADDRESS)
    alert("tiny.gguf could not be fetched")
    page.evaluate("() => { kept = WebAssembly; WebAssembly = undefined; }")
    page.click("#alert-action")
    alert("no WebAssembly")
    page.evaluate("() => { WebAssembly = kept; }")
    instead.clear()
    instead["worker.js"] = ""
    page.click("#alert-action")
    alert("ended unexpectedly")
    instead["worker.js"] = (ROOT / "test/web/worker.js").read_text().replace('"web_ask", image', '"web_ask", -8, 2 ** 28')  # beyond its memory
    page.click("#alert-action")
    expect(page.locator("#download[href]")).to_be_visible()
    instead.clear()
    page.click("#ask")
    alert("ended unexpectedly")
    page.click("#alert-action")
    expect(page.locator("#answer")).to_contain_text("hearts")
    with open(tmp_path / "large.gguf", "wb") as large:
        large.write(b"GGUF")
        large.truncate(5 << 30)
    (tmp_path / "damaged.gguf").write_bytes((ROOT / "weights/tiny.gguf").read_bytes()[:1 << 20])
    for file, message in ((tmp_path / "large.gguf", "5.4 GB"), (ROOT / "janus.h", "no model file"), (tmp_path / "damaged.gguf", "1.0 MB")):
        page.set_input_files("#model-file", file)
        alert(message)
    page.click("#alert-action")
    alert("truncated")
    page.click("#alert-action")
    expect(page.locator("#model-name")).to_contain_text("janus-tiny")
    page.set_input_files("#model-file", ROOT / "weights/tiny.gguf")
    page.click("#alert-action")
    draw(page, "a blue house", 1)
    page.set_input_files("#photo-file", ROOT / "janus.h")
    page.click("#ask")
    alert("PNG")


# Texts and their contrast with what lies behind them, by WCAG.
CONTRASTS = """() => {
    const channels = (colour) => colour.match(/[0-9.]+/g).map(Number);
    const light = (colour) => channels(colour).slice(0, 3).map((c) => (c < 10.32 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0.05);
    const behind = (at) => (channels(getComputedStyle(at).backgroundColor)[3] === 0 ? behind(at.parentElement) : getComputedStyle(at).backgroundColor);
    return [...document.body.querySelectorAll('*')].filter((at) => at.checkVisibility() && [...at.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
        .map((at) => [light(getComputedStyle(at).color), light(behind(at)), at.textContent]).map(([a, b, text]) => [Math.max(a, b) / Math.min(a, b), text]);
}"""


def test_looks(page: Page) -> None:
    """Contrast, a phone's width, and, where Chromium measures it, a layout that does not shift."""
    name = page.context.browser.browser_type.name
    for scheme, width in [("light", 1280), ("light", 360)] + [("dark", 1280), ("dark", 360)] * (name == "chromium"):  # Firefox stays light
        page.goto("about:blank")
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        draw(page, "a red house and a yellow tree", 4)
        page.click("#ask")
        expect(page.locator("#answer")).to_contain_text(".")
        assert page.evaluate("shifts.filter((shift) => !shift.hadRecentInput)") == []
        page.screenshot(path=ROOT / f"build/web-test/{name}-{scheme}-{width}.png", full_page=True)
        page.click("#steps summary")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 40 and [entry for entry in contrasts if entry[0] < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
