"""A class the evening before: which users are bootstrapped, where, in which runs, and which are left out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import SeeingLedger, until
from traitlets.config import Config

from ansible_bootstrap.cli.run import TRIES, bootstrap_all
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch import dispatcher, health
from ansible_bootstrap.dispatch import run as flights
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.state.history import History
from ansible_bootstrap.state.ledger import Ledger

ECHO = Path(__file__).with_name("echo_apply.py")


class Evening:
    """An admin with a hub's configuration, and an apply program that only says back what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = path / "control.json"
        self.log = path / "control.json.log"
        self.applies()
        self.settings: dict[str, Any] = {
            "apply_command": [sys.executable, "-S", str(ECHO), str(self.control)],
            "state_dir": str(path / "state"),
        }
        self.spawner = {"spawner_class": "simple"}
        self.known: list[str] = []

    def applies(self, **control: Any) -> None:
        self.control.write_text(json.dumps(control))

    @property
    def config(self) -> AnsibleBootstrap:
        homes = {"home_dir_template": f"{self.path}/homes/{{username}}"}
        return AnsibleBootstrap(
            config=Config(
                {
                    "JupyterHub": self.spawner,
                    "SimpleLocalProcessSpawner": homes,
                    "AnsibleBootstrap": self.settings,
                }
            )
        )

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path / "state")

    async def runs(self, *records: Any, **options: Any) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        self.known = []

        def tell(outcome: Outcome, known: bool) -> None:
            assert outcome.key not in outcomes
            outcomes[outcome.key] = outcome
            self.known += [outcome.key] if known else []

        users = [{"name": record} if isinstance(record, str) else record for record in records]
        await bootstrap_all(self.config, users, tell, **options)
        return outcomes

    def requests(self, what: str = "begin") -> list[dict[str, Any]]:
        """The bootstraps that the apply program was asked for, oldest first."""
        text = self.log.read_text() if self.log.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # Of the last line there may be only a part yet.
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["what"] == what and line["operation"] == "bootstrap"]

    def asked(self) -> list[str]:
        """The names in all of those."""
        return [user["name"] for request in self.requests() for user in request["users"]]


@pytest.fixture
def evening(tmp_path: Path) -> Evening:
    return Evening(tmp_path)


# Where


async def test_a_directory_is_where_the_spawner_will_have_it(evening: Evening) -> None:
    pytest.importorskip("dockerspawner")
    evening.spawner = {"spawner_class": "docker"}
    config = evening.config
    config.config.DockerSpawner.volumes = {"/volumes/{username}": "/home/jovyan"}
    outcomes: list[Outcome] = []
    await bootstrap_all(config, [{"name": "emmy.noether"}], lambda outcome, known: outcomes.append(outcome))
    assert [outcome.directory for outcome in outcomes] == ["/volumes/emmy-2enoether"]


async def test_the_columns_of_a_roster_win(evening: Evening) -> None:
    evening.settings["on_move"] = "warn"
    evening.ledger.note_places(
        [Place("alice", "/last/alice", 7, 7, "two", also=("/last/work",))], evening.config.place_digest()
    )
    record = {"name": "alice", "directory": "/own/alice", "uid": 2001, "storage_host": "one", "groups": ["a"]}
    await evening.runs(record)
    ((user,),) = [request["users"] for request in evening.requests()]
    assert user == {**record, "key": "alice", "gid": 7, "also": []}


async def test_all_places_of_a_users_last_servers_are_bootstrapped_each_by_itself(evening: Evening) -> None:
    last = [
        Place("alice", "/last/alice", storage_host="localhost"),
        Place("alice", "/last/lab", storage_host="localhost", server_name="lab"),
        Place("alice", "/last/alice", storage_host="localhost", server_name="same"),
    ]
    evening.ledger.note_places(last, evening.config.place_digest())
    outcomes = await evening.runs("alice")
    assert {key: outcome.directory for key, outcome in outcomes.items()} == {
        "alice": "/last/alice",
        "alice:lab": "/last/lab",
    }


