"""One user's storage, as the hub's side speaks of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from pydantic import ValidationError

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.protocol import User, describe_validation
from ansible_bootstrap.storage._names import NameRefusedError, check_hub_name, sent_name


@dataclass(frozen=True)
class Place:
    """One user's storage: where it is and who owns it. None is for the apply side to fill in.

    A place is checked when it is made, so nothing that holds one checks it again on the hub's side.

    Raises:
        RefusedError: name, directory, host, ids or groups are not acceptable.
    """

    name: str
    """The hub's username."""
    directory: str | None = None
    """Absolute path on the storage host, as the server will see it mounted."""
    uid: int | None = None
    gid: int | None = None
    storage_host: str = ""
    """A host of the inventory; empty means ``c.AnsibleBootstrap.storage_host``."""
    groups: tuple[str, ...] = ()
    server_name: str = field(default="", compare=False)
    """For the log: named servers that share a directory share the work."""
    account: str = ""
    """The system account that the servers run as, where it is not called as the user."""
    also: tuple[str, ...] = ()
    """Further directories of the user's on the storage host, with the same owner: the server mounts them, too."""

    def __post_init__(self) -> None:
        if isinstance(self.directory, str):  # A spawner's template may end in a slash.
            object.__setattr__(self, "directory", self.directory.rstrip("/") or self.directory)
        if all(isinstance(text, str) for text in self.also):
            others = {text.rstrip("/") or text for text in self.also}
            object.__setattr__(self, "also", tuple(sorted(others - {self.directory})))
        self._user()

    def to_json(self) -> str:
        """Return it as text, for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place | None:
        """Return the place of a text; None if the text is not that of an acceptable place."""
        try:
            said = json.loads(text)
            return cls(**{**said, "groups": tuple(said["groups"]), "also": tuple(said["also"])})
        except (ValueError, TypeError, KeyError, RefusedError):
            return None

    @property
    def work(self) -> tuple[str, str]:
        """The storage host and the user's directories; the name for a first one that only the apply side knows."""
        return self.storage_host, "\n".join((self.directory or self.name, *self.also))

    @property
    def job_key(self) -> tuple[str, str]:
        """Equal for two places whose bootstraps are the same job: the same directories, and the same name sent.

        Two users with one directory are two jobs, so that the storage host sees both names and refuses the second.
        """
        host, directories = self.work
        return host, f"{self.sent_name}\n{directories}"

    @property
    def sent_name(self) -> str:
        """The name by which the apply program knows the user: the account's, or what it can be told of the hub's."""
        return self.account or sent_name(self.name)

    def user(self, key: str = "") -> User:
        """The user as the apply program wants it.

        Raises:
            RefusedError: a name that is not sent as it is needs a directory.
        """
        if self.directory is None and self.sent_name != self.name:
            raise RefusedError(f"{self.name!a} needs a directory, for the name is not sent as it is")
        return self._user(key)

    def _user(self, key: str = "") -> User:
        try:
            check_hub_name(self.name)
            return User(
                name=self.sent_name,
                key=key,
                directory=self.directory,
                uid=self.uid,
                gid=self.gid,
                also=self.also,
                storage_host=self.storage_host or None,
                groups=self.groups,
            )
        except NameRefusedError as error:
            raise RefusedError(str(error)) from None
        except ValidationError as error:
            raise RefusedError(describe_validation(error)) from None
