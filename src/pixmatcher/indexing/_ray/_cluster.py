"""The connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from ..._cores import usable_cores
from ...encoders import Encoder
from ...errors import ClusterError

_log = logging.getLogger("pixmatcher.indexing")

THIS_MACHINE = "ray"
_CLIENT = re.compile(r"ray://([^/:\s]+|\[[0-9A-Fa-f:.]+\]):(\d+)/?")
_CONNECT_SECONDS = 10.0


def check_call(on: str, encoders: Sequence[Encoder]) -> None:
    """Raise `ClusterError` if `on` names no place where images can be encoded, or Ray is not installed.

    Also if there are encoder objects, which other processes do not have.
    """
    if on != THIS_MACHINE and _CLIENT.fullmatch(on) is None:
        raise ClusterError(f"{on!r} is no place to encode images: use 'ray', or 'ray://HOST:PORT' of a Ray cluster.")
    if find_spec("ray") is None:
        raise ClusterError("Ray is not installed: run `pip install 'pixmatcher[ray]'`.")
    if encoders:
        raise ClusterError(
            f"The encoder object {encoders[0].name} stays in this process: install it as a package on all nodes, and "
            "give its name."
        )


@contextmanager
def connected(on: str) -> Iterator[None]:
    """Connect to the cluster that `on` names, or start one on this machine, which ends with the block.

    A connection that the process has already is used, and stays. Raises `ClusterError` if no cluster answers.
    """
    address = os.environ.get("RAY_ADDRESS", "") if on == THIS_MACHINE else on
    _check_port(address)
    import ray

    if ray.is_initialized():
        yield
        return
    with _silent():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _connect(address)
        except Exception as error:  # Ray raises errors of many kinds
            with contextlib.suppress(Exception):
                ray.shutdown()
            raise ClusterError(_refusal(address, error)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address, **quiet)
        except ConnectionAbortedError:  # the head is so busy that the process for this client did not start in time
            ray.init(address, **quiet)
        return
    try:
        ray.init("auto", **quiet)  # a cluster that runs on this machine
    except ConnectionError:
        _log.info("A Ray cluster is started on this machine")
        ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **quiet)


def _check_port(address: str) -> None:
    """Raise `ClusterError` if nothing answers at an address, which Ray itself would only notice after minutes."""
    match = re.fullmatch(r"(?:\w+://)?(\[[^\]]+\]|[^/:\s]+):(\d+)/?", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"No Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}): correct the address, "
            "or start the cluster."
        ) from error


def _refusal(address: str, error: Exception) -> str:
    """Return the sentence for a cluster that cannot be used."""
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return (
            f"The Ray cluster at {address} has another version of Ray or Python ({text[:300]}): install the same "
            "versions here."
        )
    if not address:
        return f"Ray cannot be started on this machine ({text[:300]}): free memory and disk space, or leave out --on."
    if "timeout" in text or "uthenticat" in text:  # Ray Client does not say that a token is missing
        return (
            f"The Ray cluster at {address} does not answer ({text[:300]}): if it needs a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; else look at its log."
        )
    return f"The Ray cluster at {address} does not accept the connection ({text[-300:]}): look at the log of its head."


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from reporting usage, and from printing; PixMatcher reports what happens."""
    import ray._private.worker as ray_worker

    loggers = [logging.getLogger("ray"), logging.getLogger("ray._private")]
    levels = [logger.level for logger in loggers]
    reports_usage = os.environ.get("RAY_USAGE_STATS_ENABLED")
    prints: object = getattr(ray_worker, "_worker_logs_enabled", None)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if prints is not None:  # Ray prints the death of a worker process to standard output, also without `log_to_driver`
        ray_worker._worker_logs_enabled = False
    try:
        yield
    finally:
        if prints is not None:
            ray_worker._worker_logs_enabled = prints
        if reports_usage is None:
            os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