async def test_places_recorded_under_other_settings_mean_nothing(evening: Evening) -> None:
    last = Place("alice", f"{evening.path}/moved-away", storage_host="localhost")
    evening.ledger.note_places([last], "others")
    assert (await evening.runs("alice"))["alice"].directory == f"{evening.path}/homes/alice"


async def test_a_directory_in_the_roster_helps_where_the_spawner_cannot_say(evening: Evening) -> None:
    evening.spawner = {"spawner_class": "nope.Spawner"}
    outcomes = await evening.runs("alice", {"name": "bob", "directory": "/own/bob"})
    assert outcomes["bob"].status == "ok"
    assert (outcomes["alice"].status, outcomes["alice"].reason) == ("failed", "unresolved")
    assert "column directory" in outcomes["alice"].message


async def test_a_name_that_the_hub_would_spell_otherwise_is_said_so(evening: Evening) -> None:
    outcomes = await evening.runs("alice", "Emmy")
    assert outcomes["alice"].notes == ()
    assert outcomes["Emmy"].notes == ("the hub would call this user 'emmy', not 'Emmy'",)


# Batches


async def test_batches_are_full_and_hosts_do_not_wait_for_one_another(evening: Evening) -> None:
    evening.settings |= {"batch_size": 100, "storage_host": lambda spawner: spawner.user.name[:3]}
    evening.applies(delay=0.5)
    await evening.runs(*(f"one{number}" for number in range(250)), *(f"two{number}" for number in range(5)))
    runs = [(request["host"], len(request["users"])) for request in evening.requests()]
    assert sorted(runs) == [("one", 50), ("one", 100), ("one", 100), ("two", 5)]
    lines = [json.loads(line) for line in evening.log.read_text().splitlines()]
    begun = [(line["what"], line["host"]) for line in lines]
    assert begun.index(("begin", "two")) < len(begun) - 1 - begun[::-1].index(("end", "one"))
    ones = [what for what, host in begun if host == "one"]
    assert ones == ["begin", "end"] * 3, "one storage host, one run at a time"


