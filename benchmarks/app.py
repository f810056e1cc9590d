"""Measure the speed and memory of the web app on 20,000 items in a real browser (headless Chromium).

Results are complete when the app is idle, all requested tiles exist, and each tile in the window shows its image. The
browser runs on the same cores as the server, so several visitors at the same time are slower here than with machines of
their own. Each result is printed with its target for 2 cores without a GPU.

    python benchmarks/app.py [--only alone together memory] [--collection FOLDER] [--data tiny-imagenet-mini.zip]

Without --collection, a collection of the train images of the data is created first, which takes minutes.
Needs the extra `app`, Playwright and Chromium (Debian: the package `chromium`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

from pixmatcher import Collection

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
RESULTS = 24
"""The default number of results in the app."""

COMPLETE = """
([count, before]) => {
  if (!document.querySelector("[data-testid=stApp][data-test-script-state=notRunning]")) return false;
  const inner = [...document.querySelectorAll("*")].filter((each) => each.shadowRoot);
  const pictures = inner.flatMap((each) => [...each.shadowRoot.querySelectorAll(".tile img")]);
  const shown = pictures.map((each) => each.src.slice(-200)).join(" ");
  const inside = pictures.filter((each) => each.getBoundingClientRect().top < innerHeight);
  const drawn = inside.every((each) => each.complete && each.naturalWidth > 0);
  return pictures.length === count && drawn && shown !== before && shown;
}
"""


@contextlib.contextmanager
def running_app(collection: Path) -> Iterator[tuple[str, int]]:
    """Start the app for a collection with its command; yield its URL and the id of the server process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "pixmatcher", "app", "--no-browser", "--port", str(port), "-c", str(collection)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            if process.poll() is not None:
                sys.exit("The app stopped during its start.")
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield url, int(children.read_text().split()[0]) if children.exists() else process.pid
    finally:
        process.terminate()
        process.wait(30)


def resident(process: int) -> tuple[float, float]:
    """Return the resident memory of a process in MB, and the part of it that is not mapped from files (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    sizes = [int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmRSS", "RssAnon")]
    return sizes[0] * 1024 / 1e6, sizes[1] * 1024 / 1e6


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process in seconds, over all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Visitor:
    """A page of the app in a browser session of its own."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shown = ""

    @classmethod
    async def arrive(cls, browser: Browser, url: str) -> Visitor:
        """Open a page of the app in a new session."""
        context = await browser.new_context(locale="en-US", viewport={"width": 1280, "height": 900})
        page = await context.new_page()
        await page.goto(url)
        await page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
        await page.locator("input[type=file], input[placeholder='a dog on the beach']").wait_for(state="attached")
        return cls(page)

    async def leave(self) -> None:
        """Close the session."""
        await self.page.context.close()

    async def upload(self, picture: bytes) -> float:
        """Upload an image; return the seconds until its results are complete."""
        file = {"name": "picture.jpg", "mimeType": "image/jpeg", "buffer": picture}
        started = time.perf_counter()
        await self.page.set_input_files("input[type=file]", file)
        return await self._wait(started, RESULTS)

    async def search_text(self, text: str) -> float:
        """Search for a text; return the seconds from pressing Enter until its results are complete."""
        await self.page.get_by_placeholder("a dog on the beach").fill(text)
        started = time.perf_counter()
        await self.page.keyboard.press("Enter")
        return await self._wait(started, RESULTS)

    async def similar(self, place: int) -> float:
        """Click "Similar" at a result; return the seconds until the new results are complete."""
        button = self.page.locator(".tile").nth(place).get_by_role("button", name="Similar")
        await button.scroll_into_view_if_needed()
        started = time.perf_counter()
        await button.click()
        return await self._wait(started, RESULTS)

    async def rotate(self) -> float:
        """Rotate the query image; return the seconds until the new results are complete."""
        button = self.page.get_by_role("button", name="Turn right")
        started = time.perf_counter()
        await button.click()
        return await self._wait(started, RESULTS)

    async def count(self, more: bool) -> float:
        """Double (or halve) the number of results; return the seconds until they are complete."""
        await self.page.get_by_role("slider", name="Number of results").focus()
        started = time.perf_counter()
        await self.page.keyboard.press("ArrowRight" if more else "ArrowLeft")
        return await self._wait(started, 2 * RESULTS if more else RESULTS)

    async def _wait(self, started: float, results: int) -> float:
        shown = await self.page.wait_for_function(COMPLETE, arg=[results, self.shown], timeout=60_000)
        seconds = time.perf_counter() - started
        self.shown = await shown.json_value()
        return seconds


def print_times(title: str, seconds: list[float], target: float) -> None:
    """Print the median and the range of times."""
    middle, most = statistics.median(seconds), max(seconds)
    print(
        f"{title}: median {1000 * middle:.0f} ms ({1000 * min(seconds):.0f} to {1000 * most:.0f}, {len(seconds)} times;"
        f" target {1000 * target:.0f})",
        flush=True,
    )


