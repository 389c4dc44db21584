"""A single-user server as far as the hub can tell: answers 200, and says the hub's version.

With a file ``crash`` in its home directory it dies before it answers; with one called ``die``, a second after it did.
"""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlparse

import jupyterhub._version

HOME = Path(os.environ["HOME"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", jupyterhub._version.__version__)
        self.end_headers()
        if (HOME / "die").exists():
            threading.Timer(1, os._exit, [1]).start()

    def log_message(self, *args: object) -> None:
        pass


if (HOME / "crash").exists():
    sys.exit(1)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # How LocalProcessSpawner.stop begins.
url = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
HTTPServer((url.hostname or "127.0.0.1", url.port or 0), Handler).serve_forever()
