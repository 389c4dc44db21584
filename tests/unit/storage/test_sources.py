from __future__ import annotations

from typing import Any

import pytest

from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._sources import parse_sources


def test_a_source_as_an_admin_writes_it() -> None:
    (source,) = parse_sources(
        [
            {
                "name": "course",
                "url": "https://example.org/a.zip?token=secret",
                "dest": "work/course/",
                "checksum": f"sha256:{'a' * 64}",
                "strip_components": 1,
                "path": None,
            }
        ]
    )
    assert (source.dest, source.sha256, source.strip) == (("work", "course"), "a" * 64, 1)
    assert source.where == "https://example.org/a.zip"
    (plain,) = parse_sources([{"name": "course", "path": "/srv/course", "strip_components": 48}])
    assert (plain.dest, plain.strip) == (("course",), 48)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "../x"}, "needs a name"),
        ({"path": ""}, "exactly one of url and path"),
        ({"url": "https://example.org/a.zip"}, "exactly one of url and path"),
        ({"path": "relative"}, "absolute"),
        ({"git": "https://example.org/r.git", "path": None}, "git is not supported yet"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"dest": "../other"}, "without '..'"),
        ({"dest": "/etc"}, "without '..'"),
        ({"dest": ".ansible_bootstrap-x"}, "must not begin with"),
        ({"dest": "a\nb"}, "relative path"),
        ({"checksum": "md5:abc"}, "sha256"),
        ({"strip_components": "1"}, "integer"),
        ({"strip_components": True}, "integer"),
        ({"strip_components": 49}, "from 0 to 48"),
        ({"strip_components": -1}, "from 0 to 48"),
        ({"path": None, "url": "file:///etc/shadow"}, "https:// or http://"),
        ({"path": None, "url": "https://user:secret@example.org/a.zip"}, "user name or password"),
        ({"path": None, "url": "http://example.org:99999/"}, "malformed"),
        ({"path": None, "url": "http://example.org/a b"}, "percent-encoded"),
    ],
)
def test_a_mistake_names_the_source_and_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(StorageError, match="source ") as caught:
        parse_sources([{"name": "course", "path": "/srv/course", **wrong}])
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("dest", ["course", "course/part", "cou/../rse"])
def test_two_sources_do_not_meet(dest: str) -> None:
    with pytest.raises(StorageError):
        parse_sources([{"name": "course", "path": "/a"}, {"name": "part", "path": "/b", "dest": dest}])
