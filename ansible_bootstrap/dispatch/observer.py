"""What the dispatcher tells about its runs. The hub's core and ``ansible-bootstrap run`` take what they keep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import ParamSpec

from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord

P = ParamSpec("P")


class Observer:
    """Takes no notice of anything; override what matters. All methods are called on the dispatcher's event loop.

    No method may block. The failure of an observer is never that of the users who wait: it is a line in the log, and
    where :meth:`before_cleanup` fails, the clean-up is put off.
    """

    def run_ended(self, record: RunRecord) -> None:
        """A run has ended, in whatever way."""

    def user_completed(
        self, place: Place, outcome: Outcome, fingerprints: Sequence[RoleFingerprint], since: float
    ) -> None:
        """A user has been bootstrapped (not: checked); called before the user's spawns go on.

        Args:
            place: the user's storage.
            outcome: whose status is ``ok``.
            fingerprints: of all roles, as of that run.
            since: as of when that is known, as ``time.monotonic``.
        """

    def cleanup_asked(self, place: Place) -> None:
        """A clean-up waits from now on. A hub that is killed before :meth:`cleanup_settled` owes it."""

    def cleanup_settled(self, place: Place) -> None:
        """That clean-up waits no longer: it is done, or the user's next server has made it needless."""

    async def before_cleanup(self, places: Sequence[Place]) -> None:
        """Make the users of these places unknown before their clean-up begins; ``FORGET_SECONDS`` at most."""


def tell(log: logging.Logger, notice: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a method of an observer; its failure is logged and goes no further."""
    try:
        notice(*args, **kwargs)
    except Exception:
        log.exception("ansible_bootstrap: what a run has done could not be noted")
