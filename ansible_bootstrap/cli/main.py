"""The command ``ansible-bootstrap``.

It reads the hub's own configuration file. So what it does for a class the evening before is what the hook would do in
the morning.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ansible_bootstrap import __version__
from ansible_bootstrap.cli.init import add_arguments, init
from ansible_bootstrap.cli.roster import Record, Roster, distinct, shown
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
    try:
        args = make_parser().parse_args(argv)
        logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
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
        description="Create and fill JupyterHub users' directories, as the hub does before a server starts.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the hub's configuration file (default: the first of {', '.join(map(str, CONFIG_FILES))})",
    )
    common.add_argument(
        "-v", "--verbose", action="store_true", help="print the apply program's log to stderr"
    )
    users = argparse.ArgumentParser(add_help=False)
    users.add_argument("names", metavar="NAME", nargs="*", help="a username, as in the hub")
    users.add_argument(
        "--roster",
        metavar="FILE",
        type=lambda name: Roster(Path(name)),
        default=(),
        help="a list of users: one username a line, or CSV whose first line names the columns: name, and any of "
        "directory, uid, gid, storage_host, groups (separated by ;), key",
    )
    everybody = argparse.ArgumentParser(add_help=False)
    everybody.add_argument(
        "--hub",
        action="store_true",
        help="all users of the running hub; needs a token of its API in the environment variable "
        "JUPYTERHUB_API_TOKEN, with the scope list:users, and with read:users:groups to know users' groups",
    )
    everybody.add_argument(
        "--hub-url",
        metavar="URL",
        help="the URL of the hub's API (default: JUPYTERHUB_API_URL, else what the configuration says, usually "
        "http://127.0.0.1:8081/hub/api)",
    )

    run = commands.add_parser(
        "run",
        parents=[users, everybody, common],
        help="bootstrap users now",
        description="Create and fill users' directories now, as the hub would before their servers start. Users who "
        "are complete are skipped, so the same command continues after an interruption. Exit status: 0 if all users "
        "are ready, 1 if any failed, 2 on wrong usage or settings, 130 if interrupted.",
    )
    run.add_argument("--again", action="store_true", help="do not skip users who are complete")
    run.add_argument(
        "--check", action="store_true", help="report what would be changed or refused; change nothing"
    )
    run.add_argument("--diff", action="store_true", help="print the differences in files to stderr")
    run.add_argument(
        "--json", action="store_true", help="print the outcomes as a JSON list, one for each directory"
    )
    run.add_argument("--quiet", action="store_true", help="print no progress to stderr")
    run.set_defaults(function=_run)

    status = commands.add_parser(
        "status",
        parents=[common],
        help="show the last runs, or what happened to one user",
        description="Show the last runs, the failures by reason and the slowest roles. With NAME: what the last runs "
        "did for that user.",
    )
    status.add_argument("name", metavar="NAME", nargs="?", help="a username, as in the hub")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    status.set_defaults(function=_status)

    doctor = commands.add_parser(
        "doctor",
        parents=[users, everybody, common],
        help="say what is wrong with the configuration, the storage and the users' places",
        description="Check the configuration, the hook, versions, roles, timeouts, the apply program, the storage "
        "hosts, and where the storage of users would be: the named users, or else some known ones. "
        "Each finding has the command or the setting that mends it. Nothing is bootstrapped. Exit status: 0 if there "
        "is nothing to say, 1 if there are only warnings, 2 if there are errors, and on wrong usage.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object: findings, users, about")
    doctor.set_defaults(function=_doctor, quiet=False)

    forget = commands.add_parser(
        "forget",
        parents=[users, common],
        help="let the next login or run of these users check everything again",
        description="Remove users from the record of complete users: their next login or run checks everything "
        "again. Their files are not touched. Exits 0 also if there was no record.",
    )
    forget.add_argument("--all", action="store_true", help="all users")
    forget.set_defaults(function=_forget)

    accept = commands.add_parser(
        "accept",
        parents=[common],
        help="let users be new persons, or have new directories",
        description="Let these users have the directories that they would get now. A user who was deleted in the hub "
        "and made again, or has the name that another user had, gets no server before: accept the user if it is the "
        "same person, or once the old directory has been moved away. A known user who would get an empty directory "
        "beside one with files gets no server before either: accept the user to begin anew.",
    )
    accept.add_argument("names", metavar="NAME", nargs="+", help="a username, as in the hub")
    accept.set_defaults(function=_accept)

    begin = commands.add_parser(
        "init",
        help="write a configuration to begin with",
        description="Write a commented jupyterhub_config.py (and what a hub behind sudo needs). What is not given is "
        "asked at a terminal. Nothing is overwritten without --force.",
    )
    add_arguments(begin)
    begin.set_defaults(function=init, verbose=False)

    demo = commands.add_parser(
        "demo",
        help="run a hub on this machine to try it out",
        description="Run a real hub that only this machine can reach. Its users have no directories yet: each gets "
        "one, with a tutorial, when their server starts.",
    )
    demo.add_argument(
        "--once",
        action="store_true",
        help="log in, start a server, check the user's files, print the result, end",
    )
    demo.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(".demo"),
        help="where all of the demo's files are kept (default: %(default)s)",
    )
    demo.add_argument(
        "--port",
        type=int,
        default=8000,
        help="the hub's port (default: %(default)s, or a free one if that is taken)",
    )
    demo.set_defaults(function=_demo, verbose=False)
    return parser


def _run(args: argparse.Namespace) -> int:
    from ansible_bootstrap.cli.report import Progress, Results  # noqa: PLC0415
    from ansible_bootstrap.cli.run import bootstrap_all  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # It ends with the same message as Ctrl-C.
    if not args.hub and not any(True for _ in _records(args)):
        raise RefusedError("nobody to bootstrap: give names, --roster FILE or --hub")
    settings = _load_config(args.config)
    of_hub = list(_of_hub(args, settings)) if args.hub else ()
    # Counted before anything begins, for a roster may be malformed at its end.
    total = sum(1 for _ in distinct(_records(args, of_hub)))
    check = args.check or settings.observing
    if check and not args.check:
        print('ansible-bootstrap: mode is "observe": nothing is changed', file=sys.stderr)
    if args.diff:
        logging.getLogger().setLevel(logging.INFO)
    results = Results(total, check=check, as_json=args.json)
    interrupted = False
    with Progress("checking" if check else "bootstrapping", total, quiet=_is_quiet(args)) as progress:

        def tell(outcome: Outcome, known: bool) -> None:
            results.add(outcome, known)
            progress.advance(outcome, known)

        async def bootstrap() -> None:
            records = distinct(_records(args, of_hub))
            work = asyncio.ensure_future(
                bootstrap_all(settings, records, tell, check=check, diff=args.diff, again=args.again)
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
        go_on = "" if check else "; the same command again continues: users who are complete are skipped"
        print(
            f"ansible-bootstrap: interrupted with {progress.done} of {total} users done{go_on}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if results.failed else EXIT_OK


def _is_quiet(args: argparse.Namespace) -> bool:
    """A program that reads the JSON wants no lines beside it; somebody at a terminal wants the bar."""
    return bool(args.quiet or (args.json and not sys.stderr.isatty()))


def _records(args: argparse.Namespace, of_hub: Iterable[Record] = ()) -> Iterator[Record]:
    """Return a record for each user who was asked for. Of a name twice the first counts: the fullest come first."""
    return chain(args.roster, of_hub, ({"name": name} for name in args.names))


def _of_hub(args: argparse.Namespace, settings: AnsibleBootstrap) -> Iterator[Record]:
    """Yield all users of the hub."""
    from ansible_bootstrap.cli.hub_users import api_url, hub_users  # noqa: PLC0415
    from ansible_bootstrap.cli.report import Progress  # noqa: PLC0415

    url = api_url(args.hub_url, settings.config.get("JupyterHub", {}))
    with Progress("asking the hub", quiet=_is_quiet(args)) as progress:
        yield from hub_users(url, progress.reach)


def _doctor(args: argparse.Namespace) -> int:
    from ansible_bootstrap.cli.doctor import examine  # noqa: PLC0415

    def users(settings: AnsibleBootstrap) -> list[Record]:
        return list(distinct(_records(args, _of_hub(args, settings) if args.hub else ())))

    return examine(lambda: _load_config(args.config), users, as_json=args.json)


def _forget(args: argparse.Namespace) -> int:
    names = _checked({str(record["name"]) for record in _records(args) if record.get("name")})
    if args.all == bool(names):
        raise RefusedError("nobody to forget: give names, --roster FILE, or --all alone")
    with _hubs_ledger(args) as ledger:
        known = ledger.forget_all() if args.all else ledger.forget(names)
    users = "everybody" if args.all else f"{len(names)} users" if len(names) > 1 else ascii(shown(min(names)))
    print(f"Forgot {users}; {known or 'no'} director{'y' if known == 1 else 'ies'} had a record.")
    return EXIT_OK


def _accept(args: argparse.Namespace) -> int:
    names = _checked(set(args.names))
    with _hubs_ledger(args) as ledger:
        known = ledger.accept(names)
    print(f"Accepted {len(names)} users; {known} had a record.")
    return EXIT_OK


def _checked(names: set[str]) -> set[str]:
    """Return the names.

    Raises:
        RefusedError: one is not UTF-8, so no hub has such a user, and SQLite could not be asked for it.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise RefusedError(f"a name is not UTF-8, so nothing was done: {shown(name)}") from None
    return names


