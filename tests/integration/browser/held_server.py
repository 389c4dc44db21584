"""A single-user server with a page to look at. It does not answer while there is a file ``hold`` in its directory."""

import os
import signal
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlparse


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", os.environ["HUB_VERSION"])
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Notebook</title><h1>Your notebook</h1>")

    def log_message(self, *args: object) -> None:
        pass


signal.signal(signal.SIGINT, signal.SIG_DFL)  # How LocalProcessSpawner.stop begins.
while os.path.exists("hold"):
    time.sleep(0.02)
url = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
HTTPServer((url.hostname or "127.0.0.1", url.port or 0), Handler).serve_forever()
