"""A headless Chromium driven over a pipe, by as much of the Chrome DevTools Protocol as looking at a page needs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Page:
    """One tab. `requests` are the addresses that it has asked for, `blocked` what its own policy has forbidden."""

    def __init__(self, heard: BinaryIO, told: BinaryIO) -> None:
        self._out, self._in = heard, told
        self._rest, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.blocked: list[str] = []
        self._events: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; the test's own time limit is the limit."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._in.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, file: Path, width: int, *, dark: bool = False) -> None:
        """Show a file on a screen of this width, and wait until it is there."""
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", media="screen", features=theme)
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self._events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def evaluate(self, script: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._out.fileno(), 1 << 16)
            assert data, "Chromium has left"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if method == "Log.entryAdded":
            self.blocked.append(parameters["entry"]["text"])
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A Chromium of its own, for which every host is a closed port of this machine."""
    assert PROGRAM
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    switches = (
        "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run "
        "--disable-extensions --disable-background-networking --disable-component-update --remote-debugging-pipe"
    ).split()
    command = [PROGRAM, *switches, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * 127.0.0.1:9"]
    # The protocol wants the descriptors 3 and 4; not every sh can name those above 9.
    through = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(through, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with open(ours_out, "rb") as heard, open(ours_in, "wb", buffering=0) as told:  # noqa: PTH123 (descriptors)
            yield Page(heard, told)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