async def test_storage_hosts_that_hang_keep_nobody_else_waiting(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More such hosts than there are slots, and listed first."""
    monkeypatch.setattr(flights, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(dispatcher, "TICK_SECONDS", 0.1)
    evening.settings |= {"max_runs": 2, "storage_host": lambda spawner: spawner.user.name[:4]}
    evening.applies(hang=["dis1", "dis2", "dis3"])
    names = [f"dis{number}-u{user}" for user in range(2) for number in (1, 2, 3)]
    told: list[str] = []
    work = asyncio.create_task(
        bootstrap_all(
            evening.config,
            [{"name": name} for name in (*names, "good-u1", "good-u2")],
            lambda outcome, known: told.append(outcome.key),
        )
    )
    await until(lambda: len(told) == 2, 30)
    assert sorted(told) == ["good-u1", "good-u2"]
    work.cancel()
    await asyncio.wait({work})


async def test_a_storage_host_that_is_down_is_given_up_and_the_others_go_on(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE", 0.3)
    evening.settings |= {"batch_size": 10, "storage_host": lambda spawner: spawner.user.name[:4]}
    evening.applies(down=["dark"])
    outcomes = await evening.runs(*(f"dark-u{n}" for n in range(200)), "good-u1")
    dark = [request["users"] for request in evening.requests() if request["host"] == "dark"]
    assert [len(users) for users in dark[: TRIES + 1]] == [10, 1, 1]
    assert outcomes.pop("good-u1").status == "ok"
    assert {(outcome.status, outcome.reason) for outcome in outcomes.values()} == {("failed", "unreachable")}
    assert len(outcomes) == 200
    assert "dark has been down since" in outcomes["dark-u199"].message


async def test_a_moment_of_trouble_fails_only_the_users_in_that_run(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE", 0.3)
    evening.settings |= {"batch_size": 10}
    evening.applies(down=["localhost"])
    work = asyncio.create_task(evening.runs(*(f"u{n}" for n in range(50))))
    await until(lambda: evening.requests("end"))
    evening.applies()
    outcomes = await work
    assert sum(outcome.status == "failed" for outcome in outcomes.values()) == 10
    assert [len(request["users"]) for request in evening.requests()] == [10, 1, 10, 10, 10, 9]


async def test_a_directory_of_two_users_is_in_one_run_at_a_time(evening: Evening) -> None:
    shared = {"directory": "/v/shared"}
    outcomes = await evening.runs(*({"name": name, **shared} for name in ("alice", "bob")), "carol")
    assert {outcome.status for outcome in outcomes.values()} == {"ok"} and len(outcomes) == 3
    names = [[user["name"] for user in request["users"]] for request in evening.requests()]
    assert names == [["alice", "carol"], ["bob"]]


async def test_a_bad_record_costs_only_itself(evening: Evening) -> None:
    evening.applies(fail=["carol"])
    outcomes = await evening.runs(
        "alice",
        {"name": "{{ lookup('pipe', 'id') }}"},
        {"name": ""},
        {"name": "bob", "uid": "ten"},
        {"name": "carol"},
        {"name": "dave", "key": "d"},
        {"name": "erin", "key": "d"},
        {"name": "alice", "storage_host": "other"},
    )
    status = {key: (outcome.status, outcome.reason) for key, outcome in outcomes.items()}
    assert status == {
        "alice": ("ok", None),
        "{{ lookup('pipe', 'id') }}": ("failed", "refused"),
        "#3": ("failed", "refused"),
        "bob": ("failed", "refused"),
        "carol": ("failed", "role_failed"),
        "d": ("ok", None),
        "d (2)": ("failed", "refused"),
        "alice (2)": ("ok", None),
    }
    assert sorted(evening.asked()) == ["alice", "alice", "carol", "dave"]


async def test_each_run_is_in_the_history_with_each_users_outcome(evening: Evening) -> None:
    evening.settings["batch_size"] = 2
    evening.applies(fail=["bob"])
    await evening.runs("alice", "bob", "carol", check=True)
    history = History(evening.path / "state")
    runs = [(run.run, run.users, run.failed, run.check, run.storage_host) for run in history.runs()]
    assert runs == [("echo", 1, 0, True, "localhost"), ("echo", 2, 1, True, "localhost")]
    (past,) = history.outcomes("bob")
    assert past.outcome.message == "broken"


# Users who are left out


async def test_a_complete_user_is_left_out_the_next_time(evening: Evening) -> None:
    evening.applies(fail=["bob"])
    await evening.runs("alice", "bob")
    evening.applies()
    outcomes = await evening.runs("alice", "bob", "carol")
    assert evening.known == ["alice"]
    assert outcomes["alice"].status == "ok"
    assert outcomes["alice"].changed == ()
    assert outcomes["alice"].directory == f"{evening.path}/homes/alice"
    assert [user["name"] for user in evening.requests()[-1]["users"]] == ["bob", "carol"]


async def test_when_all_are_complete_nothing_is_run(evening: Evening) -> None:
    await evening.runs("alice", "bob")
    await evening.runs("alice", "bob")
    assert len(evening.requests()) == 1


@pytest.mark.parametrize("change", [{"fingerprint": "2"}, {"revised": False}])
async def test_a_user_with_older_roles_is_done_again(evening: Evening, change: dict[str, Any]) -> None:
    await evening.runs("alice")
    evening.applies(**change)
    await evening.runs("alice")
    assert evening.asked() == ["alice", "alice"]
    assert evening.requests()[-1]["done"] == {"user_dir": "1"}


async def test_what_all_of_a_batch_have_is_passed_on_and_nothing_that_one_lacks(evening: Evening) -> None:
    await evening.runs("alice")
    evening.applies(revised=False)
    await evening.runs("alice", "bob")
    assert evening.requests()[-1]["done"] == {}


@pytest.mark.parametrize("how", ["again", "check", "always", "forget"])
async def test_there_are_ways_to_leave_nobody_out(evening: Evening, how: str) -> None:
    await evening.runs("alice")
    if how == "always":
        evening.settings["recheck"] = "always"
    if how == "forget":
        assert evening.ledger.forget(["alice"]) == 1
    await evening.runs("alice", again=how == "again", check=how == "check")
    assert evening.asked() == ["alice", "alice"]
    assert evening.requests()[-1]["done"] == {}


@pytest.mark.parametrize("left_out", [False, True])
async def test_a_user_forgotten_during_a_run_is_not_complete_by_it(evening: Evening, left_out: bool) -> None:
    if left_out:
        await evening.runs("alice")
        evening.applies(fingerprint="2", delay=1)
    else:
        evening.applies(delay=1)
    begun = len(evening.requests())
    work = asyncio.create_task(evening.runs("alice"))
    await until(lambda: len(evening.requests()) > begun)
    evening.ledger.forget(["alice"])
    await work
    assert bool(evening.requests()[-1]["done"]) is left_out
    await evening.runs("alice")
    assert evening.known == []


async def test_a_check_makes_nobody_complete(evening: Evening) -> None:
    await evening.runs("alice", check=True)
    await evening.runs("alice")
    assert evening.known == []
    assert [request["check"] for request in evening.requests()] == [True, False]


async def test_a_directory_that_was_removed_is_made_again(evening: Evening) -> None:
    home = evening.path / "homes/alice"
    home.mkdir(parents=True)
    await evening.runs("alice")
    home.rmdir()
    await evening.runs("alice")
    assert evening.asked() == ["alice", "alice"]


async def test_a_ledger_that_cannot_be_read_leaves_nobody_out_and_fails_nobody(evening: Evening) -> None:
    await evening.runs("alice")
    (evening.path / "state/ledger.sqlite").write_bytes(b"no database " * 1000)
    outcomes = await evening.runs("alice")
    assert outcomes["alice"].status == "ok"
    assert evening.known == []


async def test_an_apply_program_that_cannot_describe_leaves_nobody_out(evening: Evening) -> None:
    await evening.runs("alice")
    evening.settings["apply_command"] = ["/bin/false"]
    outcomes = await evening.runs("alice")
    assert evening.known == []
    assert outcomes["alice"].reason == "apply_failed"


# What ends in the middle


async def test_a_cancelled_command_ends_when_it_has_noted_the_complete_users(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before: a loop that ends takes with it what is still being written."""
    evening.applies(hang_at="bob")
    cancelled = threading.Event()
    write = Ledger.note

    def late(ledger: Ledger, *args: Any, **options: Any) -> None:
        assert cancelled.wait(30)
        write(ledger, *args, **options)

    monkeypatch.setattr(Ledger, "note", late)
    told: list[str] = []
    work = asyncio.create_task(
        bootstrap_all(
            evening.config,
            [{"name": name} for name in ("alice", "bob", "carol")],
            lambda outcome, known: told.append(outcome.key),
        )
    )
    await until(lambda: told)
    work.cancel()
    done, _ = await asyncio.wait({work}, timeout=3)
    assert not done
    cancelled.set()
    await asyncio.wait({work})
    assert evening.ledger.forget(["alice", "bob", "carol"]) == 1
    (run,) = History(evening.path / "state").runs()
    assert (run.users, run.error) == (3, "interrupted")


class Command:
    """``ansible-bootstrap`` in a process of its own, with the configuration of an :class:`Evening`."""

    def __init__(self, evening: Evening) -> None:
        self.evening = evening
        lines = [
            "c = get_config()",
            "c.JupyterHub.spawner_class = 'simple'",
            f"c.SimpleLocalProcessSpawner.home_dir_template = '{evening.path}/homes/{{username}}'",
            *(f"c.AnsibleBootstrap.{name} = {value!r}" for name, value in evening.settings.items()),
        ]
        (evening.path / "jupyterhub_config.py").write_text("\n".join(lines) + "\n")
        (evening.path / "class.txt").write_text("\n".join(f"u{number:03}" for number in range(100)) + "\n")
        self.argv = [str(Path(sys.executable).parent / "ansible-bootstrap")]

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, *args],
            cwd=self.evening.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *args: str, status: int = 0) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=90)
        assert process.returncode == status, out + err
        return out


