"""Turns what the playbook ``probe`` finds, or how it fails, into the answer to the operation ``probe``."""

from __future__ import annotations

import json

from ansible_bootstrap.protocol import Finding, Probed


class Probing:
    """The probe of one storage host; a run of Ansible fills it in as it does a ``Batch``."""

    def __init__(self, storage_host: str) -> None:
        self.over = False
        self.waiting = True
        """Whether nothing has been found yet."""
        self.answer = Probed(storage_host=storage_host)
        self._lost = ""

    def take(self, lines: list[bytes]) -> None:
        """Take lines of the outcomes file."""
        for line in lines:
            data = json.loads(line)
            kind = data.pop("type")
            if kind == "probed":
                self._end(Probed(storage_host=self.answer.storage_host, **data))
            elif kind == "lost":
                host = self.answer.storage_host
                self._lost = f"{host} does not answer: {data['message']}"
                if data["reason"] != "unreachable":
                    self._lost = f"{host}: {data['message']}"
            elif kind == "over":
                self.over = True

    def give_up(self, message: str, inventory: str = "") -> None:
        """Say why nothing was found out."""
        what = "; ".join(filter(None, (self._lost or message, inventory)))
        finding = Finding(level="error", what=what)
        self._end(Probed(storage_host=self.answer.storage_host, findings=(finding,)))

    def _end(self, answer: Probed) -> None:
        self.answer, self.waiting = answer, False
