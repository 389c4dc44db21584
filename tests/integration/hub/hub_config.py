"""The configuration of a test's hub; what differs is in the JSON file named by HUB_TEST.

There is no proxy: the tests speak to the hub itself, and the hub to servers directly.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner

import ansible_bootstrap.hub.spawns
import ansible_bootstrap.state.bookkeeper
from ansible_bootstrap import bootstrapped, setup

here = Path(__file__).parent
test = json.loads(Path(os.environ["HUB_TEST"]).read_text())
path = Path(test["path"])


class NoProxy(Proxy):
    """Keeps routes in memory and serves none."""

    should_start = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.routes = {}

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return self.routes


def note(what, spawner):
    with (path / "hooks.log").open("a") as log:
        log.write(f"{what} {spawner.user.name}\n")


def spawner_hook(spawner):
    note("generic", spawner)


async def class_hook(spawner):
    await asyncio.sleep(0)
    note("chained", spawner)


async def stop_hook(spawner):
    note("stopped", spawner)
    if spawner.user.name == "raiser":
        raise RuntimeError("the chained hook fails")


async def before_the_hook(spawner, auth_state):
    """Hold the start until the test says ``page``: that what is shown of the start is being looked at."""
    end = time.monotonic() + 30
    while spawner.user.name == "early" and not (path / "page").exists() and time.monotonic() < end:
        await asyncio.sleep(0.02)


def storage_host(spawner):
    return "storage2" if spawner.user.name.endswith("-two") else "localhost"


resolve = ansible_bootstrap.hub.spawns.resolve


async def treacherous_resolve(spawner, config=None):
    if spawner.user.name == "timeouty":
        raise TimeoutError("from deep inside /srv/secret")
    if spawner.user.name == "cancelly":
        raise asyncio.CancelledError
    if spawner.user.name == "buggy":
        raise KeyError("/srv/secret")
    return await resolve(spawner, config)


ansible_bootstrap.hub.spawns.resolve = treacherous_resolve
# A machine that is busy with other tests is no directory that hangs; that one is in test_bookkeeper.py.
ansible_bootstrap.state.bookkeeper.PROBE_SECONDS = 5.0

c = get_config()  # noqa: F821
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{test['port']}"
c.JupyterHub.db_url = f"sqlite:///{path}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(path / "cookie_secret")
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {
    "slow_spawn_timeout": 30
}  # on a busy machine too the answer to a start is its end
c.JupyterHub.services = [{"name": "tester", "api_token": test["token"]}]
c.JupyterHub.load_roles = [
    {
        "name": "tester",
        "scopes": ["admin:users", "admin:servers", "read:hub", "shutdown", "read:metrics"],
        "services": ["tester"],
    }
]
c.Authenticator.allow_all = True
c.DummyAuthenticator.password = "secret"
c.Spawner.cmd = [sys.executable, str(here / "fake_server.py")]
c.Spawner.consecutive_failure_limit = 5
c.Spawner.poll_interval = 1
c.Spawner.http_timeout = 5
c.Spawner.auth_state_hook = before_the_hook
c.SimpleLocalProcessSpawner.home_dir_template = f"{path}/storage/{{username}}"

c.Spawner.pre_spawn_hook = spawner_hook
c.SimpleLocalProcessSpawner.pre_spawn_hook = class_hook
c.Spawner.post_stop_hook = stop_hook

spawner_class: type = SimpleLocalProcessSpawner
if test["profiles"]:
    from wrapspawner import ProfilesSpawner

    spawner_class = ProfilesSpawner
    below = {"home_dir_template": f"{path}/storage/profile/{{username}}"}
    c.ProfilesSpawner.profiles = [("Below", "below", SimpleLocalProcessSpawner, below)]
if test["bootstrapped"]:
    c.JupyterHub.spawner_class = bootstrapped(spawner_class)
else:
    c.JupyterHub.spawner_class = spawner_class
    setup(c)
    setup(c)

c.AnsibleBootstrap.state_dir = str(path / "state")
c.AnsibleBootstrap.storage_host = storage_host
if test["remote_root"]:
    # As an admin of remote storage does, where the spawner knows nothing of it.
    c.AnsibleBootstrap.place = lambda spawner: {"directory": f"{test['remote_root']}/{spawner.user.name}"}
for name, value in test["settings"].items():
    c.AnsibleBootstrap[name] = value
exec(test["more"])
