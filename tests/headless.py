"""Chromium without a window, driven over its own pipe; nothing beside the browser is needed."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE = 60.0
# Chromium reads commands from its descriptor 3 and writes answers to 4; both are moved out of the
# way first, since one may stand where the other has to go.
_EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def browser_path() -> str | None:
    """The first browser on PATH, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Headless:
    """One browser with one page open.

    Attributes:
        events: What the browser reported since the page was opened: (method, parameters).
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        flags += [
            "--disable-background-networking",
            "--disable-component-update",
            "--no-proxy-server",
        ]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        if os.geteuid() == 0:
            flags.insert(0, "--no-sandbox")  # the sandbox does not start as root
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(to_read), str(to_write), program, *flags],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        targets = self("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, file: Path, *, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Opens a file in a window.

        Args:
            file: The page.
            width: Width of the window in CSS pixels; below 600 it is a phone.
            scheme: The colours that the reader prefers: "light" or "dark".
            media: "screen" or "print".
        """
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", media=media, features=features)
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        self("Page.navigate", url=file.resolve().as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._message()

    def value(self, expression: str) -> Any:
        """What an expression is in the open page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def reports(self, *methods: str) -> list[Mapping[str, Any]]:
        """The parameters of what the browser reported under these names."""
        return [parameters for method, parameters in self.events if method in methods]

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(timeout=_PATIENCE)
        os.close(self._write)
        os.close(self._read)

    def __enter__(self) -> Headless:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _message(self) -> dict[str, Any]:
        """The next message; reports are kept on the way."""
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser said nothing for a minute"
            data = os.read(self._read, 1 << 20)
            assert data, f"the browser ended with {self._process.poll()}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message
