"""One run and what became of its users, for the log, the metrics and the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from ansible_bootstrap.errors import Reason
from ansible_bootstrap.protocol import Outcome

RunOutcome = Literal["ok", "partial", "failed", "abandoned"]

_NOT_THE_USERS: Final[frozenset[Reason]] = frozenset({"settings", "unreachable", "timeout", "apply_failed"})
"""Where the only user of a run fails for one of these, it is the run that failed."""


@dataclass(slots=True)
class RunRecord:
    """One run, as it is kept."""

    run: str
    operation: str
    storage_host: str
    started: float
    """Seconds since the epoch."""
    users: int
    seconds: float = 0.0
    check: bool = False
    error: str = ""
    """Why users without an outcome of their own have failed, if there are any."""
    outcomes: list[Outcome] = field(default_factory=list)
    roles: dict[str, float] = field(default_factory=dict)
    """Seconds by role."""
    fetched: int = 0
    """How many sources were fetched from elsewhere."""
    way: str = ""
    """How it was done, as in ``protocol.End``; empty for one that broke off."""
    abandoned: bool = False
    """Whether it was stopped because nobody waited any more: that is nobody's failure."""

    @property
    def failed(self) -> int:
        """How many users failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    @property
    def outcome(self) -> RunOutcome:
        """What became of the run itself.

        ``failed`` is as a whole: it broke off, or none of several users got through, or what befell the only
        one has nothing to do with that user. ``partial``: some users failed.
        """
        if self.abandoned:
            return "abandoned"
        nobody = self.failed == len(self.outcomes) > 0
        if self.error or (nobody and (len(self.outcomes) > 1 or self.outcomes[0].reason in _NOT_THE_USERS)):
            return "failed"
        return "partial" if self.failed else "ok"

    @property
    def why(self) -> str:
        """Why it failed as a whole, or nothing."""
        if self.error or self.outcome != "failed":
            return self.error
        return next(outcome.message for outcome in self.outcomes)
