"""The command ``ansible-bootstrap``.

It reads the hub's own configuration file, so that what it does to a class the evening before is what
the hook would do in the morning.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import __version__
from .errors import AnsibleBootstrapError, RefusedError, SettingsError
from .roster import distinct, read_roster

if TYPE_CHECKING:
    from .config import AnsibleBootstrap

EXIT_OK: Final = 0
EXIT_SOME_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

CONFIG_FILES: Final = (Path("jupyterhub_config.py"), Path("/etc/jupyterhub/jupyterhub_config.py"))
"""Where the hub's configuration is looked for, if ``--config`` does not say."""


LAST_RUNS: Final = 20
LAST_OUTCOMES: Final = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    try:
        status: int = args.function(args)
    except AnsibleBootstrapError as error:
        print(f"ansible-bootstrap: {error.details or error.message}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(
            "ansible-bootstrap: interrupted; whoever is not listed as ok may be unfinished", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SOME_FAILED
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; a test compares it with the README."""
    parser = argparse.ArgumentParser(
        prog="ansible-bootstrap",
        description="Bootstrap the storage of JupyterHub users, as the hub's hook would.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="bootstrap users now",
        description="Bootstrap users now. Exits 0 if every user converged, 1 if any failed, 2 on wrong usage.",
    )
    run.add_argument("names", metavar="NAME", nargs="*", help="a username")
    run.add_argument(
        "--roster", metavar="FILE", type=Path, help="one name a line, or CSV with a column 'name'"
    )
    run.add_argument("--check", action="store_true", help="say what would be done or refused; write nothing")
    run.add_argument("--diff", action="store_true", help="show what differs, on stderr")
    run.add_argument("--json", action="store_true", help="print a list of outcomes")
    _common(run)
    run.set_defaults(function=_run)

    status = commands.add_parser(
        "status",
        help="show the last runs, or what became of one user",
        description="Show the last runs, or what became of one user.",
    )
    status.add_argument("name", metavar="NAME", nargs="?", help="a username")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    _common(status)
    status.set_defaults(function=_status)

    demo = commands.add_parser(
        "demo",
        help="run a real hub on loopback whose users have no storage yet",
        description="Run a real hub on loopback whose users have no storage yet, with the hook and a tutorial.",
    )
    demo.add_argument(
        "--once", action="store_true", help="log in, spawn, check the notebook's files, report, end"
    )
    demo.add_argument(
        "--directory", type=Path, default=Path(".demo"), help="holds all it leaves (%(default)s)"
    )
    demo.add_argument("--port", type=int, default=8000, help="port on loopback (%(default)s, or a free one)")
    demo.set_defaults(function=_demo, verbose=False)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the hub's configuration (default: the first of {', '.join(map(str, CONFIG_FILES))})",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the apply program's log, on stderr"
    )


def _run(args: argparse.Namespace) -> int:
    from .bulk import bootstrap_all  # noqa: PLC0415
    from .report import Progress, print_outcomes  # noqa: PLC0415

    records = distinct(
        [{"name": name} for name in args.names] + (read_roster(args.roster) if args.roster else [])
    )
    if not records:
        raise RefusedError("nobody to bootstrap: give names or --roster FILE")
    settings = _load_config(args.config)
    check = args.check or settings.observing
    if check and not args.check:
        print('ansible-bootstrap: mode is "observe": nothing is changed', file=sys.stderr)
    if args.diff:
        logging.getLogger().setLevel(logging.INFO)
    with Progress(total=len(records), show=sys.stderr.isatty()) as progress:
        outcomes = asyncio.run(
            bootstrap_all(settings, records, check=check, diff=args.diff, on_outcome=progress.advance)
        )
    print_outcomes(outcomes, check=check, as_json=args.json, seconds=progress.seconds)
    return EXIT_SOME_FAILED if any(outcome.status == "failed" for outcome in outcomes) else EXIT_OK


def _status(args: argparse.Namespace) -> int:
    from .history import History  # noqa: PLC0415
    from .report import print_past, print_runs  # noqa: PLC0415

    state_dir = _load_config(args.config).state_dir
    history = History(state_dir)
    try:
        if args.name:
            print_past(args.name, history.outcomes(args.name, LAST_OUTCOMES), as_json=args.json)
        else:
            print_runs(history.runs(LAST_RUNS), as_json=args.json)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise SettingsError(f"the history in {state_dir} cannot be read: {error}; move it away") from None
    return EXIT_OK


def _demo(args: argparse.Namespace) -> int:
    if not all(importlib.util.find_spec(name) for name in ("jupyterhub", "requests")):
        raise SettingsError("JupyterHub is missing: pip install 'ansible-bootstrap[demo]'")
    from .demo import DemoError, run_demo  # noqa: PLC0415

    try:
        return run_demo(args.directory, port=args.port, once=args.once)
    except DemoError as error:
        raise SettingsError(str(error)) from None


def _load_config(path: Path | None) -> AnsibleBootstrap:
    """Return ``AnsibleBootstrap`` as the hub's configuration file sets it.

    Raises:
        SettingsError: there is no such file, or it fails.
    """
    from traitlets.config.loader import PyFileConfigLoader  # noqa: PLC0415

    from .config import AnsibleBootstrap  # noqa: PLC0415

    file = path or next((candidate for candidate in CONFIG_FILES if candidate.is_file()), None)
    if file is None or not file.is_file():
        wanted = str(path) if path else " and no ".join(map(str, CONFIG_FILES))
        raise SettingsError(f"no {wanted}: name the hub's configuration with --config FILE")
    loader = PyFileConfigLoader(file.name, path=str(file.absolute().parent))
    try:
        return AnsibleBootstrap(config=loader.load_config())
    except AnsibleBootstrapError:
        raise
    except Exception as error:
        raise SettingsError(f"{file}: {type(error).__name__}: {error}") from error
