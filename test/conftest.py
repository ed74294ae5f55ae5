# SPDX-License-Identifier: MIT
"""For all tests in Python: programs start with default signals."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Under nohup or `make test &` signals are ignored, which programs inherit. A handler is not inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, *(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