@contextlib.contextmanager
def _hubs_ledger(args: argparse.Namespace) -> Iterator[Ledger]:
    """Give the hub's ledger to be changed.

    Which directory is the default depends on the account, and root, who runs commands, has one there, too. So the
    default counts only if a hub has had it.

    Raises:
        SettingsError: there is none, or it cannot be changed.
    """
    from ansible_bootstrap.state.directory import LOCK, default_state_dir  # noqa: PLC0415
    from ansible_bootstrap.state.ledger import FILE, Ledger  # noqa: PLC0415

    state_dir = _load_config(args.config).state_dir
    path = Path(state_dir)
    if not (path / FILE).exists() or (state_dir == default_state_dir() and not (path / LOCK).exists()):
        raise SettingsError(
            f"no hub has a ledger in {state_dir}, so nothing was done: run this as the hub's account, or set "
            "c.AnsibleBootstrap.state_dir"
        )
    try:
        yield Ledger(state_dir)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise SettingsError(f"the ledger in {state_dir} cannot be written: {error}") from None


def _status(args: argparse.Namespace) -> int:
    from ansible_bootstrap.cli.checks import Site, moved_users  # noqa: PLC0415
    from ansible_bootstrap.cli.status import print_past, print_status  # noqa: PLC0415
    from ansible_bootstrap.state.history import FILE, History  # noqa: PLC0415
    from ansible_bootstrap.state.ledger import Ledger  # noqa: PLC0415
    from ansible_bootstrap.state.lookback import look_back  # noqa: PLC0415

    _checked({args.name or ""})
    settings = _load_config(args.config)
    state_dir = settings.state_dir
    history = History(state_dir)
    if not (Path(state_dir) / FILE).exists():
        print(f"ansible-bootstrap: no history in {printable(state_dir)}", file=sys.stderr)
    try:
        past = history.outcomes(args.name, LAST_OUTCOMES) if args.name else []
        places = Ledger(state_dir).places(args.name) if args.name else []
        runs, all_of_it = history.runs(LAST_RUNS), look_back(history)
        site = Site(settings, lambda _: ())
        # Not for a program that asks every minute: each known user's place is worked out.
        site.ledger = None if args.name or args.json else Ledger(state_dir)
        moved = len(asyncio.run(moved_users(site)))
    except (OSError, ValueError, sqlite3.Error) as error:
        raise SettingsError(f"the history in {state_dir} cannot be read: {error}; move it away") from None
    if args.name:
        print_past(args.name, past, places, as_json=args.json)
    else:
        print_status(runs, all_of_it, moved, as_json=args.json)
    return EXIT_OK


def _demo(args: argparse.Namespace) -> int:
    if not all(importlib.util.find_spec(name) for name in ("jupyterhub", "requests")):
        raise SettingsError("JupyterHub is missing: pip install 'ansible-bootstrap[demo]'")
    from ansible_bootstrap.demo import run_demo  # noqa: PLC0415

    return run_demo(args.directory, port=args.port, once=args.once)


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
