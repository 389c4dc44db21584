"""What is refused before anything is done, and what the request alone can never bring about."""

from __future__ import annotations

import json
import subprocess

import pytest

GREET = {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}}
ALICE = {"name": "alice"}
PROBE = {
    "name": "Probe",
    "ansible.builtin.copy": {"content": "{{ username }}", "dest": "{{ probe }}.{{ username }}"},
}


def request(**more: object) -> dict[str, object]:
    return {"operation": "bootstrap", "users": [ALICE], **more}


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut short"),
    "empty line": (b"\n", "malformed"),
    "cut short": (json.dumps(request()).encode()[:-5], "cut short"),
    "whole but no newline": (json.dumps(request()).encode(), "cut short"),
    "truncated": (json.dumps(request()).encode()[:-5] + b"\n", "malformed"),
    "a second line": (json.dumps(request()).encode() + b"\n" + b'{"operation": "cleanup"}\n', "follows"),
    "a list": (b"[]\n", "malformed"),
    "null": (b"null\n", "malformed"),
    "not UTF-8": (b'{"operation": "bootstrap", "users": [{"name": "\xff"}]}\n', "malformed"),
    "extra key": (json.dumps(request(ansible_connection="local")).encode() + b"\n", "ansible_connection"),
    "settings in it": (json.dumps(request(roles=["evil"])).encode() + b"\n", "roles"),
    "quoted key": (json.dumps(request(**{"a'\"b": 1})).encode() + b"\n", "malformed"),
    "unsafe mark as a key": (json.dumps(request(__ansible_unsafe="x")).encode() + b"\n", "__ansible_unsafe"),
    "key given twice": (b'{"operation": "bootstrap", "operation": "cleanup", "users": []}\n', "twice"),
    "user's key given twice": (
        b'{"operation": "bootstrap", "users": [{"name": "a", "name": "b"}]}\n',
        "twice",
    ),
    "unknown operation": (b'{"operation": "delete", "users": []}\n', "operation"),
    "operation of a wrong type": (b'{"operation": ["bootstrap"], "users": []}\n', "operation"),
    "check as a text": (json.dumps(request(check="no")).encode() + b"\n", "check"),
    "NaN": (b'{"operation": "bootstrap", "users": [{"name": "a", "uid": NaN}]}\n', "NaN"),
    "deep nesting": (b'{"operation": "bootstrap", "users": ' + b"[" * 100_000 + b"\n", "malformed"),
    "an endless number": (b'{"operation": "bootstrap", "check": ' + b"9" * 10_000 + b"}\n", "malformed"),
    "too long": (b'{"operation": "' + b"x" * (16 * 1024 * 1024) + b'"}\n', "longer than"),
    "too many users": (json.dumps(request(users=[0] * 20_001)).encode() + b"\n", "users"),
    "two storage hosts": (
        json.dumps(
            request(users=[{"name": "a", "storage_host": "s1"}, {"name": "b", "storage_host": "s2"}])
        ).encode()
        + b"\n",
        "one storage host",
    ),
}


def test_malformed_requests_are_refused_naming_the_rule(site, apply_program):
    site.role("greet", GREET)
    settings = site.settings(roles=["greet"])
    running = {what: apply_program.start(raw=raw, settings=settings) for what, (raw, _) in REFUSED.items()}
    for what, (_, rule) in REFUSED.items():
        answer = running[what].answer()
        assert answer.status == 2, (what, answer)
        assert rule in answer.refused, (what, answer.refused)
        assert len(answer.refused) < 1000 and "Traceback" not in answer.log, what


