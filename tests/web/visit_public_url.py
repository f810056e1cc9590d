"""Run in a network of its own, where this machine has a public address: the page of images fetches a URL from there.

Takes an image; writes the digest of what is searched for, and then what is said of a URL of a private address.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from streamlit.testing.v1 import AppTest

ADDRESS = "8.8.8.8"


def _page() -> None:
    from pixmatcher.web._pages import image_search

    image_search.show()


def main(image: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    server = ThreadingHTTPServer(("0.0.0.0", 0), partial(SimpleHTTPRequestHandler, directory=image.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    app = AppTest.from_function(_page, default_timeout=60)
    app.session_state["way"] = "url"
    app.run()
    for address in (ADDRESS, "127.0.0.1"):
        app.text_input[0].input(f" http://{address}:{server.server_port}/{image.name} ")
        app.button[0].click().run()
        assert not app.exception, app.exception
        what = app.session_state["query_image"]
        sys.stdout.write(f"{what.digest if what else app.error[0].value}\n")


sys.argv, image = sys.argv[:1], Path(sys.argv[1])
main(image)
