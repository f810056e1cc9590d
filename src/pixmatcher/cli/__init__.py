"""The command line: one module for each group of commands; they read options and print, and hold no logic.

Modules of other packages are imported inside the commands, so that each command starts fast. May import all packages
but `web`, which only the command `app` starts.
"""

# ruff: noqa: F401, I001
from ._app import app, main

# To import a module registers its commands, in the order in which the help shows them.
from . import index
from . import search
from . import evaluate
from . import maps
from . import collection
from . import export
from . import sources
from . import demo
from . import web_app
from . import models
from . import datasets

__all__ = ["app", "main"]
