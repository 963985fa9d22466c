#!/usr/bin/env python3
"""Takes pictures of the pages that Leveret makes, wide and narrow, light and dark, so that somebody looks at them.

`make looks` runs it. It needs chromium, which it controls through a pipe (the DevTools protocol), so nothing else does.
A page is a function that writes an HTML file, and a line in `PAGES`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS: Final = (1280, 400)
SCHEMES: Final = ("light", "dark")
#: Seconds that the pictures of a page may take.
TIMEOUT: Final = 120.0
#: Pixels, more than any page has.
TALLEST: Final = 20_000


def bench(*arguments: str) -> Callable[[Path], None]:
    """The page of `leveret bench` with these arguments, compared with an earlier run."""

    def make(file: Path) -> None:
        earlier = file.with_suffix(".earlier.json")
        command = [sys.executable, "-P", "-m", "leveret.cli", "bench", *arguments, "--size", "1024", "--repeat", "3"]
        subprocess.run([*command, "--json", earlier], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, "--html", file, "--compare", earlier], check=True)

    return make


#: The pages by name: what writes each.
PAGES: Final[dict[str, Callable[[Path], None]]] = {
    "bench": bench("--count", "20000"),
    "bench-consume": bench("basic-consume", "--count", "100000"),
}


@dataclass(frozen=True)
class Browser:
    """A browser that runs, with one page.

    Attributes:
        write: The file descriptor that takes commands.
        read: What brings answers and events.
    """

    write: int
    read: Any
    numbers: Iterator[int]
    session: str = ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol; returns its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def wait_for(self, event: str) -> None:
        """Waits for an event of the page."""
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            if not byte:
                sys.exit("the browser ended")
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message


@contextlib.contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Starts a browser and opens a page in it."""
    commands, write = os.pipe()
    read, answers = os.pipe()

    def connect() -> None:
        # The browser reads commands from descriptor 3, and writes to 4.
        first, second = os.dup(commands), os.dup(answers)
        os.dup2(first, 3)
        os.dup2(second, 4)

    options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # chromium refuses to run as root otherwise
    with tempfile.TemporaryDirectory() as profile, open(read, "rb") as reader:
        process = subprocess.Popen(
            [program, *options, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,  # noqa: PLW1509 - this program has one thread
        )
        os.close(commands)
        os.close(answers)
        deadline = threading.Timer(TIMEOUT, process.kill)
        deadline.start()
        try:
            whole = Browser(write, reader, itertools.count(1))
            target = whole.call("Target.createTarget", url="about:blank")["targetId"]
            session = whole.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            page = Browser(write, reader, whole.numbers, session)
            page.call("Page.enable")
            yield page
        finally:
            deadline.cancel()
            process.kill()
            process.wait()
            os.close(write)


def take(page: Browser, url: str, file: Path, *, width: int, scheme: str, height: int, scale: float) -> None:
    """Takes a picture of a page from its top down."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Page.navigate", url=url)
    page.wait_for("Page.loadEventFired")
    content = page.call("Page.getLayoutMetrics")["cssContentSize"]
    if content["width"] > width:
        print(f"{file.name}: the page is {content['width']} pixels wide and scrolls sideways")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, content["height"]), "scale": scale}
    shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    file.write_bytes(base64.b64decode(shot["data"]))
    print(f"{file} ({file.stat().st_size // 1024} KiB)")


def main() -> None:
    """Makes the pages that were asked for, and their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help=f"which of {', '.join(PAGES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("build/looks"), help="the folder for pages and pictures")
    parser.add_argument(
        "--height", type=int, default=TALLEST, help="the tallest picture in pixels; longer pages are cut"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="the size of the pictures, 1 as it is")
    options = parser.parse_args()
    if unknown := set(options.pages) - PAGES.keys():
        parser.error(f"no such page: {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        sys.exit("chromium is needed for pictures, and is not installed (Debian: apt-get install chromium)")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.pages or PAGES:
        file = (options.out / f"{name}.html").resolve()
        PAGES[name](file)
        with browser(program) as page:
            for width, scheme in itertools.product(WIDTHS, SCHEMES):
                picture = options.out / f"{name}-{width}-{scheme}.png"
                take(
                    page, file.as_uri(), picture, width=width, scheme=scheme, height=options.height, scale=options.scale
                )


if __name__ == "__main__":
    main()
