"""A stand-in for Ngrok's agent: it logs and answers on its local API as the agent does, and opens no tunnel.

The token says what goes wrong: bad, offline, dies-at-once, dies-when-asked, dies-later.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

URL = "https://stand-in.ngrok-free.app"


class Api(BaseHTTPRequestHandler):
    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(200, {"tunnels": [], "endpoints": []})

    def do_POST(self) -> None:
        if token == "dies-when-asked":
            os._exit(3)
        if token == "dies-later":
            threading.Timer(1, log_and_die).start()
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {
            "name": asked.get("name", "x"),
            "uri": self.path + "/x",
            "public_url": URL,
            "url": URL,
            "proto": "https",
        }
        self._answer(201, answer | {"config": {"addr": asked.get("addr")}, "metrics": {}})

    def log_message(self, *_: object) -> None:
        pass


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def log_and_die() -> None:
    for number in range(3000):  # more than a pipe holds: the agent logs each visitor
        say(f'{START} msg="join connections" id={number:0100}')
    os._exit(3)


START = "t=2026-01-01T00:00:00+0000 lvl=info"
FAILED = 't=2026-01-01T00:00:00+0000 lvl=eror msg="failed to reconnect session"'

token = sys.argv[sys.argv.index("--authtoken") + 1] if "--authtoken" in sys.argv else ""
if token == "bad":
    say(f'{FAILED} err="authentication failed: The authtoken you specified is not valid. ERR_NGROK_107"')
    sys.exit(1)
if token == "dies-at-once":
    sys.exit(3)
while token == "offline":
    say(f'{FAILED} err="failed to dial ngrok server: dial tcp: lookup connect.ngrok-agent.com: no such host"')
    time.sleep(0.2)
server = HTTPServer(("127.0.0.1", 0), Api)
say(f'{START} msg="starting web service" obj=web addr=127.0.0.1:{server.server_port}')
say(f'{START} msg="tunnel session started" obj=tunnels.session')
say(f'{START} msg="client session established" obj=csess')
server.serve_forever()
