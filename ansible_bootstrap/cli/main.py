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
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ansible_bootstrap import __version__
from ansible_bootstrap.cli.roster import Record, Roster, distinct
from ansible_bootstrap.errors import AnsibleBootstrapError, RefusedError, SettingsError
from ansible_bootstrap.storage._errors import printable

if TYPE_CHECKING:
    from ansible_bootstrap.config import AnsibleBootstrap
    from ansible_bootstrap.protocol import Outcome
    from ansible_bootstrap.state.ledger import Ledger

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
        print(f"ansible-bootstrap: {printable(error.details or error.message)}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("ansible-bootstrap: interrupted", file=sys.stderr)
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
        description="Bootstrap users now, as the hook would at their next login. Whoever is known to be complete is "
        "left out, so a command that was interrupted is given again to continue. Exits 0 if every user converged, "
        "1 if any failed, 2 on wrong usage, 130 if interrupted.",
    )
    run.add_argument("names", metavar="NAME", nargs="*", help="a username")
    run.add_argument(
        "--roster", metavar="FILE", type=Path, help="one name a line, or CSV with a column 'name'"
    )
    run.add_argument(
        "--hub",
        action="store_true",
        help="all users of the running hub; needs a token with the scope list:users in the environment "
        "variable JUPYTERHUB_API_TOKEN, and read:users:groups to know users' groups",
    )
    run.add_argument(
        "--hub-url",
        metavar="URL",
        help="of the hub's API (default: JUPYTERHUB_API_URL, else by the configuration, http://127.0.0.1:8081/hub/api)",
    )
    run.add_argument("--again", action="store_true", help="also whoever is known to be complete")
    run.add_argument("--check", action="store_true", help="say what would be done or refused; write nothing")
    run.add_argument("--diff", action="store_true", help="show what differs, on stderr")
    run.add_argument(
        "--json", action="store_true", help="print a list of outcomes, in the order in which they came"
    )
    run.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _common(run)
    run.set_defaults(function=_run)

    status = commands.add_parser(
        "status",
        help="show the last runs and what they add up to, or what became of one user",
        description="Show the last runs, failures by reason, the slowest roles; or what became of one user.",
    )
    status.add_argument("name", metavar="NAME", nargs="?", help="a username")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    _common(status)
    status.set_defaults(function=_status)

    forget = commands.add_parser(
        "forget",
        help="remove users from the ledger, so that their next login or run does everything again",
        description="Remove users from the ledger: their next login, or run, looks at everything again. Their files "
        "are not touched. Exits 0 also if there was no record.",
    )
    forget.add_argument("names", metavar="NAME", nargs="*", help="a username")
    forget.add_argument("--roster", metavar="FILE", type=Path, help="as for run; only the names count")
    forget.add_argument("--all", action="store_true", help="everybody")
    _common(forget)
    forget.set_defaults(function=_forget)

    accept = commands.add_parser(
        "accept",
        help="let users who were deleted in the hub and made again have their old directories",
        description="Say that the users who have these names now are the persons who had the directories before, or "
        "that the old directories have been moved away. Their next login is as ever.",
    )
    accept.add_argument("names", metavar="NAME", nargs="+", help="as in the hub")
    _common(accept)
    accept.set_defaults(function=_accept)

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
    from ansible_bootstrap.cli.report import Progress, Results  # noqa: PLC0415
    from ansible_bootstrap.cli.run import bootstrap_all  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Whoever stops it is told the same.
    records = _Asked(args)
    if not args.hub and not any(True for _ in records):
        raise RefusedError("nobody to bootstrap: give names, --roster FILE or --hub")
    settings = _load_config(args.config)
    if args.hub:
        records.of_hub = list(_of_hub(args, settings))
    # Before anything begins, for a roster may be malformed at its end.
    total = sum(1 for _ in distinct(records))
    check = args.check or settings.observing
    if check and not args.check:
        print('ansible-bootstrap: mode is "observe": nothing is changed', file=sys.stderr)
    if args.diff:
        logging.getLogger().setLevel(logging.INFO)
    results = Results(total, check=check, as_json=args.json)
    what = "checking" if check else "bootstrapping"
    interrupted = False
    with Progress(what, total, quiet=_is_quiet(args)) as progress:

        def tell(outcome: Outcome, known: bool) -> None:
            results.add(outcome, known)
            progress.advance(outcome, known)

        async def bootstrap() -> None:
            work = asyncio.ensure_future(
                bootstrap_all(
                    settings, distinct(records), tell, check=check, diff=args.diff, again=args.again
                )
            )
            # As asyncio does on Ctrl-C, which itself is ignored in the background of a script.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
            await work

        try:
            asyncio.run(bootstrap())
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted = True
    results.print(progress.seconds)
    if interrupted:
        go_on = "" if check else "; the same command again continues: whoever is complete is left out"
        print(
            f"ansible-bootstrap: interrupted with {progress.done} of {total} users done{go_on}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if results.failed else EXIT_OK


def _is_quiet(args: argparse.Namespace) -> bool:
    """A program that reads the JSON wants no lines beside it; somebody at a terminal wants the bar."""
    return bool(args.quiet or (args.json and not sys.stderr.isatty()))


class _Asked:
    """The records of those who were asked for; each iteration makes them anew."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._roster: Iterable[Record] = Roster(args.roster) if args.roster else ()
        self._names: list[str] = args.names
        self.of_hub: Sequence[Record] = ()

    def __iter__(self) -> Iterator[Record]:
        # Of the same name twice the first counts: who says most comes first.
        return chain(self._roster, self.of_hub, ({"name": name} for name in self._names))


def _of_hub(args: argparse.Namespace, settings: AnsibleBootstrap) -> Iterator[Record]:
    """Yield all users of the hub."""
    from ansible_bootstrap.cli.hub_users import api_url, hub_users  # noqa: PLC0415
    from ansible_bootstrap.cli.report import Progress  # noqa: PLC0415

    url = api_url(args.hub_url, settings.config.get("JupyterHub", {}))
    with Progress("asking the hub", quiet=_is_quiet(args)) as progress:
        yield from hub_users(url, progress.reach)


def _forget(args: argparse.Namespace) -> int:
    names = _told({str(record["name"]) for record in _Asked(args) if record.get("name")})
    if args.all == bool(names):
        raise RefusedError("nobody to forget: give names, --roster FILE, or --all alone")
    state_dir = _load_config(args.config).state_dir
    ledger = _ledger(state_dir)
    if ledger is None:
        return EXIT_SOME_FAILED
    known = _written(state_dir, lambda: ledger.forget_all() if args.all else ledger.forget(names))
    users = "everybody" if args.all else f"{len(names)} users" if len(names) > 1 else ascii(min(names))
    print(f"Forgot {users}; {known or 'no'} director{'y' if known == 1 else 'ies'} had a record.")
    return EXIT_OK


def _accept(args: argparse.Namespace) -> int:
    names = _told(set(args.names))
    state_dir = _load_config(args.config).state_dir
    ledger = _ledger(state_dir)
    if ledger is None:
        return EXIT_SOME_FAILED
    known = _written(state_dir, lambda: ledger.accept(names))
    print(f"Accepted {len(names)} users; {known} of the names had belonged to somebody.")
    return EXIT_OK


def _told(names: set[str]) -> set[str]:
    """Return the names.

    Raises:
        RefusedError: one is not UTF-8, so no hub has such a user, and SQLite could not be asked for it.
    """
    try:
        " ".join(names).encode()
    except UnicodeEncodeError as error:
        raise RefusedError(f"a name is not UTF-8, so nothing was done: {error.object}") from None
    return names


def _ledger(state_dir: str) -> Ledger | None:
    """Return the hub's ledger; None if there is none, which is said.

    Which directory is the default goes by the account, and who runs commands as root has one there, too: so it counts
    only if a hub has had it.
    """
    from ansible_bootstrap.state.directory import LOCK, default_state_dir  # noqa: PLC0415
    from ansible_bootstrap.state.ledger import FILE, Ledger  # noqa: PLC0415

    path = Path(state_dir)
    if (path / FILE).exists() and (state_dir != default_state_dir() or (path / LOCK).exists()):
        return Ledger(state_dir)
    print(
        f"ansible-bootstrap: no hub has a ledger in {printable(state_dir)}, so nothing was done: run this as the hub's "
        "account, or set c.AnsibleBootstrap.state_dir",
        file=sys.stderr,
    )
    return None


def _written(state_dir: str, change: Callable[[], int]) -> int:
    try:
        return change()
    except (OSError, ValueError, sqlite3.Error) as error:
        raise SettingsError(f"the ledger in {state_dir} cannot be written: {error}") from None


def _status(args: argparse.Namespace) -> int:
    from ansible_bootstrap.cli.status import print_past, print_status  # noqa: PLC0415
    from ansible_bootstrap.state.history import FILE, History  # noqa: PLC0415
    from ansible_bootstrap.state.lookback import look_back  # noqa: PLC0415

    _told({args.name or ""})
    state_dir = _load_config(args.config).state_dir
    history = History(state_dir)
    if not (Path(state_dir) / FILE).exists():
        print(f"ansible-bootstrap: no history in {printable(state_dir)}", file=sys.stderr)
    try:
        past = history.outcomes(args.name, LAST_OUTCOMES) if args.name else []
        runs, all_of_it = history.runs(LAST_RUNS), look_back(history)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise SettingsError(f"the history in {state_dir} cannot be read: {error}; move it away") from None
    if args.name:
        print_past(args.name, past, as_json=args.json)
    else:
        print_status(runs, all_of_it, as_json=args.json)
    return EXIT_OK


def _demo(args: argparse.Namespace) -> int:
    if not all(importlib.util.find_spec(name) for name in ("jupyterhub", "requests")):
        raise SettingsError("JupyterHub is missing: pip install 'ansible-bootstrap[demo]'")
    from ansible_bootstrap.demo import DemoError, run_demo  # noqa: PLC0415

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

    from ansible_bootstrap.config import AnsibleBootstrap  # noqa: PLC0415

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
