"""A process that answers every GET with 200: the gateway that `hotslot up` starts in its own tests."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    host, _, port = os.environ["HOTSLOT_GATEWAY_LISTEN"].rpartition(":")
    HTTPServer((host, int(port)), Handler).serve_forever()
