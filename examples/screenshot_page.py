"""Take a picture of an HTML file as a browser shows it: light or dark, as wide as a desk or a phone.

    python examples/screenshot_page.py PAGE.html OUT.png
    python examples/screenshot_page.py PAGE.html OUT.png --dark --width 390 --height 844

Needs Chromium or Chrome, which is found on the PATH, and nothing else: the browser is spoken to over a pair of pipes.
It says so, and ends with 1, where the page is wider than the window or writes an error to the console.
"""

import argparse
import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # seconds that any answer may take
# The browser reads commands from its descriptor 3 and answers on 4; Popen can only pass descriptors as they are.
_HAND_OVER = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def find_browser() -> str | None:
    """The path of a browser, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Browser:
    """A headless browser with one tab; use it in a with statement."""

    def __init__(self, path: str) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="screenshot-", ignore_cleanup_errors=True)
        commands, self.commands = _far_pipe()
        self.answers, answers = _far_pipe()
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _HAND_OVER, str(commands), str(answers), path, *flags, "about:blank"],
            pass_fds=(commands, answers),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.numbers, self.read, self.session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        try:
            tab = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser, and what it started."""
        self.session = ""
        try:
            self.ask("Browser.close")
            self.process.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: the browser and its processes, nobody else's
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.profile.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"the browser refuses {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.read:
            if not select.select([self.answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError(f"the browser has not answered for {PATIENCE:.0f} seconds")
            part = os.read(self.answers, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended before it answered: start it by hand to see why")
            self.read += part
        message, _, self.read = self.read.partition(b"\0")
        return json.loads(message)

    def show(
        self, page: Path | str, width: int, height: int, *, dark: bool = False, scale: float = 1, media: str = ""
    ) -> None:
        """Load a file or an address into a window of that many pixels, and wait until all of it is there."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.run("document.fonts.ready.then(() => true)")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def errors(self) -> list[str]:
        """What went wrong on the page since it was shown: exceptions, and errors in the console."""
        found = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(told["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif method == "Runtime.consoleAPICalled" and told["type"] == "error":
                found.append(" ".join(str(part.get("value")) for part in told["args"]))
            elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(told["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """What the page asked for since it was shown, but for the data: URIs in it."""
        sent = (
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        )
        return [url for url in sent if not url.startswith("data:")]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.run("document.scrollingElement.scrollWidth - innerWidth")

    def picture(self, whole: bool = True, of: str | None = None) -> bytes:
        """A PNG of the window, of the whole page, or of the element that a selector finds."""
        if not (whole or of):
            return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        element = f"document.querySelector({json.dumps(of)})" if of else "document.documentElement"
        script = f"(r => [r.left + scrollX, r.top + scrollY, r.width, r.height])({element}.getBoundingClientRect())"
        x, y, width, height = self.run(script)
        clip = {"x": max(x, 0), "y": max(y, 0), "width": width, "height": height, "scale": 1}
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])


def _far_pipe() -> tuple[int, int]:
    """A pipe (end to read, end to write) whose descriptors are not among those that a program takes for its own."""
    import fcntl

    ends = os.pipe()
    far = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in ends)
    for end in ends:
        os.close(end)
    return far[0], far[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; 1 where the page overflows or complains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dark", action="store_true", help="as if the reader preferred dark")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels (default: %(default)s)")
    parser.add_argument("--height", default="full", help="of the picture, in pixels, or full (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1, help="device pixels per pixel (default: %(default)s)")
    parser.add_argument("--of", metavar="SELECTOR", help="only the first element of a CSS selector, e.g. '#scatter'")
    parser.add_argument("--print", action="store_true", help="as on paper")
    arguments = parser.parse_args(argv)
    path = find_browser()
    if path is None:
        parser.error(f"no browser: install one of {', '.join(BROWSERS)}")
    whole = arguments.height == "full"
    with Browser(path) as browser:
        height = 900 if whole else int(arguments.height)
        media = "print" if arguments.print else ""
        browser.show(arguments.page, arguments.width, height, dark=arguments.dark, scale=arguments.scale, media=media)
        arguments.out.write_bytes(browser.picture(whole, arguments.of))
        overflow, errors = browser.overflow(), browser.errors()
    print(f"{arguments.out}: {arguments.width} pixels wide, {'dark' if arguments.dark else 'light'}")
    if overflow > 0:
        errors.append(f"the page is {overflow} pixels wider than the window")
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
