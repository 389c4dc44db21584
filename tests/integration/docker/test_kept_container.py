"""A container that DockerSpawner keeps (``remove = False``) and starts again, with a real engine: it has its old mounts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker_engine import IMAGE, USER, read_only
from dockerspawner import DockerSpawner
from traitlets.config import Config

from ansible_bootstrap import AnsibleBootstrap, BootstrapError
from ansible_bootstrap.hub import bootstrapped, spawns
from ansible_bootstrap.places.resolve import resolve

pytestmark = pytest.mark.root


class Sleeper(DockerSpawner):
    """Its servers sleep, and have the machine's network."""

    def get_env(self) -> dict[str, str]:
        return {"JUPYTERHUB_API_TOKEN": "of the hub"}

    async def get_ip_and_port(self) -> tuple[str, int]:
        return "127.0.0.1", 8888


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    AnsibleBootstrap.clear_instance()
    tmp_path.chmod(0o755)
    for name in ("old", "new"):
        (tmp_path / name / "alice").mkdir(parents=True)
    yield tmp_path
    AnsibleBootstrap.clear_instance()


async def prepared(engine: Any, storage: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A spawner whose settings mount what is below that root, with the user's directory prepared."""
    config = Config(
        {
            "Sleeper": {
                "volumes": {f"{storage}/{root}/{{username}}": "/home/jovyan"},
                "read_only_volumes": {path: path for path in read_only()},
                "client_kwargs": {"base_url": engine.url, "version": "1.40"},
                "image": IMAGE,
                "pull_policy": "never",
                "network_name": "host",
                "use_internal_ip": True,
                "extra_create_kwargs": {"user": USER},
                "extra_host_config": {"init": True},
                "cmd": ["/usr/bin/sleep", "60"],
            }
        }
    )
    settings = AnsibleBootstrap(
        config=Config({"AnsibleBootstrap": {"storage_root": str(storage), "uid": 1000}})
    )
    monkeypatch.setattr(spawns, "core_of", lambda spawner: SimpleNamespace(config=settings))
    user = SimpleNamespace(name="alice", groups=[], settings={}, spawners={}, url="/user/alice/")
    asked = bootstrapped(Sleeper)(user=user, config=config)
    asked.log = logging.getLogger("spawner")
    spawns.spawn_of(asked).place = await resolve(asked, settings)
    return asked


async def test_it_does_not_run_again_with_its_old_mounts_until_it_is_removed(
    engine: Any, storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = await prepared(engine, storage, "old", monkeypatch)
    await before.start()
    try:
        await before.stop()
        again = await prepared(engine, storage, "old", monkeypatch)
        await again.start()  # The same mounts: the same container.
        assert again.object_id == before.object_id
        await again.stop()

        ran = engine.client.containers.get("jupyter-alice").attrs["State"]["StartedAt"]
        moved = await prepared(engine, storage, "new", monkeypatch)
        with pytest.raises(BootstrapError):
            await moved.start()
        left = engine.client.containers.get("jupyter-alice")
        assert (left.status, left.attrs["State"]["StartedAt"]) == ("exited", ran), "not for a moment"
        (line,) = [record.getMessage() for record in caplog.records if "prepared" in record.getMessage()]
        assert (
            f"{storage}/new/alice was prepared, and the container jupyter-alice has {storage}/old/alice"
            in line
        )
        assert "docker rm jupyter-alice" in line

        left.remove()
        await moved.start()
        mounts = engine.client.containers.get("jupyter-alice").attrs["Mounts"]
        assert f"{storage}/new/alice" in {mount["Source"] for mount in mounts}
        await moved.stop()
    finally:
        engine.client.containers.get("jupyter-alice").remove(force=True)
