"""Users of an LDAP directory, servers in Docker, and a directory for each that its user can write in."""

from ansible_bootstrap import setup

c = get_config()

# Users log in with their LDAP password; none of them has an account on this machine.
c.JupyterHub.authenticator_class = "ldapauthenticator.LDAPAuthenticator"
c.LDAPAuthenticator.server_address = "ldap.example.org"
c.LDAPAuthenticator.bind_dn_template = ["uid={username},ou=people,dc=example,dc=org"]
c.Authenticator.allow_all = True

# Their servers run as uid 1000, gid 100, whoever they are; the container goes, the volume stays.
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.JupyterHub.hub_ip = "0.0.0.0"
c.DockerSpawner.image = "quay.io/jupyter/base-notebook:latest"
c.DockerSpawner.remove = True
c.DockerSpawner.volumes = {"/volumes/jupyterhub/{username}": {"bind": "/home/jovyan", "mode": "rw"}}

# Without what follows, Docker makes the volume's directory, as root's, and nobody can save a notebook.
c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100
c.AnsibleBootstrap.roles = [
    "user_dir",
    {"role": "tutorials", "on_failure": "continue"},
]
c.AnsibleBootstrap.cleanup_roles = ["cleanup"]  # after the user's last server stopped
c.AnsibleBootstrap.extra_vars = {
    "tutorials_sources": [{"name": "course", "path": "/srv/course", "dest": "tutorials"}],
    "cleanup_paths": ["scratch/*.tmp"],
}

setup(c)
