"""Indexing on a Ray cluster: worker processes on its nodes read, decode and encode; this process compares and stores.

`_cluster` connects, `_worker` is what runs on the nodes, `_pool` keeps the worker processes, `_portions` divides the
entries, and `_workers` brings them together. Entries go to the nodes, items and rows come back. Ray is imported
inside functions only.
"""

from ._cluster import check_call
from ._workers import RayWorkers

__all__ = ["RayWorkers", "check_call"]
