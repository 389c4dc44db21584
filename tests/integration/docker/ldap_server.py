"""A directory service of the tests' own: ``slapd`` on a free port of 127.0.0.1, with users who have no local account."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

PEOPLE = "ou=people,dc=example,dc=org"

CONFIGURATION = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {path}/slapd.pid
database mdb
suffix "dc=example,dc=org"
directory {path}/data
access to attrs=userPassword by anonymous auth by * none
access to * by self read by * none
"""

TREE = """\
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people
"""

PERSON = """
dn: uid={name},ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: {name}
cn: {name}
sn: {name}
userPassword: {password}
"""


def password(name: str) -> str:
    return f"the password of {name}"


class LdapServer:
    """A running ``slapd``."""

    def __init__(self, path: Path, users: tuple[str, ...]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        (path / "data").mkdir()
        configuration, tree = path / "slapd.conf", path / "tree.ldif"
        configuration.write_text(CONFIGURATION.format(path=path))
        people = [PERSON.format(name=name, password=password(name)) for name in users]
        tree.write_text(TREE + "".join(people))
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run(["slapadd", "-f", configuration, "-l", tree], env=environment, check=True, timeout=30)
        self._log = path / "slapd.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # Should the tests themselves be killed, it ends too. With -d it stays in the foreground.
                f"setpriv --pdeathsig TERM slapd -d 0 -f {configuration} -h ldap://127.0.0.1:{self.port}".split(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        end = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, self._log.read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
