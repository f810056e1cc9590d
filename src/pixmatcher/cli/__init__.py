"""The command line: one module for each group of commands; they read options and print, and hold no logic.

Modules of other packages are imported inside the commands, so that each command starts fast. May import all packages
but `web`, which only the command `app` starts.
"""

from ._app import app, main

# Importing a module registers its commands; the help shows them in this order.
from . import index  # isort: skip
from . import search  # isort: skip
from . import evaluate  # isort: skip
from . import maps  # isort: skip
from . import collection  # isort: skip
from . import export  # isort: skip
from . import sources  # isort: skip
from . import demo  # isort: skip
from . import web_app  # isort: skip
from . import models, datasets  # isort: skip

__all__ = ["app", "main"]
