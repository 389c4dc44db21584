"""The failures of ansible_bootstrap.

::

    AnsibleBootstrapError          message for the student, reason for metrics, details for the log
    ├── RefusedError               bad input: a name, a user, a request, a directory
    ├── UnresolvedError            nobody can say where this user's storage is, or whose it is
    ├── SettingsError              the admin's settings contradict themselves or cannot be read
    ├── UnreachableError           the storage host did not answer
    ├── RoleFailedError            a required role failed for this user
    ├── DeadlineError              not ready within ``c.AnsibleBootstrap.timeout``
    └── ApplyError                 the apply program could not be started, died, or spoke nonsense

In the hub these become :class:`ansible_bootstrap.BootstrapError` (``hub/failure.py``), which shows
``message`` on the spawn page and keeps ``details`` for the log.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, get_args

Reason = Literal["refused", "unresolved", "settings", "unreachable", "role_failed", "timeout", "apply_failed"]
"""Why a user was not bootstrapped: a fixed set, for it becomes a metric label."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class AnsibleBootstrapError(Exception):
    """Base of every failure.

    Args:
        details: for the admin's log; never shown to a student. It may quote role output.

    Attributes:
        message: one sentence that a student understands, and what to do about it. It never
            holds a path, a host name or anything that Ansible printed.
        reason: one of :data:`REASONS`.
    """

    reason: ClassVar[Reason] = "apply_failed"
    message: ClassVar[str] = (
        "Your storage could not be prepared. Please try again; if it fails again, tell your administrator."
    )

    def __init__(self, details: str = "") -> None:
        super().__init__(details or self.message)
        self.details = details


class RefusedError(AnsibleBootstrapError):
    """Input that the policy refuses: a username, a directory, a malformed request."""

    reason = "refused"
    message = "Your account's name or storage is not accepted here. Please tell your administrator."


class UnresolvedError(AnsibleBootstrapError):
    """The place of this user's storage, or its owner, cannot be told; details name the setting to make."""

    reason = "unresolved"
    message = "It is not configured where your storage is. Please tell your administrator."


class SettingsError(AnsibleBootstrapError):
    """The admin's settings cannot be used; details name the setting and the way out."""

    reason = "settings"
    message = "The preparation of your storage is misconfigured. Please tell your administrator."


class UnreachableError(AnsibleBootstrapError):
    """The storage host did not answer."""

    reason = "unreachable"
    message = "Your storage cannot be reached at the moment. Please try again in a few minutes."


class RoleFailedError(AnsibleBootstrapError):
    """A required role failed for this user; details have role, task, host, message and run id."""

    reason = "role_failed"


class DeadlineError(AnsibleBootstrapError):
    """The user was not ready within ``c.AnsibleBootstrap.timeout`` seconds."""

    reason = "timeout"
    message = "Preparing your storage takes longer than it should. Please try again in a few minutes."


class ApplyError(AnsibleBootstrapError):
    """The apply program could not be started, died, or did not keep to the protocol."""


BY_REASON: Final[dict[str, type[AnsibleBootstrapError]]] = {
    cls.reason: cls for cls in AnsibleBootstrapError.__subclasses__()
}
"""The class that stands for each reason of an outcome."""


class NowhereError(Exception):
    """Nothing is to be prepared for this user, by the admin's word; no failure, so not an AnsibleBootstrapError."""

    def __init__(self) -> None:
        super().__init__('c.AnsibleBootstrap.place says "nowhere": nothing is prepared for this user')


def reason_for_log(error: Exception) -> str:
    """Return what an admin should read of it."""
    details = error.details if isinstance(error, AnsibleBootstrapError) else ""
    return details or f"{type(error).__name__}: {error}"
