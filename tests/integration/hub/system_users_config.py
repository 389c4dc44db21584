"""As ``hub_config.py``, with the spawner that becomes the system's user."""

import json
import os
from pathlib import Path

import jupyterhub

test = json.loads(Path(os.environ["HUB_TEST"]).read_text())

c = get_config()  # noqa: F821
load_subconfig(str(Path(os.environ["HUB_CONFIG"])))  # noqa: F821
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = ["/usr/bin/python3", f"{test['path']}/system_users_server.py"]
c.Spawner.environment = {"HUB_VERSION": jupyterhub.__version__}
