"""What the hub and the apply program say to each other.

The caller writes **one line** of JSON, a :class:`Request`, to the apply program's stdin and keeps
stdin open: its end means *stop*. The apply program answers on stdout with one JSON object a line:

==============  ===========================================================================
``accepted``    the request is valid; the run begins. Has ``run`` (the run's id), the fingerprints of
                all roles, and ``roles``: those that are left to apply.
``role``        a role begins for ``users`` users of the batch: progress, decides nothing.
``outcome``     the final :class:`Outcome` of one user, as soon as it is known, once per key.
``fetched``     a role downloaded ``count`` sources for the batch: for metrics, decides nothing.
``described``   the answer to ``describe``, and the only line.
``probed``      the answer to ``probe``: what a storage host's storage root is, and what is wrong with it.
``refused``     nothing was or will be done; has ``reason`` and ``message``.
``end``         the last line, after every user's outcome; has the counts.
==============  ===========================================================================

Both sides validate; neither trusts the other. A user for whom no outcome came has failed.
stderr carries the apply program's log, for the admin only.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ansible_bootstrap.errors import Reason, RefusedError
from ansible_bootstrap.storage._names import check_directory, check_group, check_host, check_key, check_name
from ansible_bootstrap.storage._users import MAX_ALSO

SPARE: Final = "--spare"
"""Argument of the apply program that has it start Ansible ahead, and wait for its request without limit."""

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
"""A request line longer than this is refused unread. 10,000 users are about 3 MiB."""

MAX_USERS: Final = 20_000
"""Most users in one request."""

MAX_ID: Final = 2**32 - 2
"""Largest uid or gid: 2**32 - 1 means "leave as it is" to chown(2)."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class User(_Wire):
    """One user of a batch; the same fields everywhere (request, ``bootstrap_users``, module results).

    Who gives only ``name`` gets the rest filled in by the side that owns the settings. Strings are
    checked by the one name policy, ``plugins/module_utils/_names.py``.
    """

    name: Annotated[str, AfterValidator(check_name)]
    """The hub's username."""
    key: Annotated[str, AfterValidator(lambda key: key and check_key(key))] = ""
    """Unique in the request, the caller's choice; the name if not given."""
    directory: Annotated[str, AfterValidator(check_directory)] | None = None
    """Absolute path of the user's directory on the storage host."""
    uid: Annotated[int, Field(ge=0, le=MAX_ID)] | None = None
    gid: Annotated[int, Field(ge=0, le=MAX_ID)] | None = None
    also: tuple[Annotated[str, AfterValidator(check_directory)], ...] = Field(
        default=(), max_length=MAX_ALSO, strict=False
    )
    """Further directories of the user's, with the same owner: the role ``user_dir`` makes them, no other sees them."""
    storage_host: Annotated[str, AfterValidator(check_host)] | None = None
    """A host of the inventory; never a group or a pattern."""
    groups: tuple[Annotated[str, AfterValidator(check_group)], ...] = Field(
        default=(), max_length=1000, strict=False
    )
    """The user's hub groups, for roles that want them."""

    @model_validator(mode="after")
    def _default_key(self) -> User:
        if not self.key:
            object.__setattr__(self, "key", self.name)
        return self


Operation = Literal["bootstrap", "cleanup", "describe", "probe"]


class Request(_Wire):
    """One operation on one batch.

    ``users`` are kept raw here: one bad user must not cost the others, so each is validated by
    :func:`parse_users` alone.
    """

    operation: Operation
    users: list[Any] = Field(default_factory=list, max_length=MAX_USERS)
    check: bool = False
    """Predict, write nothing (Ansible's check mode)."""
    diff: bool = False
    """Log what would differ, on stderr."""
    done: dict[str, str] = Field(default_factory=dict, max_length=1000)
    """Of a bootstrap: roles that all of these users have, with the fingerprint at which they got them. Those whose
    fingerprint still is that are left out; only the apply program can tell."""


class Outcome(_Wire):
    """What became of one user. ``ansible-bootstrap run --json`` prints a list of these."""

    key: str
    name: str
    status: Literal["ok", "failed"]
    changed: tuple[str, ...] = Field(default=(), strict=False)
    """The roles that changed something (in check mode: would have)."""
    failed_role: str | None = None
    """The required role that failed, if it was a role."""
    message: str = ""
    """Why it failed, for the admin: role output may be quoted, control characters are escaped."""
    storage_host: str = ""
    directory: str = ""
    seconds: float = 0.0
    """From the start of the run to this outcome."""
    reason: Reason | None = None
    failed_task: str | None = None
    run: str = ""
    """The id of the run, as in the log."""
    notes: tuple[str, ...] = Field(default=(), strict=False)
    """What did not stop the user but the admin should know: "tutorials: mirror did not answer"."""
    continued: tuple[str, ...] = Field(default=(), strict=False)
    """Roles that failed under ``on_failure: continue``: the student is told that they are missing."""


