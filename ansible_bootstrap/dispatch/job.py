"""One user's directory on one storage host that is to be made ready, and the waiters for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from ansible_bootstrap.dispatch.turnstile import Turnstile
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome

Say = Callable[[str, float], None]
"""Shows a waiting student one sentence, and which share of the work is done (0.0 to 1.0); must neither block nor
raise."""

JobKey = tuple[str, str]
"""``Place.job_key``."""

UserKey = tuple[str, str]
"""Storage host and name."""

NOTHING_DONE: Final[Mapping[str, str]] = MappingProxyType({})


class Waiter(Protocol):
    """A spawn, or a row of a roster, that waits for the outcome of a job."""

    done: Mapping[str, str]
    """Roles that the user has, with the fingerprint at which they got them."""

    @property
    def say(self) -> Say:
        """Shows where the job is."""

    def settle(self, answer: Outcome | AnsibleBootstrapError) -> None:
        """Take what became of the job; must neither block nor raise."""


@dataclass(eq=False, slots=True)
class Spawn:
    """A spawn that waits for its outcome, with a future of its own."""

    future: asyncio.Future[None]
    """Done when the spawn may go on."""
    say: Say
    done: Mapping[str, str]
    turnstile: Turnstile
    answer: Outcome | AnsibleBootstrapError | None = None
    """What became of the job, from the moment that it is known."""

    def settle(self, answer: Outcome | AnsibleBootstrapError) -> None:
        """Let the spawn go on with this, when its turn has come."""
        self.answer = answer
        self.turnstile.let_through(self.future)


@dataclass(eq=False, slots=True)
class Job:
    """What is to be done once, however many want it."""

    place: Place
    waiters: list[Waiter] = field(default_factory=list)
    login: Mapping[str, str] | None = None
    """If a login began the job, which is then wanted without a waiter, too: the roles that the user had then."""
    since: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    """What is known of the user was looked up no later than this."""
    behind: int = 0
    """How many others the waiters were last told to wait for."""

    @property
    def wanted(self) -> bool:
        """Whether a waiter or a login wants it."""
        return bool(self.waiters) or self.login is not None

    @property
    def done(self) -> dict[str, str]:
        """The roles that the user has according to all its waiters, and its login."""
        said = [waiter.done for waiter in self.waiters]
        return _common(said if self.login is None else [*said, self.login])

    def doubt(self) -> None:
        """What was known of the user is so no longer."""
        for waiter in self.waiters:
            waiter.done = NOTHING_DONE
        if self.login is not None:
            self.login = NOTHING_DONE

    def say(self, text: str, share: float = 0.0) -> None:
        """Show all waiters a sentence."""
        for waiter in self.waiters:
            waiter.say(text, share)

    def settle(self, outcome: Outcome) -> None:
        """Release all waiters."""
        for waiter in self.waiters:
            waiter.settle(outcome)

    def fail(self, cls: type[AnsibleBootstrapError], details: str) -> None:
        """Release all waiters with a failure; one exception each, for a raised one grows."""
        for waiter in self.waiters:
            waiter.settle(cls(details))


def user_key(place: Place) -> UserKey:
    """Return the user of a place, in whichever directory."""
    return place.storage_host, place.name


def done_by_all(jobs: Iterable[Job]) -> dict[str, str]:
    """Return the roles that the users of all these jobs have at the same fingerprint."""
    return _common(job.done for job in jobs)


def _common(said: Iterable[Mapping[str, str]]) -> dict[str, str]:
    common: set[tuple[str, str]] | None = None
    for done in said:
        common = set(done.items()) if common is None else common & done.items()
        if not common:
            return {}
    return dict(sorted(common or ()))
