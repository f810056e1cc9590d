"""The client of the HTTP service: a collection on another machine, with the methods and results of a local one.

May import `images`, `net`, `encoders`, `sources`, `collection`, `indexing` and `searching`.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ._client import Client, open_http, open_https

_MODULES = {"_client": ("Client", "open_http", "open_https")}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = ["Client", "open_http", "open_https"]