@pytest.fixture
def command(evening: Evening) -> Iterator[Command]:
    evening.settings["batch_size"] = 20
    yield Command(evening)


def noted(evening: Evening) -> int:
    """How many of the class are in the ledger."""
    config = evening.config
    places = [
        Place(f"u{number:03}", f"{evening.path}/homes/u{number:03}", os.getuid(), os.getgid(), "localhost")
        for number in range(100)
    ]
    ledger = SeeingLedger(config.state_dir)
    return sum(ledger.look(place) is not None for place in places)


async def test_one_that_was_killed_goes_on_where_it_was(evening: Evening, command: Command) -> None:
    """kill -9 in the third of five batches: the second attempt asks only for the missing users."""
    evening.applies(hang_at="u045")
    process = command.start("run", "--roster", "class.txt")
    await until(lambda: evening.requests("hangs") and noted(evening) == 45, seconds=80)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    evening.applies()
    evening.log.unlink()
    said = command.finish("run", "--roster", "class.txt")
    assert "100 users: 100 ok, 0 failed" in said
    assert "45 were complete already" in said
    assert evening.asked() == [f"u{number:03}" for number in range(45, 100)]
    assert [len(request["users"]) for request in evening.requests()] == [20, 20, 15]


@pytest.mark.parametrize(
    ("number", "of_a_script"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
async def test_one_that_is_interrupted_says_how_far_it_came(
    evening: Evening, command: Command, number: signal.Signals, of_a_script: bool
) -> None:
    """Also in the background of a script, where a shell has its commands ignore Ctrl-C."""
    evening.applies(hang_at="u045")
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN if of_a_script else signal.default_int_handler)
    try:
        process = command.start("run", "--roster", "class.txt", "--json")
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    await until(lambda: evening.requests("hangs") and noted(evening) == 45, seconds=80)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted with 45 of 100 users done; the same command again continues" in err
    assert "Traceback" not in err
    assert len(json.loads(out)) == 45


# What the command says


def test_a_batch_that_breaks_off_fails_its_users_and_the_command(evening: Evening, command: Command) -> None:
    evening.applies(dies_at="u025")
    said = command.finish("run", "--roster", "class.txt", status=1)
    assert "100 users: 85 ok, 15 failed" in said
    assert "failed: apply_failed 15" in said
    assert "15 users alike: run echo: the apply program exited with 3 before its last line" in said


def test_json_says_the_same_of_users_for_whom_nothing_had_to_be_done(
    evening: Evening, command: Command
) -> None:
    first = json.loads(command.finish("run", "u001", "u002", "--json"))
    again = json.loads(command.finish("run", "u001", "u002", "--json"))
    assert len(evening.requests()) == 1
    assert [outcome.keys() for outcome in again] == [outcome.keys() for outcome in first]
    for key in ("key", "name", "status", "changed", "failed_role", "message", "storage_host", "directory"):
        assert [outcome[key] for outcome in again] == [outcome[key] for outcome in first]
    assert [(outcome["run"], outcome["seconds"]) for outcome in again] == [("", 0.0)] * 2


def test_cells_of_any_length_are_cut_where_a_message_shows_them(evening: Evening, command: Command) -> None:
    endless = "x" * 100_000
    rows = [
        f"{endless},",
        f",{endless[:4000]}",
        f"alice,{endless[:512]}",
        f"bob,{endless[:512]}",
        f"carol,{endless}",
    ]
    (evening.path / "endless.csv").write_text("\n".join(["name,key", *rows]))
    said = command.finish("run", "--roster", "endless.csv", status=1)
    assert "5 users: 1 ok, 4 failed" in said
    assert max(map(len, said.splitlines())) < 300
