"""Chromium without a window, driven through two pipes with its DevTools protocol, so no package is needed."""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Nothing but the page may use the network, and the machine has neither a screen nor a GPU.
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-default-apps --hide-scrollbars --remote-debugging-pipe
    --use-fake-device-for-media-stream""".split()

# Frames have to come in time, so nothing else should be running: `-n 0 -m browser`.
BROWSER_MARKS = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]


def in_browser(test):
    """Mark a test that needs a browser."""
    for mark in BROWSER_MARKS:
        test = mark(test)
    return test


class Browser:
    """One browser with one page. `events` are the messages about the page that have come in so far."""

    def __init__(self, profile, *options):
        to_browser, self._to_browser = os.pipe()
        self._from_browser, from_browser = os.pipe()
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *options, "about:blank"]
        # The browser reads from descriptor 3 and writes to 4; a plain sh may not know descriptors above 9.
        shell = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(shell, pass_fds=(to_browser, from_browser), **quiet)
        os.close(to_browser)
        os.close(from_browser)
        self._session, self._number, self._buffer, self.events = None, 0, b"", []
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to_browser)
        os.close(self._from_browser)

    def send(self, method, **parameters):
        """Call a method of the DevTools protocol and return its result, a dict."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to_browser, data) :]
        while True:
            answer = self._receive(120)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds):
        """Return the next message; each ends with a zero byte."""
        while b"\0" not in self._buffer:
            assert select.select([self._from_browser], [], [], seconds)[0], "no answer from the browser"
            data = os.read(self._from_browser, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        """Open a page and wait until it is there."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def run(self, script):
        """Run JavaScript in the page and return the value of its last expression; a promise is awaited."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition, seconds=20):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"still not true after {seconds} s: {condition}"
            time.sleep(0.05)

    def text(self, selector):
        """Return the text of an element as it can be seen."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")
