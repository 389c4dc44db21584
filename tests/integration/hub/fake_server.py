"""A single-user server as far as the hub can tell: answers 200, and says the hub's version."""

import os
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlparse

import jupyterhub._version


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", jupyterhub._version.__version__)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


signal.signal(signal.SIGINT, signal.SIG_DFL)  # How LocalProcessSpawner.stop begins.
url = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
HTTPServer((url.hostname or "127.0.0.1", url.port or 0), Handler).serve_forever()
