"""See in a real browser that the pages of score, rank and demo work: with keys, on a phone, in the dark.

    pip install "rclip-metric[demo]"
    python examples/check_pages.py --out PICTURES

Draws scenes, makes pages of them, opens each as wide as a desk and as a phone, light and dark, presses keys and
buttons, and keeps pictures of what it saw. Ends with 1, and says why, where a page is wider than its window, writes an
error to the console, asks a server for anything, or does not do what it should. Needs Chromium or Chrome on the PATH.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from screenshot_page import BROWSERS, Browser, find_browser

from rclip_metric import score
from rclip_metric.cli.main import main as rclip_metric
from rclip_metric.train.data.scenes.draw import edits, generator, render, sample_scene

WINDOWS = {"desk": (1280, 900), "phone": (390, 844)}
PATIENCE = 180  # seconds until a server is up, or an answer there


def draw_pairs(folder: Path, count: int = 4) -> tuple[Path, Path]:
    """Scenes, and the same ones after an edit, in two folders."""
    before, after = folder / "before", folder / "after"
    for place in (before, after):
        place.mkdir(parents=True)
    for index in range(count):
        rng = generator(0, "pages", index)
        scene = sample_scene(rng)
        choices = [edit for edit in edits(scene) if edit.weight in (1, 4)]
        edit = choices[rng.integers(len(choices))]
        for place, shown in ((before, scene), (after, edit.apply(scene, rng))):
            Image.fromarray(render(shown)).resize((256, 256)).save(place / f"{index}.png")
    return before, after


class Checks:
    """What went wrong so far."""

    def __init__(self, browser: Browser, out: Path) -> None:
        self.browser, self.out = browser, out
        self.failures: list[str] = []

    def expect(self, holds: bool, what: str) -> None:
        print(f"{'ok' if holds else 'FAILED':7} {what}", flush=True)
        self.failures += [] if holds else [what]

    def opened(self, page: Path | str, name: str) -> Iterator[str]:
        """Open a page in every window, and look at what is wrong with any page; the windows' names."""
        for window, (width, height) in WINDOWS.items():
            for dark in (False, True):
                where = f"{name}, {window}, {'dark' if dark else 'light'}"
                self.browser.show(page, width, height, dark=dark)
                yield where
                (self.out / f"{where.replace(', ', '-')}.png").write_bytes(self.browser.picture())
                self.expect(self.browser.overflow() <= 0, f"{where}: no wider than the window")
                self.expect(self.browser.errors() == [], f"{where}: no errors in the console {self.browser.errors()}")

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        self.browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.browser.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        script = f"(e => (e.scrollIntoView({{block: 'center'}}), e.getBoundingClientRect().toJSON()))({selector})"
        box = self.browser.run(script)
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.browser.ask("Input.dispatchMouseEvent", type=kind, **point)

    def wait(self, script: str) -> bool:
        """Wait until something holds on the page."""
        return waited(lambda: bool(self.browser.run(script)))


def waited(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.3)
    return True


def check_page(checks: Checks, page: Path, name: str, maps: int) -> None:
    """A page with maps: they are opened with keys and by a press, and closed again."""
    visible = "[...document.querySelectorAll('img.map')].filter(e => e.offsetWidth > 0).length"
    for where in checks.opened(page, name):
        run = checks.browser.run
        checks.expect(run("document.querySelectorAll('img.map').length") == maps, f"{where}: {maps} maps")
        decoded = "Promise.all([...document.images].map(e => (e.loading = 'eager', e.decode())))"
        checks.expect(run(f"{decoded}.then(() => true, () => false)"), f"{where}: every picture is one")
        checks.expect(run(visible) == 0, f"{where}: maps are hidden at first")
        checks.press("Tab", 9)
        checks.expect(run("document.activeElement.tagName") == "SUMMARY", f"{where}: Tab leads to a picture")
        checks.press("Enter", 13)
        checks.expect(run(visible) == 1, f"{where}: Enter shows its map")
        checks.click("document.querySelectorAll('summary')[1]")
        checks.expect(run(visible) == 2, f"{where}: a press shows another")
        checks.press("Enter", 13)
        checks.expect(run(visible) == 1, f"{where}: Enter hides it again")
        requests = [url for url in checks.browser.requests() if not url.startswith("file:")]
        checks.expect(requests == [], f"{where}: asks nobody for anything {requests}")


@contextmanager
def demo() -> Iterator[str]:
    """The demo in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rclip_metric", "demo", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def check_demo(checks: Checks, address: str, a: Path, b: Path) -> None:
    """Upload two images, compare them, attack them."""
    ask = checks.browser.ask
    expected = score(a, b, "tiny")
    for where in checks.opened(address, "demo"):
        for name, file in (("A", a), ("B", b)):
            upload = f"document.querySelector('#image-{name} input[type=file]')"
            checks.expect(checks.wait(f"{upload} !== null"), f"{where}: there is where to upload {name}")
            place = ask("Runtime.evaluate", expression=upload)["result"]["objectId"]
            ask("DOM.setFileInputFiles", files=[str(file)], objectId=place)
            there = f"document.querySelector('#image-{name} img')?.naturalWidth > 0"
            checks.expect(checks.wait(there), f"{where}: {name} is uploaded")
        checks.click("[...document.querySelectorAll('label')].find(e => e.textContent.trim() == 'drawn scenes')")
        checks.click("[...document.querySelectorAll('button')].find(e => e.textContent.trim() == 'Compare')")
        told = f"document.body.innerText.includes('{expected:.4f} is ')"
        checks.expect(checks.wait(told), f"{where}: the distance is {expected:.4f}, as in Python")
        checks.click("[...document.querySelectorAll('button')].find(e => e.textContent.trim() == 'Attack')")
        told = "['tiny-clean (clean)', 'tiny (robust)'].every(words => document.body.innerText.includes(words))"
        checks.expect(checks.wait(told), f"{where}: the attack tells of both models")
        checks.wait("[...document.images].filter(e => e.naturalWidth > 0).length >= 6")
        foreign = [url for url in checks.browser.requests() if not re.match(f"{re.escape(address)}|blob:", url)]
        checks.expect(foreign == [], f"{where}: asks no other server {json.dumps(sorted(set(foreign)))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check all pages; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/pages"), help="folder for pictures (default: %(default)s)"
    )
    parser.add_argument("--no-demo", action="store_true", help="without the demo, which needs Gradio")
    options = parser.parse_args(argv)
    path = find_browser()
    if path is None:
        parser.error(f"no browser: install one of {', '.join(BROWSERS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, Browser(path) as browser:
        folder, checks = Path(made), Checks(browser, options.out)
        before, after = draw_pairs(folder)
        pairs, ranking = folder / "pairs.html", folder / "ranking.html"
        words = ["--model", "tiny", "--quiet"]
        rclip_metric(["score", str(before), str(after), "--html", str(pairs), *words])
        rclip_metric(["rank", str(before / "0.png"), str(after), "--sheet", str(ranking), "--maps", *words])
        check_page(checks, pairs, "pairs", 4)
        check_page(checks, ranking, "ranking", 4)
        if not options.no_demo:
            with demo() as address:
                check_demo(checks, address, before / "0.png", after / "0.png")
    for failure in checks.failures:
        print(failure, file=sys.stderr)
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
