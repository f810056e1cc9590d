"""The HTTP service: `/v1` answers searches, serves items and runs jobs for teams and other programs.

`create_app` returns the ASGI application, `serve` runs it. Routes read requests and write responses, and hold no logic.
May import all packages but the other faces.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .app import create_app
    from .settings import Limits, ServerSettings

_MODULES = {"app": ("create_app",), "settings": ("Limits", "ServerSettings")}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = ["Limits", "ServerSettings", "create_app"]
