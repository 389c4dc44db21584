"""The configuration of a test's hub that lists its users, with tokens that may see more or fewer users."""

from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).with_name("hub_config.py")))  # noqa: F821

for name, scopes in {
    "names": ["list:users"],
    "groups": ["list:users", "read:users:groups"],
    "nothing": ["read:hub"],
}.items():
    c.JupyterHub.services.append({"name": name, "api_token": f"{name}-" * 8})
    c.JupyterHub.load_roles.append({"name": name, "services": [name], "scopes": scopes})
c.JupyterHub.load_roles[0]["scopes"].append("admin:groups")
c.JupyterHub.api_page_max_limit = 60
