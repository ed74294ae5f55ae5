# SPDX-License-Identifier: MIT
"""make web-serve: build/web at http://127.0.0.1:8000, with the headers that isolate a page."""
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Its pages share no process with others, and the browser asks anew for each file."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, directory=str(Path(__file__).resolve().parents[2] / "build/web"))

    def end_headers(self) -> None:
        for header in ("Cross-Origin-Opener-Policy: same-origin", "Cross-Origin-Embedder-Policy: require-corp", "Cache-Control: no-cache"):
            self.send_header(*header.split(": "))
        super().end_headers()


if __name__ == "__main__":
    print("http://127.0.0.1:8000/")
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
