"""Measure the speed of fetching and indexing remote images from a local server that answers after 50 ms.

Measured are fetching alone, and alternately indexing from URLs and indexing the same images from a folder. The server
runs in a process of its own on the same cores; its CPU time is also printed.

    python benchmarks/remote.py [--only fetch|index ...] [--count 2000] [--latency 50] [--per-host 16]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from pixmatcher import index
from pixmatcher.net.fetch_many import PER_HOST, fetch_all

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"


def small_images(archive: Path, count: int) -> list[bytes]:
    """Return JPEGs of 64 x 64 pixels: validation images of Tiny ImageNet, or parts of the example photos."""
    found: list[bytes] = []
    if archive.is_file():
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")]
            found = [file.read(name) for name in names[:count]]
    else:
        for path in sorted(PHOTOS.glob("*.jpg")):
            with Image.open(path) as photo:
                pixels = photo.convert("RGB").resize((512, 512))
            for left in range(0, 512, 64):
                for top in range(0, 512, 64):
                    buffer = io.BytesIO()
                    pixels.crop((left, top, left + 64, top + 64)).save(buffer, "JPEG", quality=85)
                    found.append(buffer.getvalue())
    # Bytes after the end of the image make each file different.
    return [data + number.to_bytes(4, "little") for number, data in enumerate(islice(cycle(found), count))]


class ImageServer(asyncio.Protocol):
    """A minimal HTTP/1.1 server: it sends the image whose number is the path, after `latency` seconds."""

    answers: list[bytes]
    latency: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        *requests, self.received = (self.received + data).split(b"\r\n\r\n")
        for request in requests:
            number = int(request.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, self.answers[number])


def answer_requests(images: list[bytes], latency: float, connection: Connection) -> None:
    """Run the server; send its port, and after a message its CPU time, through the connection."""
    head = b'HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: image/jpeg\r\nETag: "1"\r\nContent-Length: '
    ImageServer.answers = [head + str(len(image)).encode() + b"\r\n\r\n" + image for image in images]
    ImageServer.latency = latency

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(ImageServer, "127.0.0.1", 0, backlog=1000)
        connection.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, connection.recv)

    asyncio.run(run())
    connection.send(time.process_time())


@contextmanager
def serving(images: list[bytes], latency: float) -> Iterator[str]:
    """Start a server of the images and yield its URL; print its CPU time at the end."""
    context = multiprocessing.get_context("spawn")
    own_end, server_end = context.Pipe()
    process = context.Process(target=answer_requests, args=(images, latency, server_end), daemon=True)
    process.start()
    server_end.close()  # so that reading fails if the server ends
    try:
        yield f"http://127.0.0.1:{own_end.recv()}"
        own_end.send("end")
        print(f"the server took {own_end.recv():.1f} s of CPU time in total")
    finally:
        process.terminate()
        process.join()


def fetch_speed(urls: list[str], batch_size: int, per_host: int) -> None:
    """Print the images per second of fetching alone, and the CPU time for each."""
    started, used = time.perf_counter(), time.process_time()
    requests = ((url, [url]) for url in urls)
    fetched = 0
    for batch in fetch_all(requests, batch_size=batch_size, allow_private=True, per_host=per_host):
        fetched += sum(isinstance(outcome, bytes) for _, outcome in batch)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    assert fetched == len(urls)
    print(f"fetching alone: {fetched / seconds:.0f} images/s, {1000 * used / fetched:.2f} ms of CPU time each")


def index_speed(source: str | Path, count: int) -> tuple[float, float]:
    """Index into a new collection; return the images per second and the CPU milliseconds for each image."""
    with tempfile.TemporaryDirectory() as collection:
        started, used = time.perf_counter(), time.process_time()
        report = index([source], collection, allow_private=True)
        seconds, used = time.perf_counter() - started, time.process_time() - used
    assert report.total == count, report.failures[:3]
    return count / seconds, 1000 * used / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("fetch", "index")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds")
    parser.add_argument("--per-host", type=int, default=PER_HOST, help="parallel requests of fetching alone")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    images = small_images(arguments.data, arguments.count)
    with tempfile.TemporaryDirectory() as name, serving(images, arguments.latency / 1000) as server:
        urls = [f"{server}/{number}.jpg" for number in range(len(images))]
        if "fetch" in arguments.only:
            for _ in range(arguments.repeats):
                fetch_speed(urls, 32, arguments.per_host)
        if "index" in arguments.only:
            listed, folder = Path(name, "urls.txt"), Path(name, "images")
            listed.write_text("\n".join(urls) + "\n")
            folder.mkdir()
            for number, image in enumerate(images):
                (folder / f"{number}.jpg").write_bytes(image)
            index_speed(folder, len(images))  # to load the encoder
            measured: dict[str, list[tuple[float, float]]] = {"a folder": [], "URLs": []}
            for _ in range(arguments.repeats):
                measured["a folder"].append(index_speed(folder, len(images)))
                measured["URLs"].append(index_speed(f"urls:{listed}", len(images)))
            for source, figures in measured.items():
                rates, costs = zip(*figures, strict=True)
                print(
                    f"indexing from {source}: {statistics.median(rates):.0f} images/s "
                    f"(runs {min(rates):.0f} to {max(rates):.0f}{'; target 200' if source == 'URLs' else ''}), "
                    f"{statistics.median(costs):.2f} ms of CPU time each"
                )


if __name__ == "__main__":
    main()
