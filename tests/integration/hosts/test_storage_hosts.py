"""The storage is on another machine: reached over ssh, with a disk and a name service of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_bootstrap.apply.descendants import descendants

ROOT = "/volumes"
HOME = {
    "name": "Welcome them",
    "ansible.builtin.copy": {"content": "welcome", "dest": "{{ user_dir }}/motd"},
    "notify": "Sign",
}
SIGN = {
    "name": "Sign",
    "ansible.builtin.copy": {"content": "{{ storage_host }} {{ user_uid }}", "dest": "{{ user_dir }}/signed"},
}


@pytest.fixture
def settings(site, storage_hosts):
    site.role("home", HOME, handlers=[SIGN])
    return site.settings(
        storage_root=ROOT, roles=["user_dir", "home"], inventory=str(storage_hosts.inventory)
    )


@pytest.fixture
def impatient(settings, storage_hosts):
    return {**settings, "inventory": str(storage_hosts.impatient)}


def on(host: str, *names: str) -> list[dict[str, str]]:
    return [{"name": name, "storage_host": host} for name in names]


def test_the_directories_are_on_the_storage_host_and_nowhere_else(apply_program, storage_hosts, settings):
    users = {"store1": {"store1", "Zoë"}, "store2": {"Zoë"}}
    running = [
        apply_program.start(on(name, *names), settings=settings, prefix=storage_hosts.controller)
        for name, names in users.items()
    ]
    for host, one in zip(storage_hosts, running, strict=True):
        answer, names = one.answer(), users[host.name]
        assert answer.ok == names, answer
        for name in names:
            outcome = answer.outcomes[name]
            assert outcome["storage_host"] == host.name and outcome["changed"] == ["user_dir", "home"]
            directory = host.path(outcome["directory"])
            assert directory.stat().st_uid == settings["uid"]
            # also the handler ran there
            assert (directory / "signed").read_text() == f"{host.name} {settings['uid']}"
            assert not Path(outcome["directory"]).exists(), "on the control node's own disk"

    again = apply_program.start(
        on("store1", *users["store1"]), settings=settings, prefix=storage_hosts.controller
    ).answer()
    assert again.ok == users["store1"]
    assert not any(outcome["changed"] for outcome in again.outcomes.values())


def test_by_ansible_playbook(site, playbook, storage_hosts, store, settings):
    how = {"prefix": storage_hosts.controller, "bootstrap_root": ROOT}
    options = ("-i", str(storage_hosts.inventory))
    predicted = playbook("--check", *options, **how, username="frank", bootstrap_storage_host="store1")
    assert (predicted.status, predicted.changed) == (0, 1), predicted.output
    assert not store.path("/volumes/frank").exists()
    play = playbook(*options, **how, username="frank", bootstrap_storage_host="store1")
    assert (play.status, play.changed) == (0, 1), play.output
    assert store.path("/volumes/frank").is_dir() and not Path("/volumes/frank").exists()
    assert not storage_hosts["store2"].path("/volumes/frank").exists()
    play = playbook(*options, **how, username="frank", bootstrap_storage_host="storage")
    assert play.status != 0 and "no host called storage" in play.output
    assert not storage_hosts["store2"].path("/volumes/frank").exists()


def test_system_users_are_those_of_the_storage_host(apply_program, storage_hosts, store, settings):
    with store.path("/etc/passwd").open("a") as file:
        file.write("gustav:x:23456:23456::/volumes/home/gustav:/bin/sh\n")
    assert "gustav" not in Path("/etc/passwd").read_text()
    store.path("/volumes/home").mkdir()
    settings = {**settings, "uid": "nss", "gid": "nss"}
    users = on("store1", "gustav", "nobody-there", "daemon")
    answer = apply_program.start(users, settings=settings, prefix=storage_hosts.controller).answer()
    assert answer.ok == {"gustav"}, answer
    assert answer.outcomes["gustav"]["directory"] == "/volumes/home/gustav"
    assert store.path("/volumes/home/gustav").stat().st_uid == 23456
    assert "not a system user of the storage host" in answer.outcomes["nobody-there"]["message"]
    assert "uid_min" in answer.outcomes["daemon"]["message"]


@pytest.mark.parametrize("login", ["root", "an account with sudo"])
def test_a_role_works_as_the_user_there(site, apply_program, storage_hosts, store, settings, login):
    """Also in a block, in an inner role and in a handler; what it may not, it may not there either."""
    inventory, name = storage_hosts.inventory, "ute"
    if login != "root":
        inventory, name = site.path / "sudo.ini", "uwe"
        inventory.write_text(
            f"{storage_hosts.inventory.read_text()}ansible_become=true\n".replace("user=root", "user=worker")
        )
        for file, line in {
            "/etc/passwd": "worker:x:4444:4444::/:/bin/sh",
            "/etc/shadow": "worker:*:19000::::::",
            "/etc/sudoers": "worker ALL=(ALL) NOPASSWD: ALL",
        }.items():
            with store.path(file).open("a") as opened:
                opened.write(line + "\n")
        storage_hosts.top.chmod(0o755)  # sshd reads the account's keys as that account
    rights = (
        "(id -u; id -g; id -G; awk '/NoNewPrivs/ {print $2}' /proc/self/status; echo $HOME; pwd) > rights"
    )
    (site.roles / "inner/templates").mkdir(parents=True)
    (site.roles / "inner/templates/text.j2").write_text("{{ username }} on {{ storage_host }}")
    site.role(
        "inner", {"name": "T", "ansible.builtin.template": {"src": "text.j2", "dest": "{{ user_dir }}/text"}}
    )
    site.role(
        "rights",
        {"name": "Block", "block": [{"name": "R", "ansible.builtin.shell": rights, "notify": "Sign"}]},
        {"name": "Inner", "ansible.builtin.include_role": {"name": "inner"}},
        {"name": "Climb", "ansible.builtin.command": "touch /volumes/climbed", "ignore_errors": True},
        handlers=[SIGN],
    )
    settings |= {"roles": ["user_dir", "rights"], "inventory": str(inventory)}
    answer = apply_program.start(
        on("store1", name), settings=settings, prefix=storage_hosts.controller
    ).answer()
    assert answer.ok == {name}, answer.outcomes[name]["message"]
    home, uid, gid = store.path(f"/volumes/{name}"), settings["uid"], settings["gid"]
    seen = (home / "rights").read_text().splitlines()
    assert seen == [str(uid), str(gid), str(gid), "1", f"/volumes/{name}", f"/volumes/{name}"]
    assert (home / "text").read_text() == f"{name} on store1"
    for file in ("rights", "text", "signed"):
        assert ((home / file).stat().st_uid, (home / file).stat().st_gid) == (uid, gid)
    assert not store.path("/volumes/climbed").exists()
    assert "ansible" in answer.events[-1]["way"] and "server" not in answer.events[-1]["way"]


def test_a_batch_role_and_a_role_in_which_one_user_fails(site, apply_program, storage_hosts, store, settings):
    site.role(
        "list",
        {
            "name": "L",
            "ansible.builtin.copy": {"content": "{{ bootstrap_users | length }}", "dest": "/volumes/count"},
        },
    )
    site.role(
        "gate", {"name": "Check", "ansible.builtin.fail": {"msg": "no"}, "when": "username == 'student03'"}
    )
    names = ["student02", "student03"]
    settings["roles"] = [{"role": "list", "per": "batch"}, "user_dir", "gate", "home"]
    answer = apply_program.start(
        on("store1", *names), settings=settings, prefix=storage_hosts.controller
    ).answer()
    assert answer.ok == set(names) - {"student03"}
    assert store.path("/volumes/count").read_text() == "2"
    assert answer.outcomes["student03"]["failed_task"] == "Check"
    assert not store.path("/volumes/student03/motd").exists()
    assert store.path("/volumes/student02/motd").read_text() == "welcome"


def test_a_host_that_does_not_answer_is_unreachable_in_bounded_time(
    apply_program, storage_hosts, settings, impatient
):
    """Both ways to be silent at once, one on each host; then both work again."""
    one, two = storage_hosts
    prefix = storage_hosts.controller
    with one.black_holed(), two.frozen():
        begin = time.monotonic()
        running = [
            apply_program.start(on(host.name, "ida", "jim"), settings=impatient, prefix=prefix)
            for host in (one, two)
        ]
        for host, silent in zip((one, two), running, strict=True):
            answer = silent.answer(40)
            assert answer.status == 1
            assert {outcome["reason"] for outcome in answer.outcomes.values()} == {"unreachable"}, answer
            assert len(answer.outcomes) == 2
            assert "timed out" in answer.outcomes["ida"]["message"], (host.name, answer)
        assert time.monotonic() - begin < 30
    running = [
        apply_program.start(on(host.name, "ida"), settings=settings, prefix=prefix) for host in (one, two)
    ]
    assert [each.answer().ok for each in running] == [{"ida"}] * 2


def test_a_host_that_is_down_or_is_another(apply_program, storage_hosts, settings, impatient):
    one, two = storage_hosts
    prefix = storage_hosts.controller
    with one.down(), two.another_key():
        running = [
            apply_program.start(on(host.name, "kim"), settings=impatient, prefix=prefix)
            for host in (one, two)
        ]
        down, changed = (each.answer(40).outcomes["kim"] for each in running)
    assert (down["reason"], changed["reason"]) == ("unreachable", "unreachable"), (down, changed)
    assert "No route to host" in down["message"] or "timed out" in down["message"]
    assert (
        "REMOTE HOST IDENTIFICATION HAS CHANGED" in changed["message"]
        or "Host key verification" in changed["message"]
    )
    assert not two.path("/volumes/kim").exists()
    running = [
        apply_program.start(on(host.name, "kim"), settings=settings, prefix=prefix) for host in (one, two)
    ]
    assert [each.answer().ok for each in running] == [{"kim"}] * 2


@pytest.mark.slow  # it takes ssh some seconds to be sure
def test_a_host_that_freezes_during_the_run(site, apply_program, storage_hosts, store, impatient):
    wait = "touch waiting; sleep 600"
    site.role("wait", {"name": "Wait", "ansible.builtin.command": {"argv": ["sh", "-c", wait]}})
    impatient["roles"] = ["user_dir", "wait"]
    running = apply_program.start(on("store1", "lea"), settings=impatient, prefix=storage_hosts.controller)
    running.wait_for(store.path("/volumes/lea/waiting").exists)
    begin = time.monotonic()
    with store.frozen():
        outcome = running.answer(60).outcomes["lea"]
    assert time.monotonic() - begin < 40
    assert (outcome["status"], outcome["reason"]) == ("failed", "unreachable"), outcome


def test_the_stop_ends_ssh_and_its_masters_too(site, apply_program, storage_hosts, store, settings):
    wait = "touch stop-me; sleep 30"
    site.role("wait", {"name": "Wait", "ansible.builtin.command": {"argv": ["sh", "-c", wait]}})
    settings["roles"] = ["user_dir", "wait"]
    running = apply_program.start(on("store1", "max"), settings=settings, prefix=storage_hosts.controller)
    directory = running.directory
    running.wait_for(store.path("/volumes/max/stop-me").exists)
    family = descendants(running.process.pid)
    assert any("ssh" in Path(f"/proc/{pid}/comm").read_text() for pid in family)
    begin = time.monotonic()
    running.stop()
    assert running.answer(10).status == 3
    assert time.monotonic() - begin < 8
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists() and _alive(pid)]
    assert not directory.exists()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_nothing_of_a_session_stays_after_a_run(apply_program, storage_hosts, settings):
    """ControlPersist keeps a master for a minute: it ends with the run."""
    before = _processes_on(storage_hosts.control)  # of ansible-playbook alone, whose masters do stay
    prefix = storage_hosts.controller
    answer = apply_program.start(on("store1", "nina"), settings=settings, prefix=prefix).answer()
    assert answer.ok == {"nina"}
    assert _processes_on(storage_hosts.control) <= before


def _processes_on(namespace: str) -> set[int]:
    inode = Path(f"/run/netns/{namespace}").stat().st_ino
    pids = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _namespace(path) == inode
    ]
    return {pid for pid in pids if _alive(pid)}


def _namespace(process: Path) -> int:
    try:
        return (process / "ns/net").stat().st_ino
    except OSError:
        return 0
