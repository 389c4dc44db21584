"""A single-user server that works in its home. Run by the system's Python, which every user can reach."""

import os
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlparse


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", os.environ["HUB_VERSION"])
        self.end_headers()

    def log_message(self, *args):
        pass


with Path("starts.txt").open("a") as starts:
    starts.write(f"{os.getuid()} {os.getcwd()}\n")
Path("scratch").mkdir(exist_ok=True)
Path("scratch/big.tmp").touch()
Path("scratch/kept.txt").touch()

signal.signal(signal.SIGINT, signal.SIG_DFL)  # How LocalProcessSpawner.stop begins.
url = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
HTTPServer((url.hostname, url.port), Handler).serve_forever()
