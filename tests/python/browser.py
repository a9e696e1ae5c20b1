"""A headless Chromium, spoken to over a pipe by the DevTools protocol: no port, no package.

Everything the page asks of a network and everything it says on its console is kept.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

LIMIT = 60.0  # seconds an answer may take
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def find_browser() -> str | None:
    """The program, where it is installed; a snap sees no files of tests."""
    program = shutil.which("chromium")
    return None if program and program.startswith("/snap/") else program


class Browser:
    """A browser with one page; used with `with`."""

    def __init__(self, program: str, profile: Path):
        ours, theirs = os.pipe(), os.pipe()  # it reads from ours, and writes to theirs
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--no-first-run", "--disable-background-networking", "--disable-extensions"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # It reads commands from descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(ours[0], theirs[1]),
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        self._unread, self._number, self._session = b"", 0, None
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        answer = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:  # in order, so that it removes its own files
            self.ask("Browser.close")
            self._process.wait(LIMIT)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _hear(self, end: float) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser says nothing"
            more = os.read(self._from, 1 << 20)
            assert more, "the browser has ended"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        return json.loads(line)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + LIMIT
        while True:
            heard = self._hear(end)
            if heard.get("id") == self._number:
                assert "error" not in heard, (method, heard["error"])
                return heard["result"]
            self._events.append(heard)

    def open(self, page: Path) -> None:
        """Load a file, with all that it holds."""
        self.ask("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + LIMIT
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._hear(end))

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        how = {"returnByValue": True, "awaitPromise": True}
        answer = self.ask("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """The size of the window, in the page's pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def picture(self) -> np.ndarray:
        """The whole page as seen, rows x columns x RGB, 0 to 1."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return imread(io.BytesIO(base64.b64decode(answer["data"])))[..., :3]

    def requests(self) -> list[str]:
        """The addresses that the page asked for, but for what it holds itself."""
        asked = [e for e in self._events if e.get("method") == "Network.requestWillBeSent"]
        addresses = [event["params"]["request"]["url"] for event in asked]
        return [address for address in addresses if not address.startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors, warnings and whatever else reached the console."""
        return [json.dumps(e["params"]) for e in self._events if e.get("method") in COMPLAINTS]