BAD_USERS: dict[str, object] = {
    "an extra field": {"name": "mallory", "ansible_connection": "ssh"},
    "a field in quotes": {"name": "mallory", "a'\"b": 1},
    "the unsafe mark for a name": {"name": {"__ansible_unsafe": "mallory"}},
    "the vault mark for a group": {"name": "mallory", "groups": [{"__ansible_vault": "x"}]},
    "a boolean uid": {"name": "mallory", "uid": True},
    "a uid as text": {"name": "mallory", "uid": "0"},
    "a uid that means none": {"name": "mallory", "uid": 2**32 - 1},
    "another's uid": {"name": "mallory", "uid": 0},
    "another gid": {"name": "mallory", "gid": 0},
    "a directory elsewhere": {"name": "mallory", "directory": "/etc"},
    "a directory that climbs": {"name": "mallory", "directory": "/volumes/../etc"},
    "the root itself": {"name": "mallory", "directory": "{root}"},
    "our own directory": {"name": "mallory", "directory": "{root}/.ansible_bootstrap/records"},
    "a pattern of hosts": {"name": "mallory", "storage_host": "all:!x"},
    "a group of hosts": {"name": "mallory", "storage_host": "all"},
    "no name": {"uid": 1},
    "not a user": 42,
    "nothing": None,
}


@pytest.mark.root
def test_a_bad_user_costs_only_itself(site, apply_program):
    """With fixed ids, a request may repeat the admin's but not contradict them."""
    site.role("probe", PROBE)
    bad = json.loads(json.dumps(list(BAD_USERS.values())).replace("{root}", str(site.root)))
    settings = site.settings(roles=["probe"], extra_vars={"probe": f"{site.told}/served"})
    same_ids = {"name": "bob", "uid": settings["uid"], "gid": settings["gid"], "directory": f"{site.root}/b"}
    keyed = [
        {"key": f"bad-{place}", **user} if isinstance(user, dict) else user for place, user in enumerate(bad)
    ]
    answer = apply_program.start([*keyed, "alice", same_ids], settings=settings).answer()
    assert answer.status == 1
    assert answer.ok == {"alice", "bob"}
    assert len(answer.outcomes) == len(bad) + 2
    for outcome in answer.outcomes.values():
        assert outcome["status"] == "ok" or (outcome["reason"] == "refused" and outcome["message"]), outcome
    assert sorted(path.name for path in site.told.glob("served.*")) == ["served.alice", "served.bob"]


def test_repeated_keys_are_made_unique(site, apply_program):
    site.role("greet", GREET)
    users = [
        {"name": "alice", "key": "#2"},  # would pass for the next, which has no usable key
        "",
        {"name": "alice", "key": "lab"},  # a named server: the same name, another key
        {"name": "bob", "key": "lab"},
        {"name": "carol", "key": "\x1b"},
        "alice",
        "alice",
    ]
    answer = apply_program(users, "greet")
    assert answer.ok == {"lab", "alice"}
    assert len(answer.outcomes) == len(users)
    assert answer.outcomes["lab"]["name"] == "alice"


def test_the_program_takes_no_arguments_but_the_one(site, apply_program):
    path = str(apply_program.settings_file(site.settings()))
    argvs = [
        ("--help",), ("--settings",), ("--settings", path, "--check"), ("alice",), ("--settings", "relative.json"),
        (f"--settings={path}",), ("--settings", path, "--settings", path), ("-e", "ansible_connection=local"),
    ]  # fmt: skip
    running = [apply_program.start(["alice"], argv=argv) for argv in argvs]
    for one in running:
        answer = one.answer()
        assert answer.status == 2 and answer.refused, answer


def test_templates_in_a_request_stay_text(site, apply_program):
    """Keys, groups and directories may hold what no name may: it reaches roles, and is never a template."""
    sprung = site.told / "sprung"
    template = "{{ lookup('pipe', 'touch " + str(sprung) + "') }}"
    block = "{% set x = lookup('pipe', 'touch " + str(sprung) + "') %}"
    site.role(
        "show",
        {
            "name": "Show {{ user_groups }} {{ user_dir }}",
            "ansible.builtin.copy": {
                "content": "{{ user_groups | join }} {{ user_dir }}",
                "dest": "{{ shown }}.{{ username }}",
            },
        },
        {"name": "Loop", "ansible.builtin.debug": {"msg": "{{ item }}"}, "loop": "{{ user_groups }}"},
        {"name": "Keep", "ansible.builtin.set_fact": {"kept": "{{ user_groups }}"}},
        {"name": "Fail", "ansible.builtin.fail": {"msg": "{{ kept | join(' ') }} {{ bootstrap_user.key }}"}},
    )
    user = {
        "name": "alice",
        "key": template,
        "groups": [template, block],
        "directory": f"{site.root}/{template}",
    }
    roles = [
        {"role": "show", "on_failure": "continue"},
        {"role": "show", "per": "batch", "on_failure": "continue"},
    ]
    settings = site.settings(roles=roles, extra_vars={"shown": f"{site.told}/shown"})
    answer = apply_program.start([user, "bob"], settings=settings).answer()
    assert not sprung.exists(), "a template was executed"
    assert answer.ok == {template, "bob"}, answer
    assert template in answer.outcomes[template]["notes"][0]
    assert template in (site.told / "shown.alice").read_text()