async def alone(browser: Browser, url: str, pictures: Iterator[bytes], texts: Iterator[str], repeats: int) -> None:
    """Print the times of single visitors."""
    first, again, rotated, similar, more, fewer = ([] for _ in range(6))
    for _ in range(repeats):
        visitor = await Visitor.arrive(browser, url)
        first.append(await visitor.upload(next(pictures)))
        again.append(await visitor.upload(next(pictures)))
        rotated.append(await visitor.rotate())
        more.append(await visitor.count(True))
        fewer.append(await visitor.count(False))
        similar += [await visitor.similar(3), await visitor.similar(4)]
        await visitor.leave()
    print_times("first upload of a visitor", first, 1)
    print_times("next upload", again, 0.3)
    print_times("rotated image", rotated, 0.3)
    print_times(f"{2 * RESULTS} results instead of {RESULTS}", more, 0.3)
    print_times(f"{RESULTS} results instead of {2 * RESULTS}", fewer, 0.3)
    print_times("similar to a result", similar, 0.3)
    first, again = [], []
    for _ in range(repeats):
        visitor = await Visitor.arrive(browser, f"{url}/text")
        first.append(await visitor.search_text(next(texts)))
        again += [await visitor.search_text(next(texts)) for _ in range(2)]
        await visitor.leave()
    print_times("first text of a visitor", first, 1)
    print_times("next text", again, 0.3)


async def together(
    browser: Browser,
    url: str,
    process: int,
    pictures: Iterator[bytes],
    texts: Iterator[str],
    visitors: int,
    repeats: int,
) -> None:
    """Print the times of visitors who search at the same time, half of them with an image, half with a text."""
    everyone = [await Visitor.arrive(browser, url if n % 2 else f"{url}/text") for n in range(visitors)]
    rounds, work = [], []
    for _ in range(repeats):
        before = cpu_seconds(process)
        searches = [v.upload(next(pictures)) if n % 2 else v.search_text(next(texts)) for n, v in enumerate(everyone)]
        rounds.append(await asyncio.gather(*searches))
        work.append(cpu_seconds(process) - before)
    for visitor in everyone:
        await visitor.leave()
    print_times(f"{visitors} visitors at the same time, first search", rounds[0], 2)
    print_times(
        f"{visitors} visitors at the same time, later searches", [each for times in rounds[1:] for each in times], 2
    )
    print_times(f"{visitors} visitors at the same time, slowest of a round", [max(times) for times in rounds], 2)
    print(f"  CPU time of the server in a round: {statistics.median(work):.2f} s; the rest is that of the browsers")


async def memory(
    browser: Browser, url: str, process: int, pictures: Iterator[bytes], texts: Iterator[str], searches: int
) -> None:
    """Print the resident memory of the server during many searches with images and texts, by changing visitors."""
    sizes = {}
    done = 0
    while done < searches:
        by_picture, by_text = await Visitor.arrive(browser, url), await Visitor.arrive(browser, f"{url}/text")
        for _ in range(25):
            await asyncio.gather(by_picture.upload(next(pictures)), by_text.search_text(next(texts)))
        await by_picture.leave()
        await by_text.leave()
        done += 50
        sizes[done] = resident(process)
        if done % 150 == 50:
            print(f"  after {done} searches {sizes[done][0]:.0f} MB ({sizes[done][1]:.0f} not from files)", flush=True)
    growth = sizes[done][0] - sizes[50][0]
    print(f"growth of memory from search 50 to {done}: {growth:+.0f} MB (target within 50)", flush=True)


def pictures_of(archive: Path) -> Iterator[bytes]:
    """Yield images that are in no collection: alternately enlarged validation images of the data and example photos.

    Each is a new file, so that nothing about it is cached.
    """
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")]
        for number, name in enumerate(itertools.cycle(names)):
            buffer = io.BytesIO()
            with Image.open(io.BytesIO(file.read(name))) as image:
                image.convert("RGB").resize((1200, 1200), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            yield buffer.getvalue()
            # Bytes after the end of the image make each file different.
            yield photos[number % len(photos)] + number.to_bytes(4, "little")


def texts_of(collection: Path) -> Iterator[str]:
    """Return sentences with names of labels."""
    with Collection.open(collection) as opened:
        names = [name.partition(",")[0] for name in opened.label_names().values()]
    return (f"a {one} near a {other}" for one, other in itertools.permutations(names, 2))


async def measure(arguments: argparse.Namespace, url: str, process: int) -> None:
    """Run the chosen parts in a browser."""
    pictures, texts = pictures_of(arguments.data), texts_of(arguments.collection)
    async with async_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        # The sandbox does not work for root, which is usual in containers.
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        if "alone" in arguments.only:
            await alone(browser, url, pictures, texts, arguments.repeats)
        if "together" in arguments.only:
            await together(browser, url, process, pictures, texts, 10, arguments.repeats)
        if "memory" in arguments.only:
            await memory(browser, url, process, pictures, texts, arguments.searches)
        await browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("alone", "together", "memory")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--searches", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.collection is None:
            arguments.collection = Path(folder, "collection")
            source = f"tiny-imagenet:{arguments.data}?split=train"
            command = [sys.executable, "-m", "pixmatcher", "index", source, "-c", str(arguments.collection)]
            subprocess.run(command, check=True)
        print(f"load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        with running_app(arguments.collection) as (url, process):
            asyncio.run(measure(arguments, url, process))
        print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
