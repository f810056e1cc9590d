"""A real server on loopback that speaks S3, for the tests of buckets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

START = "from moto.server import main; import sys; main(sys.argv[1:])"


@contextmanager
def s3_server(*buckets: str, calls_without_key: int | None = None, port: int = 0) -> Iterator[str]:
    """Run a server with these buckets, on a free port or this one; yield its address.

    Any key is right, unless `calls_without_key` says after how many calls the server knows none.
    """
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    if calls_without_key is not None:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(calls_without_key)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log, env=environment
        )
        try:
            yield _prepared(process, log, buckets)
        finally:
            process.kill()
            process.wait()


def _prepared(process: subprocess.Popen[bytes], log: IO[str], buckets: Sequence[str]) -> str:
    """Wait until the server listens, create the buckets, and return its address."""
    while True:
        log.seek(0)
        if match := re.search(r"Running on (http://\S+)\n", log.read()):
            break
        assert process.poll() is None, "the server does not start"
        time.sleep(0.05)
    for bucket in buckets:
        urllib.request.urlopen(urllib.request.Request(f"{match[1]}/{bucket}", method="PUT")).close()
    return match[1]


def credentials(address: str) -> Mapping[str, str]:
    """The environment of a process that uses the server at an address."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