class RoleFingerprint(_Wire):
    """What a role's being done depends on, as a hash; equal means nothing we can see has changed."""

    role: str
    fingerprint: str
    revised: bool
    """Whether that covers all; if not, the role must look for itself each time."""


class Accepted(_Wire):
    """The run begins."""

    event: Literal["accepted"] = "accepted"
    run: str
    storage_host: str
    roles: tuple[str, ...] = Field(default=(), strict=False)
    """Short names of the roles that are applied, in order: not those that all have already."""
    fingerprints: tuple[RoleFingerprint, ...] = Field(default=(), strict=False)
    """Of all roles of a bootstrap, as of this run."""


class RoleStarted(_Wire):
    """A role begins for so many users of the batch."""

    event: Literal["role"] = "role"
    role: str
    users: int


class Fetched(_Wire):
    """A role downloaded so many sources for the batch; what the cache had or the server called unchanged is none."""

    event: Literal["fetched"] = "fetched"
    role: str
    count: Annotated[int, Field(ge=0)]


class OutcomeEvent(_Wire):
    """One user is final."""

    event: Literal["outcome"] = "outcome"
    outcome: Outcome


class Refused(_Wire):
    """Nothing was done."""

    event: Literal["refused"] = "refused"
    reason: Reason
    message: str


class Described(_Wire):
    """The answer to ``describe``."""

    event: Literal["described"] = "described"
    roles: tuple[RoleFingerprint, ...] = Field(strict=False)


class Finding(_Wire):
    """One thing that ``ansible-bootstrap doctor`` has found."""

    level: Literal["error", "warning"]
    what: str
    """One sentence for the admin."""
    mend: str = ""
    """The command or the setting that mends it."""


class Probed(_Wire):
    """The answer to ``probe``: one for the storage host of the request's first user, or the default one."""

    event: Literal["probed"] = "probed"
    storage_host: str
    about: dict[str, str] = Field(default_factory=dict)
    """What was seen, by a short name: ``python``, ``filesystem``, ``owner``, ``kind``."""
    findings: tuple[Finding, ...] = Field(default=(), strict=False)


class End(_Wire):
    """The last line."""

    event: Literal["end"] = "end"
    run: str
    ok: int
    failed: int
    way: str = ""
    """How it was done: ``spare`` (Ansible was started ahead) or ``cold``; ``worker``, ``ansible`` or both (how the
    modules of built-in roles ran), ``server`` or ``ansible`` (those of roles as the user). Like ``spare+worker``;
    empty: nothing was left to do."""


Event = Accepted | RoleStarted | Fetched | OutcomeEvent | Refused | Described | Probed | End
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes) -> Event:
    """Parse one line of the apply program's stdout.

    Raises:
        ValueError: the line is none of the events above.
    """
    return _EVENT.validate_json(line)


def parse_request(line: bytes) -> Request:
    """Parse a request line strictly: unknown, missing and duplicate keys are refused.

    Raises:
        RefusedError: with the rule that was broken.
    """
    if len(line) > MAX_REQUEST_BYTES:
        raise RefusedError(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
    if not line.endswith(b"\n"):
        raise RefusedError("the request did not end with a newline: it was cut short")
    try:
        raw = json.loads(line.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        return Request.model_validate(raw)
    except ValidationError as error:
        raise RefusedError(f"malformed request: {describe_validation(error)}") from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"malformed request: {error}") from None


def parse_users(raw: list[Any]) -> tuple[list[User], list[Outcome]]:
    """Validate each user alone.

    Returns:
        The good users, and a failed outcome (reason ``refused``) for each of the others. A key that
        repeats is refused at its second use; a bad user without a usable key is known by its place,
        ``#3``.
    """
    good: list[User] = []
    refused: list[Outcome] = []
    seen: set[str] = set()
    for place, item in enumerate(raw, start=1):
        try:
            user = User.model_validate(item)
            if user.key in seen:
                raise ValueError("its key repeats an earlier one")
        except ValueError as error:
            why = describe_validation(error) if isinstance(error, ValidationError) else str(error)
            key, name = _labels(item, f"#{place}", seen)
            seen.add(key)
            refused.append(Outcome(key=key, name=name, status="failed", reason="refused", message=why))
            continue
        seen.add(user.key)
        good.append(user)
    return good, refused


def describe_validation(error: ValidationError) -> str:
    """Say in one line what is wrong, without repeating hostile input."""
    problems = []
    for item in error.errors(include_url=False, include_input=False, include_context=False)[:5]:
        where = ".".join(str(part)[:40] for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        problems.append(f"{ascii(where)[1:-1]}: {text}" if where else text)
    return "; ".join(problems)


def _labels(item: Any, fallback: str, seen: set[str]) -> tuple[str, str]:
    """A key and a name under which a refused user can be reported."""
    key: Any = fallback
    name: Any = fallback
    if isinstance(item, dict):
        name = item.get("name", fallback)
        key = item.get("key") or name
    label = name if isinstance(name, str) else fallback
    if not isinstance(key, str) or not key or len(key) > 4096 or key in seen or key.startswith("#"):
        key = fallback
    return _printable(key), _printable(label)[:200]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
