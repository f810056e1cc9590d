"""A stand-in for Ngrok's agent: it logs and answers on its local API as the agent does, and opens no tunnel."""

from __future__ import annotations

import json
import sys
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
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = {
            "name": asked.get("name", "x"),
            "uri": self.path + "/x",
            "public_url": URL,
            "url": URL,
            "proto": "https",
        }
        self._answer(201, told | {"config": {"addr": asked.get("addr")}, "metrics": {}})

    def log_message(self, *_: object) -> None:
        pass


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if "--authtoken" in sys.argv and sys.argv[sys.argv.index("--authtoken") + 1] == "bad":
    say('t=2026-01-01T00:00:00+0000 lvl=eror msg="failed to reconnect session" err="authentication failed"')
    sys.exit(1)
server = HTTPServer(("127.0.0.1", 0), Api)
start = "t=2026-01-01T00:00:00+0000 lvl=info"
say(f'{start} msg="starting web service" obj=web addr=127.0.0.1:{server.server_port}')
say(f'{start} msg="tunnel session started" obj=tunnels.session')
say(f'{start} msg="client session established" obj=csess')
server.serve_forever()