@pytest.mark.root
def test_the_settings_of_the_system_are_believed_only_from_a_safe_file(tmp_path, site, apply_program):
    """Without an argument: /etc/ansible-bootstrap/settings.yml, here in a mount namespace of the test's own."""
    good = json.dumps(site.settings())
    etc = "/etc/ansible-bootstrap"
    cases = {
        "missing": ("true", "does not exist"),
        "group may write": ("put; chmod 664 $file", "chmod go-w"),
        "others may write": ("put; chmod 646 $file", "chmod go-w"),
        "owned by another": ("put; chown 12345 $file", "chown root"),
        "a symbolic link": ("put; mv $file $file.real; ln -s $file.real $file", "symbolic link"),
        "a FIFO": ("mkfifo $file", "not a regular file"),
        "others may write beside it": ("put; chmod 777 $etc", "chmod go-w"),
        "its directory is another's": ("put; chown 12345 $etc", "belongs to uid 12345, who could change it"),
        "its directory leads elsewhere": (
            "put; mkdir -m 777 /etc/open; mv $etc /etc/open/real; ln -s /etc/open/real $etc",
            "chmod go-w /etc/open",
        ),
        "not YAML": ("echo '{{{' > $file", "not YAML"),
        "not a mapping": ("echo 42 > $file", etc),
        "a tag that makes objects": ("echo '!!python/object/apply:os.system [id]' > $file", "not YAML"),
        "an unknown setting": ("""echo 'storage_root: /v\nrole: [x]' > $file""", "role: "),
        "root as owner": ("""echo 'storage_root: /v\nuid: 0' > $file""", "uid"),
        "sound": ("put", ""),
    }
    running = {}
    for number, (what, (script, _)) in enumerate(cases.items()):
        upper = tmp_path / f"etc-{number}"
        upper.mkdir()
        setup = f"""set -e
            mount -t tmpfs tmpfs {upper}; mkdir {upper}/up {upper}/work
            mount -t overlay overlay -o lowerdir=/etc,upperdir={upper}/up,workdir={upper}/work /etc
            etc={etc} file={etc}/settings.yml; rm -rf $etc; mkdir $etc
            put() {{ printf '%s' '{good}' > $file; chmod 644 $file; }}
            {script}
            exec "$@" """
        prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh")
        running[what] = apply_program.start([], argv=(), prefix=prefix)
    for what, (_, mend) in cases.items():
        answer = running[what].answer()
        if mend:
            assert answer.status == 2, (what, answer)
            assert answer.events[0]["reason"] == "settings", what
            assert etc in answer.refused and mend in answer.refused, (what, answer.refused)
        else:
            assert answer.status == 0, (what, answer)


@pytest.mark.root
def test_the_hubs_own_settings_file_is_the_hubs_alone(site, apply_program):
    """With --settings: 0600 and the caller's own, wherever it is."""
    mends = {
        "others may read": ("chmod 644", "chmod 600"),
        "another's": ("chown 12345", "belongs to uid 12345"),
    }
    for what, (spoil, mend) in mends.items():
        path = apply_program.settings_file(site.settings())
        subprocess.run([*spoil.split(), str(path)], check=True)
        answer = apply_program.start([], argv=("--settings", str(path))).answer()
        assert answer.events[0]["reason"] == "settings" and mend in answer.refused, what
    link = site.path / "link.json"
    link.symlink_to(apply_program.settings_file(site.settings()))
    assert "symbolic link" in apply_program.start([], argv=("--settings", str(link))).answer().refused
    assert "does not exist" in apply_program.start([], argv=("--settings", "/nowhere")).answer().refused
