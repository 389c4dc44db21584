"""The one exception that leaves a hook: a sentence for the student, a reason for metrics, nothing else."""

from __future__ import annotations

import html
from typing import Any

from jupyterhub.utils import url_escape_path, url_path_join

from ansible_bootstrap.errors import AnsibleBootstrapError

try:
    from jupyterhub.spawner import SpawnException as _HubError

    _COUNTED = False
except ImportError:
    from tornado.web import HTTPError as _HubError

    _COUNTED = True
"""Whether each failed spawn counts towards ``consecutive_failure_limit``, at which the hub ends: JupyterHub 5.
Source: ``BaseHandler.spawn_single_user``, ``_track_failure_count``."""


class BootstrapError(_HubError):  # type: ignore[misc, unused-ignore]
    """What leaves the hook: shows one sentence on the spawn page, in the progress and in the API.

    Attributes:
        jupyterhub_message: that sentence.
        reason: one of ``errors.REASONS``; the hub makes it a label of its metrics.
        status_code: 503.

    Args:
        error: what went wrong.
        again: where a student who is told to try again may do so: the page itself offers only to stop the server.
    """

    def __init__(self, error: AnsibleBootstrapError, again: str = "") -> None:
        if not _COUNTED:
            super().__init__(error.message, reason=error.reason, status_code=503)
        else:
            super().__init__(503, error.message, reason=error.reason)
        self.jupyterhub_message = error.message
        link = f'<a href="{html.escape(again)}">try again</a>' if again else "try again"
        self.jupyterhub_html_message = html.escape(error.message).replace("try again", link, 1)


def shown(spawner: Any, error: AnsibleBootstrapError) -> BootstrapError:
    """Log the details in one line for the admin, and return what the user may see."""
    if _COUNTED:
        _take_back_the_count()
    spawner.log.error(
        "ansible_bootstrap: %s not started (%s): %s", log_name(spawner), error.reason, why(error)
    )
    return BootstrapError(error, _spawn_url(spawner))


def _take_back_the_count() -> None:
    """The hub is about to count one failure more."""
    from jupyterhub.app import JupyterHub  # noqa: PLC0415 - heavy, and loaded wherever there is a hub

    if JupyterHub.initialized():
        settings = JupyterHub.instance().tornado_application.settings
        settings["failure_count"] = settings.get("failure_count", 0) - 1


def _spawn_url(spawner: Any) -> str:
    """Return the path that starts this very server; none for what is no spawner of a hub."""
    hub = getattr(spawner, "hub", None)
    if hub is None:
        return ""
    server = [url_escape_path(spawner.name)] if spawner.name else []
    return str(url_path_join(hub.base_url, "spawn", spawner.user.escaped_name, *server))


def log_name(spawner: Any) -> str:
    """User and server for a line of the log: who has a token of their own names servers as they like."""
    return one_line(str(spawner._log_name))


def why(error: BaseException) -> str:
    """One line for the log, without control characters, of bounded length."""
    if isinstance(error, AnsibleBootstrapError):
        return one_line(error.details or error.message)
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """Text without control characters, of bounded length."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:2000])
