"""The command ``ansible-bootstrap`` in a process that is forked from one with JupyterHub's modules.

The import of JupyterHub takes one second of a processor, and each command does it anew. The processes that run the
command are otherwise as the console script starts them; some tests start that script itself.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ansible_bootstrap.cli.main", "ansible_bootstrap.config", "jupyterhub.app"])


def run(*args: str, cwd: Path, seconds: float = 100) -> CompletedProcess[str]:
    """Run the command with these arguments and return how it ended."""
    said = [cwd / f".{name}-{os.getpid()}" for name in ("stdout", "stderr")]
    process = _CONTEXT.Process(target=_command, args=(args, str(cwd), *map(str, said)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    texts = [path.read_text() for path in said]
    for path in said:
        path.unlink()
    return CompletedProcess(args, process.exitcode or 0, *texts)


def _command(args: tuple[str, ...], cwd: str, *said: str) -> None:
    for number, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    sys.argv = ["ansible-bootstrap", *args]
    from ansible_bootstrap.cli.main import main

    sys.exit(main())
